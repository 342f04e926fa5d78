"""Sampling K responses a prompt: the interface of an engine, and the engine that is always there."""

from lit_align.models import gathered
from lit_align.rollout.engine import Response, RolloutConfig, RolloutEngine, stop_token_ids
from lit_align.rollout.mode import rollout_mode
from lit_align.rollout.native import NativeEngine

__all__ = ["NativeEngine", "Response", "RolloutConfig", "RolloutEngine", "gathered", "rollout_mode", "stop_token_ids"]
