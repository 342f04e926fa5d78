"""Online DPO: what is sampled becomes pairs, pairs become DPO's step, and a checkpoint holds the round."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.data import PreferenceData, PromptData
from lit_align.errors import UserError
from lit_align.feedback import Answer, Judge, MiniInstructGold, RewardJudge, RewardSource, Scores
from lit_align.losses import DPO as DPOLoss
from lit_align.losses import IPO, SimPO
from lit_align.methods import DPO, SFT, OnlineDPO
from lit_align.models import ModelConfig
from lit_align.rollout import Response, RolloutConfig, RolloutEngine

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed", "ignore:Checkpoint directory .* exists and is not empty"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
PROMPTS = [f"tell me about {noun}{please}" for noun in ("cats", "dogs", "birds", "fish") for please in ("", " please")]


class Trace(Callback):
    """Metrics of every optimiser step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.steps.append({name: value for name, value in metrics.items() if "/time/" not in name})


class Scripted(RolloutEngine):
    """Says to each prompt what its tokens add up to, so that what is said does not depend on the batch."""

    def sample(self, prompts, k):
        def words(ids, j):
            return [3 + (sum(ids) + 3 * j + t) % 15 for t in range(1 + (len(ids) + j) % 4)]

        return [[Response([*words(ids, j), 1], "eos") for j in range(k)] for ids in prompts]


class ScriptedOnlineDPO(OnlineDPO):
    def configure_model(self):
        super().configure_model()
        self.engine = Scripted()


class Alphabetical(Judge):
    """Surely prefers what comes first in the alphabet; identical answers tie."""

    def __call__(self, first: Sequence[Answer], second: Sequence[Answer]) -> torch.Tensor:
        pairs = zip(first, second, strict=True)
        return torch.tensor([0.5 if a.response == b.response else float(a.response < b.response) for a, b in pairs])


class Constant(RewardSource):
    def __call__(self, answers: Sequence[Answer]) -> Scores:
        return Scores(torch.ones(len(answers)), {})


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    module.configure_model()
    folder = tmp_path_factory.mktemp("online") / "start"
    module.export(folder)
    return folder


def build(start: Path, kind: type[OnlineDPO] = OnlineDPO, **settings: object) -> OnlineDPO:
    defaults = {
        "judge": MiniInstructGold(),
        "rollout": RolloutConfig(max_new_tokens=5),
        "loss": DPOLoss(beta=1.0),
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=3e-3),
    }
    return kind(ModelConfig(str(start)), **(defaults | settings))


def fit(module, folder: Path, data=None, *, seed: int = 3, ckpt_path: Path | None = None, **settings) -> Trace:
    seed_everything(seed, verbose=False)
    trace = Trace()
    options = {"max_epochs": 1, "enable_checkpointing": False, "logger": False} | settings
    options["callbacks"] = [trace, *settings.get("callbacks", [])]
    trainer = Trainer(
        accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **options
    )
    data = data or PromptData(train="mini_instruct", max_rows=24, batch_size=8)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return trace


def parameters(module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.policy.parameters()]


def sgd(groups):
    return torch.optim.SGD(groups, lr=1.0)


