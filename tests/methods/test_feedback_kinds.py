"""What rows say of single tokens and single responses arrives in the losses, or is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from lit_align.data.collate import padded
from lit_align.errors import UserError
from lit_align.groups import GroupBatch, TokenGroup
from lit_align.losses import IPO, NLL, BinaryCritique, KWise, Unlikelihood
from lit_align.methods import DPO, SFT, RewardModel
from lit_align.methods.sft import token_losses
from lit_align.models import ModelConfig

POLICY = ModelConfig(path="mini_instruct", init="random")


def _config() -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(vocab_size=40, num_labels=1, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False, **sizes)


def _built(module: Any) -> Any:
    torch.manual_seed(3)
    if isinstance(module, RewardModel):
        module.reward_model = AutoModelForSequenceClassification.from_config(_config())
    else:
        module.policy = AutoModelForCausalLM.from_config(_config())
    if isinstance(module, DPO):
        module.keep_reference(AutoModelForCausalLM.from_config(_config()))
    return module


def _weighed(groups: list[TokenGroup]) -> list[TokenGroup]:
    generator = torch.Generator().manual_seed(5)
    weights = [[torch.rand(len(r), generator=generator).tolist() for r in group.responses] for group in groups]
    return [group._replace(weights=w) for group, w in zip(groups, weights, strict=True)]


def _logps(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """Log-probability of each token of one response, from the logits of the whole."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    every = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return every.gather(-1, torch.tensor(response)[:, None]).squeeze(-1)


def _fit(module: Any, batch: GroupBatch) -> None:
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    trainer.fit(module, loader, loader)


def test_sft_counts_each_token_for_its_weight(random_groups: Callable[..., list[TokenGroup]]) -> None:
    groups = _weighed(random_groups([1, 1, 1]))
    module = _built(SFT(POLICY))
    expected = [
        -w * logp
        for group in groups
        for w, logp in zip(group.weights[0], _logps(module.policy, group.prompt, group.responses[0]), strict=True)
    ]
    torch.testing.assert_close(module.step(padded(groups, 0)).losses, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_dpo_sums_weighted_log_ratios(random_groups: Callable[..., list[TokenGroup]]) -> None:
    groups = _weighed(random_groups([2, 2, 2]))
    module = _built(DPO(POLICY))
    expected = []
    for group in groups:
        ratios = [
            (
                torch.tensor(w)
                * (_logps(module.policy, group.prompt, r) - _logps(module.reference_model(), group.prompt, r))
            )
            .sum()
            .item()
            for w, r in zip(group.weights, group.responses, strict=True)
        ]
        better = int(group.scores[1] > group.scores[0])
        expected.append(math.log1p(math.exp(-0.1 * (ratios[better] - ratios[1 - better]))))
    torch.testing.assert_close(module.step(padded(groups, 0)).losses, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_methods_without_a_use_for_weights_refuse_them(random_groups: Callable[..., list[TokenGroup]]) -> None:
    batch = padded(_weighed(random_groups([2, 2])), 0)
    with pytest.raises(
        UserError, match="RewardModel counts every token alike, so the weights in the rows would have no"
    ):
        _fit(_built(RewardModel(POLICY)), batch)
    _fit(_built(DPO(POLICY, loss=IPO())), batch)


def test_a_loss_without_a_value_a_token_refuses_weights(random_groups: Callable[..., list[TokenGroup]]) -> None:
    def one_a_response(logps: Tensor, response_index: Tensor, labels: Tensor | None) -> Tensor:
        return logps[:1]

    batch = padded(_weighed(random_groups([1, 1])), 0)
    with pytest.raises(UserError, match="gives no value for each token"):
        token_losses(one_a_response, torch.zeros(len(batch.targets)), batch)  # type: ignore[arg-type]


def test_sft_learns_from_a_stop_and_a_demonstration() -> None:
    groups = [TokenGroup([5, 6], [[7, 8, 1]], labels=[True]), TokenGroup([9], [[10, 11, 12]], labels=[False])]
    module = _built(SFT(POLICY, loss=Unlikelihood(window=1)))
    losses = module.step(padded(groups, 0)).losses
    good, bad = (_logps(module.policy, group.prompt, group.responses[0]) for group in groups)
    expected = torch.cat([-good, torch.zeros(2), -torch.log1p(-bad[2:].exp())])
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="NLL makes every response likelier"):
        _built(SFT(POLICY, loss=NLL())).step(padded(groups, 0))


def test_a_reward_model_learns_from_critiques() -> None:
    groups = [TokenGroup([5, 6], [[7, 8, 1]], labels=[True]), TokenGroup([9], [[10, 1]], labels=[False])]
    module = _built(RewardModel(POLICY, loss=BinaryCritique()))
    module.bias += 100.0
    batch = padded(groups, 0)
    output = module.step(batch)
    rewards = module.rewards(batch)
    torch.testing.assert_close(
        output.losses, torch.stack([-rewards[0].sigmoid().log(), rewards[1]]), atol=1e-4, rtol=1e-4
    )
    assert output.metrics["accuracy"].tolist() == [1.0, 0.0]
    torch.testing.assert_close(output.metrics["score/chosen"], rewards[:1])
    torch.testing.assert_close(output.metrics["score/rejected"], rewards[1:])
    module.bias -= 100.0
    _fit(module, batch)
    assert float(module.bias) == 0.0
    # Both scores are near 0, so either probability is near a half, and one of the two happened.
    assert float(module.trainer.callback_metrics["val/ece"]) < 0.5


def test_rewards_are_learned_from_what_the_loss_reads(random_groups: Callable[..., list[TokenGroup]]) -> None:
    labelled = padded([TokenGroup([5], [[7]], labels=[True])], 0)
    with pytest.raises(UserError, match="KWise learns from scores, and the rows have labels: BinaryCritique goes with"):
        _built(RewardModel(POLICY, loss=KWise())).step(labelled)
    with pytest.raises(UserError, match="BinaryCritique learns from labels, and the rows have none"):
        _built(RewardModel(POLICY, loss=BinaryCritique())).step(padded(random_groups([2]), 0))
