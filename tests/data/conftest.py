"""Small tokenizers, built with the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def word_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Builds tokenizers with one token a letter: <pad> 0, <eos> 1, <bos> 2, <unk> 3, a 4, b 5, and so on."""

    def build(*, adds_bos: bool = False, pad: str | None = "<pad>") -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        if adds_bos:
            # As some tokenizers do, it would close the text too.
            tokenizer.post_processor = TemplateProcessing(
                single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token=pad, name_or_path="words"
        )

    return build


@pytest.fixture
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with a ChatML template, in which two newlines are one token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["assistant user system\n\n\n\nhello there"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
        name_or_path="chatml",
    )


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes rows, or lines as they stand, to a file and returns its path."""

    def write(rows: Sequence[Mapping[str, object] | str], name: str = "rows.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write
