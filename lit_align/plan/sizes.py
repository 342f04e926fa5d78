"""How much is computed at once: rows, tokens, masks, and what is sampled, from a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lit_align.data.base import BATCH_SIZE

RESPONSES = {"SFTData": 1, "LabelData": 1, "PreferenceData": 2, "RankingData": 4}
"""Responses to a prompt; where rows may have any number, as many as those of UltraFeedback have."""


class Sizes(NamedTuple):
    """How much is computed at once; the fields are those of `Work`."""

    rows: int
    columns: int
    targets: int | None = None
    text: int = 0
    mask: int = 0
    sampled_rows: int = 0
    sampled_columns: int = 0


def sizes(method: str, config: Mapping[str, Any], remarks: list[str]) -> Sizes:
    """What a config lets a batch and a rollout be at most.

    Args:
        method: The method's name.
        config: As `read_config` gives it.
        remarks: What has to be assumed is added to them.
    """
    args, data = config["model"]["init_args"], config["data"]["init_args"]
    source: Mapping[str, Any] = args.get("candidates") or args
    rollout = source.get("rollout")
    on_cpu = config["trainer"]["accelerator"] == "cpu"
    if rollout is None:
        kind = str(config["data"]["class_path"]).rpartition(".")[2]
        responses = RESPONSES.get(kind, 2)
        if kind not in ("SFTData", "LabelData", "PreferenceData"):
            remarks.append(f"Each prompt of {kind} is taken to have {responses} responses.")
        columns, batch = int(data["max_length"]), _prompts(data, responses)
        return Sizes(responses * batch, columns, mask=_mask(data, batch, responses, columns, columns, on_cpu))
    batch, responses = int(data["batch_size"]), 2 if method == "SPA" else int(source["responses_per_prompt"])
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
        text = args["ptx"]["data"]["init_args"]
        found = found._replace(text=_prompts(text, 1) * int(text["max_length"]))
    if method == "SPA" and args["seed"] is not None:
        seed = args["seed"]["data"]["init_args"]
        rows, width = 2 * _prompts(seed, 2), int(seed["max_length"])
        if rows * width > found.rows * found.columns:
            found = found._replace(rows=rows, columns=width, targets=None)
    return found


def _prompts(data: Mapping[str, Any], responses: int) -> int:
    """Prompts of a batch whose rows are as long as they may be."""
    if data.get("tokens_per_batch") is not None:
        return max(1, int(data["tokens_per_batch"]) // (responses * int(data["max_length"])))
    return int(data["batch_size"] or BATCH_SIZE)


def _mask(given: Mapping[str, Any], batch: int, responses: int, columns: int, width: int, in_pieces: bool) -> int:
    """Entries of the masks of a batch in the `shared` layout, whose prompts are taken to be short."""
    if given.get("layout") != "shared":
        return 0
    if in_pieces:
        return batch * responses * columns**2
    wide = max(int(given.get("tokens_per_row") or width), responses * columns)
    return -(-batch * responses * columns // wide) * wide**2
