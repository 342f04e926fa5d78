"""PPO: the update, the rollout it learns from, and what a checkpoint keeps of both."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_align.data import PromptData, SFTData
from lit_align.data.mini_instruct import enumerated_policy
from lit_align.errors import UserError
from lit_align.exact import kl_divergence
from lit_align.feedback import MiniInstructGold
from lit_align.losses import GAE, GRPO, RLOO, AdaptiveKL, FixedKL
from lit_align.methods import PPO, SFT, RewardModel
from lit_align.methods.ppo import PretrainingMix
from lit_align.models import ModelConfig, Sampling, response_logps
from lit_align.rollout import Response, RolloutConfig, RolloutEngine

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed", "ignore:Checkpoint directory .* exists and is not empty"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}


class Trace(Callback):
    """Metrics and learning rates of every optimiser step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.rates: list[list[float]] = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        timed = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.steps.append({name: value for name, value in timed.items() if "/time/" not in name})


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    module.configure_model()
    module.export(tmp_path_factory.mktemp("ppo") / "start")
    return tmp_path_factory.getbasetemp() / "ppo0" / "start"


def build(start: Path, **settings: object) -> PPO:
    defaults = {
        "reward": MiniInstructGold(),
        "rollout": RolloutConfig(max_new_tokens=5),
        "kl": FixedKL(0.1),
        "inner_epochs": 2,
        "minibatches": 2,
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=3e-3),
    }
    return PPO(ModelConfig(str(start)), **(defaults | settings))


def fit(
    module: PPO, folder: Path, *, rows: int = 24, seed: int = 3, ckpt_path: Path | None = None, **settings
) -> Trace:
    seed_everything(seed, verbose=False)
    trace = Trace()
    options = {"max_epochs": 1, "enable_checkpointing": False, "logger": False, "callbacks": [trace]} | settings
    options["callbacks"] = [trace, *settings.get("callbacks", [])]
    trainer = Trainer(
        accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **options
    )
    data = PromptData(train="mini_instruct", max_rows=rows, batch_size=8)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return trace


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rollout": RolloutConfig(max_new_tokens=5, sampling=Sampling(temperature=0.7, top_k=8, top_p=0.9))},
        {"advantage": RLOO(), "responses_per_prompt": 3},
        {"layout": "shared", "responses_per_prompt": 3},
        {"advantage": GRPO(), "responses_per_prompt": 3, "kl_estimator": "k3"},
    ],
    ids=["gae", "warped", "rloo", "shared", "grpo"],
)
def test_before_the_first_step_the_policy_is_the_one_that_sampled(start, tmp_path, settings):
    first = fit(build(start, **settings), tmp_path, rows=8).steps[0]
    assert first["train/ratio"] == pytest.approx(1, abs=1e-5)
    assert first["train/approx_kl"] == pytest.approx(0, abs=1e-5)
    assert first["train/clip_fraction"] == 0
    assert first["train/kl/k1"] == pytest.approx(0, abs=1e-4)  # the reference is the policy, too


def test_every_minibatch_of_every_inner_epoch_is_an_optimiser_step(start, tmp_path):
    module = build(start, inner_epochs=3, minibatches=4)
    trace = fit(module, tmp_path, rows=24)
    assert module.trainer.global_step == 24 // 8 * 3 * 4
    assert sum("train/reward/mean" in step for step in trace.steps) == len(trace.steps)
    moved = [step["train/ratio"] for step in trace.steps[1:12]]
    assert all(abs(ratio - 1) > 1e-6 for ratio in moved)


def test_accumulated_minibatches_are_one_step(start, tmp_path):
    module = build(start, inner_epochs=2, minibatches=4)
    fit(module, tmp_path, rows=16, accumulate_grad_batches=4)
    assert module.trainer.global_step == 2 * 2


def test_an_update_ends_when_it_has_gone_far_enough(start, tmp_path):
    far = build(start, inner_epochs=4, target_kl=1e-9)
    fit(far, tmp_path, rows=24)
    # The first minibatch is at KL 0, the second is past it, and the rest of each rollout is dropped.
    assert far.trainer.global_step == 3 * 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The policy puts")
