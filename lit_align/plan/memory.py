"""Where a device's memory goes: what is always there, and the moment at which most is there besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lit_align.models.logprobs import MAX_LOGITS
from lit_align.plan.shapes import Shape

FLOAT = 4
"""Bytes of a float32, in which log-softmax is computed whatever the precision."""


@dataclass(frozen=True)
class Held:
    """A model that a run holds.

    Args:
        name: What it is to the run.
        shape: Its numbers.
        width: Bytes of a weight.
        rank: Of the adapter that is trained in place of the weights; 0 without one.
        trained: Whether it, or its adapter, is trained.
        shares: Whether its weights are those of another model that is counted.
    """

    name: str
    shape: Shape
    width: int
    rank: int = 0
    trained: bool = False
    shares: bool = False

    @property
    def weights(self) -> int:
        """Bytes of its weights; an adapter's are float32."""
        own = 0 if self.shares else self.shape.parameters * self.width
        return own + self.rank * self.shape.linear * FLOAT

    @property
    def trained_bytes(self) -> int:
        """Bytes of what is trained, and so of one gradient and of one moment."""
        if not self.trained:
            return 0
        return self.rank * self.shape.linear * FLOAT if self.rank else self.shape.parameters * self.width


@dataclass(frozen=True)
class Work:
    """What one device computes at once.

    Args:
        rows: Of a batch, each with a prompt and a response, as long as they may be.
        columns: Tokens of a row.
        held: The models.
        ranks: Devices over which weights are sharded; 1 where each holds all.
        moments: Numbers that the optimiser keeps of each weight.
        fused: Whether it steps without a copy of what it steps.
        accumulates: Whether gradients are there when a forward pass begins its backward pass.
        half: Whether it computes in bfloat16 from float32 weights.
        recompute: Whether layers keep only their input.
        offload: Whether shards are in the machine's memory.
        sampled_rows: Responses that are sampled at once; 0 for methods that sample none.
        sampled_columns: Tokens of a prompt and its response while sampling.
    """

    rows: int
    columns: int
    held: list[Held]
    ranks: int = 1
    moments: int = 2
    fused: bool = False
    accumulates: bool = False
    half: bool = False
    recompute: bool = False
    offload: bool = False
    sampled_rows: int = 0
    sampled_columns: int = 0


class Moment(NamedTuple):
    """One point of a training step.

    Args:
        name: Which.
        parts: Bytes of each thing that is there, by name.
    """

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(self.parts.values())


def moments(work: Work) -> list[Moment]:
    """The moments of a step at which memory can be highest, each with all that is there.

    A forward pass ends with the gradients of the step before still there, because Lightning clears them before the backward
    pass; they are there again, whole, when it is through.
    """
    there = _always(work)
    gradients = _sharded(work, sum(model.trained_bytes for model in work.held))
    activations, logits = _activations(work), _logits(work)
    kept_gradients = {"gradients": gradients} if work.accumulates else {}
    found = [
        Moment(
            "end of the forward pass",
            there | {"gradients": gradients, "activations": activations, "logits": logits * 2},
        ),
        Moment(
            "start of the backward pass", there | kept_gradients | {"activations": activations, "logits": logits * 3}
        ),
        Moment(
            "optimiser step", there | {"gradients": gradients, "copies of the step": 0 if work.fused else gradients}
        ),
    ]
    if work.sampled_rows:
        found.append(Moment("sampling", there | _sampling(work)))
    return found


def peak(work: Work) -> Moment:
    """The moment with the most."""
    return max(moments(work), key=lambda moment: moment.total)


def _always(work: Work) -> dict[str, int]:
    parts = {f"weights of the {model.name}": _sharded(work, model.weights) for model in work.held}
    trained = sum(model.trained_bytes for model in work.held)
    parts["optimiser"] = _sharded(work, work.moments * trained)
    if work.ranks > 1:
        parts["gathered layers"] = max(_gathered(work, model, whole=False) for model in work.held)
    return {name: size for name, size in parts.items() if size}


def _sharded(work: Work, size: int) -> int:
    return 0 if work.offload else -(-size // work.ranks)


def _gathered(work: Work, model: Held, whole: bool) -> int:
    """Weights that are whole for a while: all, or the two layers that follow one another and what is outside of layers."""
    shape, width = model.shape, 2 if work.half else model.width
    of_layers = shape.parameters - shape.outside_layers
    return width * (shape.outside_layers + (of_layers if whole else of_layers * 2 // shape.layers))


def _activations(work: Work) -> int:
    """Of the models that are trained, together: their losses are one."""
    tokens, total = work.rows * work.columns, 0
    for model in work.held:
        if not model.trained:
            continue
        shape = model.shape
        casts = shape.kept_per_layer if work.ranks == 1 else 0
        layer = tokens * shape.kept_per_token + casts
        if work.recompute:
            total += int(layer + shape.layers * tokens * shape.width * (FLOAT if work.half else model.width))
        else:
            total += int(layer * shape.layers)
        # The last norm: its input, what it normalised, and what it gives.
        total += 3 * tokens * shape.width * FLOAT
    return total


def _logits(work: Work) -> int:
    """One float32 number for each logit that is held at once."""
    vocabulary = max(model.shape.vocabulary for model in work.held if model.name == "policy")
    return FLOAT * vocabulary * min(work.rows * work.columns, max(1, MAX_LOGITS // vocabulary))


def _sampling(work: Work) -> dict[str, int]:
    (policy,) = (model for model in work.held if model.name == "policy")
    shape, width = policy.shape, 2 if work.half and work.ranks > 1 else policy.width
    parts = {"KV cache": work.sampled_rows * work.sampled_columns * shape.layers * shape.cache_width * width}
    # Logits and probabilities in float32, their sums in float64.
    parts["logits"] = work.sampled_rows * shape.vocabulary * (width + 2 * FLOAT + 2 * 8)
    if work.ranks > 1:
        parts["gathered layers"] = _gathered(work, policy, whole=True)
    return parts
