"""What a continued run may change, and what it is asked about."""

from __future__ import annotations

import copy

import pytest

from lit_align.errors import UserError
from lit_align.runtime.config_change import changes, refuse_changes

CONFIG = {
    "seed_everything": 42,
    "run": "runs/g/a",
    "threads": None,
    "trainer": {
        "max_epochs": 2, "max_steps": -1, "precision": "32-true", "accumulate_grad_batches": 1, "devices": 1,
        "logger": [{"class_path": "CSVLogger"}], "callbacks": None, "limit_train_batches": None,
    },
    "model": {
        "class_path": "DPO",
        "init_args": {"loss": {"class_path": "DPO", "init_args": {"beta": 0.1}}, "optimizer": {"init_args": {"lr": 1e-3}}},
    },
    "data": {"class_path": "PreferenceData", "init_args": {"batch_size": 8, "val": None, "num_workers": 0}},
}  # fmt: skip


def with_change(key: str, value: object) -> dict:
    config = copy.deepcopy(CONFIG)
    *path, last = key.split(".")
    inner = config
    for name in path:
        inner = inner[name]
    inner[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run", "runs/g/b"), ("threads", 1), ("trainer.max_epochs", 5), ("trainer.max_steps", 100), ("trainer.devices", 2),
        ("trainer.logger", False), ("trainer.callbacks", [{"class_path": "callbacks.KLMonitor"}]),
        ("data.init_args.val", "rows.jsonl"), ("data.init_args.num_workers", 4), ("data.init_args.cache", "runs/encoded"),
    ],
)  # fmt: skip
def test_limits_loggers_callbacks_and_devices_may_change(key: str, value: object):
    refuse_changes(CONFIG, with_change(key, value))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.init_args.loss.init_args.beta", 0.2, "model.init_args.loss.init_args.beta: 0.1 -> 0.2"),
        ("model.init_args.loss.class_path", "IPO", "model.init_args.loss.class_path: DPO -> IPO"),
        ("model.init_args.optimizer.init_args.lr", 1e-4, "model.init_args.optimizer.init_args.lr: 0.001 -> 0.0001"),
        ("model.init_args.reference", {}, "model.init_args.reference: nothing -> {}"),
        ("data.init_args.batch_size", 4, "data.init_args.batch_size: 8 -> 4"),
        ("trainer.precision", "bf16-mixed", "trainer.precision: 32-true -> bf16-mixed"),
        ("trainer.accumulate_grad_batches", 2, "trainer.accumulate_grad_batches: 1 -> 2"),
        ("trainer.limit_train_batches", 5, "trainer.limit_train_batches: None -> 5"),
        ("seed_everything", 7, "seed_everything: 42 -> 7"),
    ],
)
def test_what_changes_the_result_is_named(key: str, value: object, said: str):
    assert changes(CONFIG, with_change(key, value)) == [said]
    with pytest.raises(UserError, match="other settings") as refused:
        refuse_changes(CONFIG, with_change(key, value))
    assert said in str(refused.value)
    assert "`--accept_changes true`" in str(refused.value)


def test_a_key_that_is_gone_is_named_and_long_lists_are_cut():
    assert changes(CONFIG, {}) != []
    assert "data.class_path: PreferenceData -> nothing" in changes(CONFIG, with_change("data", {}))
    many = {"model": {str(number): number for number in range(20)}}
    with pytest.raises(UserError, match="and 12 more"):
        refuse_changes(many, {})
