"""What scores or compares responses: functions, reward models, gold scores, sums and limits of them, and judges."""

from lit_align.feedback.adapter_reward import AdapterReward
from lit_align.feedback.combine import Clipped, Normalised, WeightedSum
from lit_align.feedback.endpoint import Endpoint
from lit_align.feedback.endpoint_ledger import Budget
from lit_align.feedback.functions import FormatReward, FunctionReward, LengthReward, MissingEOSPenalty
from lit_align.feedback.implicit import ImplicitReward, LogProbReward
from lit_align.feedback.judge import Judge, RewardJudge
from lit_align.feedback.llm_judge import Judgements, LLMJudge, LLMScore
from lit_align.feedback.local_model import LocalModel
from lit_align.feedback.mini_assistant import MiniAssistantGold
from lit_align.feedback.mini_instruct import LinearProxy, MiniInstructGold
from lit_align.feedback.reward_model import RewardModelReward
from lit_align.feedback.sampling import sample_answers
from lit_align.feedback.source import Answer, RewardSource, Scores, decoded_answers
from lit_align.feedback.text_model import Reading, TextModel

__all__ = [
    "AdapterReward",
    "Answer",
    "Budget",
    "Clipped",
    "Endpoint",
    "FormatReward",
    "FunctionReward",
    "ImplicitReward",
    "Judge",
    "Judgements",
    "LLMJudge",
    "LLMScore",
    "LengthReward",
    "LinearProxy",
    "LocalModel",
    "LogProbReward",
    "MiniAssistantGold",
    "MiniInstructGold",
    "MissingEOSPenalty",
    "Normalised",
    "Reading",
    "RewardJudge",
    "RewardModelReward",
    "RewardSource",
    "Scores",
    "TextModel",
    "WeightedSum",
    "decoded_answers",
    "sample_answers",
]
