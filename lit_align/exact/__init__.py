"""What is exact where every response can be enumerated: log-probabilities, the optimal policy, the reward-KL frontier."""

from lit_align.exact.comparison import pair_accuracy, win_rate
from lit_align.exact.enumeration import Enumeration, enumerate_policy, word_table
from lit_align.exact.optimum import BETAS, Frontier, FrontierPoint, expected_reward, kl_divergence, optimal_policy

__all__ = [
    "BETAS",
    "Enumeration",
    "Frontier",
    "FrontierPoint",
    "enumerate_policy",
    "expected_reward",
    "kl_divergence",
    "optimal_policy",
    "pair_accuracy",
    "win_rate",
    "word_table",
]
