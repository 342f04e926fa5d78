import math

import pytest
import torch
from torch import Tensor

from lit_align.data.mini_instruct import PROMPTS, demonstrator_logps, gold_scores, groups, responses
from lit_align.exact import pair_accuracy, win_rate

X, S = 2, 30


def table(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(X, S, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOGPS, REF_LOGPS = table(1).log_softmax(1), table(2).log_softmax(1)
GOLD = (2 * table(3)).round() / 2  # with ties


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_win_rate_by_brute_force() -> None:
    for x in range(X):
        wins = 0.0
        for a in range(S):
            for b in range(S):
                won = 1.0 if GOLD[x, a] > GOLD[x, b] else 0.5 if GOLD[x, a] == GOLD[x, b] else 0.0
                wins += math.exp(LOGPS[x, a] + REF_LOGPS[x, b]) * won
        assert win_rate(LOGPS, REF_LOGPS, GOLD)[x].item() == pytest.approx(wins, abs=1e-12)


def test_win_rate_against_itself_is_a_half() -> None:
    logps, gold = demonstrator_logps(), gold_scores()
    torch.testing.assert_close(
        win_rate(logps, logps, gold), torch.full((8,), 0.5, dtype=torch.float64), atol=1e-12, rtol=0
    )


def accuracy_by_brute_force(x: int, rewards: Tensor) -> float:
    right, total = 0.0, 0.0
    for a in range(S):
        for b in range(S):
            if a == b:
                continue
            weight = math.exp(LOGPS[x, a] + LOGPS[x, b])
            a_is_better = sigmoid((GOLD[x, a] - GOLD[x, b]).item())
            says_a = 1.0 if rewards[x, a] > rewards[x, b] else 0.5 if rewards[x, a] == rewards[x, b] else 0.0
            right += weight * (a_is_better * says_a + (1 - a_is_better) * (1 - says_a))
            total += weight
    return right / total


@pytest.mark.parametrize(
    "rewards",
    [
        pytest.param(GOLD, id="gold"),
        pytest.param(-GOLD, id="opposite"),
        pytest.param(table(4), id="unrelated"),
        pytest.param((GOLD + table(5)).round(), id="noisy, tied"),
        pytest.param(torch.zeros(X, S, dtype=torch.float64), id="constant"),
    ],
)
def test_pair_accuracy_by_brute_force(rewards: Tensor) -> None:
    accuracy = pair_accuracy(LOGPS, GOLD, rewards)
    for x in range(X):
        assert accuracy[x].item() == pytest.approx(accuracy_by_brute_force(x, rewards), abs=1e-12)


def test_bayes_accuracy_is_the_surer_label() -> None:
    bayes = pair_accuracy(LOGPS, GOLD, GOLD)
    for x in range(X):
        pairs = [(a, b) for a in range(S) for b in range(S) if a != b]
        weights = [math.exp(LOGPS[x, a] + LOGPS[x, b]) for a, b in pairs]
        surer = [sigmoid(abs((GOLD[x, a] - GOLD[x, b]).item())) for a, b in pairs]
        expected = sum(w * p for w, p in zip(weights, surer, strict=True)) / sum(weights)
        assert bayes[x].item() == pytest.approx(expected, abs=1e-12)


def test_drawn_pairs_have_the_exact_accuracy() -> None:
    """On mini_instruct: the Bayes accuracy, and that of a reward model that only counts words."""
    logps, gold = demonstrator_logps(), gold_scores()
    lengths = torch.tensor([len(text.split()) for text in responses()], dtype=torch.float64).expand_as(gold)
    bayes = pair_accuracy(logps, gold, gold).mean().item()
    assert bayes == pytest.approx(0.776, abs=0.001)
    column = {text: number for number, text in enumerate(responses())}
    rows = [
        (PROMPTS.index(str(row.prompt)), *(column[text] for text in row.responses))
        for row in groups("preference", 20_000)
    ]
    x, chosen, rejected = torch.tensor(rows).T
    for rewards, exact in ((gold, bayes), (lengths, pair_accuracy(logps, gold, lengths).mean().item())):
        difference = rewards[x, chosen] - rewards[x, rejected]
        drawn = ((difference > 0).double() + (difference == 0).double() / 2).mean().item()
        assert abs(drawn - exact) < 4 * (exact * (1 - exact) / len(rows)) ** 0.5
