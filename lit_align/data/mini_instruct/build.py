"""Writes the `model/` folder: `python -m lit_align.data.mini_instruct.build`."""

from __future__ import annotations

from pathlib import Path

from lit_align.data.mini_instruct.task import PROMPTS, WORDS
from lit_align.data.word_model import write_model_folder

MODEL_FOLDER = Path(__file__).parent / "model"


def build(folder: Path = MODEL_FOLDER) -> None:
    """Write config.json, tokenizer.json and tokenizer_config.json into a folder, which is made where needed."""
    prompt_words = dict.fromkeys(word for prompt in PROMPTS for word in prompt.split())
    # Words of responses first, then those that only prompts use.
    words = (*WORDS, *(word for word in prompt_words if word not in WORDS))
    write_model_folder(folder, words, hidden_size=64, layers=2, heads=4)


if __name__ == "__main__":
    build()
