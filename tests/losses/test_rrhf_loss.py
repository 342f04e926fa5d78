"""RRHF's loss: the worked query by hand, the authors' released form written from its formulas, and what holds of both.

The worked query: rewards (3, 2, 1); token log-probs -.5 twice, -.4 four times, -.2 three times, after a prompt of two tokens.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.losses import RRHF, RankedLogps, RankingLoss, RRHFReleased

BOTH = [RRHF(), RRHFReleased()]
TOKENS = [[-0.5] * 2, [-0.4] * 4, [-0.2] * 3]


def ranked(groups: list[list[list[float]]], scores: list[list[float]], prompts: list[int]) -> RankedLogps:
    """Groups of responses given as log-probabilities of their tokens, in float64, with gradient in `logps`."""
    flat = [tokens for group in groups for tokens in group]
    return RankedLogps(
        logps=torch.tensor([math.fsum(tokens) for tokens in flat], dtype=torch.float64, requires_grad=True),
        lengths=torch.tensor([len(tokens) for tokens in flat]),
        scores=torch.tensor([score for group in scores for score in group]),
        group_index=torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group) for group in groups])),
        widths=torch.tensor([n + max(map(len, group)) for n, group in zip(prompts, groups, strict=True)]),
    )


def worked() -> RankedLogps:
    return ranked([TOKENS], [[3.0, 2.0, 1.0]], [2])


def random_ranked(seed: int, scores: Tensor | None = None) -> tuple[RankedLogps, list[Tensor]]:
    """Three groups of 4, 2 and 5 responses with integer scores, so that some tie; and the tokens of each response."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [4, 2, 5]
    lengths = torch.randint(1, 8, (11,), generator=generator).tolist()
    tokens = [-torch.rand(n, generator=generator, dtype=torch.float64) * 3 for n in lengths]
    if scores is None:
        scores = torch.randint(0, 3, (11,), generator=generator).float()
    groups = [[t.tolist() for t in part] for part in _split(tokens, sizes)]
    made = ranked(groups, [s.tolist() for s in torch.split(scores, sizes)], [3, 1, 6])
    return made, tokens


def _split(items: list[Tensor], sizes: list[int]) -> list[list[Tensor]]:
    at = [sum(sizes[:i]) for i in range(len(sizes))]
    return [items[a : a + n] for a, n in zip(at, sizes, strict=True)]


def test_the_worked_query() -> None:
    paper = RRHF()(worked())
    torch.testing.assert_close(paper.p.tolist(), [-0.5, -0.4, -0.2])
    assert paper.rank.item() == pytest.approx(0.6)  # 0.1 + 0.3 + 0.2
    assert paper.sft.item() == pytest.approx(1.0)
    assert paper.losses.item() == pytest.approx(1.6)
    released = RRHFReleased()(worked())
    torch.testing.assert_close(released.p.tolist(), [-1 / 6, -1.6 / 6, -0.1])
    assert released.rank.item() == pytest.approx(0.2333, abs=1e-4)
    assert released.sft.item() == pytest.approx(0.1667, abs=1e-4)
    assert released.losses.item() == pytest.approx(0.4)


def test_the_weight_is_of_the_ranking() -> None:
    assert RRHF(rank_weight=10)(worked()).losses.item() == pytest.approx(7.0)
    assert RRHFReleased(rank_weight=100)(worked()).losses.item() == pytest.approx(23.5)
    assert RRHF(rank_weight=0)(worked()).losses.item() == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_paper_by_brute_force(seed: int) -> None:
    made, tokens = random_ranked(seed)
    terms = RRHF()(made)
    for group in range(3):
        mine = (made.group_index == group).nonzero().flatten().tolist()
        rank = 0.0
        for i in mine:
            for j in mine:
                if made.scores[i] < made.scores[j]:
                    rank += max(0.0, float(tokens[i].mean() - tokens[j].mean()))
        best = max(mine, key=lambda i: (float(made.scores[i]), -i))
        sft = -float(tokens[best].sum())
        assert terms.rank[group].item() == pytest.approx(rank, abs=1e-9)
        assert terms.sft[group].item() == pytest.approx(sft, abs=1e-9)
        assert terms.losses[group].item() == pytest.approx(rank + sft, abs=1e-9)


