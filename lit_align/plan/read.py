"""From a run's config to what its devices have to hold and compute."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lit_align.cli import Parser
from lit_align.cli_errors import original
from lit_align.errors import UserError
from lit_align.models import LoRAConfig, ModelConfig
from lit_align.models.load import pretrained_config
from lit_align.plan.memory import LOGPS, NO_LOGITS, STATS, Held, Work
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
    args = config["model"]["init_args"]
    devices = _count(trainer["devices"]) * int(trainer["num_nodes"])
    strategy = trainer["strategy"]
    name = (strategy if isinstance(strategy, str) else str(strategy["class_path"])).lower()
    settings = {} if isinstance(strategy, str) else strategy.get("init_args") or {}
    sharded = "fsdp2" in name
    optimizer = args["optimizer"]
    kind = str(optimizer["class_path"]).rpartition(".")[2] if isinstance(optimizer, Mapping) else "AdamW"
    options = optimizer["init_args"] if isinstance(optimizer, Mapping) else {}
    work = Work(
        **_sizes(method, config, remarks)._asdict(),
        held=_models(method, args, str(trainer["precision"]), sharded, remarks),
        logits={"RewardModel": NO_LOGITS, "PPO": STATS}.get(method, LOGPS),
        # KTO runs the policy on mismatched pairs, too, and whatever its reference is.
        runs_frozen=method in ("KTO", "SPA") or (method == "DPO" and _references(method, args) > 0),
        extrapolates=method == "SPA" and args["refinement"] is not None,
        ranks=devices if sharded else 1,
        moments=1 if kind == "SGD" and options.get("momentum") else MOMENTS.get(kind, 2),
        # On the CPU torch steps one weight after another, on a GPU on copies of all.
        fused=bool(options.get("fused")) or trainer["accelerator"] == "cpu",
        accumulates=int(trainer["accumulate_grad_batches"]) > 1,
        half=str(trainer["precision"]).endswith("mixed"),
        offload=sharded and (name == "fsdp2_offload" or bool(settings.get("cpu_offload"))),
        buckets="ddp" in name and not settings.get("gradient_as_bucket_view"),
    )
    return Plan(method, work, devices, remarks)


def _models(method: str, args: Mapping[str, Any], precision: str, sharded: bool, remarks: list[str]) -> list[Held]:
    policy, half = _config(args["policy"]), precision.endswith("mixed")
    dtype = "bfloat16" if precision.endswith("true") and precision != "32-true" else policy.dtype
    width, lora = BYTES[dtype], policy.lora
    shape = shape_of(pretrained_config(policy), policy.attn_implementation, half, getattr(torch, dtype), lora)
    held = [
        Held(
            "policy",
            shape,
            width,
            rank=lora.rank if lora else 0,
            trained=True,
            is_reward=method == "RewardModel",
            recompute=policy.activation_checkpointing,
        )
    ]
    held += [
        Held(f"reference{' ' + str(n) if n else ''}", shape, width, shares=lora is not None and not sharded)
        for n in range(_references(method, args))
    ]
    others: list[tuple[str, Mapping[str, Any]]] = []
    if method == "PPO" and args["critic"] is not None:
        others.append(("critic", args["critic"]))
    for number, sampler in enumerate((args.get("candidates") or {}).get("samplers") or ()):
        others.append((f"sampler {number + 1}", sampler))
    others += [("reward model", given) for given in _source_models(args)]
    for name, given in others:
        trained = name == "critic"
        config = _config(given)
        own = dtype if name != "reward model" else config.dtype
        found = _shape_or(config, shape, half and trained, own, name, remarks)
        rank = config.lora.rank if trained and config.lora else 0
        recompute = trained and config.activation_checkpointing
        is_reward = not name.startswith("sampler")
        held.append(Held(name, found, BYTES[own], rank, trained, is_reward=is_reward, recompute=recompute))
    return held


def _references(method: str, args: Mapping[str, Any]) -> int:
    """How many models that are not trained a method keeps beside its policy, each as large."""
    kept = args.get("reference")
    if isinstance(kept, Mapping) and "Cached" in str(kept["class_path"]):
        return 0
    if method == "DPO":
        return int(_attribute(args["loss"], "needs_reference"))
    if method == "RRHF":
        return int(args["candidates"] is not None)
    return {"SPA": 2, "KTO": 1, "PPO": 1, "OnlineDPO": 1}.get(method, 0)


def _attribute(given: Any, name: str) -> Any:
    """What the class of an argument has under that name."""
    module, _, kind = str(given["class_path"]).rpartition(".")
    return getattr(getattr(import_module(module), kind), name)


def _source_models(args: Any) -> list[dict[str, Any]]:
    """The models of each `RewardModelReward` in a method's arguments."""
    if isinstance(args, list):
        return [found for value in args for found in _source_models(value)]
    if not isinstance(args, Mapping):
        return []
    if str(args.get("class_path", "")).endswith("RewardModelReward"):
        return [dict(args["init_args"]["model"])]
    return [found for value in args.values() for found in _source_models(value)]


