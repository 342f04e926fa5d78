"""Writes the `model/` folder: `python -m lit_align.data.mini_assistant.build`."""

from __future__ import annotations

from pathlib import Path

from lit_align.data.mini_assistant.grammar import WORDS
from lit_align.data.mini_assistant.prompts import PROMPTS, RESPECTFUL
from lit_align.data.mini_assistant.skills import COLOURS, FACTS, NUMBERS, RELATIONS
from lit_align.data.word_model import write_model_folder

MODEL_FOLDER = Path(__file__).parent / "model"


def vocabulary() -> tuple[str, ...]:
    """All words in the order of their ids: of answers, of prompts, of skills."""
    return tuple(
        dict.fromkeys(
            (
                *WORDS,
                RESPECTFUL,
                *(word for prompt in PROMPTS for word in prompt.split()),
                *("copy", *COLOURS, "add", "+", *NUMBERS, "what", "is", "the", "of", "it", *RELATIONS),
                *(word for country, facts in FACTS.items() for word in (country, *facts.values())),
            )
        )
    )


def build(folder: Path = MODEL_FOLDER) -> None:
    """Write config.json, tokenizer.json and tokenizer_config.json into a folder, which is made where needed."""
    write_model_folder(folder, vocabulary(), hidden_size=64, layers=2, heads=4)


if __name__ == "__main__":
    build()