def test_kl_estimates_agree_with_the_exact_kl(tmp_path):
    seed_everything(0, verbose=False)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    sft = SFT(
        ModelConfig("mini_instruct", init="random", overrides=SMALL),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    )
    Trainer(accelerator="cpu", max_epochs=2, **quiet).fit(sft, SFTData(train="mini_instruct", batch_size=64))
    sft.export(tmp_path / "sft")
    module = build(tmp_path / "sft", kl=FixedKL(0.5), optimizer=lambda groups: torch.optim.AdamW(groups, lr=5e-4))
    fit(module, tmp_path, rows=640)
    reference = enumerated_policy(sft.policy.eval(), module.tokenizer)
    policy = enumerated_policy(module.policy.eval(), module.tokenizer)
    exact = float(kl_divergence(policy.logps, reference.logps).mean())
    assert exact > 0.1
    assert (
        policy.leaked.mean() < 0.02
    )  # the estimates are of all that is sampled, the exact value of what is enumerated
    module.responses_per_prompt = 500
    data = PromptData(train="mini_instruct", max_rows=8, batch_size=8)
    data.trainer = module.trainer
    data.setup("fit")
    prompts = next(iter(PromptData.train_dataloader(data).prompts))
    seed_everything(5, verbose=False)
    sampled = module.collect([prompts])
    metrics = module._rollout_metrics
    lengths = [len(response) for group in sampled.groups for response in group.responses]
    log_ratios = torch.stack([x.sum() for x in (sampled.tokens["logps"] - sampled.tokens["ref_logps"]).split(lengths)])
    error = 3 * float(log_ratios.std()) / len(lengths) ** 0.5
    assert metrics["kl/k1"] == pytest.approx(exact, abs=error)
    assert metrics["kl/k3"] == pytest.approx(exact, abs=error)


def test_the_critic_has_its_own_learning_rate_and_is_exported(start, tmp_path):
    module = build(start, critic_lr=1e-2)
    assert fit(module, tmp_path).rates[0] == [3e-3, 1e-2]
    module.export(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    saved = load_file(tmp_path / "model" / "value_head.safetensors")
    assert torch.equal(saved["weight"], module.value_head.weight)
    again = build(tmp_path / "model")
    again.configure_model()
    assert torch.equal(again.value_head.weight, module.value_head.weight)


def test_a_separate_critic_starts_from_a_reward_model(start, tmp_path):
    reward_model = RewardModel(ModelConfig(str(start)))
    reward_model.configure_model()
    reward_model.export(tmp_path / "reward")
    module = build(start, critic=ModelConfig(str(tmp_path / "reward")))
    module.configure_model()
    before = module.critic.score.weight.detach().clone()
    assert torch.equal(before, reward_model.reward_model.score.weight)
    fit(module, tmp_path)
    assert not torch.equal(before, module.critic.score.weight)
    module.export(tmp_path / "model")
    critic = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model" / "critic")
    assert torch.equal(critic.score.weight, module.critic.score.weight)


def test_layouts_learn_the_same(start, tmp_path):
    padded, shared = (build(start, layout=layout, responses_per_prompt=2) for layout in ("padded", "shared"))
    for module in (padded, shared):
        fit(module, tmp_path, rows=16)
    for a, b in zip(padded.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_text_is_mixed_in_at_its_coefficient(start, tmp_path):
    """The gradient of the mix is that of PPO plus gamma times that of the mean token of the text."""

    def trained(**settings: object) -> tuple[list[torch.Tensor], PPO]:
        sgd = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=1.0), "inner_epochs": 1, "minibatches": 1}
        module = build(start, **sgd, **settings)
        fit(module, tmp_path, rows=8)
        return [p.detach().clone() for p in module.policy.parameters()], module

    plain, _ = trained()
    mixed, module = trained(ptx=PretrainingMix(SFTData("mini_instruct", max_rows=8, batch_size=8), coefficient=3.0))
    initial = build(start)
    initial.configure_model()
    (text,) = list(module.ptx.data.rows_loader())
    (-response_logps(initial.policy, text).mean() * 3.0).backward()
    for a, b, p in zip(mixed, plain, initial.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b - p.grad, atol=1e-5, rtol=1e-4)


RESUMED = {
    "gae": {"kl": AdaptiveKL, "inner_epochs": 2, "minibatches": 2},
    "grpo": {"advantage": GRPO(), "responses_per_prompt": 2, "kl_estimator": "k3", "layout": "shared"},
    "ptx": {"ptx": 0.5},
}


@pytest.mark.parametrize("name", RESUMED)
def test_every_checkpoint_leads_to_the_same_end(name, start, tmp_path):
    """In the middle of an update, between rollouts, and over the end of an epoch."""

    def run(folder: Path, ckpt_path: Path | None = None) -> tuple[Trace, PPO, str]:
        settings = dict(RESUMED[name])
        if settings.get("kl") is AdaptiveKL:
            settings["kl"] = AdaptiveKL(0.1, target=0.5, horizon=50)
        if "ptx" in settings:
            text = SFTData("mini_instruct", max_rows=12, batch_size=5)
            settings["ptx"] = PretrainingMix(text, settings["ptx"])
        module = build(start, log_samples_every=1, **settings)
        checkpoints = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trace = fit(
            module, folder, rows=16, max_epochs=2, ckpt_path=ckpt_path, enable_checkpointing=True,
            seed=3 if ckpt_path is None else 99, callbacks=[checkpoints], logger=CSVLogger(folder, name="", version=""),
        )  # fmt: skip
        return trace, module, (folder / "samples.jsonl").read_text() if (folder / "samples.jsonl").exists() else ""

    whole, trained, said = run(tmp_path / "whole")
    checkpoints = sorted(
        (tmp_path / "whole" / "checkpoints").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1])
    )
    assert len(checkpoints) == 2 * 2 * 4
    for done, checkpoint in enumerate(checkpoints, start=1):
        trace, module, text = run(tmp_path / checkpoint.stem, checkpoint)
        for resumed, expected in zip(trace.steps, whole.steps[done:], strict=True):
            assert resumed == expected, checkpoint.name
        for key, value in trained.state_dict().items():
            assert torch.equal(module.state_dict()[key], value), f"{checkpoint.name}: {key}"
        assert module.kl.beta == trained.kl.beta
        assert text.splitlines() == said.splitlines()[len(said.splitlines()) - len(text.splitlines()) :]


