import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from lit_align.data.mini_instruct import PROMPTS, WORDS
from lit_align.data.mini_instruct.build import MODEL_FOLDER, build


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_packaged_files_are_what_the_script_writes(tmp_path: Path, name: str) -> None:
    build(tmp_path)
    assert json.loads((MODEL_FOLDER / name).read_text()) == json.loads((tmp_path / name).read_text())
    assert sorted(path.name for path in MODEL_FOLDER.iterdir()) == sorted(path.name for path in tmp_path.iterdir())


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    assert len(tokenizer) == 22
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for text in (*PROMPTS, " ".join(WORDS)):
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.split())
        assert (
            tokenizer.decode([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id], skip_special_tokens=True) == text
        )
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(PROMPTS[1]).input_ids == tokenizer(PROMPTS[1]).input_ids


def test_an_unknown_word_is_the_unknown_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    assert tokenizer("tell me about horses").input_ids[-1] == tokenizer.unk_token_id


def test_model_configuration_fits_the_tokenizer() -> None:
    config, tokenizer = AutoConfig.from_pretrained(MODEL_FOLDER), AutoTokenizer.from_pretrained(MODEL_FOLDER)
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert config.tie_word_embeddings is False
