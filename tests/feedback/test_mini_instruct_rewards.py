from __future__ import annotations

import pytest
import torch

from lit_align.data.mini_instruct import PROMPTS, demonstrator_logps, gold_scores, groups, responses
from lit_align.errors import UserError
from lit_align.feedback import Answer, LinearProxy, MiniInstructGold


@pytest.fixture(scope="module")
def proxy() -> LinearProxy:
    return LinearProxy()


def answers(*pairs: tuple[str, str]) -> list[Answer]:
    return [Answer(prompt, response, [1], [2], True) for prompt, response in pairs]


def test_gold_by_hand() -> None:
    scores = MiniInstructGold()(
        answers(("tell me about cats", "cats are lovely"), ("tell me about dogs please", "um thanks"), (PROMPTS[0], ""))
    )
    # on topic 1.5 + positive .8; polite 1 - filler .4 - .25 (2 - 3)^2; -.25 * 3^2
    assert scores.total.tolist() == pytest.approx([2.3, 0.35, -2.25])
    assert scores.total.dtype == torch.float32


@pytest.mark.parametrize("source", [MiniInstructGold(), LinearProxy(pairs=10)])
def test_a_prompt_of_another_task_is_refused(source: MiniInstructGold | LinearProxy) -> None:
    with pytest.raises(UserError, match="'what is love' is no prompt of mini_instruct"):
        source(answers(("what is love", "cats")))
    assert source([]).total.shape == (0,)


def test_proxy_is_at_the_optimum_of_its_likelihood() -> None:
    proxy = LinearProxy(pairs=300, seed=3)
    weights = proxy.weights.clone().requires_grad_()
    likelihood = torch.zeros((), dtype=torch.float64)
    for group in groups("preference", 300, 3):
        row = weights[PROMPTS.index(str(group.prompt))]
        values = [sum(row[WORD[word]] for word in response.split()) for response in group.responses]
        likelihood = likelihood + torch.nn.functional.logsigmoid(values[0] - values[1])
    (likelihood - 0.5e-3 * weights.square().sum()).backward()
    assert weights.grad is not None
    assert weights.grad.abs().max().item() < 1e-9


WORD = {text: number for number, text in enumerate(responses()[:15])}


def test_proxy_sums_weights_of_words(proxy: LinearProxy) -> None:
    weights = proxy.weights[PROMPTS.index("tell me about fish please")]
    expected = 2 * weights[WORD["fish"]] + weights[WORD["thanks"]]
    scores = proxy(answers(("tell me about fish please", "fish thanks fish unheard")))
    assert scores.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_table_is_what_the_proxy_says(proxy: LinearProxy) -> None:
    table = proxy.table()
    assert table.shape == gold_scores().shape
    columns = range(0, table.shape[1], 7919)
    scores = proxy(answers(*[(prompt, responses()[column]) for prompt in PROMPTS for column in columns]))
    torch.testing.assert_close(scores.total, table[:, list(columns)].flatten().float())


def test_proxy_is_the_same_every_time(proxy: LinearProxy) -> None:
    torch.testing.assert_close(LinearProxy().weights, proxy.weights, rtol=0, atol=0)
    assert not torch.equal(LinearProxy(seed=1).weights, proxy.weights)


def test_proxy_orders_about_nine_tenths_of_pairs_as_gold_does(proxy: LinearProxy) -> None:
    pairs = [(str(g.prompt), g.responses) for g in groups("preference", 2000, split="val")]
    first, second = (answers(*[(prompt, texts[i]) for prompt, texts in pairs]) for i in (0, 1))
    by_gold = MiniInstructGold()(first).total - MiniInstructGold()(second).total
    by_proxy = proxy(first).total - proxy(second).total
    agree = (by_gold.sign() == by_proxy.sign())[by_gold != 0].double().mean().item()
    assert 0.86 < agree < 0.92


def test_the_best_policies_for_the_proxy_gain_gold_and_then_lose_it(proxy: LinearProxy) -> None:
    golds, proxies = [], []
    for beta in (1e6, 0.5, 0.05):
        policy = (demonstrator_logps() + proxy.table() / beta).softmax(1)
        golds.append((policy * gold_scores()).sum(1).mean().item())
        proxies.append((policy * proxy.table()).sum(1).mean().item())
    assert proxies[0] < proxies[1] < proxies[2]
    assert golds[1] > golds[0] + 1.5
    assert golds[2] < golds[1] - 0.5