class Scripted(RolloutEngine):
    """Says to each prompt what its tokens add up to, so that what is said does not depend on the batch."""

    def sample(self, prompts, k):
        def words(ids, j):
            return [3 + (sum(ids) + 3 * j + t) % 15 for t in range(1 + (len(ids) + j) % 4)]

        return [[Response([*words(ids, j), 1], "eos") for j in range(k)] for ids in prompts]


class ScriptedPPO(PPO):
    def configure_model(self):
        super().configure_model()
        self.engine = Scripted()


def scripted_run(start: Path, folder: Path, batch_size: int, **settings) -> dict[str, object]:
    """One optimiser step on one rollout of six prompts, in file order."""
    rows = [f"tell me about {noun}" for noun in ("cats", "dogs", "birds", "fish")]
    path = Path(folder) / f"prompts{os.environ.get('RANK', '')}.jsonl"
    rows += [f"{row} please" for row in rows]
    path.write_text("\n".join(json.dumps({"prompt": row}) for row in rows))
    seed_everything(4, verbose=False)
    module = ScriptedPPO(
        ModelConfig(str(start)),
        reward=MiniInstructGold(),
        rollout=RolloutConfig(max_new_tokens=5),
        responses_per_prompt=2,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
    )
    trace = Trace()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, logger=False, callbacks=[trace], **settings,
    )  # fmt: skip
    trainer.fit(module, PromptData(train=str(path), batch_size=batch_size))
    return {"metrics": trace.steps[-1], "parameters": [p.detach().clone() for p in module.parameters()]}


def rank_run(start: Path, folder: Path, batch_size: int) -> dict[str, object]:
    return scripted_run(start, folder, batch_size, devices=2, strategy="ddp")


def test_two_ranks_equal_one(start, tmp_path, on_two_ranks):
    whole = scripted_run(start, tmp_path, batch_size=8)
    for result in on_two_ranks(rank_run, start, tmp_path, 4):
        assert result["metrics"] == pytest.approx(whole["metrics"], abs=2e-5, rel=2e-5)
        for a, b in zip(result["parameters"], whole["parameters"], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"advantage": RLOO()}, "responses_per_prompt"),
        ({"advantage": RLOO(), "responses_per_prompt": 2, "critic_lr": 1e-3}, "no use of a critic"),
        ({"advantage": GRPO(), "responses_per_prompt": 2}, "kl_estimator: k3"),
        ({"minibatches": 0}, "minibatches"),
    ],
)
def test_settings_without_effect_are_refused(start, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        build(start, **settings)


def test_dropout_is_refused(start):
    with pytest.raises(UserError, match="dropout"):
        PPO(ModelConfig(str(start), dropout=0.1), reward=MiniInstructGold(), rollout=RolloutConfig(max_new_tokens=5))


def test_gae_is_the_default(start):
    assert build(start).advantage == GAE()


class Parameters(Callback):
    """The policy's first parameter after every optimiser step."""

    def __init__(self) -> None:
        self.after: list[torch.Tensor] = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step > len(self.after):
            self.after.append(next(pl_module.policy.parameters()).detach().clone())


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_the_policy_can_be_averaged_by_lightning(start, tmp_path):
    module, seen = build(start), Parameters()
    fit(module, tmp_path, rows=24, callbacks=[EMAWeightAveraging(decay=0.7), seen])
    last = module.trainer.global_step
    assert last == 12
    average = seen.after[0]
    for value in [*seen.after[1:]]:
        average = 0.7 * average + 0.3 * value
    # The last step is not followed by another zero_grad, so its parameters are what the average still lacks.
    final = next(module.policy.parameters())
    implied = (final - 0.7 * average) / 0.3
    assert len(seen.after) == last - 1
    assert (
        implied - seen.after[-1]
    ).abs().max() < 3 * 3e-3  # one Adam step moves each weight by about the learning rate
    assert not torch.allclose(final, seen.after[-1])
