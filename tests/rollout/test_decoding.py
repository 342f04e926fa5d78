"""What is drawn, against probabilities worked out by hand and against `generate`."""

import itertools
import math

import pytest
import torch

from lit_align.models.sampling import Sampling
from lit_align.rollout import NativeEngine, RolloutConfig
from lit_align.rollout.decoding import alike, draw

STOP = 0
N = 10_000
SCALE = 15.0
PROMPTS = [[3, 4], [1, 2, 3, 4, 2]]
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(temperature=1.7),
    Sampling(top_k=3),
    Sampling(top_p=0.8),
    Sampling(temperature=1.4, top_k=4, top_p=0.85),
]


def warped(logits, sampling):
    """Temperature, top-k, top-p in plain Python: a list of probabilities."""
    scaled = [x / sampling.temperature for x in logits]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    kept = order[: sampling.top_k] if sampling.top_k else order
    total = sum(math.exp(scaled[i]) for i in kept)
    mass, nucleus = 0.0, []
    for i in kept:
        if mass >= sampling.top_p:
            break
        nucleus.append(i)
        mass += math.exp(scaled[i]) / total
    total = sum(math.exp(scaled[i]) for i in nucleus)
    return [math.exp(x) / total if i in nucleus else 0.0 for i, x in enumerate(scaled)]


def exact_probabilities(model, prompt, sampling, n):
    """The probability of every response of at most n tokens, as a dictionary."""
    open_prefixes, finished = {(): 1.0}, {}
    for _ in range(n):
        longer = {}
        for prefix, p in open_prefixes.items():
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + list(prefix)])).logits[0, -1].tolist()
            for token, q in enumerate(warped(logits, sampling)):
                (finished if token == STOP else longer)[(*prefix, token)] = p * q
        open_prefixes = longer
    return finished | open_prefixes


def chi_square(counts, probabilities):
    """Pearson's statistic in standard deviations above its mean, rare outcomes pooled so that each cell expects 5."""
    n = sum(counts.values())
    common = [outcome for outcome, p in probabilities.items() if n * p >= 5]
    cells = [(counts.get(outcome, 0), n * probabilities[outcome]) for outcome in common]
    rare = (n - sum(seen for seen, _ in cells), n - sum(expected for _, expected in cells))
    cells += [rare] if rare[1] >= 5 else []
    return in_deviations(sum((seen - expected) ** 2 / expected for seen, expected in cells), len(cells) - 1)


def two_sample_chi_square(ours, theirs):
    """The same for two samples of one size: sum of (a - b)^2 / (a + b)."""
    cells = [(ours.get(outcome, 0), theirs.get(outcome, 0)) for outcome in ours | theirs]
    common = [(a, b) for a, b in cells if a + b >= 10]
    return in_deviations(sum((a - b) ** 2 / (a + b) for a, b in common), len(common))


def in_deviations(statistic, degrees):
    return (statistic - degrees) / math.sqrt(2 * degrees)


def count(responses):
    counts = {}
    for response in responses:
        counts[tuple(response)] = counts.get(tuple(response), 0) + 1
    return counts


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_responses_have_their_exact_probabilities(tiny, sampling):
    model = tiny("llama", vocabulary=5, scale=SCALE)
    exact = [exact_probabilities(model, prompt, sampling, 3) for prompt in PROMPTS]
    assert all(sum(p.values()) == pytest.approx(1, abs=1e-5) for p in exact)
    torch.manual_seed(11)
    responses = NativeEngine(model, RolloutConfig(3, sampling, max_rows=2 * N), (STOP,)).sample(PROMPTS, N)
    for probabilities, group in zip(exact, responses, strict=True):
        counts = count(r.ids for r in group)
        assert all(probabilities[outcome] > 0 for outcome in counts)
        assert chi_square(counts, probabilities) < 4


