from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_align.data.mini_instruct import MAX_WORDS, WORDS, demonstrator_logps, enumerated_policy
from lit_align.data.mini_instruct.build import MODEL_FOLDER
from lit_align.data.mini_instruct.demonstrator import TOPIC_BIAS, WEIGHTS


class Read:
    """A cache that only remembers the tokens it was given."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def batch_select_indices(self, indices: Tensor) -> None:
        self.ids = self.ids[indices]


class DemonstratorModel(torch.nn.Module):
    """The demonstrator as a causal language model: what it says depends on the tokens read, one row at a time."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.word_ids = tokenizer.convert_tokens_to_ids(list(WORDS))
        self.eos_id = tokenizer.eos_token_id
        self.tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))

    def forward(
        self, input_ids: Tensor, past_key_values: Read | None = None, use_cache: bool = True
    ) -> SimpleNamespace:
        read = input_ids if past_key_values is None else torch.cat([past_key_values.ids, input_ids], dim=1)
        prompt_length = 5 if "please" in [self.tokens[token] for token in read[0]] else 4
        if read.shape[1] == prompt_length + MAX_WORDS:
            row = torch.tensor([[0.0] * len(WORDS) + [1.0]])
        else:
            row = torch.tensor(WEIGHTS, dtype=torch.float64)
            row[:, WORDS.index(self.tokens[read[0, 3]])] *= TOPIC_BIAS
            first = read.shape[1] == prompt_length
            row = row[[0 if first else 1 + self.word_ids.index(token) for token in read[:, -1].tolist()]]
        probabilities = torch.zeros(len(read), len(self.tokens), dtype=torch.float64)
        probabilities[:, [*self.word_ids, self.eos_id]] = (row / row.sum(1, keepdim=True)).double()
        return SimpleNamespace(logits=probabilities.log()[:, None], past_key_values=Read(read))


def test_the_demonstrator_as_a_model_is_the_demonstrator() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    enumeration = enumerated_policy(DemonstratorModel(tokenizer), tokenizer)
    torch.testing.assert_close(enumeration.logps, demonstrator_logps(), atol=1e-9, rtol=0)
    assert enumeration.leaked.max() == 0


def test_a_tokenizer_without_the_words_is_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    model = DemonstratorModel(tokenizer)

    class Letters:
        unk_token_id = None

        def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
            return SimpleNamespace(input_ids=[ord(letter) for letter in text])

    with pytest.raises(ValueError, match="'cats' is not one token of this tokenizer"):
        enumerated_policy(model, Letters())
