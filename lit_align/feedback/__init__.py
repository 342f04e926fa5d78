"""What scores responses: functions, reward models, the embedded task's gold score, and sums and limits of them."""

from lit_align.feedback.adapter_reward import AdapterReward
from lit_align.feedback.combine import Clipped, Normalised, WeightedSum
from lit_align.feedback.functions import FormatReward, FunctionReward, LengthReward, MissingEOSPenalty
from lit_align.feedback.mini_instruct import LinearProxy, MiniInstructGold
from lit_align.feedback.reward_model import RewardModelReward
from lit_align.feedback.source import Answer, RewardSource, Scores, decoded_answers

__all__ = [
    "AdapterReward",
    "Answer",
    "Clipped",
    "FormatReward",
    "FunctionReward",
    "LengthReward",
    "LinearProxy",
    "MiniInstructGold",
    "MissingEOSPenalty",
    "Normalised",
    "RewardModelReward",
    "RewardSource",
    "Scores",
    "WeightedSum",
    "decoded_answers",
]
