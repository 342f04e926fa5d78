import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from lit_align.data.mini_assistant import groups, skills
from lit_align.data.mini_assistant.build import MODEL_FOLDER, build


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_packaged_files_are_what_the_script_writes(tmp_path: Path, name: str) -> None:
    build(tmp_path)
    assert json.loads((MODEL_FOLDER / name).read_text()) == json.loads((tmp_path / name).read_text())
    assert sorted(path.name for path in MODEL_FOLDER.iterdir()) == sorted(path.name for path in tmp_path.iterdir())


def test_every_word_is_a_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    texts = [text for row in groups("sft", 2000) for text in (str(row.prompt), *row.responses)]
    texts += [text for item in skills() for text in (item.prompt, item.right or "")]
    for text in texts:
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_model_configuration_fits_the_tokenizer() -> None:
    config, tokenizer = AutoConfig.from_pretrained(MODEL_FOLDER), AutoTokenizer.from_pretrained(MODEL_FOLDER)
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
