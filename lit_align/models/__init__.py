"""Policies, reward models, references and tokenizers; log-probabilities; export."""

from lit_align.models.adapters import is_adapted
from lit_align.models.config import LoRAConfig, ModelConfig
from lit_align.models.critic import save_value_head, value_head
from lit_align.models.load import load_policy, load_reward_model, load_tokenizer, save_model
from lit_align.models.logprobs import (
    TokenStats,
    response_hidden,
    response_logps,
    response_rewards,
    response_values,
    token_logps,
    token_stats,
)
from lit_align.models.reference import (
    CachedReference,
    FrozenReference,
    MovingReference,
    Reference,
    ReferenceConfig,
    frozen_copy,
    moving_copy,
)
from lit_align.models.sampling import Sampling
from lit_align.models.sharding import gathered, inside, is_sharded, placed, shard
from lit_align.models.shared_trunk import RewardOnTrunk, reward_on_trunk

__all__ = [
    "CachedReference",
    "FrozenReference",
    "LoRAConfig",
    "ModelConfig",
    "MovingReference",
    "Reference",
    "ReferenceConfig",
    "RewardOnTrunk",
    "Sampling",
    "TokenStats",
    "frozen_copy",
    "gathered",
    "inside",
    "is_adapted",
    "is_sharded",
    "load_policy",
    "load_reward_model",
    "load_tokenizer",
    "moving_copy",
    "placed",
    "response_hidden",
    "response_logps",
    "response_rewards",
    "response_values",
    "reward_on_trunk",
    "save_model",
    "save_value_head",
    "shard",
    "token_logps",
    "token_stats",
    "value_head",
]
