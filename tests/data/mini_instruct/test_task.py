import pytest

from lit_align.data.mini_instruct import MAX_WORDS, PROMPTS, WORDS, gold, gold_scores, responses

CATS = "tell me about cats"


@pytest.mark.parametrize(
    ("prompt", "response", "score"),
    [
        (CATS, "cats are and", 1.5),  # on-topic noun
        (CATS, "cats are cats", 1.5),  # present, not counted
        (CATS, "are and are", 0.0),
        (CATS, "dogs are fish", -1.6),  # two off-topic nouns
        (CATS, "are are and", -0.7),  # one repeat
        (CATS, "are are are", -1.4),
        (CATS, "are lovely and", 0.8),  # positive
        (CATS, "lovely gentle clever", 1.6),  # at most two count
        (CATS, "are awful and", -1.2),  # negative
        (CATS, "nasty awful boring", -3.6),
        (CATS, "thanks are and", -0.5),  # polite, unasked
        (CATS + " please", "thanks are and", 1.0),  # polite, asked
        (CATS + " please", "thanks are gladly", 1.0),  # present, not counted
        (CATS, "um are um", -0.8),  # fillers
        (CATS, "are", -1.0),  # two words short
        (CATS, "are and", -0.25),
        (CATS, "are and are and", -0.25),
        (CATS, "are and are and are", -1.0),
        (CATS, "", -2.25),
        (CATS, "tell are <unk>", -0.8),  # foreign words count as fillers
        (CATS + " please", "thanks cats lovely clever", 3.85),  # 1 + 1.5 + 1.6 - 0.25
        (CATS, "um dogs dogs awful", -4.15),  # -0.4 - 1.6 - 0.7 - 1.2 - 0.25
    ],
)
def test_gold_by_hand(prompt: str, response: str, score: float) -> None:
    assert gold(prompt, response) == score


def test_gold_refuses_another_prompt() -> None:
    with pytest.raises(ValueError, match="'tell me about horses' is no prompt"):
        gold("tell me about horses", "cats are lovely")


def test_vocabulary_and_prompts() -> None:
    assert len(WORDS) == len(set(WORDS)) == 15
    assert len(set(PROMPTS)) == 8


def test_responses_are_all_of_them() -> None:
    texts = responses()
    assert len(texts) == len(set(texts)) == 15 + 15**2 + 15**3 + 15**4 == 54_240
    assert texts[0] == "cats"
    assert texts[15] == "cats cats"
    assert texts[-1] == "um um um um"
    assert {len(text.split()) for text in texts} == set(range(1, MAX_WORDS + 1))


@pytest.mark.parametrize("row", range(8))
def test_gold_scores_are_gold(row: int) -> None:
    scores = gold_scores()
    assert scores.shape == (8, 54_240)
    for column in range(row, 54_240, 97):
        assert scores[row, column].item() == gold(PROMPTS[row], responses()[column])


def test_best_response() -> None:
    best = gold_scores().max(dim=1).values
    assert best.tolist() == [3.1, 3.85] * 4  # topic and two positives; asked: one more, polite word
