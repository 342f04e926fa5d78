"""Two gloo processes for tests; not in a conftest, because spawned processes import it by a name that must be unique."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch


def ranked(rank: int, port: int, folder: str, function: Callable[..., object], args: tuple[object, ...]) -> None:
    """Calls the function as torchrun would have it called on this rank, and leaves what it returned in the folder."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    # Another test's `seed_everything` left it, and Lightning seeds anew by it when ranks start.
    os.environ.pop("PL_GLOBAL_SEED", None)
    torch.save(function(*args), f"{folder}/rank{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        # An interpreter that ends while gloo's threads run aborts once in a while (torch 2.13); nothing is left to do.
        os._exit(0)
