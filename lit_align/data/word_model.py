"""The model folder of an embedded task: the configuration of a tiny Llama, and a tokenizer whose tokens are words.

There are no weights in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"

MAX_POSITIONS = 256


def write_model_folder(folder: Path, words: Iterable[str], hidden_size: int, layers: int, heads: int) -> None:
    """Write config.json, tokenizer.json and tokenizer_config.json into a folder, which is made where needed.

    Args:
        folder: Where to.
        words: All words, in the order of their ids; the three special tokens come before them.
        hidden_size: Width of the model; its feed-forward layers are twice as wide.
        layers: Its depth.
        heads: Of its attention.
    """
    ids = {token: number for number, token in enumerate((PAD, EOS, UNKNOWN, *words))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([PAD, EOS, UNKNOWN])
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
    }
    model_config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(ids),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": False,
        "pad_token_id": ids[PAD],
        "bos_token_id": None,
        "eos_token_id": ids[EOS],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(model_config, indent=2) + "\n")
