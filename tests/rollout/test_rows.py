"""Rows that leave and rows that join, against the model's own full forward pass."""

import pytest
import torch

from lit_align.models.sampling import Sampling
from lit_align.rollout import NativeEngine, RolloutConfig
from lit_align.rollout import native as of_engine
from lit_align.rollout.rows import left_padded

GREEDY = Sampling(top_k=1)
STOP = (2, 5, 7)
PROMPTS = [[3 + (7 * i + j) % 8 for j in range(1 + (11 * i) % 19)] for i in range(24)]


def greedy(model, prompt, n):
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float().argmax()))
        if ids[-1] in STOP:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("look_every", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3_text"])
def test_a_response_does_not_depend_on_what_it_joined(tiny, monkeypatch, family, look_every):
    """With `look_every` 3, as on a GPU, finished rows go on for a while beside the others."""
    model = tiny(family)
    run = of_engine.Decoding.run
    monkeypatch.setattr(of_engine.Decoding, "run", lambda self, a, b, _, c: run(self, a, b, look_every, c))
    expected = [greedy(model, prompt, 10) for prompt in PROMPTS]
    assert len({len(ids) for ids in expected}) > 1
    for max_rows, k in ((4, 1), (7, 2), (100, 1)):
        engine = NativeEngine(model, RolloutConfig(10, GREEDY, max_rows=max_rows), STOP)
        assert [[r.ids for r in group] for group in engine.sample(PROMPTS, k)] == [[ids] * k for ids in expected]


def test_the_places_of_finished_rows_are_taken(tiny):
    """Four at a time, 160 prompts would in turn take as many tokens as the longest of each four has."""
    model = tiny("llama")
    rows = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    torch.manual_seed(0)
    prompts = [[3 + n % 8, 4] for n in range(160)]
    responses = NativeEngine(model, RolloutConfig(30, Sampling(temperature=9.0), max_rows=4), (2,)).sample(prompts, 1)
    steps = [n for n, columns in rows if columns == 1]
    lengths = [len(group[0].ids) for group in responses]
    assert max(steps) == 4
    assert sum(n for n, columns in rows if columns > 1) == len(prompts)
    assert sum(steps) == sum(length - 1 for length in lengths)
    in_turn = sum(max(lengths[start : start + 4]) - 1 for start in range(0, 160, 4))
    assert len(steps) < 0.6 * in_turn
    assert sum(steps) > 0.85 * 4 * len(steps)


def test_rows_that_stay_until_others_leave_do_not_go_beyond_the_models_positions(tiny):
    """One row in five is full long before the rest; GPT-2 looks its 64 positions up in a table."""
    model = tiny("gpt2")
    prompts = [[4] * n for n in (50, 50, 50, 52, 52, 52, 54, 54, 54)]
    engine = NativeEngine(model, RolloutConfig(10, max_rows=5), (2,))
    torch.manual_seed(0)
    responses = engine.sample(prompts, 1)
    assert all(1 <= len(group[0].ids) <= 10 for group in responses)


def test_a_prompt_that_is_much_longer_is_run_by_itself(tiny):
    model = tiny("llama", max_position_embeddings=256)
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = [[3, 4, 6], [7] * 150, [3, 8]]
    responses = NativeEngine(model, RolloutConfig(4, GREEDY), ()).sample(prompts, 2)
    assert shapes == [(2, 3), (1, 150), (6, 1), (6, 1), (6, 1)]
    short = NativeEngine(model, RolloutConfig(4, GREEDY), ()).sample(prompts[::2], 2)
    assert responses[::2] == short


def test_padding_stands_on_the_left():
    ids, mask = left_padded([[7], [5, 6, 4]], torch.device("cpu"))
    assert ids.tolist() == [[0, 0, 7], [5, 6, 4]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
