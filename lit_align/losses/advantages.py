"""From rewards to advantages: how much better a token was than expected, by a critic or by the other responses.

All tensors are ragged (see `lit_align.groups`): M response tokens, N responses, G groups. Nothing here carries a gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.groups import sum_by_response

Reduce = Callable[[Tensor], Tensor]
"""Takes a tensor to its sum over all ranks."""


class Advantages(NamedTuple):
    """What an estimator makes of a rollout.

    Args:
        advantages: `(M,)`, what the policy's loss weighs each token by.
        returns: `(M,)`, what a critic should have said at each token; None where there is no critic.
    """

    advantages: Tensor
    returns: Tensor | None


class AdvantageEstimator(ABC):
    """Turns the rewards of a rollout into advantages. A rollout loop need not know which it has.

    `needs_critic`: whether `values` are wanted. `kl_in_loss`: whether the KL to the reference belongs in the loss, as a
    penalty on each token (`lit_align.losses.kl.k3`), instead of in the rewards.
    """

    needs_critic: ClassVar[bool]
    kl_in_loss: ClassVar[bool]

    @abstractmethod
    def __call__(
        self, rewards: Tensor, values: Tensor | None, response_index: Tensor, group_index: Tensor
    ) -> Advantages:
        """The advantages of a whole rollout, so that statistics are over all of it.

        Args:
            rewards: Of each token, `(M,)`: see `token_rewards`. Without KL where `kl_in_loss`.
            values: The critic's before each token, `(M,)`; None where there is no critic.
            response_index: The response each token belongs to, in `[0, N)`, sorted, `(M,)`.
            group_index: The prompt each response belongs to, in `[0, G)`, sorted, `(N,)`.

        Raises:
            UserError: A critic is missing or idle, or a prompt has one response where its responses are compared.
        """


@dataclass(frozen=True)
class GAE(AdvantageEstimator):
    """Generalised advantage estimation with a critic: PPO (Schulman et al. 2016, arXiv 1506.02438); see `gae`.

    Args:
        gamma: Discount of a later token's reward; InstructGPT has none, 1.
        lam: From 0, trusting the critic after one token, to 1, trusting the rewards.
        whiten: Whether advantages get mean 0 and variance 1 over the tokens of all ranks.
        whiten_rewards: Whether rewards get variance 1, with their mean kept, before anything else.
    """

    needs_critic: ClassVar[bool] = True
    kl_in_loss: ClassVar[bool] = False

    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    whiten_rewards: bool = False

    def __post_init__(self) -> None:
        for name, value in (("gamma", self.gamma), ("lam", self.lam)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} must be between 0 and 1, got {value}.")

    def __call__(
        self, rewards: Tensor, values: Tensor | None, response_index: Tensor, group_index: Tensor
    ) -> Advantages:
        """Advantages, and returns for the critic; the returns are never whitened, unless the rewards were."""
        if values is None:
            raise UserError("GAE needs a critic's values; configure a critic, or take RLOO or GRPO.")
        if self.whiten_rewards:
            rewards = whiten(rewards, mean="keep")
        advantages, returns = gae(rewards, values, response_index, self.gamma, self.lam)
        return Advantages(whiten(advantages, mean="remove") if self.whiten else advantages, returns)


@dataclass(frozen=True)
class RLOO(AdvantageEstimator):
    """Each response against the mean of the others to its prompt (Ahmadian et al. 2024, arXiv 2402.14740).

    A_i = R_i - 1/(K-1) sum over j != i of R_j, with R the summed rewards of a response, KL penalty included. Every token of
    the response has its advantage.
    """

    needs_critic: ClassVar[bool] = False
    kl_in_loss: ClassVar[bool] = False

    def __call__(
        self, rewards: Tensor, values: Tensor | None, response_index: Tensor, group_index: Tensor
    ) -> Advantages:
        """Advantages, without returns."""
        totals, count = _totals(self, rewards, values, response_index, group_index)
        sums = _over_group(totals, group_index)
        advantages = totals - (sums - totals) / (count - 1)
        return Advantages(advantages[response_index], None)


@dataclass(frozen=True)
class GRPO(AdvantageEstimator):
    """Each response against all to its prompt, in their standard deviations (Shao et al. 2024, arXiv 2402.03300, 4.1.2).

    A_i = (R_i - mean R) / (std R + 1e-4), with the sample standard deviation (K - 1). The 1e-4 is not in the paper: it gives
    0 to prompts whose responses all score the same. Every token of the response has its advantage. The paper's loss averages
    over the tokens of a response first; here, as in every method, it is the mean over all tokens.

    Args:
        scale_by_std: Whether to divide by the standard deviation; without, easy and hard prompts keep their weight (arXiv
            2503.20783).
    """

    needs_critic: ClassVar[bool] = False
    kl_in_loss: ClassVar[bool] = True

    scale_by_std: bool = True

    def __call__(
        self, rewards: Tensor, values: Tensor | None, response_index: Tensor, group_index: Tensor
    ) -> Advantages:
        """Advantages, without returns."""
        totals, count = _totals(self, rewards, values, response_index, group_index)
        advantages = totals - _over_group(totals, group_index) / count
        if self.scale_by_std:
            variance = _over_group(advantages.square(), group_index) / (count - 1)
            advantages = advantages / (variance.sqrt() + 1e-4)
        return Advantages(advantages[response_index], None)


def token_rewards(scores: Tensor, kl: Tensor, beta: float, response_index: Tensor) -> Tensor:
    """-beta KL_t at each token, and the score of the response at its last (Ouyang et al. 2022, arXiv 2203.02155, eq. 2).

    Args:
        scores: What the response was worth, `(N,)`.
        kl: KL estimate of each token, nats, `(M,)`: `lit_align.losses.kl.k1` is the paper's.
        beta: Coefficient of the penalty, reward units a nat; 0 where KL is in the loss.
        response_index: `(M,)`, sorted; every response has at least one token.

    Returns:
        Reward units, float32, `(M,)`.
    """
    last = torch.bincount(response_index, minlength=len(scores)).cumsum(dim=0) - 1
    return (-beta * kl.detach().float()).index_add(0, last, scores.detach().float())


def gae(rewards: Tensor, values: Tensor, response_index: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, all responses at once (Schulman et al. 2016, arXiv 1506.02438).

        delta_t = r_t + gamma V_{t+1} - V_t                 (section 3)
        A_t     = delta_t + gamma lam A_{t+1}               (eq. 16, as a recursion)

    A response is an episode: after its last token there is no value, also where it was cut by length.

    Args:
        rewards: Of each token, `(M,)`.
        values: The critic's before each token, `(M,)`.
        response_index: `(M,)`, sorted.
        gamma: Discount of a later token's reward.
        lam: lambda.

    Returns:
        Advantages `(M,)`, and returns A_t + V_t, `(M,)`; float32, without gradient.
    """
    rewards, values = rewards.detach().float(), values.detach().float()
    if len(values) == 0:
        return values, values
    goes_on = torch.zeros_like(values)
    goes_on[:-1] = (response_index[1:] == response_index[:-1]).float()
    deltas = rewards + gamma * goes_on * values.roll(-1) - values
    lengths = torch.bincount(response_index)
    first = lengths.cumsum(dim=0) - lengths
    column = torch.arange(len(values), device=values.device) - first[response_index]
    # One column a token position; behind the end of a response deltas are 0, and so is what is carried back from there.
    padded = deltas.new_zeros(len(lengths), int(lengths.max()))
    padded[response_index, column] = deltas
    carried = deltas.new_zeros(len(lengths))
    for t in reversed(range(padded.shape[1])):
        carried = padded[:, t] + gamma * lam * carried
        padded[:, t] = carried
    advantages = padded[response_index, column]
    return advantages, advantages + values


