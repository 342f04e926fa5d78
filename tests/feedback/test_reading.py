from __future__ import annotations

from pathlib import Path

import pytest

from lit_align.feedback import Answer
from lit_align.feedback.reading import AnswerReader
from lit_align.models import ModelConfig

PROMPT = "ab"
LENGTHS = [3, 40, 2, 17, 33, 18, 5, 30, 1, 39, 16, 9]
"""Characters of each response, which are tokens; a row has two more, of the prompt."""


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_batches_hold_every_answer_once_with_at_most_half_padding(language_models: Path, batch_size: int) -> None:
    reader = AnswerReader("reader", ModelConfig(str(language_models / "plain")), batch_size, max_length=64)
    answers = [Answer(PROMPT, "x" * n, prompt_ids=[9], response_ids=[9], finished=False) for n in LENGTHS]
    batches = list(reader.batches(answers))

    assert sorted(row for rows, _ in batches for row in rows) == list(range(len(LENGTHS)))
    for rows, batch in batches:
        assert batch.response_lengths.tolist() == [LENGTHS[row] for row in rows]
        assert len(rows) <= batch_size
        assert 2 * min(LENGTHS[row] + 2 for row in rows) >= max(LENGTHS[row] + 2 for row in rows)
    longest = [max(LENGTHS[row] for row in rows) for rows, _ in batches]
    assert longest == sorted(longest, reverse=True)


def test_answers_of_about_one_length_share_a_batch(language_models: Path) -> None:
    reader = AnswerReader("reader", ModelConfig(str(language_models / "plain")), batch_size=8, max_length=64)
    answers = [Answer(PROMPT, "x" * n, prompt_ids=[9], response_ids=[9], finished=False) for n in (10, 4, 8, 18, 22)]
    assert [rows for rows, _ in reader.batches(answers)] == [[4, 3, 0], [2, 1]]
