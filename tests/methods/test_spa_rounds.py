"""SPA: what a round is made of, that it is DPO on its own labels, and that it resumes to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.data import PreferenceData, PromptData
from lit_align.data.mini_instruct import gold
from lit_align.errors import UserError
from lit_align.feedback import Judge, MiniInstructGold, RewardJudge
from lit_align.losses import DPO as DPOLoss
from lit_align.losses.spa import ReleasedThreshold, SelfRefinement
from lit_align.methods import DPO, SFT, Schedule
from lit_align.methods.spa import SPA
from lit_align.methods.spa_stages import SeedPairs
from lit_align.models import LoRAConfig, ModelConfig, Sampling, load_policy
from lit_align.rollout import RolloutConfig

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed", "ignore:Checkpoint directory .* exists and is not empty"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
SCHEDULE = Schedule(warmup=0.3, decay="cosine")
BETA = 0.5


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


class Trace(Callback):
    """Metrics of every optimiser step, and what every batch was."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.batches: list[Any] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append(batch.batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        timed = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.steps.append({name: value for name, value in timed.items() if "/time/" not in name})


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    module.configure_model()
    folder: Path = tmp_path_factory.mktemp("spa") / "start"
    module.export(folder)
    return folder


def seed_pairs(rows: int = 20, epochs: int = 2) -> SeedPairs:
    return SeedPairs(PreferenceData("mini_instruct", max_rows=rows, batch_size=8, seed=5), epochs)


def build(start: Path, **settings: Any) -> SPA:
    rounds = settings.get("prompts_per_round", [32, 32])
    defaults: dict[str, Any] = {
        "prompts_per_round": rounds,
        "seed": seed_pairs(),
        "beta": BETA,
        "refinement": SelfRefinement(lambdas=(0.5, 0.25)[: len(rounds)]),
        "rollout": RolloutConfig(max_new_tokens=5, sampling=Sampling(temperature=0.7)),
        "optimizer": adamw,
        "lr_scheduler": SCHEDULE,
    }
    return SPA(ModelConfig(str(start)), **(defaults | settings))


def fit(module: Any, folder: Path, seed: int = 3, prompts: int = 80, val: str | None = None, **settings: Any) -> Trace:
    seed_everything(seed, verbose=False)
    trace = Trace()
    options: dict[str, Any] = {"max_epochs": 1, "enable_checkpointing": False, "logger": False} | settings
    ckpt_path = options.pop("ckpt_path", None)
    options["callbacks"] = [trace, *settings.get("callbacks", [])]
    trainer = Trainer(
        accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **options
    )
    data = PromptData(train="mini_instruct", val=val, max_rows=prompts, batch_size=8, val_batch_size=val and 100)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return trace


def rows(folder: Path, number: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"rounds/round_{number}.rank0.jsonl").read_text().splitlines()]


