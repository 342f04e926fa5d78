"""The optimal policy of KL-regularised reward maximisation, and the frontier that no policy can cross.

Tables are `(X, S)` float64: X prompts, S responses each, log-probabilities and KL in nats. Averages over prompts are
uniform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

BETAS = tuple(10.0 ** (1 - step / 20) for step in range(61))
"""From 10 to 0.01, twenty a decade: close enough to draw the frontier as a curve."""


def optimal_policy(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """pi*(y|x) = ref(y|x) exp(r(x,y) / beta) / Z(x), which maximises E[r] - beta KL (Rafailov et al. 2023, equation 4).

    Args:
        ref_logps: Log-probabilities of the reference, nats, `(X, S)`.
        rewards: `(X, S)`.
        beta: Price of a nat, in units of the reward, positive.

    Returns:
        Log-probabilities, nats, `(X, S)`.
    """
    return (ref_logps + rewards / _positive(beta)).log_softmax(dim=1)


def kl_divergence(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL(policy || reference) of each prompt, nats: two `(X, S)` tables of log-probabilities to `(X,)`."""
    return torch.where(logps == -math.inf, 0.0, logps.exp() * (logps - ref_logps)).sum(1)


def expected_reward(logps: Tensor, rewards: Tensor) -> Tensor:
    """Expected reward of each prompt: log-probabilities and rewards, `(X, S)` each, to `(X,)`."""
    return (logps.exp() * rewards).sum(1)


class FrontierPoint(NamedTuple):
    """What the optimal policy at `beta` has, averaged over prompts.

    Args:
        beta: Price of a nat, in units of the reward.
        kl: KL from the reference, nats.
        reward: Expected reward.
    """

    beta: float
    kl: float
    reward: float


class Frontier:
    """The most expected reward that any policy can have at a KL from the reference, both averaged over prompts.

    One beta for all prompts gives the best average, and along the frontier d reward / d KL = beta. Responses of equal
    reward are summed up at the start, so that every question afterwards takes milliseconds.

    Args:
        ref_logps: Log-probabilities of the reference, nats, `(X, S)`, each row summing to 1.
        rewards: `(X, S)`.
    """

    def __init__(self, ref_logps: Tensor, rewards: Tensor) -> None:
        levels, masses = [], []
        for row_logps, row_rewards in zip(ref_logps.double(), rewards.double(), strict=True):
            values, level = torch.unique(row_rewards, return_inverse=True)
            levels.append(values)
            masses.append(torch.zeros_like(values).index_add(0, level, row_logps.exp()))
        self._values = pad_sequence(levels, batch_first=True)
        self._log_masses = pad_sequence(masses, batch_first=True).log()
        possible = self._values.masked_fill(self._log_masses == -math.inf, -math.inf)
        best = possible.max(dim=1, keepdim=True)
        self._best = best.values
        self.reference_reward = self._mean(self._log_masses.exp() * self._values)
        """Expected reward of the reference: the frontier's left end, KL 0."""
        self.max_reward = self._best.mean().item()
        """The frontier's right end: every prompt's best response, however unlikely under the reference."""
        self.max_kl = -self._log_masses.gather(1, best.indices).mean().item()
        """KL of the right end; more KL buys nothing."""

    def point(self, beta: float) -> FrontierPoint:
        """The point where the frontier's slope is `beta`."""
        gain = (self._values - self._best) / _positive(
            beta
        )  # shifted, so that a small beta neither overflows nor cancels
        tilted = self._log_masses + gain
        log_z = tilted.logsumexp(dim=1, keepdim=True)
        p = (tilted - log_z).exp()
        return FrontierPoint(beta, kl=self._mean(p * (gain - log_z)), reward=self._mean(p * self._values))

    def points(self, betas: Sequence[float] = BETAS) -> list[FrontierPoint]:
        """`point` of several betas."""
        return [self.point(beta) for beta in betas]

    def beta_at(self, kl: float) -> float:
        """The beta whose optimal policy has this KL, by bisection to the last digits.

        Args:
            kl: Nats, between 0 and `max_kl`, both excluded.

        Raises:
            ValueError: Where no beta has this KL.
        """
        if not 0 < kl < self.max_kl:
            raise ValueError(
                f"No beta gives a KL of {kl}; ask for one between 0 and {self.max_kl:.6g}, the ends excluded."
            )
        low = high = 1.0
        while self.point(high).kl > kl:
            high *= 2
        while self.point(low).kl < kl and low > 1e-9:
            low /= 2
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.point(middle).kl > kl else (low, middle)
        return math.sqrt(low * high)

    def best_reward(self, kl: float) -> float:
        """The most expected reward at a KL of `kl` nats: the reference's at 0 or less, `max_reward` from `max_kl` on."""
        if kl <= 0:
            return self.reference_reward
        return self.max_reward if kl >= self.max_kl else self.point(self.beta_at(kl)).reward

    def efficiency(self, reward: float, kl: float) -> float:
        """Share of the gain over the reference that was possible at this KL: 1 on the frontier, 0 without gain.

        Args:
            reward: Expected reward of a policy, averaged over prompts.
            kl: Its KL from the reference, nats, positive.

        Raises:
            ValueError: At a KL of 0, where nothing can be gained.
        """
        if kl <= 0:
            raise ValueError(
                f"Efficiency is a share of the gain possible at a KL, and nothing can be gained at a KL of {kl}."
            )
        return (reward - self.reference_reward) / (self.best_reward(kl) - self.reference_reward)

    @staticmethod
    def _mean(terms: Tensor) -> float:
        """Sum over responses, mean over prompts."""
        return terms.sum(1).mean().item()


def _positive(beta: float) -> float:
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}: it is the price of a nat of KL.")
    return beta
