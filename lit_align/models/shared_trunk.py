"""A reward model that is an adapter and a head on a policy's own trunk: written by one run, read by another."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from lit_align.errors import UserError
from lit_align.models.adapters import is_adapted, without_adapter

FACTS_FILE = "lit_align.json"
"""Beside an adapter: the fingerprint of the weights that it belongs to and, for a reward model, its bias."""


class RewardOnTrunk(NamedTuple):
    """A reward model around the tensors of a policy.

    Args:
        model: A `peft.PeftModel`, frozen, in eval mode. Of its own it has an adapter and a head.
        bias: Added to what the model computes.
    """

    model: Any
    bias: float


def save_adapter(model: Any, state: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Writes an adapter, with a reward model's head, the tokenizer, and what tells which weights it belongs to.

    Args:
        model: What `with_lora` gave.
        state: Its state dict, whole.
        tokenizer: The model's.
        folder: A new one.
    """
    model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    facts = {"base_fingerprint": model.base_fingerprint}
    if (bias := getattr(model.config, "reward_bias", None)) is not None:
        facts["reward_bias"] = bias
    (Path(folder) / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n")


def reward_on_trunk(policy: Any, folder: str | Path) -> RewardOnTrunk:
    """The reward model that an adapter makes of a policy's own frozen weights.

    It is other modules around the very same tensors, so the weights are held once, and scoring switches nothing over in the
    policy. Building it leaves torch's random state as it was.

    Args:
        policy: A causal language model that `with_lora` made.
        folder: What `save_adapter` wrote for a reward model.

    Raises:
        UserError: The policy has no adapter, the folder has none of a reward model, or it belongs to other weights.
    """
    if not is_adapted(policy):
        raise UserError(
            f"The reward adapter {str(folder)!r} needs a policy with LoRA, because the weights below it must stay what they "
            "are. Set policy.lora, or take RewardModelReward with the folder above, which has the adapter merged in."
        )
    facts = _facts(Path(folder))
    if facts["base_fingerprint"] != policy.base_fingerprint:
        raise UserError(
            f"The reward adapter {str(folder)!r} belongs to other weights (fingerprint {facts['base_fingerprint']}) than "
            f"those of the policy ({policy.base_fingerprint}). Train it on the model that policy.path names, with the same "
            "dtype, or take RewardModelReward with the folder above, which has the adapter merged in."
        )
    return RewardOnTrunk(_with_adapter(_with_head(without_adapter(policy)), folder), float(facts["reward_bias"]))


def _facts(folder: Path) -> dict[str, Any]:
    where = folder / FACTS_FILE
    if not where.is_file():
        raise UserError(
            f"There is no {FACTS_FILE} in {str(folder)!r}, so it is no adapter that a run of this version exported. Name the "
            "folder model/adapter of a RewardModel run with policy.lora; `export` writes it from a checkpoint."
        )
    facts: dict[str, Any] = json.loads(where.read_text())
    if "reward_bias" not in facts:
        raise UserError(
            f"{str(folder)!r} holds the adapter of a policy, and no reward head. Name the folder model/adapter of a "
            "RewardModel run."
        )
    return facts


def _with_head(causal: Any) -> Any:
    """A sequence classifier around the trunk of a causal language model; its head has no weights yet that mean anything."""
    causal.config.num_labels = 1
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(causal.config)
    # The trunk that came with it has no memory, and goes.
    setattr(classifier, classifier.base_model_prefix, causal.base_model)
    like = causal.get_input_embeddings().weight
    head = nn.Linear(classifier.score.in_features, 1, bias=False, device="meta", dtype=like.dtype)
    classifier.score = head.to_empty(device=like.device)
    return classifier


def _with_adapter(classifier: Any, folder: str | Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # peft 0.21 asks transformers 5.23 for the first (2026-11), and sets the second by itself.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        adapted = PeftModel.from_pretrained(classifier, str(folder), torch_device="cpu")
    return adapted.requires_grad_(False).eval()