def _shape_or(config: ModelConfig, other: Shape, half: bool, dtype: str, what: str, remarks: list[str]) -> Shape:
    """The shape of a model; where its folder is not there yet, that of the policy."""
    if config.path.startswith("runs/") and not Path(config.path).exists():
        remarks.append(f"{config.path} is not there yet; the {what} is taken to be as large as the policy.")
        return other
    return shape_of(pretrained_config(config), config.attn_implementation, half, getattr(torch, dtype), config.lora)


class Sizes(NamedTuple):
    """How much is computed at once; the fields are those of `Work`."""

    rows: int
    columns: int
    targets: int | None = None
    text: int = 0
    mask: int = 0
    sampled_rows: int = 0
    sampled_columns: int = 0


def _sizes(method: str, config: Mapping[str, Any], remarks: list[str]) -> Sizes:
    args, data = config["model"]["init_args"], config["data"]["init_args"]
    source: Mapping[str, Any] = args.get("candidates") or args
    batch, rollout = int(data["batch_size"]), source.get("rollout")
    on_cpu = config["trainer"]["accelerator"] == "cpu"
    if rollout is None:
        kind = str(config["data"]["class_path"]).rpartition(".")[2]
        responses = 4 if kind == "RankingData" else 1 if kind == "LabelData" else ROWS.get(method, 1)
        if kind == "RankingData":
            remarks.append("Each prompt is taken to have 4 ranked responses, as in UltraFeedback.")
        columns = int(data["max_length"])
        return Sizes(responses * batch, columns, mask=_mask(data, batch, responses, columns, columns, on_cpu))
    responses = 2 if method == "SPA" else int(source["responses_per_prompt"])
    new, prompt = int(rollout["max_new_tokens"]), int(data["max_prompt_length"])
    sampled = min(batch * responses, max(1, int(rollout["max_rows"]) // responses) * responses)
    responses *= 1 + len(source.get("samplers") or ())
    if method == "PPO":
        batch = -(-batch // int(args["minibatches"]))
    elif method == "OnlineDPO" and args["pairs"] == "extremes":
        responses = 2
    columns = prompt + new
    found = Sizes(
        responses * batch,
        columns,
        targets=new,
        mask=_mask(source, batch, responses, columns, 1024, on_cpu),
        sampled_rows=sampled,
        sampled_columns=columns,
    )
    if method == "PPO" and args["ptx"] is not None:
        text = args["ptx"]["data"]
        found = found._replace(text=int(text["batch_size"]) * int(text["max_length"]))
    if method == "SPA" and args["seed"] is not None:
        seed = args["seed"]["data"]["init_args"]
        rows, width = 2 * int(seed["batch_size"]), int(seed["max_length"])
        if rows * width > found.rows * found.columns:
            found = found._replace(rows=rows, columns=width, targets=None)
    return found


def _mask(given: Mapping[str, Any], batch: int, responses: int, columns: int, width: int, in_pieces: bool) -> int:
    """Entries of the masks of a batch in the `shared` layout, whose prompts are taken to be short."""
    if given.get("layout") != "shared":
        return 0
    if in_pieces:
        return batch * responses * columns**2
    wide = max(int(given.get("tokens_per_row") or width), responses * columns)
    return -(-batch * responses * columns // wide) * wide**2


def _config(given: Mapping[str, Any]) -> ModelConfig:
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