def whiten(values: Tensor, *, mean: Literal["keep", "remove"], reduce: Reduce | None = None) -> Tensor:
    """Scales values to variance 1 over all ranks. Every rank has to call, also one without values.

    Which mean comes out has to be said each time: advantages have theirs removed, rewards keep theirs (Huang et al. 2024,
    "The N+ Implementation Details of RLHF with PPO"), and exchanging the two trains, badly.

    Args:
        values: `(M,)`; M may differ between ranks.
        mean: "remove" for a mean of 0, "keep" for the mean there was.
        reduce: Sums a tensor over ranks; that of `torch.distributed` if None, or nothing where it is not initialised.

    Returns:
        `(M,)`, float32, without gradient. The variance divides by the count, and 1e-8 is added to it.
    """
    if mean not in ("keep", "remove"):
        raise ValueError(f'mean must be "keep" or "remove", got {mean!r}.')
    reduce = reduce or _sum_over_ranks
    values = values.detach().float()
    count, total = reduce(torch.stack([values.new_tensor(len(values)), values.sum()]))
    average = total / count.clamp(min=1)
    # The variance from deviations and not from squares, which would cancel where the mean is large.
    centred = values - average
    variance = reduce(centred.square().sum()) / count.clamp(min=1)
    scaled: Tensor = centred * (variance + 1e-8).rsqrt()
    return scaled if mean == "remove" else scaled + average


def _sum_over_ranks(value: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
    return value


def _totals(
    estimator: AdvantageEstimator, rewards: Tensor, values: Tensor | None, response_index: Tensor, group_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Summed rewards of each response, and how many responses its prompt has, both `(N,)`."""
    name = type(estimator).__name__
    if values is not None:
        raise UserError(f"{name} makes no use of a critic; leave the critic out of the configuration, or take GAE.")
    count = torch.bincount(group_index)[group_index]
    if bool((count < 2).any()):
        raise UserError(f"{name} compares the responses to a prompt; sample at least 2 of each, or take GAE.")
    return sum_by_response(rewards.detach().float(), response_index, len(group_index)), count


def _over_group(values: Tensor, group_index: Tensor) -> Tensor:
    """Sum over the responses of a group, at each of its responses, `(N,)` to `(N,)`."""
    return sum_by_response(values, group_index, len(values))[group_index]
