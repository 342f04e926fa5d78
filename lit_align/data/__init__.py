"""From rows to batches: the DataModules, and what they are made of."""

from lit_align.data.base import GroupDataModule
from lit_align.data.collate import padded
from lit_align.data.encoding import Encoder, Lengths
from lit_align.data.loader import GroupLoader
from lit_align.data.mismatched import LabelBatch
from lit_align.data.modules import LabelData, PreferenceData, RankingData, SFTData
from lit_align.data.prompts import PromptBatch, PromptData, read_prompts
from lit_align.data.rows import read_groups
from lit_align.data.shared_layout import shared
from lit_align.data.token_groups import Fingerprint, TokenGroups

__all__ = [
    "Encoder",
    "Fingerprint",
    "GroupDataModule",
    "GroupLoader",
    "LabelBatch",
    "LabelData",
    "Lengths",
    "PreferenceData",
    "PromptBatch",
    "PromptData",
    "RankingData",
    "SFTData",
    "TokenGroups",
    "padded",
    "read_groups",
    "read_prompts",
    "shared",
]
