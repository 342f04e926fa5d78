"""RRHF on rows and on responses of the policy's own: what a step is, what is ranked, and what is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lit_align.data import PromptBatch, PromptData, RankingData, SFTData, padded, shared
from lit_align.data.mini_instruct import gold
from lit_align.errors import UserError
from lit_align.feedback import Answer, LogProbReward, MiniInstructGold, RewardSource, Scores, WeightedSum
from lit_align.groups import GroupBatch
from lit_align.losses import RRHF as RRHFLoss
from lit_align.losses import RankingLoss, RRHFReleased
from lit_align.methods import RRHF, SFT
from lit_align.methods.rrhf import Candidates
from lit_align.models import LoRAConfig, ModelConfig
from lit_align.rollout import Response, RolloutConfig, RolloutEngine
from lit_align.rollout.loader import Rollout

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed", "ignore:Checkpoint directory .* exists and is not empty"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
ROLLOUT = RolloutConfig(max_new_tokens=5)
EOS = 1


class Trace(Callback):
    """Metrics of every optimiser step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.steps.append({name: value for name, value in metrics.items() if "/time/" not in name})


class Scripted(RolloutEngine):
    """Says to each prompt what its tokens add up to, so that what is said does not depend on the batch."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def sample(self, prompts, k):
        def words(ids, j):
            return [3 + (sum(ids) + self.shift + 3 * j + t) % 15 for t in range(1 + (len(ids) + j) % 4)]

        return [[Response([*words(ids, j), EOS], "eos") for j in range(k)] for ids in prompts]


class ScriptedRRHF(RRHF):
    def configure_model(self):
        super().configure_model()
        self.engine = Scripted()


class Words(RewardSource):
    """The number of words."""

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        return Scores(torch.tensor([float(len(answer.response.split())) for answer in answers]), {})


class Constant(RewardSource):
    def __call__(self, answers: Sequence[Answer]) -> Scores:
        return Scores(torch.ones(len(answers)), {})


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("rrhf") / "start", seed=1)


def exported(folder: Path, seed: int) -> Path:
    seed_everything(seed, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    module.configure_model()
    # A random model this small is nearly uniform: everything would be equally likely, and little would depend on it.
    with torch.no_grad():
        module.policy.get_output_embeddings().weight.mul_(40)
    module.export(folder)
    return folder


def build(start: Path, kind: type[RRHF] = RRHF, loss: RankingLoss = RRHFLoss(), **settings: object) -> RRHF:
    candidates = Candidates(**({"reward": MiniInstructGold(), "rollout": ROLLOUT} | settings)) if settings else None
    return kind(
        ModelConfig(str(start)),
        loss=loss,
        candidates=candidates,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
    )


def fit(module: RRHF, data, folder: Path, *, seed: int = 3, ckpt_path: Path | None = None, **settings) -> Trace:
    seed_everything(seed, verbose=False)
    trace = Trace()
    options = {"max_epochs": 1, "enable_checkpointing": False, "logger": False} | settings
    options["callbacks"] = [trace, *settings.get("callbacks", [])]
    trainer = Trainer(
        accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **options
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return trace


def prompts(rows: int = 16, **settings) -> PromptData:
    return PromptData("mini_instruct", max_rows=rows, batch_size=4, **settings)


@torch.no_grad()
def response_sums(model: torch.nn.Module, prompt: Sequence[int], response: Sequence[int]) -> float:
    """Log-probability of a response by a plain forward pass of it alone."""
    ids = torch.tensor([[*prompt, *response]])
    logps = model(input_ids=ids).logits.double().log_softmax(-1)
    places = range(len(prompt), ids.shape[1])
    return float(sum(logps[0, t - 1, ids[0, t]] for t in places))


# One batch of rows.


@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.parametrize("loss", [RRHFLoss(rank_weight=2.0), RRHFReleased(rank_weight=3.0)], ids=repr)
def test_a_step_by_brute_force(start, random_groups, loss, layout):
    module = build(start, loss=loss)
    module.configure_model()
    groups = small_vocabulary(random_groups([2, 5, 3]))
    output = module.step(padded(groups, pad_id=0) if layout == "padded" else shared(groups, 0, tokens_per_row=64))
    losses, right, taus, best_p, other_p = [], [], [], [], []
    for group in groups:
        width = len(group.prompt) + max(map(len, group.responses))
        sums = [response_sums(module.policy, group.prompt, response) for response in group.responses]
        released = isinstance(loss, RRHFReleased)
        p = [s / (width if released else len(r)) for s, r in zip(sums, group.responses, strict=True)]
        k = range(len(p))
        pairs = [(i, j) for i in k for j in k if group.scores[i] > group.scores[j]]
        rank = sum(max(0.0, p[j] - p[i]) for i, j in pairs)
        best = max(k, key=lambda i: group.scores[i])
        losses.append(loss.rank_weight * rank - sums[best] / (width if released else 1))
        orders = [1.0 if p[i] > p[j] else -1.0 for i, j in pairs]
        right += [(order + 1) / 2 for order in orders]
        taus.append(sum(orders) / len(pairs))
        best_p.append(p[best])
        other_p += [p[i] for i in k if i != best]
    torch.testing.assert_close(output.losses.tolist(), losses, rtol=1e-4, atol=1e-4)
    metrics = {name: float(values.detach().mean()) for name, values in output.metrics.items()}
    expected = {"rank/accuracy": right, "rank/kendall": taus, "score/best": best_p, "score/others": other_p}
    for name, values in expected.items():
        assert metrics[name] == pytest.approx(sum(values) / len(values), abs=1e-4), name
    assert metrics["rank_loss"] * loss.rank_weight + metrics["sft_loss"] == pytest.approx(sum(losses) / 3, abs=1e-4)


def test_it_learns_the_order_of_the_rows(start, tmp_path):
    module = build(start)
    data = RankingData("mini_instruct", val="mini_instruct", max_rows=64, batch_size=16)
    trace = fit(module, data, tmp_path, max_epochs=6, limit_val_batches=2)
    assert trace.steps[-1]["train/rank/accuracy"] > trace.steps[0]["train/rank/accuracy"] + 0.05
    assert {"val/loss", "val/rank/accuracy", "val/rank/kendall", "val/rank_loss"} <= set(trace.steps[-1])
    assert module._reference is None


def test_the_trained_policy_scores_wherever_a_reward_model_does(start, tmp_path, random_groups):
    """`LogProbReward` of the exported model is the p that the policy was trained to rank by."""
    module = build(start)
    module.configure_model()
    module.export(tmp_path / "model")
    data = RankingData("mini_instruct", max_rows=8, batch_size=8)
    fit(module, data, tmp_path, max_steps=0)
    data.setup("fit")
    batch: GroupBatch = next(iter(data.rows_loader()))
    p = module.step(batch).metrics["score/best"]
    best = [int(i) for i in _best(batch)]
    answers = []
    tokenizer = module.tokenizer
    for row, response in zip(batch.rows.tolist(), best, strict=True):
        ids = batch.targets[batch.response_index == response].tolist()
        prompt = list(data._encoded["train"][row].prompt)
        answers.append(Answer(tokenizer.decode(prompt), tokenizer.decode(ids[:-1]), prompt, ids, finished=True))
    reward = LogProbReward(ModelConfig(str(tmp_path / "model")))
    torch.testing.assert_close(reward(answers).total, p.detach(), rtol=1e-4, atol=1e-4)


def _best(batch: GroupBatch) -> list[int]:
    return [
        int(max((batch.group_index == g).nonzero().flatten(), key=lambda i: batch.scores[i]))
        for g in range(batch.n_groups)
    ]


# One optimiser step, however it is cut.

SIZES = [2, 3, 2, 5, 2, 2, 4]
CUTS = [[0, 1, 2], [3], [4, 5], [6]]


def one_step(start: Path, batches: list[GroupBatch], **settings) -> dict[str, object]:
    module = RRHF(ModelConfig(str(start)), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    trace = Trace()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, use_distributed_sampler=False, accumulate_grad_batches=len(batches),
        callbacks=[trace], **settings,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    assert trainer.global_step == 1
    return {"metrics": trace.steps[-1], "parameters": [p.detach().clone() for p in module.parameters()]}


def rank_steps(start: Path, folder: Path, shares: list[list[GroupBatch]]) -> list[dict[str, object]]:
    """A step on this rank's rows, and one on candidates."""
    ddp = {"devices": 2, "strategy": "ddp"}
    return [one_step(start, shares[int(os.environ["RANK"])], **ddp), scripted_run(start, folder, 4, **ddp)]


