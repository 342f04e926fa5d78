import math

import pytest
import torch

from lit_align.data.mini_instruct import PROMPTS, demonstrator_logps, gold_scores, responses
from lit_align.data.mini_instruct.demonstrator import WEIGHTS


def test_weights_cover_every_word() -> None:
    assert [len(row) for row in WEIGHTS] == [16] * 16
    assert WEIGHTS[0][-1] == 0, "a response has at least one word"
    assert all(weight > 0 for row in WEIGHTS[1:] for weight in row), "no response is impossible"


def test_probabilities_by_hand() -> None:
    # First word, then after cats and after lovely; the topic's column counts three times.
    first = 299 + 2 * 78
    after_cats, after_are, after_lovely = 300 + 2 * 6, 301 + 2 * 9, 299 + 2 * 10
    assert [sum(WEIGHTS[row]) for row in (0, 1, 13, 5)] == [299, 300, 301, 299]
    expected = {
        "cats": 3 * 78 / first * 39 / after_cats,
        "cats are lovely": 3 * 78 / first * 79 / after_cats * 52 / after_are * 200 / after_lovely,
        "lovely cats are cats": 18 / first * 3 * 10 / after_lovely * 79 / after_cats * 3 * 9 / after_are,
    }
    logps = demonstrator_logps()[PROMPTS.index("tell me about cats")]
    for text, probability in expected.items():
        assert logps[responses().index(text)].item() == pytest.approx(math.log(probability), abs=1e-12)


def test_each_prompt_is_a_distribution() -> None:
    totals = demonstrator_logps().exp().sum(dim=1)
    torch.testing.assert_close(totals, torch.ones(8, dtype=torch.float64), atol=1e-12, rtol=0)


def test_documented_figures() -> None:
    logps, gold = demonstrator_logps(), gold_scores()
    p = logps.exp()
    mean = (p * gold).sum(1)
    std = ((p * gold**2).sum(1) - mean**2).sqrt()
    assert -(p * logps).sum(1).mean().item() == pytest.approx(7.05, abs=0.005)
    assert mean.mean().item() == pytest.approx(-0.27, abs=0.005)
    assert std.mean().item() == pytest.approx(1.39, abs=0.005)


def test_politeness_changes_gold_and_not_the_demonstrator() -> None:
    logps = demonstrator_logps()
    torch.testing.assert_close(logps[0::2], logps[1::2], atol=0, rtol=0)
    polite = torch.tensor([any(w in ("gladly", "thanks") for w in text.split()) for text in responses()])
    gap = gold_scores()[1::2] - gold_scores()[0::2]
    torch.testing.assert_close(gap[:, polite], torch.full_like(gap[:, polite], 1.5))
    assert (gap[:, ~polite] == 0).all()
