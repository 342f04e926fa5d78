"""Real rows of three kinds, from their files to batches, encoded by a tokenizer trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from lit_align.data import GroupDataModule, LabelData, PreferenceData, SFTData
from lit_align.groups import GroupBatch

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a byte-level BPE of 1,000 entries with a ChatML template."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bpe.decoder = ByteLevelDecoder()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = BpeTrainer(
        vocab_size=1000, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    rows = json.loads((shared_data / "alpaca_en_demo.json").read_text())
    bpe.train_from_iterator((row["output"] for row in rows[:300]), trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return str(folder)


def _said(row: dict[str, Any]) -> list[str]:
    """The responses of a row, read off it by hand."""
    if "chosen" in row:
        return [row["chosen"]["value"], row["rejected"]["value"]]
    return [row["messages"][-1]["content"] if "messages" in row else row["output"]]


@pytest.mark.parametrize(
    ("kind", "name", "count"),
    [
        (PreferenceData, "dpo_en_demo.json", 300),
        (LabelData, "kto_en_demo.json", 300),
        (SFTData, "alpaca_en_demo.json", 999),
    ],
)
def test_every_row_is_served_with_its_whole_response(
    kind: type[GroupDataModule], name: str, count: int, shared_data: Path, tokenizer: str
) -> None:
    file = shared_data / name
    data = kind(str(file), batch_size=100, max_length=100_000, tokenizer=tokenizer)
    data.setup("fit")
    loader = data.rows_loader()
    decode = PreTrainedTokenizerFast.from_pretrained(tokenizer).decode
    rows = json.loads(file.read_text())
    seen: list[int] = []
    for batch in loader:
        assert isinstance(batch, GroupBatch)
        lengths = batch.response_lengths.tolist()
        texts = [decode(ids) for ids in torch.split(batch.targets, lengths)]
        expected = [text + "<|im_end|>" for row in batch.rows.tolist() for text in _said(rows[row])]
        assert texts == expected
        assert (batch.labels is None) == (kind is not LabelData)
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (PreferenceData, "dpo_en_demo.json"),
        (LabelData, "kto_en_demo.json"),
        (SFTData, "alpaca_en_demo.json"),
        (SFTData, "c4_demo.jsonl"),
    ],
)
def test_streamed_rows_are_those_in_memory(
    kind: type[GroupDataModule], name: str, shared_data: Path, tokenizer: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    text = (shared_data / name).read_text()
    file.write_text(text if name.endswith("l") else "".join(json.dumps(row) + "\n" for row in json.loads(text)))
    loaders = []
    for streaming in (False, True):
        data = kind(str(file), batch_size=50, tokenizer=tokenizer, streaming=streaming)
        data.setup("fit")
        loaders.append(data.rows_loader())
    assert loaders[0].groups.fingerprint.text == loaders[1].groups.fingerprint.text
    for one, other in zip(*loaders, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.response_index, other.response_index)
        assert torch.equal(one.model_inputs["input_ids"], other.model_inputs["input_ids"])
        if kind is LabelData:
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.mismatched.targets, other.mismatched.targets)
