"""The alignment methods, one file each."""

from lit_align.methods.base import AlignmentModule, StepOutput
from lit_align.methods.dpo import DPO
from lit_align.methods.kto import KTO
from lit_align.methods.online_dpo import OnlineDPO
from lit_align.methods.ppo import PPO
from lit_align.methods.reward import RewardModel
from lit_align.methods.rrhf import RRHF
from lit_align.methods.schedule import Schedule
from lit_align.methods.sft import SFT
from lit_align.methods.spa import SPA

__all__ = [
    "DPO",
    "KTO",
    "PPO",
    "RRHF",
    "SFT",
    "SPA",
    "AlignmentModule",
    "OnlineDPO",
    "RewardModel",
    "Schedule",
    "StepOutput",
]
