"""Log-probabilities and rewards against the model's own full forward pass."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Gemma2Config

from lit_align.data.collate import padded
from lit_align.errors import UserError
from lit_align.models import Sampling, logprobs, response_hidden, response_logps, response_rewards, token_stats


def by_hand(model, groups, temperature=1.0):
    """One response at a time, no padding, log-softmax over the model's own logits."""
    values = []
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([[*group.prompt, *response]])
            logp = (model(input_ids=ids).logits[0].double() / temperature).log_softmax(-1)
            start = len(group.prompt)
            values += [logp[start + t - 1, token] for t, token in enumerate(response)]
    return torch.stack(values)


@pytest.fixture
def model(architecture):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(architecture).eval()


def test_equals_the_full_forward_pass(model, random_groups):
    groups = random_groups([1, 3, 2])
    actual = response_logps(model, padded(groups, pad_id=0))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), by_hand(model, groups), atol=1e-5, rtol=0)


def test_padding_changes_nothing(model, random_groups):
    groups = random_groups([2, 2, 2], longest=9)
    together = response_logps(model, padded(groups, pad_id=0))
    alone = torch.cat([response_logps(model, padded([group], pad_id=1)) for group in groups])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_chunks_give_the_same_values_and_gradients(model, random_groups, monkeypatch):
    batch = padded(random_groups([3, 2]), pad_id=0)

    def run():
        model.zero_grad()
        values = response_logps(model, batch)
        values.square().sum().backward()
        return values.detach(), [p.grad.clone() for p in model.parameters()]

    whole, gradients = run()
    monkeypatch.setattr(logprobs, "MAX_LOGITS", 3 * model.config.vocab_size)
    chunked, chunked_gradients = run()
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)
    for a, b in zip(chunked_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_temperature_is_that_of_sampling(model, random_groups):
    groups = random_groups([2])
    actual = response_logps(model, padded(groups, pad_id=0), Sampling(temperature=0.5))
    torch.testing.assert_close(actual.double(), by_hand(model, groups, temperature=0.5), atol=1e-5, rtol=0)


def test_soft_capped_logits_are_known(random_groups):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    config = Gemma2Config(vocab_size=40, num_key_value_heads=2, final_logit_softcapping=0.05, pad_token_id=0, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    logprobs.check_head(model)
    groups = random_groups([2])
    torch.testing.assert_close(
        response_logps(model, padded(groups, pad_id=0)).double(), by_hand(model, groups), atol=1e-5, rtol=0
    )


def test_a_head_that_is_not_known_is_refused(model, monkeypatch):
    forward = type(model).forward

    def scaled(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(type(model), "forward", scaled)
    with pytest.raises(UserError, match="changes its logits"):
        logprobs.check_head(model)


def test_rewards_equal_the_exported_class(architecture, random_groups):
    torch.manual_seed(0)
    architecture.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(architecture).eval()
    groups = random_groups([1, 3])
    actual = response_rewards(model, padded(groups, pad_id=0))
    sequences = [[*group.prompt, *response] for group in groups for response in group.responses]
    expected = torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids in sequences])
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [None, 3])
def test_the_entropy_is_that_of_the_full_distribution_and_so_is_its_gradient(model, random_groups, monkeypatch, chunk):
    groups = random_groups([2, 3])
    batch = padded(groups, pad_id=0)
    if chunk is not None:
        monkeypatch.setattr(logprobs, "MAX_LOGITS", chunk * model.config.vocab_size)
    stats = token_stats(model, response_hidden(model, batch), batch.targets, Sampling(), entropy_is_trained=True)
    stats.entropy.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]

    by_hand = []
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([[*group.prompt, *response]])
            logits = model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1].double()
            by_hand.append(torch.distributions.Categorical(logits=logits).entropy())
    expected = torch.cat(by_hand)
    torch.testing.assert_close(stats.entropy.double(), expected, atol=1e-5, rtol=0)
    model.zero_grad()
    expected.square().sum().backward()
    for actual, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(actual, parameter.grad, atol=1e-4, rtol=1e-4)


def test_an_entropy_that_is_only_watched_has_no_gradient_and_changes_none(model, random_groups):
    batch = padded(random_groups([2, 3]), pad_id=0)
    sampling = Sampling(top_k=5)
    gradients = []
    for stats in (
        token_stats(model, response_hidden(model, batch), batch.targets, sampling),
        token_stats(model, response_hidden(model, batch), batch.targets, sampling, entropy_is_trained=True),
    ):
        model.zero_grad()
        (stats.logps.square().sum() - 0.0 * stats.entropy.sum()).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        assert torch.isfinite(stats.entropy).all()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    watched = token_stats(model, response_hidden(model, batch), batch.targets, sampling)
    assert not watched.entropy.requires_grad
