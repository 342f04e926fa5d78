"""The losses against TRL 1.16: its values on one batch, as constants, and live where `trl` can be imported.

TRL averages, so it is given the pairs one by one; AOT sorts the batch, so there the average is compared.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from lit_align.losses import (
    AOT,
    CPO,
    DPO,
    IPO,
    KTO,
    ORPO,
    AOTUnpaired,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    EXOPair,
    Hinge,
    NCAPair,
    PairLogps,
    PreferenceLoss,
    RobustDPO,
    SigmoidNorm,
    SimPO,
    SPPOHard,
)

BATCH = PairLogps(
    chosen=torch.tensor([-12.5, -30.25, -7.0, -55.0]),
    rejected=torch.tensor([-15.0, -22.75, -9.5, -48.5]),
    ref_chosen=torch.tensor([-14.0, -28.0, -9.25, -54.5]),
    ref_rejected=torch.tensor([-13.0, -25.0, -9.0, -44.0]),
    chosen_length=torch.tensor([6, 14, 3, 20]),
    rejected_length=torch.tensor([5, 9, 7, 20]),
)


class Case(NamedTuple):
    """A loss, what TRL calls it and its settings where they are not beta = 0.3, and TRL's values."""

    name: str
    loss: PreferenceLoss
    settings: dict[str, float]
    expected: list[float]


CASES = [
    Case("sigmoid", DPO(beta=0.3), {}, [0.3000585, 1.58051, 0.3634167, 0.2632827]),
    Case("hinge", Hinge(beta=0.3), {}, [0.0, 2.3500018, 0.1750003, 0.0]),
    Case("ipo", IPO(beta=0.3, length_average=True), {}, [1.0336111, 4.3155131, 0.7144276, 2.1511116]),
    Case(
        "exo_pair",
        EXOPair(beta=0.3, epsilon=0.1),
        {"label_smoothing": 0.1},
        [0.1026914, 1.3418093, 0.1600653, 0.072911],
    ),
    Case("nca_pair", NCAPair(beta=0.3), {}, [1.1836174, 1.8356025, 1.2653048, 1.1966897]),
    Case(
        "robust",
        RobustDPO(beta=0.3, epsilon=0.1),
        {"label_smoothing": 0.1},
        [0.1688085, 1.7492603, 0.2602918, 0.1132828],
    ),
    Case("bco_pair", BCOPair(beta=0.3), {}, [0.9307369, 2.1731029, 1.032508, 1.0014654]),
    Case("sppo_hard", SPPOHard(beta=0.3), {}, [0.1388889, 30.6805992, 1.701391, 12.7221622]),
    Case("apo_zero", APOZero(beta=0.3), {}, [0.7437044, 1.3252439, 0.7999485, 0.7433003]),
    Case("apo_down", APODown(beta=0.3), {}, [0.8698643, 1.1315076, 0.9673252, 0.6940459]),
    Case("discopop", DiscoPOP(beta=0.3), {}, [0.3499377, 1.58051, 0.4382351, 0.3011945]),
    Case("sigmoid_norm", SigmoidNorm(beta=0.3), {}, [0.6003928, 0.7566509, 0.5775047, 0.6635972]),
    Case("aot", AOT(beta=0.3), {}, [0.5886722]),
    Case("aot_unpaired", AOTUnpaired(beta=0.3), {}, [0.5088589]),
    Case("cpo", CPO(beta=0.3, nll_weight=0.0), {}, [0.386871, 2.3502066, 0.386871, 2.0830212]),
    Case(
        "simpo",
        SimPO(beta=2.5, gamma=0.5),
        {"beta": 2.5, "simpo_gamma": 0.5},
        [0.1541639, 0.5059662, 2.9919679, 1.5508447],
    ),
    Case("orpo", ORPO(beta=0.3), {}, [2.1774268, 2.3138616, 2.7658331, 3.0152922]),
]

