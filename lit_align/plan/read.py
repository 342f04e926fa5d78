"""From a run's config to what its devices have to hold and compute."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
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
from lit_align.nearest import near_file
from lit_align.plan.memory import LAST_ROUND, LOGPS, NO_LOGITS, STATS, TRAINED_ENTROPY, Held, Logits, Work
from lit_align.plan.shapes import Shape, shape_of
from lit_align.plan.sizes import sizes

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MOMENTS = {"AdamW": 2, "Adam": 2, "NAdam": 2, "RAdam": 2, "SGD": 0, "RMSprop": 1, "Adagrad": 1, "Adafactor": 0}
METHODS = ("SFT", "RewardModel", "DPO", "KTO", "RRHF", "PPO", "OnlineDPO", "SPA")
READ = ("model", "data", "trainer")
"""The keys of a config that a plan depends on."""


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
        UserError: A file is missing or no YAML, or a setting is none.
    """
    merged: dict[str, Any] = {}
    for file in files:
        merged = _merged(merged, _loaded(file))
    parser = Parser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(Trainer, "trainer")
    try:
        parsed: Namespace = parser.parse_object({key: merged[key] for key in READ})
    except KeyError as error:
        raise UserError(f"The config has no {error}: plan needs model, data and trainer, as `fit` does.") from error
    except ValueError as error:
        raise original(error) from None
    return dict(parsed.as_dict())


def _loaded(file: Path) -> dict[str, Any]:
    """The settings of one file."""
    if file.is_dir():
        raise UserError(f"{file} is a folder: name one of its configs.")
    if not file.is_file():
        raise UserError(f"There is no config {file}{near_file(file) or '.'}")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line}: this is no YAML: {error.problem}.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{file} holds no settings: a config has the keys model, data and trainer.")
    for key in settings:
        if key not in READ and (near := get_close_matches(str(key), READ, n=1)):
            raise UserError(f"{file}: a config has no key {key!r}; did you mean {near[0]!r}?")
    return settings


def plan_of(config: Mapping[str, Any]) -> Plan:
    """What `read_config` gave, as work for a device.

    Raises:
        UserError: The method is none that is known here, or its model's configuration cannot be found.
    """
    trainer, remarks = config["trainer"], list[str]()
    method = str(config["model"]["class_path"]).rpartition(".")[2]
    if method not in METHODS:
        raise UserError(f"plan knows the methods of lit_align, and not {method}.")
    args = config["model"]["init_args"]
    devices = _count(trainer["devices"]) * int(trainer["num_nodes"])
    name, settings = _strategy(trainer["strategy"], devices)
    sharded = "fsdp2" in name
    optimizer = args["optimizer"]
    kind = str(optimizer["class_path"]).rpartition(".")[2] if isinstance(optimizer, Mapping) else "AdamW"
    options = optimizer["init_args"] if isinstance(optimizer, Mapping) else {}
    work = Work(
        **sizes(method, config, remarks)._asdict(),
        held=_models(method, args, str(trainer["precision"]), sharded, trainer["callbacks"], remarks),
        logits=_logits(method, args),
        # KTO runs the policy on mismatched pairs, too, and whatever its reference is.
        runs_frozen=method in ("KTO", "SPA") or (method == "DPO" and bool(_references(method, args))),
        extrapolates=method == "SPA" and args["refinement"] is not None,
        ranks=devices if sharded else 1,
        moments=_moments(kind, options),
        # On the CPU torch steps one weight after another, on a GPU on copies of all.
        fused=bool(options.get("fused")) or trainer["accelerator"] == "cpu",
        accumulates=int(trainer["accumulate_grad_batches"]) > 1,
        half=str(trainer["precision"]).endswith("mixed"),
        offload=sharded and (name == "fsdp2_offload" or bool(settings.get("cpu_offload"))),
        buckets="ddp" in name and not settings.get("gradient_as_bucket_view"),
    )
    return Plan(method, work, devices, remarks)


def _moments(kind: str, options: Mapping[str, Any]) -> int:
    """Numbers that an optimiser keeps of each weight; with Kahan summation (torch-optimi) what rounding took is one more."""
    moments = 1 if kind == "SGD" and options.get("momentum") else MOMENTS.get(kind, 2)
    return moments + bool(options.get("kahan_sum"))


def _logits(method: str, args: Mapping[str, Any]) -> Logits:
    if method == "PPO":
        return TRAINED_ENTROPY if args["entropy_coef"] else STATS
    return NO_LOGITS if method == "RewardModel" else LOGPS