class Served(torch.utils.data.Dataset):
    """Batches that another run was served, in its order."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


def dpo_on(batches: list[Any], policy: Path, folder: Path) -> None:
    """One epoch of plain DPO on batches, from a model that is also the reference; the result goes to a folder."""
    seed_everything(0, verbose=False)
    module = DPO(ModelConfig(str(policy)), loss=DPOLoss(BETA), optimizer=adamw, lr_scheduler=SCHEDULE)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(Served(batches), batch_size=None))
    module.export(folder)


def weights(folder: Path) -> list[torch.Tensor]:
    return list(load_policy(ModelConfig(str(folder))).parameters())


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_without_refinement_every_stage_is_dpo_to_the_last_bit(start, tmp_path):
    """Also proves that optimiser, schedule and reference begin anew: each DPO is another run."""
    trace = fit(build(start, refinement=None), tmp_path)
    stages = {0: trace.batches[:6], 1: trace.batches[6:10], 2: trace.batches[10:]}
    policy = start
    for number, batches in stages.items():
        policy_after = tmp_path / f"dpo{number}"
        dpo_on(batches, policy, policy_after)
        for a, b in zip(weights(policy_after), weights(tmp_path / f"rounds/round_{number}"), strict=True):
            assert torch.equal(a, b), number
        policy = policy_after


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_the_file_of_a_round_is_what_was_trained_on(start, tmp_path):
    module = build(start, refinement=None, seed=None, judge=RewardJudge(MiniInstructGold()), prompts_per_round=[32])
    trace = fit(module, tmp_path)
    written = rows(tmp_path, 1)
    assert len(written) == 32
    for row in written:
        difference = gold(row["prompt"], row["responses"][0]) - gold(row["prompt"], row["responses"][1])
        assert row["scores"][0] == pytest.approx(1 / (1 + 2.718281828**-difference), abs=1e-5)
        assert row["winner"] == (None if difference == 0 else int(difference < 0))
    served = {int(row): batch.scores.view(-1, 2)[i] for batch in trace.batches for i, row in enumerate(batch.rows)}
    assert len(served) == 32
    expected = torch.tensor([row["scores"] for row in written])
    torch.testing.assert_close(torch.stack(list(served.values())).sort(0).values, expected.sort(0).values)
    # The project reads its own file again, but for answers that are an EOS alone.
    read = PreferenceData(str(tmp_path / "rounds/round_1.rank0.jsonl"), tokenizer=str(start), on_bad_row="skip")
    read.setup("fit")
    readable = [row for row in written if all(row["responses"])]
    assert len(read._encoded["train"]) == sum(row["winner"] is not None for row in readable) > 10


def test_prompts_of_rounds_are_disjoint_and_in_order(start, tmp_path):
    module = build(start)
    trace = fit(module, tmp_path, prompts=80)
    of_round = [{int(row) for batch in trace.batches[a:b] for row in batch.rows} for a, b in ((6, 10), (10, 14))]
    assert list(map(len, of_round)) == [32, 32]
    assert not of_round[0] & of_round[1]
    data = PromptData("mini_instruct", max_rows=80, batch_size=8, tokenizer=str(start))
    data.setup("fit")
    order = [row for batch in data.train_dataloader() for row in batch.rows]
    assert [set(order[:32]), set(order[32:64])] == of_round


@pytest.mark.parametrize("judging_reference", ["sft", "previous", "none"])
def test_the_judgement_by_hand(judging_reference, start, tmp_path):
    """From the models that the run kept: round 2 was sampled by round 1's, which began with round 0's."""
    trace = fit(build(start, judging_reference=judging_reference), tmp_path)
    kept = {"policy": tmp_path / "rounds/round_1", "sft": start, "previous": tmp_path / "rounds/round_0"}
    models = {name: load_policy(ModelConfig(str(path))).eval() for name, path in kept.items()}

    def logps(name: str, ids: torch.Tensor, length: int) -> float:
        """Of the last tokens of a row, so many, by the model as transformers runs it."""
        with torch.no_grad():
            every = models[name](ids[None]).logits[0].double().log_softmax(-1)
        return sum(every[at - 1, ids[at]].item() for at in range(len(ids) - length, len(ids)))

    for batch in trace.batches[10:]:
        rows_of = zip(batch.model_inputs["input_ids"], batch.model_inputs["attention_mask"].sum(1), strict=True)
        answers = [ids[:length] for ids, length in rows_of]
        ratios = []
        for ids, length in zip(answers, batch.response_lengths.tolist(), strict=True):
            reference = 0.0 if judging_reference == "none" else logps(judging_reference, ids, length)
            ratios.append(logps("policy", ids, length) - reference)
        for i in range(0, len(answers), 2):
            same = torch.equal(answers[i], answers[i + 1]) if len(answers[i]) == len(answers[i + 1]) else False
            expected = 0.5 if same else torch.sigmoid(torch.tensor(BETA * (ratios[i] - ratios[i + 1]))).item()
            assert batch.scores[i].item() == pytest.approx(expected, abs=1e-4)
            assert batch.scores[i + 1].item() == pytest.approx(1 - expected, abs=1e-4)


def test_models_have_their_roles(start, tmp_path):
    module = build(start)
    fit(module, tmp_path)
    expected = {"policy": tmp_path / "rounds/round_2", "previous": tmp_path / "rounds/round_1", "sft": start}
    found = {"policy": module.policy, "previous": module.previous, "sft": module.reference_model()}
    for name, model in found.items():
        assert all(map(torch.equal, model.parameters(), weights(expected[name]))), name
    assert not any(key.startswith("reference") for key in module.state_dict())
    assert len(module.trainer.optimizers[0].param_groups[0]["params"]) == len(list(module.policy.parameters()))


class Undecided(Judge):
    def __call__(self, first, second):
        return torch.full((len(first),), 0.5)


def test_ties_teach_nothing(start, tmp_path):
    module = build(start, seed=None, judge=Undecided(), prompts_per_round=[32], optimizer=torch.optim.Adam)
    trace = fit(module, tmp_path, gradient_clip_val=1.0)
    assert all(map(torch.equal, module.policy.parameters(), weights(start)))
    assert trace.steps[-1]["train/ties"] == 1
    assert {row["winner"] for row in rows(tmp_path, 1)} == {None}


class FirstWins(Judge):
    def __call__(self, first, second):
        return torch.full((len(first),), 0.9)


def test_identical_answers_tie_whatever_the_judge_says(start, tmp_path):
    greedy = RolloutConfig(max_new_tokens=5, sampling=Sampling(top_k=1))
    module = build(
        start, seed=None, judge=FirstWins(), prompts_per_round=[32], rollout=greedy, optimizer=torch.optim.Adam
    )
    trace = fit(module, tmp_path)
    assert trace.steps[-1]["train/identical"] == trace.steps[-1]["train/ties"] == 1
    assert all(map(torch.equal, module.policy.parameters(), weights(start)))


def test_lambda_0_asks_the_policy_itself(start, tmp_path, monkeypatch):
    def never(*args: Any) -> None:
        raise AssertionError("lambda = 0 needs no extrapolation")

    monkeypatch.setattr("lit_align.methods.spa.extrapolated_logps", never)
    refinement = SelfRefinement(lambdas=(0.0, 0.0), warmup=0.0)
    trace = fit(build(start, refinement=refinement), tmp_path)
    for step in trace.steps[6:]:
        assert step["train/flipped"] == pytest.approx(1 - step["train/rewards/accuracy"], abs=1e-6) or step[
            "train/rewards/margin"
        ] == pytest.approx(0, abs=1e-6)


def test_what_is_logged_of_noise(start, tmp_path):
    refinement = SelfRefinement(alpha=0.2, warmup=0.5, lambdas=(0.5, 0.25))
    steps = fit(build(start, refinement=refinement, gold=MiniInstructGold()), tmp_path, val="mini_instruct").steps
    assert [step["train/round"] for step in steps] == [0] * 6 + [1] * 4 + [2] * 4
    assert not any("train/alpha" in step for step in steps[:6])
    assert [step["train/alpha"] for step in steps[6:]] == pytest.approx([0.0, 0.0, 0.2, 0.2] * 2)
    for first in (6, 10):
        assert steps[first]["train/loss"] == pytest.approx(0.693147, abs=1e-5)
        assert steps[first]["train/threshold"] == -float("inf")
        assert steps[first]["train/noisy"] == 0
        assert steps[first + 1]["train/threshold"] == pytest.approx(0, abs=1e-5)
    written = rows(tmp_path, 2)
    labelled = [row for row in written if row["winner"] is not None]
    better = [(row["gold"][row["winner"]] - row["gold"][1 - row["winner"]]) for row in labelled]
    agreement = sum(1.0 if x > 0 else 0.5 if x == 0 else 0.0 for x in better) / len(labelled)
    assert steps[-1]["train/gold/agreement"] == pytest.approx(agreement, abs=1e-6)
    assert steps[-1]["train/ties"] == pytest.approx(1 - len(labelled) / 32, abs=1e-6)


@pytest.mark.parametrize("threshold", ["global", pytest.param("released", marks=pytest.mark.slow)])
def test_every_checkpoint_leads_to_the_same_end(threshold, start, tmp_path):
    """In the seed, in a round and at both boundaries; with accumulated batches."""

    def run(folder: Path, ckpt_path: Path | None = None) -> tuple[Trace, SPA]:
        more = {"threshold": ReleasedThreshold()} if threshold == "released" else {}
        refinement = SelfRefinement(lambdas=(0.5, 0.25), warmup=0.0, **more)
        module = build(start, refinement=refinement, gold=MiniInstructGold(), keep_rounds=False)
        keep = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trace = fit(
            module, folder, seed=3 if ckpt_path is None else 99, ckpt_path=ckpt_path, callbacks=[keep],
            enable_checkpointing=True, accumulate_grad_batches=2, val="mini_instruct", val_check_interval=6,
        )  # fmt: skip
        return trace, module

    whole, trained = run(tmp_path / "whole")
    found = sorted((tmp_path / "whole/checkpoints").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert len(found) == 3 + 2 + 2
    for done, checkpoint in list(enumerate(found, start=1))[1:5]:
        trace, module = run(tmp_path / checkpoint.stem, checkpoint)
        for resumed, expected in zip(trace.steps, whole.steps[2 * done :], strict=True):
            assert resumed == {name: expected[name] for name in resumed}, checkpoint.name
        for key, value in trained.state_dict().items():
            assert torch.equal(module.state_dict()[key], value), f"{checkpoint.name}: {key}"
        for number in (1, 2):
            again = tmp_path / checkpoint.stem / f"rounds/round_{number}.rank0.jsonl"
            if again.exists():
                assert again.read_text() == (tmp_path / f"whole/rounds/round_{number}.rank0.jsonl").read_text()


def on_a_rank(start: Path, folder: Path) -> dict[str, Any]:
    """The second rank's seed is one pair short, and one of its prompts ties."""
    seed = SeedPairs(PreferenceData("mini_instruct", max_rows=9, batch_size=4), 2)
    refinement = SelfRefinement(lambdas=(0.5, 0.25), warmup=0.0)
    module = build(start, seed=seed, refinement=refinement)
    trace = fit(module, folder, devices=2, strategy="ddp", prompts=80)
    return {
        "metrics": trace.steps,
        "parameters": [p.detach().clone() for p in module.parameters()],
        "seen": module._seen,
    }


