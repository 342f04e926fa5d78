"""Small language models whose tokens are characters, so that what they read can be written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for turn in messages %}<|{{ turn['role'][0] }}|>{{ turn['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)
SPECIAL = ["<pad>", "<eos>", "<|u|>", "<|a|>", "<|s|>", "<|end|>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;?!'\n[]-"


def character_tokenizer(chat: bool) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}, unk_token="."))
    words.pre_tokenizer = Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    if chat:
        fast.chat_template = TEMPLATE
    return fast


def save_language_model(folder: Path, seed: int, chat: bool) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(CHARACTERS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config)
    # With the usual tiny initial weights every distribution would be nearly uniform.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    character_tokenizer(chat).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `chat`, `plain` and `other`, the last another model with the chat template."""
    folder = tmp_path_factory.mktemp("language_models")
    for seed, (name, chat) in enumerate({"chat": True, "plain": False, "other": True}.items()):
        save_language_model(folder / name, seed, chat)
    return folder


@pytest.fixture(scope="session")
def token_logps_of(language_models: Path) -> Callable[[str, str, str], list[float]]:
    """What transformers alone says: log-probability of each token of the second text behind the first one."""

    def logps(name: str, before: str, text: str) -> list[float]:
        model = AutoModelForCausalLM.from_pretrained(language_models / name).eval()
        tokenizer = character_tokenizer(chat=True)
        start = len(tokenizer(before, add_special_tokens=False).input_ids)
        ids = tokenizer(before + text, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            every = model(input_ids=ids).logits[0].log_softmax(-1)
        return [every[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1])]

    return logps
