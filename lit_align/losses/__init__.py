"""Losses as objects: pure maths on tensors, injected into the methods that minimise them."""

from lit_align.losses.advantages import GAE, GRPO, RLOO, AdvantageEstimator, Advantages
from lit_align.losses.kl import AdaptiveKL, FixedKL, KLController
from lit_align.losses.kto import KTO, LabelLoss
from lit_align.losses.ppo import PolicyLoss, PolicyLosses, PPOLoss
from lit_align.losses.preference import (
    CDPO,
    DPO,
    DPOP,
    IPO,
    RDPO,
    DiscoPOP,
    EXOPair,
    Hinge,
    PairLogps,
    PreferenceLoss,
    RobustDPO,
    SigmoidNorm,
)
from lit_align.losses.preference_absolute import AOT, AOTUnpaired, APODown, APOZero, BCOPair, NCAPair, SPPOHard
from lit_align.losses.preference_free import CPO, ORPO, SimPO
from lit_align.losses.reward import BinaryCritique, BradleyTerry, KWise, PlackettLuce, Regression, RewardLoss
from lit_align.losses.rrhf import RRHF, RankedLogps, RankingLoss, RRHFReleased
from lit_align.losses.sft import NLL, SFTLoss, Unlikelihood
from lit_align.losses.spa import GlobalWindow, NoiseThreshold, ReleasedThreshold, SelfRefinement

__all__ = [
    "AOT",
    "CDPO",
    "CPO",
    "DPO",
    "DPOP",
    "GAE",
    "GRPO",
    "IPO",
    "KTO",
    "NLL",
    "ORPO",
    "RDPO",
    "RLOO",
    "RRHF",
    "AOTUnpaired",
    "APODown",
    "APOZero",
    "AdaptiveKL",
    "AdvantageEstimator",
    "Advantages",
    "BCOPair",
    "BinaryCritique",
    "BradleyTerry",
    "DiscoPOP",
    "EXOPair",
    "FixedKL",
    "GlobalWindow",
    "Hinge",
    "KLController",
    "KWise",
    "LabelLoss",
    "NCAPair",
    "NoiseThreshold",
    "PPOLoss",
    "PairLogps",
    "PlackettLuce",
    "PolicyLoss",
    "PolicyLosses",
    "PreferenceLoss",
    "RRHFReleased",
    "RankedLogps",
    "RankingLoss",
    "Regression",
    "ReleasedThreshold",
    "RewardLoss",
    "RobustDPO",
    "SFTLoss",
    "SPPOHard",
    "SelfRefinement",
    "SigmoidNorm",
    "SimPO",
    "Unlikelihood",
]
