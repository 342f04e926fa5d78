"""Log-probabilities of a policy extrapolated away from another: in chunks as at once, with any architecture."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM

from lit_align.data import padded
from lit_align.models import extrapolated, response_hidden, response_logps
from lit_align.models.extrapolated import extrapolated_logps


def test_as_from_all_logits_at_once(architecture, random_groups, monkeypatch):
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(architecture).eval()
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    batch = padded(random_groups([2, 2, 2]), pad_id=0)
    hidden, ref_hidden = response_hidden(policy, batch), response_hidden(reference, batch)

    inputs = batch.model_inputs
    at = [model(**inputs).logits.flatten(0, 1)[batch.predict_index] for model in (policy, reference)]
    expected = (1.5 * at[0] - 0.5 * at[1]).double().log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
    for limit in (extrapolated.MAX_LOGITS, 5 * 3 * architecture.vocab_size):
        monkeypatch.setattr(extrapolated, "MAX_LOGITS", limit)
        logps = extrapolated_logps(policy, hidden, reference, ref_hidden, batch.targets, 0.5)
        assert not logps.requires_grad
        torch.testing.assert_close(logps.double(), expected, atol=1e-5, rtol=1e-5)
    plain = extrapolated_logps(policy, hidden, reference, ref_hidden, batch.targets, 0.0)
    torch.testing.assert_close(plain, response_logps(policy, batch).detach())
