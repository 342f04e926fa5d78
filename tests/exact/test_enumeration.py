from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lit_align.exact import Enumeration, enumerate_policy, word_table

EOS = 1
WORD_IDS = (7, 3, 12)
PROMPTS = ((5, 9, 9, 2), (30, 8))
MAX_WORDS = 3

leaky = pytest.mark.filterwarnings("ignore:The policy puts")  # what a random model does


@pytest.fixture
def model(architecture: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(architecture).double()


def enumerated(model: PreTrainedModel, chunk: int = 1000) -> Enumeration:
    return enumerate_policy(model, PROMPTS, WORD_IDS, EOS, MAX_WORDS, chunk)


def next_probabilities(model: PreTrainedModel, ids: tuple[int, ...]) -> Tensor:
    """What follows some tokens, by a forward over all of them without a cache."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits
    return logits[0, -1].double().softmax(-1)


def probability(model: PreTrainedModel, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    """Product of the probabilities of the response's tokens."""
    total = 1.0
    for i, token in enumerate(response):
        total *= next_probabilities(model, prompt + response[:i])[token].item()
    return total


def test_word_table_order() -> None:
    assert word_table(2, 2).tolist() == [[0, -1], [1, -1], [0, 0], [0, 1], [1, 0], [1, 1]]
    table = word_table(15, 4)
    assert table.shape == (54_240, 4)
    assert table[15 + 225 + 3375 + 2 * 3375 + 7 * 15 + 4].tolist() == [2, 0, 7, 4]


@leaky
def test_every_response_scored_on_its_own(model: PreTrainedModel) -> None:
    enumeration = enumerated(model.eval())
    responses = [words for length in (1, 2, 3) for words in product(WORD_IDS, repeat=length)]
    assert enumeration.logps.shape == (2, len(responses))
    for x, prompt in enumerate(PROMPTS):
        alone = torch.tensor([probability(model, prompt, (*words, EOS)) for words in responses], dtype=torch.float64)
        torch.testing.assert_close(enumeration.logps[x], (alone / alone.sum()).log(), atol=1e-5, rtol=0)
        assert 1 - enumeration.leaked[x].item() == pytest.approx(alone.sum().item(), abs=1e-6)
        assert enumeration.empty[x].item() == pytest.approx(probability(model, prompt, (EOS,)), abs=1e-6)
        too_long = sum(probability(model, prompt, words) for words in product(WORD_IDS, repeat=4))
        assert enumeration.too_long[x].item() == pytest.approx(too_long, abs=1e-6)


@leaky
@pytest.mark.parametrize("chunk", [1, 5, 7])
def test_chunks_change_nothing(model: PreTrainedModel, chunk: int) -> None:
    for whole, chunked in zip(enumerated(model), enumerated(model, chunk), strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)


@leaky
def test_dropout_is_off_and_the_mode_restored(model: PreTrainedModel) -> None:
    quiet = enumerated(model.eval()).logps
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    torch.testing.assert_close(enumerated(model.train()).logps, quiet, atol=0, rtol=0)
    assert model.training


def test_leaks_are_warned_of(model: PreTrainedModel) -> None:
    with pytest.warns(UserWarning, match=r"puts 9\d\.\d% of the mass of a prompt outside"):
        enumerated(model)


def test_eos_among_the_words_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="none of them EOS"):
        enumerate_policy(model, PROMPTS, (3, EOS), EOS, MAX_WORDS)
    with pytest.raises(ValueError, match="different token ids"):
        enumerate_policy(model, PROMPTS, (3, 3), EOS, MAX_WORDS)
