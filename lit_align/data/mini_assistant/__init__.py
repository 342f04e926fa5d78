"""MiniAssistant: an alignment task whose demonstrations read like text, with skills that alignment may cost."""

from lit_align.data.mini_assistant.demonstrator import MAX_WORDS
from lit_align.data.mini_assistant.draw import groups, prompts_of
from lit_align.data.mini_assistant.grammar import TOXIC
from lit_align.data.mini_assistant.prompts import PROMPTS, RESPECTFUL, SPLITS, Part
from lit_align.data.mini_assistant.skills import Item, skill_scores, skills
from lit_align.data.mini_assistant.task import PARTS, gold, gold_parts

__all__ = [
    "MAX_WORDS",
    "PARTS",
    "PROMPTS",
    "RESPECTFUL",
    "SPLITS",
    "TOXIC",
    "Item",
    "Part",
    "gold",
    "gold_parts",
    "groups",
    "prompts_of",
    "skill_scores",
    "skills",
]