@pytest.mark.slow
def test_two_ranks(start, tmp_path, on_two_ranks):
    first, second = on_two_ranks(on_a_rank, start, tmp_path)
    assert first["metrics"] == second["metrics"]
    assert all(map(torch.equal, first["parameters"], second["parameters"]))
    assert all(map(torch.equal, first["seen"], second["seen"]))
    assert all(step["train/loss"] == step["train/loss"] for step in first["metrics"])
    for number in (1, 2):
        pairs = [(tmp_path / f"rounds/round_{number}.rank{rank}.jsonl").read_text().splitlines() for rank in range(2)]
        assert list(map(len, pairs)) == [16, 16]


class Fixed(SPA):
    """Rounds that do not depend on who samples what: two answers that are a function of the prompt's row."""

    def collect(self, batches):
        rollout = super().collect(batches)
        generator = torch.Generator()
        groups = []
        for group in rollout.groups:
            generator.manual_seed(group.row)
            answers = [[*torch.randint(3, 18, (3,), generator=generator).tolist(), 1] for _ in range(2)]
            groups.append(group._replace(responses=answers, scores=[0.7, 0.3]))
        rollout.groups = sorted(groups, key=lambda group: group.row)
        return rollout


def fixed_run(start: Path, folder: Path, batch_size: int, **settings: Any) -> dict[str, Any]:
    """One optimiser step a round, on all of its prompts."""
    module = Fixed(
        ModelConfig(str(start)), [16, 16], judge=FirstWins(), beta=BETA, keep_rounds=False,
        refinement=SelfRefinement(lambdas=(0.5, 0.25), warmup=0.0),
        rollout=RolloutConfig(max_new_tokens=5), optimizer=lambda p: torch.optim.SGD(p, lr=1.0), lr_scheduler=Schedule(),
    )  # fmt: skip
    seed_everything(4, verbose=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, logger=False, **settings,
    )  # fmt: skip
    trainer.fit(module, PromptData("mini_instruct", max_rows=32, batch_size=batch_size))
    return {"parameters": [p.detach().clone() for p in module.parameters()], "seen": torch.cat(module._seen)}


