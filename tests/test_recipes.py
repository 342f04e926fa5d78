"""Recipes for real models: each takes two steps with random weights of its model's architecture, shrunk by configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, Qwen2Config, Qwen2ForCausalLM

from lit_align.__main__ import main
from lit_align.methods import RewardModel
from lit_align.models import ModelConfig, load_tokenizer

# Lightning calls what jsonargparse has deprecated, and advises on workers (2026-11).
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

ROOT = Path(__file__).parents[1]
HARDWARE = ("one_24gb", "one_80gb", "eight_80gb", "nodes")
RECIPES = [path for folder in HARDWARE for path in sorted((ROOT / "configs" / folder).glob("*.yaml"))]
PAD = "<|finetune_right_pad_id|>"
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500000.0}


def llama(tied: bool) -> PretrainedConfig:
    return LlamaConfig(
        **SMALL, num_key_value_heads=2, tie_word_embeddings=tied, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_parameters=ROPE | {"original_max_position_embeddings": 8192}, vocab_size=20, eos_token_id=1,
    )  # fmt: skip


def qwen(tied: bool) -> PretrainedConfig:
    return Qwen2Config(
        **SMALL, num_key_value_heads=2, tie_word_embeddings=tied, max_position_embeddings=32768, rms_norm_eps=1e-6,
        vocab_size=20, eos_token_id=1,
    )  # fmt: skip


MODELS: dict[str, Callable[[], PretrainedConfig]] = {
    "meta-llama/Llama-3.2-1B-Instruct": lambda: llama(tied=True),
    "meta-llama/Llama-3.2-3B": lambda: llama(tied=True),
    "meta-llama/Llama-3.2-3B-Instruct": lambda: llama(tied=True),
    "meta-llama/Llama-3.1-8B": lambda: llama(tied=False),
    "meta-llama/Llama-3.1-8B-Instruct": lambda: llama(tied=False),
    "Qwen/Qwen2.5-0.5B-Instruct": lambda: qwen(tied=True),
    "Qwen/Qwen2.5-7B-Instruct": lambda: qwen(tied=False),
}


@pytest.fixture(scope="session")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model by its hub name, or of a reward model by the run that would have trained it."""
    folder = tmp_path_factory.mktemp("hub")

    def build(name: str) -> Path:
        place = folder / name.replace("/", "_")
        if place.exists():
            return place
        torch.manual_seed(0)
        if name.startswith("runs/"):
            reward = RewardModel(ModelConfig(str(build("meta-llama/Llama-3.2-1B-Instruct")), pad_token=PAD))
            reward.configure_model()
            reward.export(place)
            return place
        tokenizer = load_tokenizer(ModelConfig("mini_instruct", init="random"))
        tokenizer.add_tokens([PAD], special_tokens=True)
        if name == "tokenizer":
            tokenizer.save_pretrained(place)
            return place
        config = MODELS[name]()
        config.vocab_size = len(tokenizer)
        (Qwen2ForCausalLM if isinstance(config, Qwen2Config) else LlamaForCausalLM)(config).save_pretrained(place)
        if isinstance(config, LlamaConfig):  # transformers gives Qwen2 its own tokenizer, whatever is in the folder
            tokenizer.save_pretrained(place)
        return place

    return build


def models_in(arguments: Any, name: str) -> Iterator[tuple[str, str]]:
    """Where models come from, by their names on the command line."""
    if isinstance(arguments, Mapping):
        for key, value in arguments.items():
            if key == "path" and isinstance(value, str):
                yield f"{name}.{key}", value
            yield from models_in(value, f"{name}.{key}")


def run_shrunk(config: Path, shrunk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, model: str | None) -> int:
    """Two steps of a recipe on this machine, with another model where one is named."""
    given = yaml.safe_load(config.read_text())
    method = given["model"]["init_args"]
    changed = {
        "trainer.fast_dev_run": 2, "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.num_nodes": 1,
        "trainer.strategy": "auto", "trainer.accumulate_grad_batches": 1, "data.train": "mini_instruct",
        "data.max_rows": 64,
    }  # fmt: skip
    if "val" in given["data"]["init_args"]:
        changed["data.val"] = "mini_instruct"
    if "columns" in given["data"]["init_args"]:
        changed["data.columns"] = "null"
    if "on_bad_row" in given["data"]["init_args"]:
        changed["data.on_bad_row"] = "raise"
    for argument, path in models_in(method, "model"):
        is_policy = model is not None and argument == "model.policy.path"
        changed[argument] = shrunk(str(model) if is_policy else path)
    changed["model.policy.tokenizer"] = shrunk("tokenizer")
    if "rollout" in method:
        changed |= {"model.rollout.max_new_tokens": 5, "data.batch_size": 16}
    if "seed" in method:
        changed |= {"model.prompts_per_round": "[16,16,16]", "model.seed.data.init_args.train": "mini_instruct"}
    arguments = [f"--{name}={value}" for name, value in changed.items()]
    monkeypatch.setattr(sys, "argv", ["lit-align", "fit", "--config", str(config), *arguments])
    return main()


@pytest.mark.slow
@pytest.mark.parametrize("config", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_takes_two_steps(config, shrunk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_shrunk(config, shrunk, monkeypatch, None) == 0


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in MODELS if name.endswith("-Instruct")])
def test_a_recipe_takes_any_of_the_models(model, shrunk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_shrunk(ROOT / "configs" / "one_24gb" / "dpo.yaml", shrunk, monkeypatch, model) == 0


OF_HARDWARE = {
    ("run",), ("trainer", "devices"), ("trainer", "strategy"), ("trainer", "num_nodes"),
    ("trainer", "accumulate_grad_batches"), ("data", "init_args", "batch_size"), ("model", "init_args", "minibatches"),
    ("model", "init_args", "reference"), ("model", "init_args", "rollout", "max_rows"),
    ("model", "init_args", "optimizer", "init_args", "lr"), ("model", "init_args", "reward"),
    ("model", "init_args", "seed", "data", "init_args", "batch_size"),
}  # fmt: skip
"""What one recipe of a method may have otherwise than another one; the policy besides."""


def leaves(config: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from leaves(value, (*at, key))
    else:
        yield at, config


@pytest.mark.parametrize("config", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_differ_only_where_they_must(config):
    def kept(path: Path) -> dict[tuple[str, ...], Any]:
        differ = {*OF_HARDWARE, ("model", "init_args", "policy")}
        read = leaves(yaml.safe_load(path.read_text()))
        return {at: value for at, value in read if not any(at[: len(head)] == head for head in differ)}

    given = yaml.safe_load(config.read_text())
    assert given["run"] == f"runs/{config.parent.name}/{config.stem}"
    assert given["model"]["init_args"]["policy"]["path"] in MODELS
    assert kept(config) == kept(ROOT / "configs" / "eight_80gb" / config.name)
    accumulated, data = given["trainer"].get("accumulate_grad_batches", 1), given["data"]["init_args"]
    devices = given["trainer"]["devices"] * given["trainer"].get("num_nodes", 1)
    assert data["batch_size"] * accumulated * devices == (
        64 if config.stem in ("sft", "reward", "ppo", "rrhf") else 128
    )


def test_there_is_a_recipe_for_every_method_and_machine():
    methods = {"sft", "reward", "dpo", "ppo", "rrhf", "spa"}
    for folder in HARDWARE[:3]:
        assert {path.stem for path in (ROOT / "configs" / folder).glob("*.yaml")} == methods
