"""From a run's config to what its devices have to hold and compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lit_align.cli import Parser
from lit_align.cli_errors import original
from lit_align.errors import UserError
from lit_align.models import ModelConfig
from lit_align.models.load import pretrained_config
from lit_align.plan.memory import Held, Work
from lit_align.plan.shapes import Shape, shape_of

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MOMENTS = {"AdamW": 2, "Adam": 2, "NAdam": 2, "RAdam": 2, "SGD": 0, "RMSprop": 1, "Adagrad": 1, "Adafactor": 0}
ROWS = {"DPO": 2, "RewardModel": 2, "KTO": 1, "RRHF": 4, "OnlineDPO": 2, "SPA": 2}
"""Rows of a batch for each of its prompts that are trained on; of ranked rows, as many as UltraFeedback has."""


class Plan(NamedTuple):
    """What a config asks of a device.

    Args:
        method: The method's name.
        work: What a device holds and computes.
        devices: On how many devices, over all nodes.
        remarks: What had to be assumed.
    """

    method: str
    work: Work
    devices: int
    remarks: list[str]


def read_config(files: list[Path]) -> dict[str, Any]:
    """Model, data and Trainer of one or more configs, merged in their order and with every default filled in.

    Raises:
        UserError: A file is missing, or a setting is none.
    """
    merged: dict[str, Any] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"There is no config {file}.")
        merged = _merged(merged, yaml.safe_load(file.read_text(encoding="utf-8")))
    parser = Parser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(Trainer, "trainer")
    try:
        parsed: Namespace = parser.parse_object({key: merged[key] for key in ("model", "data", "trainer")})
    except KeyError as error:
        raise UserError(f"The config has no {error}, so it is not one of `fit`.") from error
    except ValueError as error:
        raise original(error) from None
    return dict(parsed.as_dict())


def plan_of(config: Mapping[str, Any]) -> Plan:
    """What `read_config` gave, as work for a device.

    Raises:
        UserError: The method is none that is known here, or its model's configuration cannot be found.
    """
    trainer, remarks = config["trainer"], list[str]()
    method = str(config["model"]["class_path"]).rpartition(".")[2]
    if method not in ("SFT", "PPO", *ROWS):
        raise UserError(f"plan knows the methods of lit_align, and not {method}.")
    args, data = config["model"]["init_args"], config["data"]["init_args"]
    devices = _count(trainer["devices"]) * int(trainer["num_nodes"])
    strategy = trainer["strategy"]
    name = strategy if isinstance(strategy, str) else str(strategy["class_path"])
    sharded = "fsdp2" in name.lower()
    settings = {} if isinstance(strategy, str) else strategy.get("init_args") or {}
    half = trainer["precision"] == "bf16-mixed"
    held = _models(method, args, trainer["precision"], half, sharded, remarks)
    optimizer = args["optimizer"]
    kind = str(optimizer["class_path"]).rpartition(".")[2] if isinstance(optimizer, Mapping) else "AdamW"
    options = optimizer["init_args"] if isinstance(optimizer, Mapping) else {}
    rows, columns, sampled = _sizes(method, args, data)
    work = Work(
        rows=rows,
        columns=columns,
        held=held,
        ranks=devices if sharded else 1,
        moments=1 if kind == "SGD" and options.get("momentum") else MOMENTS.get(kind, 2),
        # On the CPU torch steps one weight after another, on a GPU on copies of all.
        fused=bool(options.get("fused")) or trainer["accelerator"] == "cpu",
        accumulates=int(trainer["accumulate_grad_batches"]) > 1,
        half=half,
        recompute=bool(args["policy"]["activation_checkpointing"]),
        offload=sharded and (name.lower() == "fsdp2_offload" or bool(settings.get("cpu_offload"))),
        sampled_rows=sampled[0],
        sampled_columns=sampled[1],
    )
    return Plan(method, work, devices, remarks)


def _models(
    method: str, args: Mapping[str, Any], precision: str, half: bool, sharded: bool, remarks: list[str]
) -> list[Held]:
    policy = _config(args["policy"])
    shape = shape_of(pretrained_config(policy), policy.attn_implementation, half)
    width = 2 if precision == "bf16-true" else BYTES[policy.dtype]
    lora = policy.lora
    held = [Held("policy", shape, width, lora.rank if lora else 0, trained=True)]
    copies = {"SPA": 2, "DPO": 1, "KTO": 1, "PPO": 1, "OnlineDPO": 1, "RRHF": int(args.get("candidates") is not None)}
    kept = args.get("reference")
    if isinstance(kept, Mapping) and "Cached" in str(kept["class_path"]):
        copies[method] = 0
    held += [
        Held(f"reference{' ' + str(n) if n else ''}", shape, width, shares=lora is not None and not sharded)
        for n in range(copies.get(method, 0))
    ]
    if method == "PPO" and args["critic"] is not None:
        critic = _shape_or(args["critic"], shape, half, "critic", remarks)
        held.append(Held("critic", critic, width, trained=True))
    of_source = _source_model(args)
    if of_source is not None:
        reward = _shape_or(of_source, shape, half, "reward model", remarks)
        held.append(Held("reward model", reward, BYTES[of_source["dtype"]]))
    return held


def _source_model(args: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model of the first `RewardModelReward` in a method's arguments."""
    for value in args.values():
        if isinstance(value, Mapping):
            if str(value.get("class_path", "")).endswith("RewardModelReward"):
                return dict(value["init_args"]["model"])
            if (found := _source_model(value)) is not None:
                return found
    return None


def _shape_or(given: Mapping[str, Any], other: Shape, half: bool, what: str, remarks: list[str]) -> Shape:
    """The shape of a model; where its folder is not there yet, that of the policy."""
    path = str(given["path"])
    if path.startswith("runs/") and not Path(path).exists():
        remarks.append(f"{path} is not there yet; the {what} is taken to be as large as the policy.")
        return other
    config = _config(given)
    return shape_of(pretrained_config(config), config.attn_implementation, half)


def _sizes(method: str, args: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[int, int, tuple[int, int]]:
    """Rows of a batch and their tokens, and the same of what is sampled at once."""
    source: Mapping[str, Any] = args.get("candidates") or args
    batch, rollout = int(data["batch_size"]), source.get("rollout")
    if rollout is None:
        return ROWS.get(method, 1) * batch, int(data["max_length"]), (0, 0)
    responses = 2 if method == "SPA" else int(source["responses_per_prompt"])
    columns = int(data["max_prompt_length"] or 1024) + int(rollout["max_new_tokens"])
    rows = batch * responses
    sampled = (min(rows, int(rollout["max_rows"])), columns)
    if method == "PPO":
        rows = -(-batch // int(args["minibatches"])) * responses
    elif method == "OnlineDPO" and args["pairs"] == "extremes":
        rows = 2 * batch
    return rows, columns, sampled


def _config(given: Mapping[str, Any]) -> ModelConfig:
    from lit_align.models import LoRAConfig

    lora = given.get("lora")
    return ModelConfig(**{**given, "lora": None if lora is None else LoRAConfig(**lora)})


def _count(devices: Any) -> int:
    if isinstance(devices, list):
        return len(devices)
    if str(devices).isdigit():
        return int(devices)
    raise UserError(f"trainer.devices is {devices!r}: say how many, for what a device needs depends on it.")


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