def fixed_rank(start: Path, folder: Path) -> dict[str, Any]:
    return fixed_run(start, folder, 8, devices=2, strategy="ddp")


@pytest.mark.slow
def test_two_ranks_are_one_large_batch(start, tmp_path, on_two_ranks):
    whole = fixed_run(start, tmp_path, 16)
    for result in [
        *on_two_ranks(fixed_rank, start, tmp_path),
        fixed_run(start, tmp_path, 4, accumulate_grad_batches=4),
    ]:
        for a, b in zip(result["parameters"], whole["parameters"], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(result["seen"].sort().values, whole["seen"].sort().values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prompts_per_round": []}, "prompts_per_round"),
        ({"prompts_per_round": [8]}, "lambdas has 2 numbers for 1 rounds"),
        ({"seed": None}, "judging reference in the first round"),
        ({"judge": Undecided(), "judging_reference": "none"}, "no effect with a judge"),
        ({"lr_scheduler": torch.optim.lr_scheduler.ConstantLR}, "begins its schedule anew"),
    ],
)
def test_settings_that_cannot_go_well_are_refused(start, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        build(start, **({"refinement": SelfRefinement(lambdas=(0.5, 0.25))} | settings))


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"lora": LoRAConfig(dropout=0.1)}])
def test_a_noisy_policy_is_refused(settings, start):
    with pytest.raises(UserError, match=r"policy\.dropout and policy\.lora\.dropout must be 0"):
        SPA(ModelConfig(str(start), **settings), [8], seed_pairs(), refinement=None)