KTO_LOSS = KTO(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
KTO_LABELS = torch.tensor([True, False, False, True])
KTO_Z0 = torch.tensor(0.7)
KTO_EXPECTED = [0.6604295, 0.1460712, 0.3070998, 0.8835602]


def pairs_of_trl(case: Case) -> list[PairLogps]:
    if case.name.startswith("aot"):
        return [BATCH]
    return [PairLogps(*(field[i : i + 1] for field in BATCH if field is not None)) for i in range(4)]


def ours(case: Case) -> Tensor:
    values = case.loss(BATCH)
    return values.mean(dim=0, keepdim=True) if case.name.startswith("aot") else values


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_values_of_trl(case: Case) -> None:
    torch.testing.assert_close(ours(case), torch.tensor(case.expected), rtol=1e-5, atol=1e-6)


def test_kto_equals_the_values_of_trl() -> None:
    log_ratios, _ = BATCH.log_ratios()
    values = KTO_LOSS(log_ratios, KTO_LABELS, KTO_Z0)
    torch.testing.assert_close(values, torch.tensor(KTO_EXPECTED), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_an_installed_trl(case: Case) -> None:
    pytest.importorskip("trl", minversion="1.16")
    theirs = torch.tensor([trl_value(case, pairs) for pairs in pairs_of_trl(case)])
    torch.testing.assert_close(ours(case), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_kto_equals_an_installed_trl() -> None:
    pytest.importorskip("trl", minversion="1.16")
    log_ratios, _ = BATCH.log_ratios()
    theirs = torch.tensor([trl_kto_value(i) for i in range(4)])
    torch.testing.assert_close(KTO_LOSS(log_ratios, KTO_LABELS, KTO_Z0), theirs, rtol=1e-5, atol=1e-6)


def trl_value(case: Case, pairs: PairLogps) -> float:
    settings = {"beta": 0.3, "label_smoothing": 0.0} | case.settings
    chosen, rejected = pairs.mean_logps()
    if case.name == "cpo":
        return trl_cpo_value("sigmoid", pairs.chosen, pairs.rejected, settings)
    if case.name == "simpo":
        return trl_cpo_value("simpo", chosen, rejected, settings)
    if case.name == "orpo":
        orpo = importlib.import_module("trl.experimental.orpo.orpo_trainer")
        odds_ratio = orpo.ORPOTrainer.odds_ratio_loss(trl_trainer(**settings), chosen, rejected)[0]
        return float(
            -chosen - odds_ratio
        )  # its trainer subtracts the second from the cross-entropy of the chosen tokens
    return trl_dpo_value(case.name, pairs, settings)


def trl_cpo_value(loss_type: str, chosen: Tensor, rejected: Tensor, settings: dict[str, float]) -> float:
    cpo = importlib.import_module("trl.experimental.cpo.cpo_trainer")
    trainer = trl_trainer(loss_type=loss_type, alpha=0.0, **settings)
    return float(cpo.CPOTrainer.cpo_loss(trainer, chosen, rejected)[0])


def trl_dpo_value(loss_type: str, pairs: PairLogps, settings: dict[str, float]) -> float:
    dpo = importlib.import_module("trl.trainer.dpo_trainer")
    lengths = torch.cat([pairs.chosen_length, pairs.rejected_length])
    trainer = trl_trainer(
        ref_model=trl_model(torch.cat(pairs.reference()), lengths),
        loss_types=[loss_type],
        loss_weights=[1.0],
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
        **settings,
    )
    policy = trl_model(torch.cat([pairs.chosen, pairs.rejected]), lengths)
    return float(dpo.DPOTrainer._compute_loss(trainer, policy, trl_inputs(lengths), return_outputs=False))


def trl_kto_value(i: int) -> float:
    kto = importlib.import_module("trl.trainer.kto_trainer")
    ref_chosen, _ = BATCH.reference()
    lengths = BATCH.chosen_length[i : i + 1]
    trainer = trl_trainer(
        ref_model=trl_model(ref_chosen[i : i + 1], lengths),
        calculate_KL=True,
        _compute_kl_logps=MagicMock(side_effect=[KTO_Z0[None], torch.zeros(1)]),
        loss_type="kto",
        beta=KTO_LOSS.beta,
        desirable_weight=KTO_LOSS.desirable_weight,
        undesirable_weight=KTO_LOSS.undesirable_weight,
    )
    policy = trl_model(BATCH.chosen[i : i + 1], lengths)
    inputs = trl_inputs(lengths) | {"label": KTO_LABELS[i : i + 1]}
    return float(kto.KTOTrainer._compute_loss(trainer, policy, inputs, return_outputs=False))


def trl_trainer(**settings: Any) -> MagicMock:
    """Stands for a TRL trainer: its loss methods read their settings from it."""
    trainer = MagicMock(precompute_ref_logps=False, aux_loss_enabled=False, _tp_size=1, **settings)
    trainer.accelerator.device = torch.device("cpu")
    trainer.accelerator.gather_for_metrics = lambda value: value
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    return trainer


def completion_mask_of(lengths: Tensor) -> Tensor:
    positions = torch.arange(1 + int(lengths.max()))
    return ((positions > 0) & (positions <= lengths[:, None])).long()


def trl_inputs(lengths: Tensor) -> dict[str, Tensor]:
    mask = completion_mask_of(lengths)
    return {"input_ids": mask, "attention_mask": torch.ones_like(mask), "completion_mask": mask}


def trl_model(logps: Tensor, lengths: Tensor) -> Any:
    """Stands for a model under which responses of these lengths have these log-probabilities."""
    log_probs = completion_mask_of(lengths)[:, 1:] * (logps / lengths)[:, None]
    outputs = SimpleNamespace(log_probs=log_probs, entropy=log_probs, mean_logits=log_probs, is_top1=log_probs < 0)
    return lambda **_: outputs
