"""Rows that hold trees: a prompt, its responses behind it, and the next prompt behind them.

The `shared` layout says with each token how far to the right of it the token may be seen, `visible_until (R, T)`. That is all
a model needs besides positions that restart; this file puts it in the form each kind of model takes, and finds out by a
measurement whether a model takes it at all: one that ignores it would train on wrong numbers without a word.

There are two forms, and the numbers are the same. In pieces, see `lit_align.models.tree_attention`, wherever a CPU runs `sdpa`
and that costs less; else as rows under a mask, which `flex_attention` takes as blocks and skips where nothing is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lit_align.errors import UserError
from lit_align.models.tree_attention import IN_PIECES, Trees, cut, is_worth_it

if TYPE_CHECKING:
    from collections.abc import Iterator

FLEX = "flex_attention"
FULL, SLIDING = "full_attention", "sliding_attention"

OWN_LIMITS = ("window_size", "attention_chunk_size", "keep_window_size", "index_topk", "indexer_budget")
"""Settings by which a model limits attention inside its own layers (GPT-Neo, Llama 4, Doge, DeepSeek-V3.2, ...)."""

_measured: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""The trunks that passed, each with the attention implementation it passed with."""


def trunk_states(trunk: Any, model_inputs: Mapping[str, Tensor]) -> Tensor:
    """A trunk's last hidden states, `(R * T, H)`; of padding anything.

    Args:
        trunk: Without its head.
        model_inputs: A batch's; with `visible_until (R, T)` its rows hold trees.

    Raises:
        UserError: The trunk cannot run on trees; see `check_trees`.
    """
    if "visible_until" not in model_inputs:
        return _run(trunk, **model_inputs).flatten(0, 1)
    ids, position_ids, visible_until = (model_inputs[name] for name in ("input_ids", "position_ids", "visible_until"))
    check_trees(trunk, ids.device)
    if trunk.config._attn_implementation == IN_PIECES:
        trees = cut(visible_until, position_ids)
        if is_worth_it(trees, ids.shape, trunk.get_input_embeddings().embedding_dim):
            hidden = _run_in_pieces(trunk, ids, position_ids, trees)
            return hidden.new_zeros(ids.numel(), hidden.shape[-1]).index_copy(0, trees.keep, hidden)
    mask = _attention_mask(trunk, visible_until, position_ids)
    return _run(trunk, input_ids=ids, position_ids=position_ids, attention_mask=mask).flatten(0, 1)


def _run(trunk: Any, **inputs: Any) -> Tensor:
    hidden: Tensor = trunk(**inputs, use_cache=False).last_hidden_state
    return hidden


def _run_in_pieces(trunk: Any, ids: Tensor, position_ids: Tensor, trees: Trees) -> Tensor:
    """Hidden states of all tokens, `(n, H)`, from rows of any shape."""
    # A model makes a causal mask of its own unless it is given one of four dimensions, which it leaves as it is.
    no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    flat, positions = (tensor.flatten()[trees.keep][None] for tensor in (ids, position_ids))
    return _run(trunk, input_ids=flat, position_ids=positions, attention_mask=no_mask, trees=trees)[0]


def check_trees(trunk: Any, device: torch.device) -> None:
    """Refuses a trunk that does not say the same of a response in a tree as of the response alone.

    A few tokens are run both ways, once for each model. A sliding window, which would not show within so few, is set to 3
    meanwhile. A trunk on a CPU that runs `sdpa`, and can run it in pieces, does so from here on.

    Args:
        trunk: Without its head.
        device: Where its weights are.

    Raises:
        UserError: The two differ, or the model fails; the sentence names the way out.
    """
    implementation = trunk.config._attn_implementation
    if _measured.get(trunk) == implementation:
        return
    reason = _known_reason(trunk.config, implementation, device)
    if reason is None and implementation == "sdpa" and device.type == "cpu" and not _has_windows(trunk.config):
        trunk.config._attn_implementation = IN_PIECES
        if _why_not(trunk, device) is None:
            _measured[trunk] = IN_PIECES
            return
        trunk.config._attn_implementation = implementation
    reason = reason or _why_not(trunk, device)
    if reason is not None:
        raise _refusal(trunk, reason)
    _measured[trunk] = implementation


def _why_not(trunk: Any, device: torch.device) -> str | None:
    """What a measurement has against a trunk."""
    try:
        off, tolerance = _measure(trunk, device)
    except Exception as error:
        return f"given trees, it fails with {type(error).__name__}: {error}"
    if off <= tolerance:
        return None
    return (
        f"it changes its hidden states by {off:.2g} of their size, as a model does that ignores a mask of its own, or takes "
        "positions from a token's column"
    )


