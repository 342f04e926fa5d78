"""References apart from any run: copies, fingerprints, and the arithmetic of one that moves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lit_align.errors import UserError
from lit_align.models import LoRAConfig, ModelConfig, MovingReference, Reference, frozen_copy
from lit_align.models.fingerprint import fingerprint
from lit_align.runtime.fsdp import before_sharding


def layer(*weights: float) -> nn.Linear:
    linear = nn.Linear(len(weights), 1, bias=False)
    linear.weight.data = torch.tensor([weights])
    return linear


def test_a_frozen_copy_stays_what_the_model_was():
    model = nn.Sequential(layer(1.0, 2.0), nn.Dropout(0.5)).train()
    kept = frozen_copy(model)
    model[0].weight.data.zero_()
    assert kept[0].weight.tolist() == [[1.0, 2.0]]
    assert not kept.training
    assert not kept[0].weight.requires_grad
    assert model.training
    assert model[0].weight.requires_grad


def test_what_is_sharded_next_is_not_copied_before():
    model = nn.Sequential(layer(1.0, 2.0), nn.Dropout(0.5)).train()
    with before_sharding():
        kept = frozen_copy(model)
    assert kept[0].weight.data_ptr() == model[0].weight.data_ptr()
    assert kept[0].weight is not model[0].weight
    assert not kept[0].weight.requires_grad
    assert model[0].weight.requires_grad
    assert frozen_copy(model)[0].weight.data_ptr() != model[0].weight.data_ptr()


@pytest.mark.parametrize(("mix", "expected"), [(1.0, [3.0, -1.0]), (0.25, [1.5, 1.25]), (0.5, [2.0, 0.5])])
def test_a_move_is_a_weighted_mean(mix, expected):
    policy, reference = layer(3.0, -1.0), layer(1.0, 2.0).requires_grad_(False)
    MovingReference(every=1, mix=mix).move(reference, policy)
    torch.testing.assert_close(reference.weight, torch.tensor([expected]))
    assert policy.weight.tolist() == [[3.0, -1.0]]
    policy.weight.data.zero_()
    torch.testing.assert_close(reference.weight, torch.tensor([expected]))


def test_fingerprints_tell_weights_apart():
    model = nn.Sequential(layer(1.0, 2.0), layer(3.0))
    assert fingerprint(model) == fingerprint(copy.deepcopy(model))
    for change in ([(0, [2.0, 2.0])], [(0, [1.0, 2.0001])], [(0, [1.5, 1.5])], [(1, [-3.0])]):
        other = copy.deepcopy(model)
        for index, weights in change:
            other[index].weight.data = torch.tensor([weights])
        assert fingerprint(other) != fingerprint(model)


def test_a_reference_that_is_loaded_again_is_checked():
    found = layer(1.0, 2.0)
    reference = Reference(layer(1.0, 2.0), reload=lambda: found)
    assert not reference.in_memory
    assert reference.model is found
    assert not found.weight.requires_grad
    reference.forget()
    assert not reference.in_memory
    found.weight.data += 1
    with pytest.raises(UserError, match="another reference model"):
        _ = reference.model


@pytest.mark.parametrize(
    ("settings", "message"), [({"every": 0}, "every"), ({"mix": 0.0}, "mix"), ({"mix": 1.1}, "mix")]
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        MovingReference(**settings)


def test_adapters_have_no_mean():
    policy = ModelConfig("mini_instruct", init="random", lora=LoRAConfig())
    MovingReference().check(policy)
    with pytest.raises(UserError, match=r"mix is 0\.5.*set it to 1"):
        MovingReference(mix=0.5).check(policy)
