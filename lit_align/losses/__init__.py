"""Losses as objects: pure maths on tensors, injected into the methods that minimise them."""

from lit_align.losses.preference import CDPO, DPO, IPO, PairLogps, PreferenceLoss
from lit_align.losses.reward import BradleyTerry, KWise, PlackettLuce, Regression, RewardLoss
from lit_align.losses.sft import NLL, SFTLoss

__all__ = [
    "CDPO",
    "DPO",
    "IPO",
    "NLL",
    "BradleyTerry",
    "KWise",
    "PairLogps",
    "PlackettLuce",
    "PreferenceLoss",
    "Regression",
    "RewardLoss",
    "SFTLoss",
]