def test_it_is_dpo_on_what_was_sampled(start, tmp_path):
    """The rows that the scripted engine and the judge make, written to a file and given to DPO."""
    module = build(start, ScriptedOnlineDPO, judge=Alphabetical(), optimizer=sgd)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS))
    fit(module, tmp_path, PromptData(train=str(prompts), batch_size=8))

    rows = []
    for prompt in PROMPTS:
        ids = module.tokenizer(prompt)["input_ids"]
        first, second = (module.tokenizer.decode(r.ids[:-1]) for r in Scripted().sample([ids], 2)[0])
        assert first != second
        rows.append({"prompt": prompt, "chosen": min(first, second), "rejected": max(first, second)})
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, rows)))
    offline = DPO(ModelConfig(str(start)), DPOLoss(beta=1.0), optimizer=sgd)
    fit(offline, tmp_path, PreferenceData(train=str(pairs), batch_size=8))
    for a, b in zip(parameters(module), parameters(offline), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_round_is_compared_with_the_policy_that_sampled_it(start, tmp_path):
    """So its first step costs ln 2 in every round, where against the initial policy it soon does not."""
    steps = fit(build(start, reference="round", refresh_every=1, inner_epochs=2), tmp_path).steps
    assert len(steps) == 6
    for number, step in enumerate(steps):
        assert (step["train/loss"] == pytest.approx(math.log(2), abs=1e-6)) == (number % 2 == 0)
    initial = fit(build(start, refresh_every=1), tmp_path).steps
    assert initial[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(initial[2]["train/loss"] - math.log(2)) > 1e-4


class Table(Judge):
    """Verdicts on answers 0, 1, 2 to a prompt, by their number of tokens."""

    def __call__(self, first, second):
        table = {(1, 2): 0.9, (1, 3): 0.4, (2, 3): 0.8}
        return torch.tensor(
            [table[len(a.response_ids), len(b.response_ids)] for a, b in zip(first, second, strict=True)]
        )


def test_a_judge_scores_by_the_mean_over_all_comparisons(start):
    module = build(start, judge=Table(), responses_per_prompt=3)
    answers = [Answer("p", "x", [1], [3] * n, finished=True) for n in (1, 2, 3)]
    scores, watched = module._scores(answers)
    # By hand: (0.9 + 0.4) / 2 for the first, then (0.1 + 0.8) / 2 and (0.6 + 0.2) / 2.
    torch.testing.assert_close(scores, torch.tensor([[0.65, 0.45, 0.40]], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(watched["judge/confidence"], torch.tensor([0.8, 0.2, 0.6], dtype=torch.float64))


def test_extremes_are_the_best_and_the_worst(start):
    module = build(start, responses_per_prompt=4)
    scores = torch.tensor([[0.0, 3.0, -1.0, 2.0], [5.0, 5.0, 5.0, 5.0], [1.0, 1.0, 0.0, 1.0]])
    assert module._kept(scores).tolist() == [[1, 2], [0, 1], [0, 2]]


def test_ties_teach_nothing(start, tmp_path):
    module = build(start, judge=Constant())
    before = fit(build(start), tmp_path, PromptData(train="mini_instruct", max_rows=8, batch_size=8), max_steps=0)
    assert not before.steps
    steps = fit(module, tmp_path).steps
    assert [step["train/ties"] for step in steps] == [1.0] * 3
    assert all("train/loss" not in step for step in steps)


@pytest.mark.parametrize(("pairs", "count"), [("extremes", 1), ("all", 3)])
def test_pairs_of_three_responses(start, tmp_path, pairs, count):
    module = build(start, ScriptedOnlineDPO, judge=Alphabetical(), responses_per_prompt=3, pairs=pairs)
    seen = []
    step = module.step
    module.step = lambda batch: seen.append(len(step(batch).losses)) or step(batch)
    data = PromptData(train="mini_instruct", max_rows=8, batch_size=8)
    fit(module, tmp_path, data)
    assert seen == [8 * count]


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_layouts_agree(start, tmp_path, layout):
    settings = {"responses_per_prompt": 3, "pairs": "all", "optimizer": sgd, "judge": RewardJudge(MiniInstructGold())}
    expected = build(start, ScriptedOnlineDPO, **settings)
    fit(expected, tmp_path)
    module = build(start, ScriptedOnlineDPO, **settings, layout=layout)
    fit(module, tmp_path)
    for a, b in zip(parameters(expected), parameters(module), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_every_checkpoint_leads_to_the_same_end(start, tmp_path):
    """In the middle of a round, between rounds, and over the end of an epoch."""

    def run(folder: Path, ckpt_path: Path | None = None) -> tuple[Trace, OnlineDPO]:
        module = build(start, refresh_every=2, inner_epochs=2, loss=IPO(0.5), reference="round")
        checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        seed = 3 if ckpt_path is None else 99
        trace = fit(
            module,
            folder,
            seed=seed,
            ckpt_path=ckpt_path,
            max_epochs=2,
            enable_checkpointing=True,
            callbacks=[checkpoints],
        )
        return trace, module

    whole, trained = run(tmp_path / "whole")
    checkpoints = sorted((tmp_path / "whole").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert len(checkpoints) == len(whole.steps) == 2 * 2 * 3
    for done, checkpoint in enumerate(checkpoints, start=1):
        trace, module = run(tmp_path / checkpoint.stem, checkpoint)
        assert trace.steps == whole.steps[done:], checkpoint.name
        for a, b in zip(parameters(module), parameters(trained), strict=True):
            assert torch.equal(a, b), checkpoint.name


def scripted_run(start: Path, folder: Path, batch_size: int, **settings) -> dict[str, object]:
    """Two rounds over seven prompts: the last batch cannot be shared out evenly."""
    path = Path(folder) / f"prompts{os.environ.get('RANK', '')}.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS[:7]))
    module = build(start, ScriptedOnlineDPO, judge=Alphabetical(), optimizer=sgd)
    trace = fit(module, folder, PromptData(train=str(path), batch_size=batch_size), **settings)
    return {"metrics": trace.steps, "parameters": parameters(module)}


def rank_run(start: Path, folder: Path, batch_size: int) -> dict[str, object]:
    return scripted_run(start, folder, batch_size, strategy="ddp", devices=2)


def test_two_ranks_are_one(start, tmp_path, on_two_ranks):
    alone = scripted_run(start, tmp_path, 4)
    for rank in on_two_ranks(rank_run, start, tmp_path, 2):
        for a, b in zip(alone["parameters"], rank["parameters"], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        for a, b in zip(alone["metrics"], rank["metrics"], strict=True):
            assert a == pytest.approx(b, abs=1e-4)


def test_it_raises_the_reward(start, tmp_path):
    data = PromptData(train="mini_instruct", max_rows=64 * 30, batch_size=64)
    steps = fit(build(start, responses_per_prompt=4), tmp_path, data).steps
    assert steps[-1]["train/reward/mean"] > steps[0]["train/reward/mean"] + 0.5
    assert steps[-1]["train/kl/k1"] > 0.1
    assert steps[0]["train/kl/k1"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"responses_per_prompt": 1}, "2 or more"),
        ({"pairs": "all"}, "no effect with two"),
        ({"loss": SimPO(), "reference": "round"}, "no reference"),
        ({"refresh_every": 0}, "refresh_every"),
        ({"inner_epochs": 0}, "inner_epochs"),
        ({"tokens_per_row": 64}, "layout: shared"),
    ],
)
def test_what_cannot_be_is_refused(start, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        build(start, **settings)
