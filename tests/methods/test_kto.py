"""KTO on batches of tiny models: its loss by hand, its reduction, and what it learns."""

from __future__ import annotations

import json
import math
import os
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM, LlamaConfig

from lit_align.data import LabelBatch, LabelData, TokenGroups, padded
from lit_align.data.mismatched import CollateMismatched
from lit_align.errors import UserError
from lit_align.groups import Group, TokenGroup
from lit_align.losses import KTO as KTOLoss
from lit_align.methods import KTO
from lit_align.models import ModelConfig

CUTS = [[0, 1, 2], [3], [4, 5], [6]]
SHARP = 9
"""Seed of a model that is so sure of itself that random tokens are unlikelier than under any other."""


def labelled(groups: list[TokenGroup]) -> TokenGroups:
    return TokenGroups(
        (Group("", ("",) * len(group.responses)), group._replace(scores=None, labels=[s > 0 for s in group.scores]))
        for group in groups
    )


def batches(groups: list[TokenGroup], cuts: list[list[int]]) -> list[LabelBatch]:
    rows = labelled(groups)
    collate = CollateMismatched(rows, partial(padded, pad_id=0))
    return [collate([rows[row] for row in cut]) for cut in cuts]


def tiny_model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=40, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    model.lm_head.weight.data *= 20 if seed == SHARP else 1
    return model


def build(policy: int = 3, reference: int = SHARP, loss: KTOLoss = KTOLoss(beta=0.5, desirable_weight=1.3)) -> KTO:
    module = KTO(
        policy=ModelConfig(path="mini_instruct", init="random"),
        loss=loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    )
    module.policy = tiny_model(policy)
    module.keep_reference(tiny_model(reference))
    return module


def one_step(served: list[LabelBatch], policy: int = 3, reference: int = SHARP, **trainer: object) -> dict[str, object]:
    """Parameters and logged metrics after one SGD step over all the batches."""
    module = build(policy, reference)
    options = {"accelerator": "cpu", "accumulate_grad_batches": len(served), "precision": "32-true", **trainer}
    fit = Trainer(
        max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, use_distributed_sampler=False, **options,
    )  # fmt: skip
    fit.fit(module, torch.utils.data.DataLoader(served, batch_size=None))
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    return {"parameters": [p.detach().clone() for p in module.policy.parameters()], "metrics": metrics}