def _known_reason(config: Any, implementation: str, device: torch.device) -> str | None:
    if implementation not in ("sdpa", "eager", FLEX, IN_PIECES):
        return f"attn_implementation: {implementation} takes no mask of its own (sdpa, eager and flex_attention do)"
    if implementation == FLEX and device.type == "cpu":
        return "flex_attention has no backward pass on a CPU, where sdpa is the fast one"
    others = sorted(_kinds(config) - {FULL, SLIDING})
    if others:
        return f"it has layers of the kind {', '.join(others)}"
    limits = [name for name in OWN_LIMITS if getattr(config, name, None)]
    if limits:
        return f"its attention is limited by {limits[0]}, which counts columns of a row"
    return None


def _refusal(trunk: Any, reason: str) -> UserError:
    return UserError(f"{type(trunk).__name__} cannot run with data.layout: shared: {reason}. Set data.layout: padded.")


def _kinds(config: Any) -> set[str]:
    return set(getattr(config, "layer_types", None) or ())


def _has_windows(config: Any) -> bool:
    return SLIDING in _kinds(config) or getattr(config, "sliding_window", None) is not None


def _attention_mask(trunk: Any, visible_until: Tensor, position_ids: Tensor) -> Any:
    """The mask `(R, 1, T, T)`; for a model whose layers differ, one for each kind of layer.

    transformers hands a four-dimensional mask to every layer as it is. So sliding windows are ours to cut, by positions;
    sdpa wants it boolean, eager attention adds it to the scores, and flex_attention has it in blocks.
    """
    window = getattr(trunk.config, "sliding_window", None)
    kinds = _kinds(trunk.config) or {SLIDING if window is not None else FULL}
    masks = {kind: _mask_of(trunk, visible_until, position_ids, window if kind == SLIDING else None) for kind in kinds}
    return masks if len(masks) > 1 else masks.popitem()[1]


def _mask_of(trunk: Any, visible_until: Tensor, position_ids: Tensor, window: int | None) -> Any:
    def sees(row: Tensor, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < visible_until[row, key])
        return seen if window is None else seen & (position_ids[row, query] - position_ids[row, key] < window)

    rows, width = visible_until.shape
    if trunk.config._attn_implementation == FLEX:
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(sees, rows, None, width, width, device=visible_until.device)
    row, column = (torch.arange(size, device=visible_until.device) for size in (rows, width))
    return _for_implementation(trunk, sees(row[:, None, None], None, column[:, None], column)[:, None])


def _for_implementation(trunk: Any, mask: Tensor) -> Tensor:
    if trunk.config._attn_implementation != "eager":
        return mask
    dtype = trunk.get_input_embeddings().weight.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _measure(trunk: Any, device: torch.device) -> tuple[float, float]:
    """How far hidden states in a tree are off those of each path alone, as a share of their size, and what may be."""
    # Two trees in one row of 38 columns, each a prompt of 3 tokens and 2 responses of 8; so 4 paths of 11.
    prompt, response = torch.arange(3, device=device), torch.arange(3, 11, device=device)
    tree = torch.stack([torch.cat([prompt, response]), torch.cat([prompt, response + 8])])
    paths = torch.cat([tree, tree + 19])
    position_ids = torch.cat([prompt, response, response]).repeat(2)[None]
    until = torch.tensor([19, 11, 19], device=device).repeat_interleave(torch.tensor([3, 8, 8], device=device))
    visible_until = torch.cat([until, until + 19])[None]
    ids = 1 + torch.arange(38, device=device) % (trunk.get_input_embeddings().num_embeddings - 1)
    computed_in: list[torch.dtype] = []
    with _as_in_a_measurement(trunk, device):
        # Under FSDP's mixed precision, neither the weights as they are stored nor the output need say it.
        embeddings = trunk.get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda module, inputs, output: computed_in.append(output.dtype))
        try:
            alone = _run(trunk, input_ids=ids[paths])
        finally:
            hook.remove()
        if trunk.config._attn_implementation == IN_PIECES:
            hidden = _run_in_pieces(trunk, ids[None], position_ids, cut(visible_until, position_ids))
        else:
            mask = _attention_mask(trunk, visible_until, position_ids)
            hidden = _run(trunk, input_ids=ids[None], position_ids=position_ids, attention_mask=mask)[0]
    in_tree = hidden[paths]
    off = float((in_tree.float() - alone.float()).norm() / alone.float().norm())
    return off, 1e-3 if computed_in[0] == torch.float32 else 5e-2


@contextmanager
def _as_in_a_measurement(trunk: Any, device: torch.device) -> Iterator[None]:
    """No dropout, no gradients, no autocast, a short window; all as it was afterwards."""
    modes = [(module, module.training) for module in trunk.modules()]
    window = getattr(trunk.config, "sliding_window", None)
    trunk.eval()
    if window is not None:
        trunk.config.sliding_window = 3
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if window is not None:
            trunk.config.sliding_window = window
        for module, mode in modes:
            module.training = mode
