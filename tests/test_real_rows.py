"""Real preference rows, a tokenizer trained on them and a small Llama: each method from YAML, as a person would run it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory) -> Path:
    """A model folder without weights, and rows as JSONL."""
    folder = tmp_path_factory.mktemp("real")
    pairs = json.loads((shared_data / "dpo_en_demo.json").read_text())
    demonstrations = json.loads((shared_data / "alpaca_en_demo.json").read_text())
    texts = [row[side]["value"] for row in pairs for side in ("chosen", "rejected")]
    texts += [row["output"] for row in demonstrations]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder / "model")
    LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    ).save_pretrained(folder / "model")  # fmt: skip

    def turns(row):
        return [
            {"role": {"human": "user"}.get(t["from"], "system"), "content": t["value"]} for t in row["conversations"]
        ]

    def write(name, rows):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))

    converted = [
        {"prompt": turns(r), "chosen": r["chosen"]["value"], "rejected": r["rejected"]["value"]} for r in pairs
    ]
    write("pairs.jsonl", converted[:250])
    write("held_out_pairs.jsonl", converted[250:])
    rows = [{"prompt": f"{r['instruction']}\n{r['input']}".strip(), "completion": r["output"]} for r in demonstrations]
    chats = [{"prompt": [{"role": "user", "content": r["prompt"]}], "completion": r["completion"]} for r in rows]
    write("demonstrations.jsonl", chats[:900])
    write("held_out_demonstrations.jsonl", chats[900:])
    return folder


def fit(
    folder: Path, name: str, method: str, data: str, files: str, policy: dict, lr: float, epochs: int
) -> list[dict]:
    """Runs `lit_align fit` from a YAML file and returns the rows of its metrics.csv."""
    config = {
        "run": str(folder / "runs" / name),
        "threads": 1,
        "trainer": {
            "accelerator": "cpu", "devices": 1, "precision": "bf16-mixed", "max_epochs": epochs, "log_every_n_steps": 1,
            "gradient_clip_val": 1.0, "enable_progress_bar": False, "logger": [{"class_path": "CSVLogger"}],
        },
        "model": {
            "class_path": method,
            "init_args": {"policy": policy, "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr}}},
        },
        "data": {
            "class_path": data,
            "init_args": {
                "train": str(folder / f"{files}.jsonl"), "val": str(folder / f"held_out_{files}.jsonl"),
                "batch_size": 16, "max_length": 256,
            },
        },
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "lit_align", "fit", "--config", str(path)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with (folder / "runs" / name / "metrics.csv").open() as rows:
        return list(csv.DictReader(rows))


def values(rows: list[dict], metric: str) -> list[float]:
    return [float(row[metric]) for row in rows if row.get(metric)]


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


@pytest.fixture(scope="module")
def sft(folder) -> Path:
    policy = {"path": str(folder / "model"), "init": "random"}
    rows = fit(folder, "sft", "SFT", "SFTData", "demonstrations", policy, lr=2e-3, epochs=2)
    assert values(rows, "train/nll")[0] == pytest.approx(8.3, abs=0.3)  # ln 4096 at random weights
    assert values(rows, "val/nll")[-1] < 6.3
    AutoModelForCausalLM.from_pretrained(folder / "runs" / "sft" / "model")
    return folder / "runs" / "sft" / "model"


def test_dpo_learns_the_pairs(folder, sft):
    rows = fit(folder, "dpo", "DPO", "PreferenceData", "pairs", {"path": str(sft)}, lr=3e-4, epochs=4)
    assert values(rows, "train/loss")[0] == pytest.approx(0.693147, abs=1e-5)
    assert mean(values(rows, "train/rewards/accuracy")[-16:]) > 0.75
    assert mean(values(rows, "train/rewards/margin")[-16:]) > mean(values(rows, "train/rewards/margin")[:16])
    assert mean(values(rows, "train/loss")[-16:]) < 0.6


def test_the_reward_model_learns_the_pairs(folder, sft):
    rows = fit(folder, "reward", "RewardModel", "PreferenceData", "pairs", {"path": str(sft)}, lr=3e-4, epochs=6)
    assert mean(values(rows, "train/accuracy")[-16:]) > 0.8
    assert mean(values(rows, "train/loss")[-16:]) < 0.5
    bias = json.loads((folder / "runs" / "reward" / "model" / "config.json").read_text())["reward_bias"]
    assert bias != 0