def assert_same(actual: dict, expected: dict) -> None:
    for a, b in zip(actual["parameters"], expected["parameters"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert actual["metrics"].keys() == expected["metrics"].keys()
    for key, value in expected["metrics"].items():
        assert actual["metrics"][key] == pytest.approx(value, abs=1e-5), key


@torch.no_grad()
def sequence_logp(model: torch.nn.Module, prompt: list[int], response: list[int]) -> float:
    """By the plain forward pass, one sequence at a time."""
    ids = torch.tensor([[*prompt, *response]])
    logps = model(input_ids=ids).logits.double().log_softmax(-1)[0]
    return sum(float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(response))


@pytest.mark.parametrize(
    ("policy", "reference"), [(3, SHARP), (SHARP, 3)]
)  # z0 is above 0 in one and below in the other
def test_losses_and_metrics_by_hand(policy, reference, random_groups):
    groups = random_groups([1, 2, 2, 3, 1])
    rows = labelled(groups)
    collate = CollateMismatched(rows, partial(padded, pad_id=0))
    module = build(policy, reference)
    ref = module.reference_model()
    output = module.step(collate([rows[row] for row in range(len(rows))]))

    flat = [(row, r) for row in rows for r in row.responses]
    ratios = [sequence_logp(module.policy, g.prompt, r) - sequence_logp(ref, g.prompt, r) for g, r in flat]
    others = [(collate.mismatch(g).prompt, r) for g, r in flat]
    crossed = [sequence_logp(module.policy, x, r) - sequence_logp(ref, x, r) for x, r in others]
    z0 = sum(crossed) / len(crossed)
    assert (z0 > 0) == (reference == SHARP)
    labels = [label for row in rows for label in row.labels]
    expected = [
        1.3 / (1 + math.exp(0.5 * (h - max(z0, 0)))) if good else 1 / (1 + math.exp(0.5 * (max(z0, 0) - h)))
        for h, good in zip(ratios, labels, strict=True)
    ]
    torch.testing.assert_close(output.losses.double(), torch.tensor(expected).double(), atol=1e-4, rtol=1e-4)
    assert float(output.metrics["kl/z0"].mean()) == pytest.approx(z0, abs=1e-4)
    chosen = [0.5 * h for h, good in zip(ratios, labels, strict=True) if good]
    assert output.metrics["rewards/chosen"].tolist() == pytest.approx(chosen, abs=1e-4)
    right = [(h > max(z0, 0)) == good for h, good in zip(ratios, labels, strict=True)]
    assert output.metrics["rewards/accuracy"].tolist() == [float(x) for x in right]


def test_no_gradient_runs_through_z0(random_groups):
    (batch,) = batches(random_groups([2] * 5), [[0, 1, 2, 3, 4]])
    output = build().step(batch)
    assert output.losses.requires_grad
    assert not output.metrics["kl/z0"].requires_grad


def test_at_the_reference_every_loss_is_a_half(random_groups):
    (batch,) = batches(random_groups([2] * 5), [[0, 1, 2, 3, 4]])
    module = build(3, 3, KTOLoss())
    output = module.step(batch)
    assert output.losses.tolist() == [0.5] * 10
    assert output.metrics["kl/z0"].tolist() == [0.0] * 10


def test_accumulated_batches_equal_one_where_z0_is_clipped(random_groups):
    groups = random_groups([2, 3, 2, 5, 2, 2, 4])
    parts = batches(groups, CUTS)
    assert all(float(build(SHARP, 3).mismatched_log_ratios(part).mean()) < 0 for part in parts)
    assert_same(one_step(parts, SHARP, 3), one_step(batches(groups, [list(range(7))]), SHARP, 3))


def test_each_accumulated_batch_counts_from_its_own_z0(random_groups):
    served = batches(random_groups([2, 3, 2, 5, 2, 2, 4]), CUTS)
    module = build()
    before = [p.detach().clone() for p in module.policy.parameters()]
    torch.cat([module.step(batch).losses for batch in served]).mean().backward()
    expected = [b - p.grad for b, p in zip(before, module.policy.parameters(), strict=True)]
    for a, b in zip(one_step(served)["parameters"], expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def rank_step(shares: list[list[LabelBatch]]) -> dict[str, object]:
    return one_step(shares[int(os.environ["RANK"])], devices=2, strategy="ddp")


def test_two_ranks_equal_one(random_groups, on_two_ranks):
    """Ranks with different numbers of responses, the second batch a filler on one of them; z0 is that of both together."""
    groups = random_groups([2, 3, 2, 5, 2, 2, 4])
    shares = [batches(groups, [[0, 1, 2], [3]]), batches(groups, [[4, 5, 6], [0]])]
    shares[1][1].is_filler = True
    whole = one_step(batches(groups, [[0, 1, 2, 4, 5, 6], [3]]))
    for of_rank in on_two_ranks(rank_step, shares):
        assert_same(of_rank, whole)


def test_the_gradient_survives_mixed_precision(random_groups):
    """Autocast keeps its casts, and those made without gradients must not be used with them."""
    served = batches(random_groups([2] * 5), [[0, 1, 2, 3, 4]])
    exact, mixed = one_step(served), one_step(served, precision="bf16-mixed")
    start = [p.detach() for p in tiny_model(3).parameters()]
    for a, b, p in zip(exact["parameters"], mixed["parameters"], start, strict=True):
        assert float((a - b).norm()) < 0.1 * float((a - p).norm()) + 1e-4


def test_other_rows_are_refused(random_groups):
    with pytest.raises(UserError, match="LabelData"):
        build().step(padded(random_groups([2, 2]), pad_id=0))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("cats", True), ("dogs", 1)],
            "all 2 training responses are desirable: add rows whose label is false",
        ),
        (
            [("cats", False), ("dogs", 0)],
            "all 2 training responses are undesirable: add rows whose label is true",
        ),
        ([("cats", True), ("dogs", False)], None),
    ],
)
def test_labels_of_one_kind_are_warned_of(rows, message, streaming, tmp_path, recwarn):
    file = tmp_path / "rows.jsonl"
    of_rows = ({"prompt": f"tell me about {what}", "completion": "um", "label": label} for what, label in rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in of_rows))
    fit = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    fit.fit(KTO(policy=ModelConfig(path="mini_instruct", init="random")), LabelData(str(file), streaming=streaming))
    told = [str(warning.message) for warning in recwarn if "KTO" in str(warning.message)]
    assert [text.partition("needs both, but ")[2].rstrip(".") for text in told] == (
        [] if message is None else [message]
    )
