from types import SimpleNamespace

import pytest

from lit_align.errors import UserError
from lit_align.rollout import Response, RolloutConfig, RolloutEngine, stop_token_ids


@pytest.mark.parametrize(
    ("tokenizer_eos", "generation_eos", "expected"),
    [(2, None, (2,)), (2, 2, (2,)), (2, [9, 2], (2, 9)), (None, [9, 8], (9, 8)), (None, 9, (9,))],
)
def test_stop_ids_are_those_of_the_tokenizer_and_the_generation_config(tokenizer_eos, generation_eos, expected):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=generation_eos))
    assert stop_token_ids(SimpleNamespace(eos_token_id=tokenizer_eos), model) == expected


def test_a_policy_that_cannot_stop_is_refused():
    with pytest.raises(UserError, match="set eos_token"):
        stop_token_ids(SimpleNamespace(eos_token_id=None), SimpleNamespace())


@pytest.mark.parametrize("config", [{"max_new_tokens": 0}, {"max_new_tokens": 1, "max_rows": 0}])
def test_sizes_below_one_are_refused(config):
    with pytest.raises(UserError, match="at least 1"):
        RolloutConfig(**config)


def test_an_engine_of_ones_own_is_one_method():
    class Echo(RolloutEngine):
        def sample(self, prompts, k):
            return [[Response(list(prompt), "length")] * k for prompt in prompts]

    assert Echo().sample([[1, 2]], 2) == [[([1, 2], "length"), ([1, 2], "length")]]
