"""A rollout leaves the model as it found it, and sharded weights whole while it lasts."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_align.models.sampling import Sampling
from lit_align.rollout import NativeEngine, RolloutConfig, rollout_mode


def test_each_module_returns_to_its_own_mode(tiny):
    model = tiny("llama").train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    with rollout_mode(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_modes_return_after_an_error(tiny):
    model = tiny("llama").train()
    with pytest.raises(RuntimeError, match="broken"), rollout_mode(model):
        raise RuntimeError("broken")
    assert all(module.training for module in model.modules())


def test_sampling_inside_autocast_runs_in_the_models_own_precision(tiny):
    model = tiny("llama").train()
    dtypes = set()
    model.register_forward_hook(lambda module, args, output: dtypes.add(output.logits.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        NativeEngine(model, RolloutConfig(3), ()).sample([[3, 4]], 2)
        assert torch.is_autocast_enabled("cpu")
    assert dtypes == {torch.float32}


def test_dropout_is_off(tiny):
    model = tiny("gpt2", resid_pdrop=0.9, embd_pdrop=0.9, attn_pdrop=0.9)
    engine = NativeEngine(model, RolloutConfig(8, Sampling(top_k=1)), ())
    expected = engine.sample([[3, 4]], 1)
    model.train()
    assert engine.sample([[3, 4]], 1) == expected


def test_training_goes_on_after_a_rollout(tiny):
    model = tiny("llama").train()
    NativeEngine(model, RolloutConfig(3), ()).sample([[3, 4]], 2)
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def _sharded_rank(rank: int, port: int) -> None:
    """One rank of two: samples a different number of tokens than the other, then trains a step as a lone process would."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))

    def build() -> nn.Module:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=32, eos_token_id=None, **sizes))

    whole, sharded = build(), build()
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)

    prompts = [[3 + rank, 4, 5]] * (1 + rank)
    config = RolloutConfig(4 + 6 * rank)
    ids = torch.tensor([[5, 6, 7, 8]])
    for model in (whole, sharded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            torch.manual_seed(7)
            responses = NativeEngine(model, config, ()).sample(prompts, 2)
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if model is whole:
            expected = (responses, loss.item())
    assert responses == expected[0]
    assert abs(loss.item() - expected[1]) < 1e-5
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    torch.distributed.barrier()
    # Taking the process groups of a mesh down aborts once in a while (torch 2.13, seen November 2026); nothing is left to do.
    os._exit(0)


def test_ranks_of_a_sharded_model_may_differ_in_length():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_sharded_rank, args=(port,), nprocs=2)
