"""The engine against the model's own full forward pass, row by row and without a cache."""

import copy
import logging

import pytest
import torch
from torch import Tensor

from lit_align.data.collate import padded
from lit_align.errors import UserError
from lit_align.groups import TokenGroup
from lit_align.models import response_logps
from lit_align.models.sampling import Sampling
from lit_align.rollout import NativeEngine, RolloutConfig

PROMPTS = [[3, 4, 5, 6, 7], [8], [9, 3, 10], [4, 4, 4, 4, 4, 4, 4], [5, 6, 7]]
CACHED = ["llama", "qwen2", "gpt2", "bloom", "mistral", "gemma3_text"]
GREEDY = Sampling(top_k=1)


def full_logits(model, ids) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def greedy(model, prompt, n, stop_ids):
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(full_logits(model, ids)[-1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


def record_logits(model):
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.logits[:, -1].float()))
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", CACHED)
def test_logits_equal_the_full_forward_pass(tiny, family, attention):
    if family == "bloom" and attention == "sdpa":
        pytest.skip("Bloom has eager attention only")
    model = tiny(family, attn_implementation=attention)
    reference = copy.deepcopy(model)
    seen = record_logits(model)
    torch.manual_seed(0)
    responses = NativeEngine(model, RolloutConfig(8), ()).sample(PROMPTS, 2)
    order = sorted(range(len(PROMPTS)), key=lambda i: len(PROMPTS[i]))
    rows = [(i, j) for i in order for j in range(2)]
    steps = [seen[0].repeat_interleave(2, dim=0), *seen[1:]]
    assert len(steps) == 8
    for row, (i, j) in enumerate(rows):
        ids = responses[i][j].ids
        expected = full_logits(reference, PROMPTS[i] + ids)[len(PROMPTS[i]) - 1 : -1]
        torch.testing.assert_close(torch.stack([step[row] for step in steps]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_sampling_and_training_give_a_token_the_same_probability(tiny, family):
    model, sampling = tiny(family), Sampling(temperature=0.8, top_k=6, top_p=0.95)
    seen = record_logits(model)
    torch.manual_seed(0)
    prompts = sorted(PROMPTS, key=len)
    responses = NativeEngine(model, RolloutConfig(8, sampling), ()).sample(prompts, 2)
    steps = torch.stack([seen[0].repeat_interleave(2, dim=0), *seen[1:]], dim=1)
    tokens = torch.tensor([r.ids for group in responses for r in group])
    sampled = sampling.warp(steps).log_softmax(-1).gather(-1, tokens[..., None]).flatten()
    groups = [TokenGroup(prompt, [r.ids for r in group]) for prompt, group in zip(prompts, responses, strict=True)]
    with torch.no_grad():
        trained = response_logps(model, padded(groups, 0), sampling)
    torch.testing.assert_close((trained - sampled).exp(), torch.ones(80), atol=1e-4, rtol=0)


def test_a_full_block_of_the_cache_is_followed_by_another(tiny, monkeypatch):
    monkeypatch.setattr("lit_align.rollout.cache.BLOCK", 3)
    model = tiny("llama")
    responses = NativeEngine(model, RolloutConfig(12, GREEDY), ()).sample(PROMPTS, 1)
    assert [group[0].ids for group in responses] == [greedy(model, prompt, 12, ()) for prompt in PROMPTS]


@pytest.mark.parametrize("family", [*CACHED, "mamba"])
def test_rows_that_stop_leave_and_the_rest_are_unchanged(tiny, family):
    model = tiny(family)
    prompts = [[a, b, c][: 1 + (a + b) % 3] for a in range(3, 7) for b in range(3, 6) for c in (3, 9)]
    stop_ids = (2, 5, 7)
    responses = NativeEngine(model, RolloutConfig(10, GREEDY), stop_ids).sample(prompts, 2)
    expected = [greedy(model, prompt, 10, stop_ids) for prompt in prompts]
    assert [[r.ids for r in group] for group in responses] == [[ids, ids] for ids in expected]
    reasons = ["eos" if ids[-1] in stop_ids else "length" for ids in expected]
    assert [[r.finish_reason for r in group] for group in responses] == [[reason] * 2 for reason in reasons]
    assert len({len(ids) for ids in expected}) > 1


def test_finished_rows_are_not_run_on(tiny):
    model = tiny("llama")
    seen = record_logits(model)
    torch.manual_seed(0)
    responses = NativeEngine(model, RolloutConfig(12), (2, 3, 4)).sample(PROMPTS * 4, 4)
    lengths = [len(r.ids) for group in responses for r in group]
    for step, logits in enumerate(seen[1:], start=1):
        alive = sum(length > step for length in lengths)
        assert alive <= len(logits) <= alive / 0.75 + 1
    assert len(seen) == max(lengths)


def test_each_prompt_is_run_once(tiny):
    model = tiny("llama")
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    NativeEngine(model, RolloutConfig(3), ()).sample(PROMPTS, 4)
    assert shapes == [(5, 7), (20, 1), (20, 1)]


@pytest.mark.parametrize("max_rows", [1, 5, 6, 100])
def test_prompts_that_do_not_fit_are_taken_in_turn(tiny, max_rows):
    model = tiny("llama")
    engine = NativeEngine(model, RolloutConfig(6, GREEDY, max_rows=max_rows), (2,))
    expected = [[greedy(model, prompt, 6, (2,))] * 3 for prompt in PROMPTS]
    assert [[r.ids for r in group] for group in engine.sample(PROMPTS, 3)] == expected


def test_the_generators_state_decides_the_text(tiny):
    engine = NativeEngine(tiny("llama"), RolloutConfig(6), (2,))
    torch.manual_seed(5)
    engine.sample(PROMPTS, 2)
    state = torch.get_rng_state()
    first = engine.sample(PROMPTS, 2)
    second = engine.sample(PROMPTS, 2)
    torch.set_rng_state(state)
    assert engine.sample(PROMPTS, 2) == first != second


def test_bf16_weights_give_bf16_logits_close_to_the_full_forward_pass(tiny):
    model = tiny("llama", scale=2.0).to(torch.bfloat16)
    reference = copy.deepcopy(model)
    seen = record_logits(model)
    responses = NativeEngine(model, RolloutConfig(6), ()).sample(PROMPTS[:1], 1)
    expected = full_logits(reference, PROMPTS[0] + responses[0][0].ids)[len(PROMPTS[0]) - 1 : -1]
    torch.testing.assert_close(torch.cat(seen), expected, atol=0.05, rtol=0.05)


# peft 0.17-0.21 asks for a property that transformers 5.23 renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_lora_is_sampled_with_its_adapter(tiny):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny("llama"), config)
    responses = NativeEngine(model, RolloutConfig(8, GREEDY), (2,)).sample(PROMPTS, 1)
    assert [group[0].ids for group in responses] == [greedy(model, prompt, 8, (2,)) for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("mamba", {}, "Mamba"),
        ("mistral", {"sliding_window": 8}, "window of 8"),
        ("gemma3_text", {"sliding_window": 8}, "window"),
    ],
)
def test_models_without_a_plain_cache_use_generate_and_say_so_once(tiny, caplog, family, config, reason):
    model = tiny(family, **config)
    engine = NativeEngine(model, RolloutConfig(10, GREEDY), (2,))
    with caplog.at_level(logging.WARNING, logger="lit_align"):
        responses = engine.sample(PROMPTS, 2)
        engine.sample(PROMPTS, 2)
    assert [record.name for record in caplog.records] == ["lit_align.rollout.native"]
    assert reason in caplog.text
    expected = [[greedy(model, prompt, 10, (2,))] * 2 for prompt in PROMPTS]
    assert [[r.ids for r in group] for group in responses] == expected


def test_generate_does_not_follow_the_models_own_generation_config(tiny):
    model = tiny("mistral", sliding_window=8)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.min_new_tokens = 9
    engine = NativeEngine(model, RolloutConfig(10, GREEDY), (2,))
    assert [group[0].ids for group in engine.sample(PROMPTS, 1)] == [
        greedy(model, prompt, 10, (2,)) for prompt in PROMPTS
    ]
    assert model.generation_config.repetition_penalty == 50.0


def test_no_prompts_give_no_responses(tiny):
    assert NativeEngine(tiny("llama"), RolloutConfig(2), ()).sample([], 3) == []


def test_what_cannot_be_sampled_is_refused(tiny):
    engine = NativeEngine(tiny("llama"), RolloutConfig(60), ())
    with pytest.raises(ValueError, match="k must be at least 1"):
        engine.sample(PROMPTS, 0)
    with pytest.raises(ValueError, match="Prompt 1 has no tokens"):
        engine.sample([[3], []], 1)
    with pytest.raises(UserError, match="7 tokens and max_new_tokens 60 exceed the model's 64 positions"):
        engine.sample(PROMPTS, 1)
