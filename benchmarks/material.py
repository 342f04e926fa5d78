"""What both sides of a comparison work on: a model folder, a tokenizer trained on the rows, and the rows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]

SIZES: dict[str, dict[str, int]] = {
    "10m": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "40m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
    "0.5b": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, "num_attention_heads": 32},
}


def real_pairs(data: Path) -> list[dict[str, Any]]:
    """The 300 preference pairs of a LLaMA-Factory demo file, as rows that both sides read: chat turns."""
    rows = json.loads((data / "dpo_en_demo.json").read_text(encoding="utf-8"))
    return [
        {
            "prompt": [
                {"role": {"human": "user"}.get(turn["from"], "system"), "content": turn["value"]}
                for turn in row["conversations"]
            ],
            "chosen": [{"role": "assistant", "content": row["chosen"]["value"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]["value"]}],
        }
        for row in rows
    ]


def real_rankings(data: Path, k: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rankings with real lengths: the prompts of `real_pairs`, each with k of all their responses, best first."""
    pairs, rng = real_pairs(data), random.Random(seed)
    responses = [pair[side][0]["content"] for pair in pairs for side in ("chosen", "rejected")]
    return [
        {"prompt": pair["prompt"], "responses": rng.sample(responses, k), "scores": [*range(k, 0, -1)]}
        for pair in pairs
    ]


def real_prompts(data: Path) -> list[dict[str, Any]]:
    """The prompts of `real_pairs` alone."""
    return [{"prompt": pair["prompt"]} for pair in real_pairs(data)]


def made_up_pairs(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of random words with lengths about those of UltraFeedback: lognormal, prompts of 120 and responses of 220 words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))) for _ in range(4000)]

    def text(median: float, spread: float) -> str:
        return " ".join(rng.choices(words, k=max(4, min(700, round(rng.lognormvariate(0, spread) * median)))))

    return [
        {
            "prompt": [{"role": "user", "content": text(120, 0.9)}],
            "chosen": [{"role": "assistant", "content": text(220, 0.6)}],
            "rejected": [{"role": "assistant", "content": text(180, 0.7)}],
        }
        for _ in range(n)
    ]


def made_up_prompts(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts of random words, 8 to 48 of them."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))) for _ in range(400)]
    return [
        {"prompt": [{"role": "user", "content": " ".join(rng.choices(words, k=rng.randint(8, 48)))}]} for _ in range(n)
    ]


def write_reward_model(folder: Path) -> None:
    """Writes `reward/` beside `model/`: a reward model of the same size with random weights."""
    config = LlamaConfig.from_pretrained(folder / "model", num_labels=1)
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    PreTrainedTokenizerFast.from_pretrained(folder / "model").save_pretrained(folder / "reward")


def write_material(
    folder: Path, rows: list[dict[str, Any]], size: str, vocab: int, max_length: int, *, reward: bool = False
) -> None:
    """Writes `model/` (weights and tokenizer) and `rows.jsonl` into a folder, without rows that the sides would cut.

    Args:
        folder: Where.
        rows: What `rows.jsonl` holds, and the tokenizer learns from.
        size: A key of `SIZES`.
        vocab: Entries of the vocabulary; where the rows do not give so many, the embedding is that large all the same.
        max_length: Tokens of a prompt and any one of its responses, and the model's positions.
        reward: Whether the model has one scalar head instead of a vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _texts(rows),
        trainers.BpeTrainer(
            vocab_size=min(vocab, 16_000), special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        **SIZES[size],
        max_position_embeddings=max_length,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        num_labels=1,
    )
    (LlamaForSequenceClassification if reward else LlamaForCausalLM)(config).save_pretrained(folder / "model")
    short = [row for row in rows if max(_lengths(row, fast), default=0) <= max_length]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short), encoding="utf-8")


def keep_rows(folder: Path, n: int, max_prompt_length: int) -> list[int]:
    """Leaves in `rows.jsonl` the first n rows whose prompts are no longer; returns the tokens of each prompt.

    Raises:
        SystemExit: There are not so many.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    file = folder / "rows.jsonl"
    kept, lengths = list[str](), list[int]()
    for line in file.read_text(encoding="utf-8").splitlines():
        text = tokenizer.apply_chat_template(json.loads(line)["prompt"], tokenize=False, add_generation_prompt=True)
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if length <= max_prompt_length and len(kept) < n:
            kept.append(line)
            lengths.append(length)
    if len(kept) < n:
        raise SystemExit(f"Only {len(kept)} of {n} prompts have at most {max_prompt_length} tokens.")
    file.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return lengths


def _lengths(row: dict[str, Any], tokenizer: Any) -> list[int]:
    chats = [[*row["prompt"], {"role": "assistant", "content": response}] for response in _responses(row)]
    return [len(tokenizer(tokenizer.apply_chat_template(chat, tokenize=False))["input_ids"]) for chat in chats]


def _responses(row: dict[str, Any]) -> list[str]:
    sides = (row[side][0]["content"] for side in ("chosen", "rejected") if side in row)
    found: list[str] = row.get("responses") or [*sides]
    return found


def _texts(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield from (turn["content"] for turn in row["prompt"])
        yield from _responses(row)
