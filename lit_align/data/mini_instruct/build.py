"""Writes the `model/` folder: `python -m lit_align.data.mini_instruct.build`.

The folder holds what the quickstart trains from nothing: the configuration of a tiny Llama and a tokenizer whose tokens
are the words of the task. There are no weights in it.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from lit_align.data.mini_instruct.task import PROMPTS, WORDS

MODEL_FOLDER = Path(__file__).parent / "model"

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def vocabulary() -> tuple[str, ...]:
    """All tokens in the order of their ids: special ones, words of responses, words that only prompts use."""
    prompt_words = dict.fromkeys(word for prompt in PROMPTS for word in prompt.split())
    return (PAD, EOS, UNKNOWN, *WORDS, *(word for word in prompt_words if word not in WORDS))


def build(folder: Path = MODEL_FOLDER) -> None:
    """Write config.json, tokenizer.json and tokenizer_config.json into a folder, which is made where needed."""
    ids = {token: number for number, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([PAD, EOS, UNKNOWN])
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    model_config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(ids),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "pad_token_id": ids[PAD],
        "bos_token_id": None,
        "eos_token_id": ids[EOS],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(model_config, indent=2) + "\n")


if __name__ == "__main__":
    build()
