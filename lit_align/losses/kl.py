"""The divergence of a policy from its reference: estimators from samples, the exact value from logits, and its coefficient.

Throughout, tokens are drawn from the policy, `KL` is KL(policy || reference), and log r = log pi_ref - log pi: minus the
log-ratio that PPO's `ratio` would be. The estimators are those of Schulman, "Approximating KL Divergence" (2020), named k1,
k2 and k3 there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.errors import UserError
from lit_align.losses.checks import require_not_negative, require_positive

MAX_LOG_RATIO = 20.0
"""Probability ratios are cut off at e^20: beyond e^88 float32 is infinite, and one such token would spoil a whole batch."""


def k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """-log r: unbiased, negative for about half of the tokens, the largest variance of the three.

    Args:
        logps: Of the tokens drawn, under the policy, nats, any shape.
        ref_logps: Of the same tokens under the reference, the same shape.

    Returns:
        Nats, the same shape.
    """
    return logps - ref_logps


def k2(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """(log r)^2 / 2: biased, never negative, small variance where the two are close. Arguments as for `k1`."""
    return (ref_logps - logps).square() / 2


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """(r - 1) - log r: unbiased, never negative; GRPO's penalty (arXiv 2402.03300, eq. 4). Arguments as for `k1`.

    `expm1` keeps it exact where the two nearly agree, where r - 1 in float32 would be rounding error. Departure: log r is cut
    off at 20, with the gradient there 0; cutting r alone would leave a gradient that drives the two apart.
    """
    log_r = (ref_logps - logps).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(log_r) - log_r


def full_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(policy || reference) of the next token, over the whole vocabulary: no samples, no variance.

    Args:
        logits: Of the policy, `(..., V)`; minus infinity where a token cannot be drawn.
        ref_logits: Of the reference, `(..., V)`.

    Returns:
        Nats, float32, `(...)`; infinite where the policy draws what the reference cannot.
    """
    logps = F.log_softmax(logits.float(), dim=-1)
    ref_logps = F.log_softmax(ref_logits.float(), dim=-1)
    # 0 log 0 = 0. The outer `where` keeps it out of the value, the inner one inf - inf out of the gradient.
    possible = logps > -math.inf
    log_ratio = torch.where(possible, logps, 0.0) - torch.where(possible, ref_logps, 0.0)
    return torch.where(possible, logps.exp() * log_ratio, 0.0).sum(dim=-1)


class KLController(ABC):
    """The coefficient of the KL penalty, beta, as training goes on. Its state belongs in the checkpoint.

    Args:
        beta: The coefficient to begin with, reward units a nat.
    """

    def __init__(self, beta: float) -> None:
        require_not_negative("beta", beta)
        self.beta = beta

    @abstractmethod
    def update(self, kl: float, n: int) -> None:
        """Learns how far the policy is.

        Args:
            kl: Mean KL of a whole response, nats, over the responses of all ranks: the same number on each.
            n: How many responses, on all ranks, that is the mean of.
        """

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint has to hold."""
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from what `state_dict` gave."""
        self.beta = state["beta"]


class FixedKL(KLController):
    """The same coefficient throughout; InstructGPT's is .02 (arXiv 2203.02155, appendix C.4).

    Args:
        beta: The coefficient, reward units a nat; 0 for none.
    """

    def update(self, kl: float, n: int) -> None:
        """Nothing is learned."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Nothing is taken: the coefficient is the one of the configuration, also where a resumed run has changed it."""


class AdaptiveKL(KLController):
    """Steers the KL of a response towards a target (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

        e    = clip(KL / target - 1, -0.2, 0.2)
        beta <- beta (1 + e n / horizon)

    The paper writes K_beta = 0.1 for n / horizon; the horizon, in responses, is how its code has it.

    Args:
        beta: The coefficient to begin with, reward units a nat; above 0, as it is only ever multiplied.
        target: KL of a whole response to aim at, nats.
        horizon: Responses in which beta can grow by about a fifth of itself; larger is slower.
    """

    def __init__(self, beta: float, target: float, horizon: int = 10_000) -> None:
        super().__init__(beta)
        require_positive("beta", beta)
        require_positive("target", target)
        require_positive("horizon", horizon)
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, n: int) -> None:
        """Moves beta; see the class.

        Raises:
            UserError: `n` is so large beside the horizon that beta could reach 0.
            ValueError: `kl` is not finite, after which beta would never be again.
        """
        if not math.isfinite(kl):
            raise ValueError(f"The KL of this rollout is {kl}; beta cannot follow it.")
        if n >= 5 * self.horizon:
            raise UserError(f"horizon {self.horizon} is too short for updates of {n} responses; set it above {n // 5}.")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + error * n / self.horizon
