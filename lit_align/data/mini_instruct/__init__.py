"""MiniInstruct: an alignment task that comes with the package and whose optimum is known exactly."""

from lit_align.data.mini_instruct.demonstrator import demonstrator_logps
from lit_align.data.mini_instruct.draw import groups
from lit_align.data.mini_instruct.enumerated import enumerated_policy
from lit_align.data.mini_instruct.task import MAX_WORDS, PROMPTS, WORDS, gold, gold_scores, responses

__all__ = [
    "MAX_WORDS",
    "PROMPTS",
    "WORDS",
    "demonstrator_logps",
    "enumerated_policy",
    "gold",
    "gold_scores",
    "groups",
    "responses",
]