def assert_same(actual: dict, expected: dict) -> None:
    assert actual["metrics"] == pytest.approx(expected["metrics"], abs=2e-5, rel=2e-5)
    for a, b in zip(actual["parameters"], expected["parameters"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def small_vocabulary(groups):
    return [
        group._replace(prompt=[t % 20 for t in group.prompt], responses=[[t % 20 for t in r] for r in group.responses])
        for group in groups
    ]


def test_accumulated_batches_equal_one(start, random_groups):
    groups = small_vocabulary(random_groups(SIZES))
    whole = one_step(start, [padded(groups, pad_id=0)])
    assert_same(one_step(start, [padded([groups[i] for i in cut], pad_id=0) for cut in CUTS]), whole)


def scripted_run(start: Path, folder: Path, batch_size: int, **settings) -> dict[str, object]:
    """One optimiser step on the candidates of eight prompts."""
    rows = [f"tell me about {noun}{more}" for noun in ("cats", "dogs", "birds", "fish") for more in ("", " please")]
    path = Path(folder) / f"prompts{os.environ.get('RANK', '')}.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": row}) for row in rows))
    module = ScriptedRRHF(
        ModelConfig(str(start)),
        candidates=Candidates(MiniInstructGold(), ROLLOUT, responses_per_prompt=3),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    trace = fit(module, PromptData(train=str(path), batch_size=batch_size), folder, seed=4, **settings)
    return {"metrics": trace.steps[-1], "parameters": [p.detach().clone() for p in module.parameters()]}


def test_two_ranks_equal_one(start, tmp_path, random_groups, on_two_ranks):
    groups = small_vocabulary(random_groups(SIZES))
    filler = padded(groups[:1], pad_id=0)
    filler.is_filler = True
    shares = [
        [padded([groups[i] for i in [0, 1, 2]], pad_id=0), padded([groups[3]], pad_id=0)],
        [padded([groups[i] for i in [4, 5, 6]], pad_id=0), filler],
    ]
    whole = [one_step(start, [padded(groups, pad_id=0)]), scripted_run(start, tmp_path, batch_size=8)]
    for of_rank in on_two_ranks(rank_steps, start, tmp_path, shares):
        for actual, expected in zip(of_rank, whole, strict=True):
            assert_same(actual, expected)


# What is sampled, and when.


class Watched(RRHF):
    """Keeps every rollout it makes."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.made: list[Rollout] = []

    def collect(self, batches):
        self.made.append(super().collect(batches))
        return self.made[-1]


@pytest.mark.parametrize(
    ("settings", "sizes", "batches"),
    [
        ({"refresh": "once"}, [16], 8),
        ({"refresh": "round"}, [16, 16], 8),
        ({"refresh": "round", "inner_epochs": 2}, [16, 16], 16),
        ({"refresh": 1}, [4] * 8, 8),
        ({"refresh": 3}, [12, 4] * 2, 8),
    ],
    ids=str,
)
def test_how_often_it_samples(start, tmp_path, settings, sizes, batches):
    module = build(start, Watched, responses_per_prompt=3, **settings)
    trace = fit(module, prompts(), tmp_path, max_epochs=2)
    assert [len(rollout.groups) for rollout in module.made] == sizes
    assert len(trace.steps) == batches
    assert {len(group.responses) for rollout in module.made for group in rollout.groups} == {3}


@pytest.mark.parametrize("kl_coef", [0.0, 0.7])
def test_candidates_are_ranked_by_reward_minus_the_kl_penalty(start, tmp_path, kl_coef):
    module = build(start, Watched, responses_per_prompt=4, refresh=1, kl_coef=kl_coef)
    fit(module, prompts(), tmp_path, limit_train_batches=2)
    # Sampled once more, from the policy as it is after its steps, so that it can be asked for its log-probabilities.
    prompt = "tell me about cats"
    ids = module.tokenizer(prompt).input_ids
    (group,) = module.collect([PromptBatch([prompt], [ids], [0])]).groups
    policy, reference = module.policy.eval(), module.reference_model()
    farthest = 0.0
    for response, score in zip(group.responses, group.scores, strict=True):
        reward = gold(prompt, module.tokenizer.decode(response, skip_special_tokens=True))
        log_ratio = response_sums(policy, ids, response) - response_sums(reference, ids, response)
        assert score == pytest.approx(reward - kl_coef * log_ratio, abs=1e-4)
        farthest = max(farthest, abs(log_ratio))
    assert farthest > 0.01


def test_samplers_contribute_after_the_policy(start, tmp_path):
    other = exported(tmp_path / "other", seed=2)
    settings = {"samplers": [ModelConfig(str(other))], "responses_per_prompt": 2, "refresh": 2}
    module = build(start, Watched, **settings)
    trace = fit(module, prompts(), tmp_path)
    assert {len(group.responses) for rollout in module.made for group in rollout.groups} == {4}
    assert "train/reward/samplers" in trace.steps[0]
    assert len(module.made) == 2
    assert len(module._sampler_engines) == 1
    assert not any(p.requires_grad for p in module._sampler_engines[0].model.parameters())
    assert all(key.startswith("policy.") for key in module.state_dict())


def test_metrics_tell_own_responses_from_those_of_samplers(start, tmp_path):
    class Two(Watched):
        def configure_model(self):
            super().configure_model()
            self.engine = Scripted()

        def _samplers(self):
            return [Scripted(shift=7)]

    module = build(start, Two, samplers=[ModelConfig(str(start))], responses_per_prompt=2, reward=Words())
    trace = fit(module, prompts(rows=8), tmp_path, limit_train_batches=1)
    data = prompts(rows=8)
    data.trainer = module.trainer
    data.setup("fit")
    groups = [data._encoded["train"][i] for i in range(8)]
    own, others = (
        [[len(r.ids) - 1.0 for r in of_prompt] for of_prompt in engine.sample([g.prompt for g in groups], 2)]
        for engine in (Scripted(), Scripted(shift=7))
    )
    rows = [group.row for group in module.made[0].groups]
    mean = [sum(own[row]) / 2 for row in rows]
    metrics = trace.steps[0]
    assert metrics["train/reward/mean"] == pytest.approx(sum(mean) / len(mean))
    assert metrics["train/response_length/mean"] == pytest.approx(sum(mean) / len(mean) + 1)
    assert metrics["train/reward/samplers"] == pytest.approx(sum(sum(others[row]) / 2 for row in rows) / len(rows))
    assert metrics["train/reward/best"] == pytest.approx(sum(max(own[r] + others[r]) for r in rows) / len(rows))


def test_responses_that_tie_are_imitated_and_not_ranked(start, tmp_path):
    trace = fit(build(start, reward=Constant(), refresh=1), prompts(rows=4), tmp_path)
    assert trace.steps[0]["train/ties"] == 1
    assert trace.steps[0]["train/rank_loss"] == 0
    assert trace.steps[0]["train/sft_loss"] > 0
    assert "train/rank/accuracy" not in trace.steps[0]


def test_components_and_validation_of_prompts(start, tmp_path):
    reward = WeightedSum({"gold": MiniInstructGold(), "words": Words()}, {"gold": 1.0, "words": 0.1})
    module = build(start, reward=reward, refresh=1)
    trace = fit(module, prompts(val="mini_instruct", val_batch_size=16), tmp_path, limit_val_batches=1)
    assert {"train/reward/gold", "train/reward/words", "train/reward/std", "train/kl/k3"} <= set(trace.steps[-1])
    validated = {"val/reward/mean", "val/reward/gold", "val/reward/words", "val/kl/k1", "val/eos_rate"}
    assert validated <= set(module.trainer.callback_metrics)


# What a checkpoint keeps.

RESUMED = {
    "once": {"refresh": "once"},
    "round": {"refresh": "round", "inner_epochs": 2, "layout": "shared", "kl_coef": 0.2},
    "samplers": {"refresh": 3, "samplers": True},
}


@pytest.mark.parametrize("name", RESUMED)
def test_every_checkpoint_leads_to_the_same_end(name, start, tmp_path):
    """In the middle of a rollout, between rollouts, and over the end of an epoch."""

    def run(folder: Path, ckpt_path: Path | None = None) -> tuple[Trace, RRHF, list[str]]:
        settings = dict(RESUMED[name])
        if "samplers" in settings:
            settings["samplers"] = [ModelConfig(str(start))]
        module = build(start, responses_per_prompt=2, log_samples_every=1, **settings)
        checkpoints = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trace = fit(
            module, prompts(), folder, max_epochs=2, ckpt_path=ckpt_path, enable_checkpointing=True,
            seed=3 if ckpt_path is None else 99, callbacks=[checkpoints], logger=CSVLogger(folder, name="", version=""),
        )  # fmt: skip
        file = folder / "samples.jsonl"
        return trace, module, file.read_text().splitlines() if file.exists() else []

    whole, trained, said = run(tmp_path / "whole")
    found = sorted((tmp_path / "whole" / "checkpoints").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert len(found) == len(whole.steps) >= 8
    for done, checkpoint in enumerate(found, start=1):
        trace, module, text = run(tmp_path / checkpoint.stem, checkpoint)
        assert trace.steps == whole.steps[done:], checkpoint.name
        for key, value in trained.state_dict().items():
            assert torch.equal(module.state_dict()[key], value), f"{checkpoint.name}: {key}"
        assert text == said[len(said) - len(text) :]


# What is refused.


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"responses_per_prompt": 1}, "2 or more"),
        ({"responses_per_prompt": 0}, "at least 1"),
        ({"refresh": 0}, "refresh must be at least 1"),
        ({"refresh": "once", "inner_epochs": 2}, "max_epochs"),
        ({"refresh": "once", "kl_coef": 0.1}, "kl_coef has no effect"),
        ({"kl_coef": -0.1}, "0 or more"),
        ({"tokens_per_row": 64}, "tokens_per_row has no effect"),
        ({"samplers": [ModelConfig("mini_instruct", init="random", lora=LoRAConfig())]}, "lora would have no effect"),
    ],
    ids=str,
)
def test_settings_without_effect_are_refused(start, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        build(start, **settings)


def test_a_sampler_with_another_tokenizer_is_refused(start, tmp_path):
    other = exported(tmp_path / "other", seed=2)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["cats"], words["dogs"] = words["dogs"], words["cats"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="another tokenizer"):
        build(start, samplers=[ModelConfig(str(other))])


@pytest.mark.parametrize(
    ("settings", "data", "sentence"),
    [
        ({}, PromptData("mini_instruct", max_rows=8), "brings no responses"),
        ({}, SFTData("mini_instruct", max_rows=8), "these rows have none"),
        ({"refresh": "round"}, RankingData("mini_instruct", max_rows=8), "use PromptData"),
    ],
    ids=["prompts", "demonstrations", "rankings"],
)
def test_rows_of_another_kind_are_refused(start, tmp_path, settings, data, sentence):
    with pytest.raises(UserError, match=sentence):
        fit(build(start, **settings), data, tmp_path)
