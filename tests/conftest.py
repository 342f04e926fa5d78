"""Small models and batches, built here: nothing is downloaded."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import ranks
import torch
from transformers import GPT2Config, LlamaConfig, PretrainedConfig, Qwen2Config

from lit_align.groups import TokenGroup
from lit_align.methods import SFT, RewardModel
from lit_align.models import ModelConfig

VOCABULARY = 40
EOS = 1

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real rows that stand beside a checkout and not in it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real rows at {folder}")
    return folder


@pytest.fixture(params=["llama", "qwen2", "gpt2"])
def architecture(request: pytest.FixtureRequest) -> PretrainedConfig:
    """Configurations of three kinds of model, two layers each."""
    ids = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": 0, "vocab_size": VOCABULARY}
    if request.param == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids)
    kind = LlamaConfig if request.param == "llama" else Qwen2Config
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    return kind(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, **ids)


@pytest.fixture
def random_groups() -> Callable[..., list[TokenGroup]]:
    """Random token groups with K responses each and distinct scores."""

    def build(sizes: Sequence[int], seed: int = 0, longest: int = 7) -> list[TokenGroup]:
        generator = torch.Generator().manual_seed(seed)

        def ids(n: int) -> list[int]:
            return torch.randint(2, VOCABULARY, (n,), generator=generator).tolist()

        def length() -> int:
            return int(torch.randint(1, longest + 1, (), generator=generator))

        return [
            TokenGroup(
                prompt=ids(length()),
                responses=[[*ids(length() - 1), EOS] for _ in range(k)],
                scores=torch.randperm(k, generator=generator).double().tolist(),
                row=row,
            )
            for row, k in enumerate(sizes)
        ]

    return build


@pytest.fixture
def on_two_ranks(tmp_path: Path) -> Callable[..., list[object]]:
    """Runs a module-level function in two gloo processes, as torchrun would start them, and returns what each returned."""

    def run(function: Callable[..., object], *args: object) -> list[object]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        torch.multiprocessing.spawn(ranks.ranked, (port, str(tmp_path), function, args), nprocs=2)
        return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]

    return run


@pytest.fixture(scope="session")
def quickstart_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the quickstart's first two runs leave behind, untrained and smaller: folders `sft` and `reward`."""
    folder = tmp_path_factory.mktemp("models")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    sft = SFT(ModelConfig("mini_instruct", init="random", overrides=small))
    sft.configure_model()
    sft.export(folder / "sft")
    reward = RewardModel(ModelConfig(str(folder / "sft")))
    reward.configure_model()
    reward.export(folder / "reward")
    return folder