def _strategy(given: Any, devices: int) -> tuple[str, Mapping[str, Any]]:
    """The strategy's name, in small letters, and its arguments.

    Raises:
        UserError: The methods do not run under it, or nothing is known of it.
    """
    name = given if isinstance(given, str) else str(given["class_path"])
    settings = {} if isinstance(given, str) else given.get("init_args") or {}
    if name == "auto":
        return ("ddp" if devices > 1 else name), settings
    if not any(known in name.lower() for known in ("fsdp2", "ddp", "singledevice")):
        raise UserError(
            f"trainer.strategy: plan knows ddp, fsdp2 and fsdp2_offload, and not {name}. To shard weights, gradients and "
            "optimiser over all devices, set fsdp2."
        )
    return name.lower(), settings


def _models(
    method: str, args: Mapping[str, Any], precision: str, sharded: bool, callbacks: Any, remarks: list[str]
) -> list[Held]:
    policy, half = _config(args["policy"]), precision.endswith("mixed")
    dtype = "bfloat16" if precision.endswith("true") and precision != "32-true" else policy.dtype
    width, lora = BYTES[dtype], policy.lora
    if _is_to_come(policy):
        raise UserError(
            f"plan reads the policy's configuration, and {policy.path} is not there yet. Run what makes it, or name a model of "
            "the same size in a second config: model: {init_args: {policy: {path: ...}}}."
        )
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
    rank, shares = (0, False) if lora is None else (lora.rank, not sharded)
    held += [
        # What moves has an adapter of its own, on the same weights.
        Held(name, shape, width, rank=rank if moves else 0, shares=shares)
        for name, moves in _references(method, args).items()
    ]
    others: list[tuple[str, Mapping[str, Any]]] = []
    if method == "PPO" and args["critic"] is not None:
        others.append(("critic", args["critic"]))
    others += [("sampler", sampler) for sampler in (args.get("candidates") or {}).get("samplers") or ()]
    kept = {name: value for name, value in args.items() if name not in ("policy", "critic", "candidates")}
    others += _source_models([kept, (args.get("candidates") or {}).get("reward"), callbacks], "")
    for name, given in others:
        config, trained = _config(given), name == "critic"
        # What a source of rewards or verdicts holds stays in its own precision.
        own = dtype if trained or (name == "sampler" and dtype != policy.dtype) else config.dtype
        found = _shape_or(config, shape, half and trained, own, remarks)
        held.append(Held(
            name if all(name != model.name for model in held) else f"{name} {len(held)}",
            found,
            BYTES[own],
            rank=config.lora.rank if trained and config.lora else 0,
            trained=trained,
            is_reward=name in ("critic", "RewardModelReward"),
            recompute=trained and config.activation_checkpointing,
        ))  # fmt: skip
    return held


def _references(method: str, args: Mapping[str, Any]) -> dict[str, bool]:
    """The models as large as the policy that a method keeps beside it, untrained, and whether each follows it."""
    if method == "SPA":
        return {"reference": False, LAST_ROUND: True}
    kept = args.get("reference")
    kind = str(kept["class_path"]) if isinstance(kept, Mapping) else ""
    has_one = {
        "DPO": method == "DPO" and _attribute(args["loss"], "needs_reference"),
        "RRHF": args.get("candidates") is not None,
        "KTO": True,
        "PPO": True,
        "OnlineDPO": True,
    }
    if "Cached" in kind or not has_one.get(method):
        return {}
    return {"reference": "Moving" in kind}


def _attribute(given: Any, name: str) -> Any:
    """What the class of an argument has under that name."""
    module, _, kind = str(given["class_path"]).rpartition(".")
    return getattr(getattr(import_module(module), kind), name)


def _source_models(given: Any, owner: str) -> list[tuple[str, dict[str, Any]]]:
    """The models that sources of rewards, judges and callbacks hold, each with the name of its class."""
    if isinstance(given, list):
        return [found for value in given for found in _source_models(value, owner)]
    if not isinstance(given, Mapping):
        return []
    if "path" in given and "attn_implementation" in given:
        return [(owner, dict(given))]
    owner = str(given.get("class_path", owner)).rpartition(".")[2]
    return [found for value in given.values() for found in _source_models(value, owner)]


def _shape_or(config: ModelConfig, other: Shape, half: bool, dtype: str, remarks: list[str]) -> Shape:
    """The shape of a model; where its folder is not there yet, that of the policy."""
    if _is_to_come(config):
        remarks.append(f"{config.path} is not there yet; it is taken to be as large as the policy.")
        return other
    return shape_of(pretrained_config(config), config.attn_implementation, half, getattr(torch, dtype), config.lora)


def _is_to_come(config: ModelConfig) -> bool:
    """Whether a model is what another run makes, and has not made yet."""
    return config.path.startswith("runs/") and not Path(config.path).exists()


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
