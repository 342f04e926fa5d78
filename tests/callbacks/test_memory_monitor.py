from __future__ import annotations

import pytest
import torch

from callbacks import MemoryMonitor
from callbacks.base import Evaluation
from callbacks.memory_monitor import peak_memory
from callbacks.model_flops import Tokens


class Costly(Evaluation):
    """Says that it spends half a second on measuring in every batch."""

    def evaluate(self, trainer, module):
        self.seconds += 0.5
        return {}


def test_what_it_logs(fit_small, monkeypatch):
    monkeypatch.setattr("callbacks.memory_monitor.matrix_rate", lambda device, dtype: 1e12)
    _, trainer = fit_small("dpo", [MemoryMonitor(every_n_steps=4)])
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("eval/")}
    assert set(metrics) == {f"eval/memory/{name}" for name in ("peak", "tokens_per_second", "mfu", "matrix_rate")}
    assert metrics["eval/memory/peak"] * 2**30 <= peak_memory(torch.device("cpu"))
    assert metrics["eval/memory/peak"] > 0.05
    assert metrics["eval/memory/tokens_per_second"] > 0
    assert metrics["eval/memory/matrix_rate"] == 1.0
    assert 0 < metrics["eval/memory/mfu"] < 0.1


def test_speed_is_tokens_by_the_seconds_of_their_batches(fit_small, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("callbacks.memory_monitor.now", lambda device: float(next(clock)))
    monkeypatch.setattr("callbacks.memory_monitor.matrix_rate", lambda device, dtype: 1e6)
    monkeypatch.setattr("callbacks.memory_monitor.batch_tokens", lambda batch: Tokens(10, 0, 0))
    monkeypatch.setattr("callbacks.memory_monitor.training_flops", lambda policy, tokens: 100.0 * tokens.trunk)
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)  # what `seconds` grows by otherwise
    _, trainer = fit_small("dpo", [Costly("costly", 1, False, 0), MemoryMonitor(every_n_steps=5)])
    # Half a second for each of the four batches that are counted: 10 tokens and 1000 FLOP.
    assert float(trainer.callback_metrics["eval/memory/tokens_per_second"]) == pytest.approx(20.0)
    assert float(trainer.callback_metrics["eval/memory/mfu"]) == pytest.approx(2e-3)
