from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import KLMonitor
from lit_align.data import SFTData
from lit_align.data.mini_instruct import PROMPTS, groups
from lit_align.errors import UserError
from lit_align.methods import SFT, Schedule
from lit_align.models import ModelConfig, Sampling, load_policy
from lit_align.rollout import RolloutConfig
from lit_align.runtime.loggers import RunCSVLogger

pytestmark = pytest.mark.filterwarnings(
    "ignore:The policy puts",  # what an untrained policy does
    "ignore:The dirpath has changed",
)


def monitor(**changed) -> KLMonitor:
    """At the start, and after steps 2 and 4."""
    settings = {"prompts": "mini_instruct", "rollout": RolloutConfig(2), "every_n_steps": 2, "k": 4}
    return KLMonitor(**{**settings, **changed})


def kl_of_two_tokens(policy: torch.nn.Module, reference: torch.nn.Module, prompt: list[int], eos: int) -> float:
    """KL of responses cut after two tokens, over every one of them: KL of the first plus the expected KL of the second."""

    def tables(ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            first, second = (m(torch.tensor(ids)).logits[:, -1].double().log_softmax(-1) for m in (policy, reference))
        return first, second

    p, q = (logps[0] for logps in tables([prompt]))
    after = [token for token in range(len(p)) if token != eos]
    p2, q2 = tables([[*prompt, token] for token in after])
    second = (p2.exp() * (p2 - q2)).sum(-1)
    return float((p.exp() * (p - q)).sum() + (p.exp()[after] * second).sum())


def test_estimates_lie_around_the_kl_of_what_is_sampled(fit_small, start, tmp_path):
    watcher = monitor(k=500, every_n_steps=5, at_start=False, batch_size=4000)
    module, trainer = fit_small("dpo", [watcher], logger=RunCSVLogger(tmp_path))
    reference = load_policy(ModelConfig(str(start))).eval()
    ids = [module.tokenizer(prompt).input_ids for prompt in PROMPTS]
    exact = [kl_of_two_tokens(module.policy.eval(), reference, prompt, module.tokenizer.eos_token_id) for prompt in ids]
    expected = sum(exact) / len(exact)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert expected > 0.01
    for estimator in ("k1", "k3", "full"):
        error = metrics[f"eval/kl/{estimator}_std_error"]
        assert metrics[f"eval/kl/{estimator}"] == pytest.approx(expected, abs=3 * error)
        assert error < expected / 3
    with (tmp_path / "eval" / "kl_by_position.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["step"], row["position"]) for row in rows] == [("5", "1"), ("5", "2")]
    for estimator in ("k1", "k3", "full"):
        assert sum(float(row[estimator]) for row in rows) == pytest.approx(metrics[f"eval/kl/{estimator}"], abs=1e-6)


def test_before_the_first_step_every_kl_is_zero(fit_small):
    watcher = monitor(every_n_steps=100)
    _, trainer = fit_small("dpo", [watcher])
    kls = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("eval/kl")}
    assert len(kls) == 6
    assert not any(kls.values())


def test_exact_is_by_enumeration_over_the_prompts_that_were_asked(fit_small, monkeypatch):
    """The reference's table is kept until its weights change."""
    enumerated = []

    def table(model, tokenizer):
        enumerated.append(model)
        of_policy = model is not enumerated[0]
        rows = [[0.5, 0.5]] * 3 + [[0.9, 0.1]] * 5 if of_policy else [[0.25, 0.75]] * 8
        return SimpleNamespace(logps=torch.tensor(rows, dtype=torch.float64).log())

    monkeypatch.setattr("callbacks.kl_monitor.enumerated_policy", table)
    module, trainer = fit_small("dpo", [monitor(exact=True, n_prompts=3)])
    assert enumerated[0] is module.reference_model()
    assert enumerated[1:] == [module.policy] * 3
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(trainer.callback_metrics["eval/kl/exact"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_exact_and_estimates_agree_where_little_leaks(tmp_path):
    """A policy that learned from demonstrations goes on with preferred responses: a little mass is sampled, not enumerated."""
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

    def sft(policy: ModelConfig) -> SFT:
        adam = lambda parameters: torch.optim.AdamW(parameters, lr=3e-3)  # noqa: E731
        return SFT(policy, optimizer=adam, lr_scheduler=Schedule(decay="linear"))

    first = sft(ModelConfig("mini_instruct", init="random"))
    Trainer(max_epochs=2, **settings).fit(first, SFTData(train="mini_instruct", batch_size=64))
    first.export(tmp_path / "first")
    preferred = [{"prompt": g.prompt, "completion": g.responses[0]} for g in groups("preference", 2000)]
    (tmp_path / "preferred.jsonl").write_text("\n".join(map(json.dumps, preferred)))
    watcher = monitor(k=500, every_n_steps=30, at_start=False, exact=True, rollout=RolloutConfig(6), batch_size=1000)
    trainer = Trainer(max_steps=30, callbacks=[watcher], **settings)
    trainer.fit(
        sft(ModelConfig(str(tmp_path / "first"))), SFTData(train=str(tmp_path / "preferred.jsonl"), batch_size=64)
    )
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["eval/kl/exact"] > 0.03
    for estimator in ("k1", "k3", "full"):
        error = metrics[f"eval/kl/{estimator}_std_error"]
        assert metrics[f"eval/kl/{estimator}"] == pytest.approx(metrics["eval/kl/exact"], rel=0.1, abs=3 * error)


def test_sft_is_compared_with_where_it_started_also_when_resumed(fit_small, tmp_path):
    def saving(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)

    _, whole = fit_small("sft", [monitor(), saving("first")], enable_checkpointing=True)
    checkpoint = tmp_path / "first" / "step=2.ckpt"
    _, resumed = fit_small("sft", [monitor(), saving("second")], enable_checkpointing=True, ckpt_path=checkpoint)
    for name in ("eval/kl/k1", "eval/kl/full_std_error"):
        assert float(whole.callback_metrics[name]) == float(resumed.callback_metrics[name]) != 0


def test_where_the_start_cannot_be_found_again(fit_small):
    watcher = monitor()
    watcher.load_state_dict({"last_step": 2, "said": [], "last_kl": 0.1, "reference": "0123456789abcdef"})
    with pytest.raises(UserError, match="another reference model"):
        fit_small("sft", [watcher])
    module = SFT(ModelConfig("mini_instruct", init="random"))
    module.configure_model()
    with pytest.raises(UserError, match=r"KLMonitor compares the policy .* SFT has no reference"):
        watcher.compared_with.prepare(SimpleNamespace(global_rank=0), module)


def test_it_warns_once_and_stops(fit_small):
    with pytest.warns(UserWarning, match=r"nats from its reference at step 2, above warn_at \(0.0001\)") as warned:
        _, trainer = fit_small("dpo", [monitor(warn_at=1e-4)])
    assert len([w for w in warned if "warn_at" in str(w.message)]) == 1
    assert trainer.global_step == 5


def test_it_stops_and_stays_stopped(fit_small, tmp_path):
    def steps(stop_at: float, folder: str, ckpt_path: Path | None = None) -> int:
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=2)
        callbacks = [monitor(stop_at=stop_at), saving]
        return fit_small("dpo", callbacks, enable_checkpointing=True, ckpt_path=ckpt_path)[1].global_step

    assert steps(1e-4, "first") == 2
    checkpoint = tmp_path / "first" / "step=2.ckpt"
    assert steps(1e-4, "second", checkpoint) == 2
    assert steps(100.0, "third", checkpoint) == 5


def reaction(k1: float, error: float) -> KLMonitor:
    watcher = monitor()
    metrics = {"eval/kl/k1": k1, "eval/kl/k1_std_error": error, "eval/kl/full": 0.01}
    for _ in range(2):
        watcher.react(SimpleNamespace(global_step=8, should_stop=False), metrics)
    return watcher


def test_a_negative_estimate_is_explained_once(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        watcher = reaction(k1=-0.02, error=0.015)
    (record,) = caplog.records
    assert "That is chance" in record.message
    assert "0.015" in record.message
    assert watcher.state_dict()["said"] == ["noise"]
    with pytest.warns(UserWarning, match="20 standard errors below 0") as warned:
        reaction(k1=-0.3, error=0.015)
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"rollout": RolloutConfig(2, Sampling(top_k=3))}, "infinite KL"),
        ({"rollout": RolloutConfig(2, Sampling(top_p=0.9))}, "infinite KL"),
        ({"exact": True, "rollout": RolloutConfig(2, Sampling(temperature=0.5))}, "exact needs"),
        ({"exact": True, "prompts": "rows.jsonl"}, "exact needs"),
        ({"warn_at": 2.0, "stop_at": 1.0}, "below stop_at"),
    ],
)
def test_what_makes_no_sense_is_refused(changed, sentence):
    with pytest.raises(UserError, match=sentence):
        monitor(**changed)


class Bare(LightningModule):
    """A module that has nothing a callback asks for."""


def test_a_module_without_a_policy_gets_a_sentence():
    with pytest.raises(UserError, match=r"KLMonitor needs the language model .* Bare has no attribute `policy`"):
        monitor().on_fit_start(SimpleNamespace(), Bare())