def test_seeds_that_cannot_be_are_refused():
    with pytest.raises(UserError, match=r"seed\.epochs"):
        seed_pairs(epochs=0)
    with pytest.raises(UserError, match=r"seed\.data\.val"):
        SeedPairs(PreferenceData("mini_instruct", val="mini_instruct"))


@pytest.mark.parametrize(
    ("settings", "trainer", "sentence"),
    [
        ({}, {"max_epochs": 2}, r"max_epochs is 2: set it to 1"),
        ({"prompts_per_round": [48, 40]}, {}, "88 prompts.* there are 80"),
        ({"prompts_per_round": [12, 8]}, {}, r"12 prompts does not divide.* take 8\."),
        ({"prompts_per_round": [8, 16]}, {"accumulate_grad_batches": 2}, "Round 1 has 1 batches"),
        ({"seed": seed_pairs(epochs=1)}, {"accumulate_grad_batches": 2}, "The seed has 3 batches"),
    ],
)
def test_stages_that_do_not_fit_are_refused(start, tmp_path, settings, trainer, sentence):
    with pytest.raises(UserError, match=sentence):
        fit(build(start, **settings), tmp_path, **trainer)


def test_a_dry_run_writes_nothing(start, tmp_path):
    fit(build(start), tmp_path, fast_dev_run=8)
    assert not list(tmp_path.iterdir())
