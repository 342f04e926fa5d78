from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from callbacks import token_kl
from callbacks.token_kl import token_kls
from lit_align.data import padded


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_logits", [2**24, 100])
def test_every_token_by_hand(architecture, random_groups, temperature, max_logits, monkeypatch):
    monkeypatch.setattr(token_kl, "MAX_LOGITS", max_logits)
    torch.manual_seed(0)
    policy, reference = (AutoModelForCausalLM.from_config(architecture).eval() for _ in range(2))
    groups = random_groups([2, 1, 3])
    found = token_kls(policy, reference, padded(groups, pad_id=0), temperature)
    expected = []
    for group in groups:
        for response in group.responses:
            for t, token in enumerate(response):
                ids = torch.tensor([[*group.prompt, *response[:t]]])
                with torch.no_grad():
                    p, q = (
                        (model(ids).logits[0, -1].double() / temperature).softmax(-1) for model in (policy, reference)
                    )
                r = q[token] / p[token]
                expected.append([-r.log(), r - 1 - r.log(), (p * (p / q).log()).sum()])
    torch.testing.assert_close(
        torch.stack(found, dim=1).double(), torch.tensor(expected).double(), atol=1e-5, rtol=1e-5
    )


def test_a_model_does_not_differ_from_itself(architecture, random_groups):
    model = AutoModelForCausalLM.from_config(architecture).eval()
    for values in token_kls(model, model, padded(random_groups([2, 2]), pad_id=0)):
        assert not values.any()
