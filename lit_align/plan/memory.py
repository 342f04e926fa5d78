"""Where a device's memory goes: what is always there, and the moment at which most is there besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lit_align.models.logprobs import MAX_LOGITS
from lit_align.plan.shapes import Shape

FLOAT = 4
"""Bytes of a float32, in which log-softmax is computed whatever the precision."""


class Logits(NamedTuple):
    """How many float32 numbers a loss holds of each logit, where all of a batch's are computed at once.

    Args:
        forward: At most, while log-probabilities are made of them.
        kept: For the backward pass.
        backward: At most, where the backward pass begins.
    """

    forward: float
    kept: float
    backward: float


LOGPS = Logits(forward=2, kept=1, backward=3)
"""`response_logps`: logits and their log-softmax, which is kept; backward its gradient in and out besides."""

STATS = Logits(forward=4, kept=1, backward=3)
"""`token_stats`, whose entropy is made of log-probabilities, those that are finite, probabilities, and a product."""

TRAINED_ENTROPY = Logits(forward=4.25, kept=3.25, backward=6.25)
"""The same where the entropy has a gradient: all are kept but the product, with a byte each for where one is infinite."""

NO_LOGITS = Logits(forward=0, kept=0, backward=0)
"""A reward model has none."""

LAST_ROUND = "policy of the last round"
"""What SPA compares its policy with, besides a reference."""

EXTRAPOLATED = 5
"""Numbers of each logit while two policies are mixed: of both, of both scaled, and of the mix."""


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
        is_reward: Whether it has a scalar head in place of that over the vocabulary.
        recompute: Whether its layers keep only their input.
    """

    name: str
    shape: Shape
    width: int
    rank: int = 0
    trained: bool = False
    shares: bool = False
    is_reward: bool = False
    recompute: bool = False

    @property
    def parameters(self) -> int:
        """How many weights it has, without an adapter's."""
        shape = self.shape
        return shape.parameters + (shape.width - shape.own_head if self.is_reward else 0)

    @property
    def weights(self) -> int:
        """Bytes of its weights; an adapter's are float32."""
        own = 0 if self.shares else self.parameters * self.width
        return own + self.rank * self.shape.linear * FLOAT

    @property
    def trained_bytes(self) -> int:
        """Bytes of what is trained, and so of one gradient and of one moment."""
        if not self.trained:
            return 0
        return self.rank * self.shape.linear * FLOAT if self.rank else self.parameters * self.width


@dataclass(frozen=True)
class Work:
    """What one device computes at once.

    Args:
        rows: Of a batch, each with a prompt and a response, as long as they may be.
        columns: Tokens of a row.
        held: The models.
        targets: Tokens of a row whose logits are computed: its response's. All of them if None.
        logits: What the policy's loss holds of them.
        runs_frozen: Whether another forward pass, without gradient, comes between the policy's and the backward pass.
        extrapolates: Whether the policy's logits are then mixed with those of that other one.
        text: Tokens of text that are trained on besides.
        mask: Entries of the attention masks that a layer keeps; 0 where causal attention needs none.
        ranks: Devices over which weights are sharded; 1 where each holds all.
        moments: Numbers that the optimiser keeps of each weight.
        fused: Whether it steps without a copy of what it steps.
        accumulates: Whether gradients are there when a forward pass begins its backward pass.
        half: Whether it computes in bfloat16 from float32 weights.
        offload: Whether shards are in the machine's memory.
        buckets: Whether DDP has a second copy of the gradients, in which it sends them.
        sampled_rows: Responses that are sampled at once; 0 for methods that sample none.
        sampled_columns: Tokens of a prompt and its response while sampling.
    """

    rows: int
    columns: int
    held: list[Held]
    targets: int | None = None
    logits: Logits = LOGPS
    runs_frozen: bool = False
    extrapolates: bool = False
    text: int = 0
    mask: int = 0
    ranks: int = 1
    moments: int = 2
    fused: bool = False
    accumulates: bool = False
    half: bool = False
    offload: bool = False
    buckets: bool = False
    sampled_rows: int = 0
    sampled_columns: int = 0

    def tokens(self, model: Held) -> int:
        """Tokens of a batch that a model is trained on; a critic reads no text."""
        return self.rows * self.columns + (self.text if model.name == "policy" else 0)

    @property
    def policy(self) -> Held:
        """The model that answers, or that is to score."""
        (policy,) = (model for model in self.held if model.name == "policy")
        return policy


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
    critics = [model for model in work.held if model.name == "critic"]
    of_critics = sum(_activations(work, model) for model in critics)
    activations = {"activations": sum(_activations(work, model) for model in work.held if model.trained) - of_critics}
    gradients = {"gradients": _sharded(work, sum(model.trained_bytes for model in work.held))}
    first, *later = ((name, there | gradients | activations | {"logits": size}) for name, size in _forward(work))
    # The critic's forward pass comes second, and its backward pass first.
    found = [first, *((name, parts | {"activations of the critic": of_critics}) for name, parts in later)]
    before = gradients if work.accumulates else {"gradients": _sharded(work, sum(m.trained_bytes for m in critics))}
    found += [(name, there | before | activations | parts) for name, parts in _backward(work)]
    if work.policy.recompute:
        last = {"activations": _input(work, work.policy), "layer computed again": _layer(work, work.policy)}
        found.append(("backward pass of the first layer", there | gradients | last))
    copies = {"copies of the step": 0 if work.fused else gradients["gradients"]}
    found.append(("optimiser step", there | gradients | copies))
    if work.sampled_rows:
        found.append(("sampling", there | gradients | _sampling(work)))
    return [Moment(name, {what: size for what, size in parts.items() if size}) for name, parts in found]


