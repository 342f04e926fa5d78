from __future__ import annotations

import time

import pytest

from callbacks import SpendTime
from callbacks.base import Evaluation
from callbacks.spend_time import PARTS


class Slow(Evaluation):
    """Measures nothing for a while."""

    def evaluate(self, trainer, module):
        time.sleep(0.1)
        return {}


def shares(trainer) -> dict[str, float]:
    return {
        name.removeprefix("eval/time/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("eval/time/")
    }


@pytest.mark.parametrize("first", [True, False])
def test_shares_add_up_wherever_other_callbacks_stand(fit_small, first):
    slow, watcher = Slow("slow", 1, False, 0), SpendTime(every_n_steps=5)
    _, trainer = fit_small("dpo", [slow, watcher] if first else [watcher, slow])
    found = shares(trainer)
    assert sum(found[part] for part in PARTS) == pytest.approx(1.0, abs=1e-6)
    assert found["rollout"] == found["score"] == found["validation"] == 0
    # Five, or the four before the one that comes after the watcher's own last measurement.
    measured = 0.1 * (5 if first else 4)
    assert measured <= found["evaluation"] * found["step"] * 5 < slow.seconds + watcher.seconds + 1e-3
    assert found["update"] > 0
    assert found["data"] > 0


def test_a_rollout_is_split_as_the_method_logged_it(fit_small, monkeypatch):
    watcher = SpendTime(every_n_steps=20)
    began = time.perf_counter()
    _, trainer = fit_small("ppo", [watcher])
    whole = time.perf_counter() - began
    found = shares(trainer)
    assert sum(found[part] for part in PARTS) == pytest.approx(1.0, abs=1e-6)
    assert min(found[part] for part in ("rollout", "score", "update")) > 0.01
    assert found["data"] >= 0
    assert found["step"] * 20 < whole


def test_every_rollout_is_counted_once(fit_small, monkeypatch):
    """Ten rollouts of known times, each of which is logged with both of its steps."""
    watcher = SpendTime(every_n_steps=20)
    logged = iter([(1.0 + step // 2, 0.5) for step in range(20)])
    monkeypatch.setattr(
        "callbacks.spend_time.rollout_seconds", lambda trainer: next(logged) if trainer.global_step else None
    )
    spent = {}
    monkeypatch.setattr(watcher, "evaluate", lambda trainer, module: spent.update(watcher._spent) or {})
    fit_small("ppo", [watcher])
    assert spent["rollout"] == pytest.approx(sum(range(1, 11)))
    assert spent["score"] == pytest.approx(5.0)
