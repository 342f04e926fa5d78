"""Callbacks for any LightningModule: named in YAML by their full path, `class_path: callbacks.<Name>`."""

from callbacks.alignment_tax import AlignmentTax
from callbacks.base import Evaluation
from callbacks.kl_monitor import KLMonitor
from callbacks.memory_monitor import MemoryMonitor
from callbacks.overoptimisation_watch import OveroptimisationWatch
from callbacks.reward_eval import RewardEval
from callbacks.reward_model_report import RewardModelReport
from callbacks.sample_table import SampleTable
from callbacks.spend_time import SpendTime
from callbacks.win_rate import WinRate

__all__ = [
    "AlignmentTax",
    "Evaluation",
    "KLMonitor",
    "MemoryMonitor",
    "OveroptimisationWatch",
    "RewardEval",
    "RewardModelReport",
    "SampleTable",
    "SpendTime",
    "WinRate",
]