def peak(work: Work) -> Moment:
    """The moment with the most."""
    return max(moments(work), key=lambda moment: moment.total)


def _always(work: Work) -> dict[str, int]:
    parts = {f"weights of the {model.name}": _sharded(work, model.weights) for model in work.held}
    trained = sum(model.trained_bytes for model in work.held)
    parts["optimiser"] = _sharded(work, work.moments * trained)
    parts["buckets of DDP"] = trained if work.buckets else 0
    if work.ranks > 1:
        parts["gathered layers"] = max(_gathered(work, model, whole=False) for model in work.held)
    return {name: size for name, size in parts.items() if size}


def _sharded(work: Work, size: int) -> int:
    return 0 if work.offload else -(-size // work.ranks)


def _gathered(work: Work, model: Held, whole: bool) -> int:
    """Weights that are whole for a while: all, or the two layers that follow one another and what is outside of layers."""
    shape, width = model.shape, 2 if work.half else model.width
    of_layers = shape.parameters - shape.outside_layers
    return width * (model.parameters - of_layers + (of_layers if whole else of_layers * 2 // shape.layers))


def _activations(work: Work, model: Held) -> int:
    """What a trained model's forward pass keeps, without its head."""
    layer = _input(work, model) if model.recompute else _layer(work, model)
    # The last norm: its input, what it normalised, and what it gives.
    return model.shape.layers * layer + 3 * work.tokens(model) * model.shape.width * FLOAT


def _input(work: Work, model: Held) -> int:
    """The hidden states that one layer is given."""
    return work.tokens(model) * model.shape.width * (FLOAT if work.half else model.width)


def _layer(work: Work, model: Held) -> int:
    """What the forward pass of one layer keeps."""
    casts = model.shape.kept_per_layer if work.ranks == 1 else 0
    return int(work.tokens(model) * model.shape.kept_per_token + casts + work.mask * (2 if work.half else model.width))


def _logits(work: Work, targets: int, most: int = MAX_LOGITS) -> tuple[int, bool]:
    """Bytes of one float32 number for each logit that is held at once, and whether there are more, in further chunks."""
    vocabulary = work.policy.shape.vocabulary
    at_once = max(1, most // vocabulary)
    return FLOAT * vocabulary * min(targets, at_once), targets > at_once


def _forward(work: Work) -> list[tuple[str, int]]:
    """The forward passes of a step, and the bytes that the policy's head holds at most in each."""
    size, chunked = _logits(work, work.rows * (work.targets or work.columns))
    # Of chunks nothing is kept: they are computed once more.
    kept = 0 if chunked else int(work.logits.kept * size)
    cast = 0 if work.logits == NO_LOGITS else _cast(work)
    found = [("end of the forward pass", int(work.logits.forward * size) + cast)]
    if any(model.name == "critic" for model in work.held):
        found.append(("forward pass of the critic", kept + cast))
    if work.text:
        found.append(("forward pass over the text", kept + 2 * _logits(work, work.text)[0] + cast))
    if work.runs_frozen:
        found.append(("forward pass without gradients", kept + 2 * size + 2 * cast))
    if work.extrapolates:
        mixed, in_parts = _logits(work, work.rows * (work.targets or work.columns), MAX_LOGITS // 3)
        # The mix of one chunk is there until that of the next is.
        found.append(("extrapolation", kept + (EXTRAPOLATED + in_parts) * mixed + 2 * cast))
    return found


def _backward(work: Work) -> list[tuple[str, dict[str, int]]]:
    """The moments of the backward pass at which the policy's head holds most, and what it holds."""
    size, _ = _logits(work, work.rows * (work.targets or work.columns))
    policy, cast = work.policy, _cast(work)
    found = []
    gradient = 0
    if work.logits != NO_LOGITS:
        gradient = 0 if policy.rank else policy.shape.head * policy.width
        found.append(("start of the backward pass", {"logits": int(work.logits.backward * size) + cast}))
        found.append(("gradient of the head", {"logits": size + cast, "gradient of the head": gradient + cast}))
    if policy.recompute:
        again = {"gradient of the head": gradient, "layer computed again": _layer(work, policy)}
        found.append(("backward pass of the last layer", again))
    return found


def _cast(work: Work) -> int:
    """The head's weights in the precision of the computation, where they are kept in another."""
    policy = work.policy
    return 2 * policy.shape.head if work.half and policy.width > 2 and work.ranks == 1 else 0


def _sampling(work: Work) -> dict[str, int]:
    policy = work.policy
    shape, width = policy.shape, 2 if work.half and work.ranks > 1 else policy.width
    parts = {"KV cache": work.sampled_rows * work.sampled_columns * shape.layers * shape.cache_width * width}
    # Logits and probabilities in float32, their sums in float64.
    parts["logits"] = work.sampled_rows * shape.vocabulary * (width + 2 * FLOAT + 2 * 8)
    if work.ranks > 1:
        parts["gathered layers"] = _gathered(work, policy, whole=True)
    return parts