def test_the_distribution_test_notices_a_wrong_temperature(tiny):
    model = tiny("llama", vocabulary=5, scale=SCALE)
    torch.manual_seed(11)
    engine = NativeEngine(model, RolloutConfig(3, Sampling(temperature=1.1), max_rows=2 * N), (STOP,))
    counts = count(r.ids for r in engine.sample(PROMPTS[:1], N)[0])
    assert chi_square(counts, exact_probabilities(model, PROMPTS[0], Sampling(), 3)) > 6


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_generate_draws_from_the_same_distribution(tiny, sampling):
    model = tiny("llama", vocabulary=5, scale=SCALE)
    torch.manual_seed(12)
    ids = torch.tensor(PROMPTS[:1])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        max_new_tokens=3,
        num_return_sequences=N,
        eos_token_id=STOP,
        pad_token_id=STOP,
    )
    rows = [row[: row.index(STOP) + 1] if STOP in row else row for row in output[:, ids.shape[1] :].tolist()]
    theirs = count(rows)
    engine = NativeEngine(model, RolloutConfig(3, sampling, max_rows=2 * N), (STOP,))
    ours = count(r.ids for r in engine.sample(PROMPTS[:1], N)[0])
    assert two_sample_chi_square(ours, theirs) < 4


def test_the_fallback_draws_from_the_exact_distribution(tiny):
    sampling = Sampling(temperature=1.4, top_k=4, top_p=0.85)
    model = tiny("mistral", vocabulary=5, scale=SCALE, sliding_window=4)
    torch.manual_seed(13)
    group = NativeEngine(model, RolloutConfig(3, sampling, max_rows=2 * N), (STOP,)).sample(PROMPTS[1:], N)[0]
    assert chi_square(count(r.ids for r in group), exact_probabilities(model, PROMPTS[1], sampling, 3)) < 4


def test_the_responses_of_a_prompt_are_independent(tiny):
    model = tiny("llama", vocabulary=5, scale=SCALE)
    one = exact_probabilities(model, PROMPTS[0], Sampling(), 1)
    torch.manual_seed(14)
    responses = NativeEngine(model, RolloutConfig(1, max_rows=2 * N), (STOP,)).sample(PROMPTS[:1] * 4000, 2)
    counts = count((first.ids[0], second.ids[0]) for first, second in responses)
    pairs = {(a[0], b[0]): one[a] * one[b] for a, b in itertools.product(one, one)}
    assert chi_square(counts, pairs) < 4


def test_draw_never_takes_what_is_masked_and_finds_the_rare():
    torch.manual_seed(0)
    logits = torch.full((20_000, 6), -math.inf)
    logits[:, 1], logits[:, 4] = 0.0, math.log(1e-3)
    drawn = draw(logits).bincount(minlength=6)
    assert set(drawn.nonzero().flatten().tolist()) == {1, 4}
    assert drawn[4].item() == pytest.approx(20, abs=15)


def test_draw_reaches_a_probability_that_float32_cannot_add(monkeypatch):
    logits = torch.tensor([[0.0, math.log(1e-8), math.log(1e-8)]])
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, 1 - 0.5e-8))
    assert draw(logits).tolist() == [2]


def test_responses_of_prompts_that_waited_have_their_exact_probabilities(tiny):
    """Each prompt a thousand times, at most 60 rows at once: nearly all of them join rows that are on their way."""
    model, sampling = tiny("llama", vocabulary=5, scale=SCALE), Sampling(temperature=0.9)
    exact = [exact_probabilities(model, prompt, sampling, 3) for prompt in PROMPTS]
    torch.manual_seed(12)
    responses = NativeEngine(model, RolloutConfig(3, sampling, max_rows=60), (STOP,)).sample(PROMPTS * 1000, 2)
    for n, probabilities in enumerate(exact):
        counts = count(r.ids for group in responses[n :: len(PROMPTS)] for r in group)
        assert chi_square(counts, probabilities) < 4


def test_prompts_are_cut_where_they_grow_much_longer():
    lengths = [1, 5, 65, 66, 132, 133, 300]
    cuts = [[len(prompt) for prompt in prompts] for prompts in alike([[7] * n for n in lengths])]
    assert cuts == [[1, 5, 65], [66, 132], [133], [300]]
