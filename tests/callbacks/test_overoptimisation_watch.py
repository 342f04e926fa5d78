from __future__ import annotations

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import OveroptimisationWatch
from callbacks.text_shape import Spread
from lit_align.data.mini_instruct import PROMPTS, gold
from lit_align.errors import UserError
from lit_align.feedback import MiniInstructGold
from lit_align.models import ModelConfig, Sampling, load_policy
from lit_align.rollout import RolloutConfig

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def watch(**changed) -> OveroptimisationWatch:
    settings = {
        "prompts": "mini_instruct", "proxy": MiniInstructGold(), "rollout": RolloutConfig(3), "every_n_steps": 2, "k": 8,
    }  # fmt: skip
    return OveroptimisationWatch(**{**settings, **changed})


def seen(trainer) -> dict[str, float]:
    return {
        name.removeprefix("eval/watch/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("eval/watch/")
    }


def test_at_the_start_nothing_has_moved(fit_small):
    watcher = watch(every_n_steps=100, held_out=MiniInstructGold())
    _, trainer = fit_small("dpo", [watcher])
    metrics = seen(trainer)
    for name in ("sqrt_kl", "length_shift", "eos_rate_shift", "repetition_shift", "parted"):
        assert metrics[name] == 0
    assert metrics["proxy"] == metrics["held_out"]
    assert 1 <= metrics["length"] <= 3
    assert watcher.state_dict()["best"]["held_out"] == pytest.approx(metrics["held_out"])


def test_metrics_are_those_of_the_samples(fit_small, start, monkeypatch):
    """Every number again, from the answers and with whole logits."""
    watcher = watch(every_n_steps=5, n_prompts=2, k=3)
    drawn = []
    sample = watcher.prompts.sample
    monkeypatch.setattr(watcher.prompts, "sample", lambda *args: drawn.append(sample(*args)) or drawn[-1])
    module, trainer = fit_small("dpo", [watcher])
    metrics, answers = seen(trainer), drawn[-1]
    policy, reference = module.policy.eval(), load_policy(ModelConfig(str(start))).eval()
    entropies, kls = [], []
    for answer in answers:
        ids = torch.tensor([[*answer.prompt_ids, *answer.response_ids]])
        with torch.no_grad():
            p, q = (
                m(ids).logits[0, len(answer.prompt_ids) - 1 : -1].double().log_softmax(-1) for m in (policy, reference)
            )
        entropies.append(-float((p.exp() * p).sum(-1).mean()))
        kls.append(float((p.exp() * (p - q)).sum()))
    assert [answer.prompt for answer in answers] == [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3
    assert metrics["entropy"] == pytest.approx(sum(entropies) / 6, abs=1e-5)
    assert metrics["sqrt_kl"] == pytest.approx(math.sqrt(sum(kls) / 6), abs=1e-4)
    assert metrics["proxy"] == pytest.approx(sum(gold(a.prompt, a.response) for a in answers) / 6, abs=1e-5)
    assert metrics["eos_rate"] == pytest.approx(sum(a.finished for a in answers) / 6)
    lengths = [len(a.response_ids) for a in answers]
    assert metrics["length"] == pytest.approx(sum(lengths) / 6)
    first = [len(a.response_ids) for a in drawn[0]]  # of the reference
    mean = sum(first) / 6
    std = max(math.sqrt(sum((n - mean) ** 2 for n in first) / 5), 1.0)
    assert metrics["length_shift"] == pytest.approx((sum(lengths) / 6 - mean) / std, abs=1e-5)


OF_REFERENCE = {
    "length": Spread(4.0, 2.0), "eos_rate": Spread(0.9, 0.3), "repetition": Spread(0.1, 0.1), "proxy": Spread(0.0, 1.0),
}  # fmt: skip
CALM = {
    "proxy": 1.0, "proxy_std_error": 0.1, "length": 4.0, "length_shift": 0.0, "eos_rate": 0.9, "eos_rate_shift": 0.0,
    "repetition": 0.1, "repetition_shift": 0.0, "sqrt_kl": 1.5,
}  # fmt: skip


def reaction(*series: dict[str, float], **settings) -> tuple[list[str], SimpleNamespace]:
    """What a watch says to measurements that differ from a calm one, and the Trainer."""
    watcher = watch(held_out=MiniInstructGold(), **settings)
    watcher._of_reference = OF_REFERENCE
    trainer = SimpleNamespace(global_step=8, should_stop=False)
    held_out = {"held_out": 1.0, "held_out_std_error": 0.05}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for changed in series:
            watcher.react(trainer, {f"eval/watch/{name}": v for name, v in {**CALM, **held_out, **changed}.items()})
    return [str(warning.message) for warning in caught], trainer


@pytest.mark.parametrize(
    ("changed", "speaks"),
    [
        ({}, False),
        ({"repetition_shift": 1.1}, True),
        ({"repetition_shift": 0.9}, False),
        ({"repetition_shift": -1.1}, False),
        ({"eos_rate_shift": -1.1}, True),
        ({"eos_rate_shift": 1.1}, False),
        ({"length_shift": 1.1}, True),
        ({"length_shift": -1.1}, True),
        ({"length_shift": 1.1, "proxy": 0.2}, False),  # the proxy has not risen by more than chance
    ],
)
def test_shape_speaks_in_the_direction_that_is_wrong(changed, speaks):
    said, trainer = reaction(changed)
    assert len(said) == speaks
    assert not trainer.should_stop


def test_the_sentence_says_what_moved():
    (said,), _ = reaction({"repetition": 0.22, "repetition_shift": 1.2}, {"repetition": 0.3, "repetition_shift": 2.0})
    assert "at step 8: the reward has risen by 1 at 1.5 sqrt(nats)" in said
    assert "mean repetition is 0.22 where the reference has 0.1, which is 1.2 standard deviations" in said


def test_a_held_out_reward_speaks_when_it_falls_and_the_proxy_does_not():
    # Three standard errors of a difference of two means: 3 * .05 * sqrt(2) = .212.
    assert reaction({}, {"held_out": 0.8, "proxy": 1.2})[0] == []
    assert reaction({}, {"held_out": 0.78, "proxy": 0.9})[0] == []
    (said,), trainer = reaction({}, {"held_out": 0.78, "proxy": 1.2}, stop=True)
    assert "the held-out reward has fallen by 0.22 from its best" in said
    assert trainer.should_stop


def test_it_stops_and_stays_stopped(fit_small, tmp_path):
    def fit(folder: str, ckpt_path=None, **settings):
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        watcher = watch(limit=1e-6, stop=True, **settings)
        # Whatever moves is too far, and whatever rises is more than chance.
        watcher._reasons = lambda metrics: ["it moved"] if metrics["sqrt_kl"] > 0 else []
        return watcher, fit_small("dpo", [watcher, saving], enable_checkpointing=True, ckpt_path=ckpt_path)[1]

    with pytest.warns(UserWarning, match=r"following its reward too far at step 2: .* it moved"):
        first, trainer = fit("first")
    assert trainer.global_step == 2
    assert seen(trainer)["parted"] == 1
    second, trainer = fit("second", tmp_path / "first" / "step=2.ckpt")
    assert trainer.global_step == 2
    assert second.state_dict() == first.state_dict()


def test_state_is_plain():
    watcher = watch()
    watcher._of_reference = OF_REFERENCE
    state = json.loads(json.dumps(watcher.state_dict()))
    other = watch()
    other.load_state_dict(state)
    assert other._of_reference == OF_REFERENCE


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [({"limit": 0.0}, "limit must be above 0"), ({"rollout": RolloutConfig(2, Sampling(top_k=3))}, "infinite KL")],
)
def test_what_makes_no_sense_is_refused(changed, sentence):
    with pytest.raises(UserError, match=sentence):
        watch(**changed)