def released_loss(tokens: list[Tensor], scores: Tensor, prompt: int, weight: float) -> float:
    """What the released code computes for one query, in its own terms: rows of the padded width, zeros outside a response."""
    width = prompt + max(map(len, tokens))
    rows = torch.stack([torch.nn.functional.pad(t, (prompt, width - prompt - len(t))) for t in tokens])
    values = rows.mean(dim=1)  # the mask counts every place of the row
    better, gap = scores[None, :] - scores[:, None], values[None, :] - values[:, None]
    misordered = (better > 0) & (gap < 0)
    return float(-weight * gap[misordered].sum() - rows[scores.argmax()].mean())


@pytest.mark.parametrize("seed", range(5))
def test_parity_with_the_released_code(seed: int) -> None:
    made, tokens = random_ranked(seed)
    losses = RRHFReleased(rank_weight=3.0)(made).losses
    parts = zip(_split(tokens, [4, 2, 5]), torch.split(made.scores, [4, 2, 5]), [3, 1, 6], losses.tolist(), strict=True)
    for of_group, scores, prompt, loss in parts:
        assert loss == pytest.approx(released_loss(of_group, scores, prompt, 3.0), abs=1e-9)


@pytest.mark.parametrize("loss", BOTH, ids=repr)
def test_groups_never_touch_each_other(loss: RankingLoss) -> None:
    made, _ = random_ranked(7)
    shifted, _ = random_ranked(7, made.scores + 100.0 * made.group_index)
    torch.testing.assert_close(loss(shifted).losses, loss(made).losses)
    for group in range(3):
        (gradient,) = torch.autograd.grad(loss(made).losses[group], made.logps)
        assert (gradient[made.group_index != group] == 0).all()


@pytest.mark.parametrize("loss", BOTH, ids=repr)
def test_only_the_order_of_the_scores_counts(loss: RankingLoss) -> None:
    made, _ = random_ranked(3)
    torch.testing.assert_close(loss(made._replace(scores=made.scores.exp() - 5)).losses, loss(made).losses)


@pytest.mark.parametrize("loss", BOTH, ids=repr)
def test_equal_rewards_leave_the_first_response_to_imitate(loss: RankingLoss) -> None:
    tied = ranked([TOKENS], [[2.0, 2.0, 2.0]], [2])
    terms = loss(tied)
    assert terms.rank.item() == 0
    (gradient,) = torch.autograd.grad(terms.losses.sum(), tied.logps)
    assert gradient[0] < 0
    assert gradient[1:].tolist() == [0, 0]


@pytest.mark.parametrize("loss", BOTH, ids=repr)
def test_a_group_in_order_costs_only_imitation(loss: RankingLoss) -> None:
    in_order = ranked([[[-0.1] * 3, [-0.5] * 3, [-0.9] * 3]], [[3.0, 2.0, 1.0]], [2])
    terms = loss(in_order)
    assert terms.rank.item() == 0
    assert terms.losses.item() == terms.sft.item()


def test_the_gradient_lifts_the_better_and_lowers_the_worse() -> None:
    made = worked()
    (gradient,) = torch.autograd.grad(RRHF()(made).losses.sum(), made.logps)
    # The best is pushed twice, per token, and imitated; the middle one is pushed down once and up once; the worst down twice.
    torch.testing.assert_close(gradient.tolist(), [-2 / 2 - 1, 0.0, 2 / 3])


@pytest.mark.parametrize("loss", BOTH, ids=repr)
def test_gradients_agree_with_differences(loss: RankingLoss) -> None:
    made, _ = random_ranked(1)

    def of_logps(logps: Tensor) -> Tensor:
        return loss(made._replace(logps=logps)).losses

    assert torch.autograd.gradcheck(of_logps, (made.logps,))


@pytest.mark.parametrize("loss", BOTH, ids=repr)
def test_impossible_responses_stay_finite(loss: RankingLoss) -> None:
    made = ranked([[[-1e4] * 4, [0.0]], [[0.0], [-1e4]]], [[1.0, 0.0], [1.0, 0.0]], [2, 2])
    losses = loss(made).losses
    assert losses.isfinite().all()
    assert torch.autograd.grad(losses.sum(), made.logps)[0].isfinite().all()


def test_one_response_is_supervised_fine_tuning() -> None:
    alone = ranked([[[-0.5, -0.25]]], [[1.0]], [2])
    assert RRHF()(alone).losses.tolist() == [0.75]


def test_the_first_of_the_best_is_the_best() -> None:
    made, _ = random_ranked(0, torch.tensor([0.0, 2, 1, 2, 5, 5, -3, -1, -1, -2, -9]))
    assert made.best().tolist() == [1, 4, 7]


def test_a_weight_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match="rank_weight"):
        RRHF(rank_weight=-1.0)
