"""`lit-align export`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from lit_align.errors import UserError


def export(run: Path, out: Path, ckpt: str = "last") -> None:
    """Write a checkpoint's model as a Hugging Face folder.

    `fit` does this by itself when it is through, into the run's model/. This is for checkpoints on the way there, and for runs
    that were stopped. The module is built as the run's config.yaml says, and gets the checkpoint's weights.

    Args:
        run: A run folder, or a checkpoint in the checkpoints/ of one.
        out: The folder to write; it must not exist yet.
        ckpt: Which checkpoint of the run: `last`, or the name of a file in its checkpoints/, or a path.
    """
    from transformers.utils.logging import disable_progress_bar

    from lit_align.cli import build_module

    disable_progress_bar()
    if out.exists():
        raise UserError(f"{out} exists already; remove it, or name another folder.")
    folder, file = locate(run, ckpt)
    module = build_module(folder.config)
    if not callable(getattr(module, "export", None)):
        raise UserError(f"{type(module).__name__} has no method `export(folder)`, so it cannot be exported.")
    module.configure_model()
    state = read_shards(file, module) if file.is_dir() else read_weights(file)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"The weights in {file} are not those of the {type(module).__name__} in {folder.config}: {error}"
        ) from error
    module.export(out)
    print(f"Written: {out}, from {file}")


def locate(run: Path, ckpt: str) -> tuple[Any, Path]:
    """The run folder and the checkpoint file that the arguments mean.

    Raises:
        UserError: One of them is not there.
    """
    from lit_align.runtime.checkpoints import WRITTEN_LAST
    from lit_align.runtime.run_folder import RunFolder, find_checkpoint

    if run.is_file() or (run / WRITTEN_LAST).is_file():
        if ckpt != "last":
            raise UserError(f"{run} is a checkpoint already, so `--ckpt {ckpt}` has no effect: leave it out.")
        run, ckpt = run.parent.parent, str(run)
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise UserError(
            f"{run} is no run folder: it has no config.yaml, which says what to build. Name the folder that `fit` wrote."
        )
    file = Path(ckpt) if Path(ckpt).exists() else folder.checkpoints / ckpt
    file = Path(find_checkpoint("last" if ckpt == "last" else str(file), folder))
    return folder, file


def read_weights(file: Path) -> dict[str, Any]:
    """The state dict in a checkpoint, read without running any code from it.

    Raises:
        UserError: The file is not a checkpoint of tensors and plain values.
    """
    import pickle

    import torch

    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True)["state_dict"])
    except (pickle.UnpicklingError, KeyError, EOFError, RuntimeError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file} is no checkpoint that can be read safely: {reason}") from error


def read_shards(folder: Path, module: Any) -> dict[str, Any]:
    """The state dict in a checkpoint that ranks wrote in parts, read by one process. Its index is a pickle: trust who wrote it.

    Raises:
        UserError: The folder holds something else, or weights of another module.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    if not (folder / ".metadata").is_file():
        raise UserError(f"{folder} is no folder of shards as FSDP2 writes it: it has no .metadata.")
    state: dict[str, dict[str, Any]] = {"state_dict": module.state_dict()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is what no_dist says
            load(state, checkpoint_id=folder, no_dist=True)
    except CheckpointException as error:
        reason = str(next(iter(error.failures.values()))[0])
        raise UserError(
            f"The weights in {folder} are not those of the {type(module).__name__} in the run's config.yaml: {reason}"
        ) from error
    return state["state_dict"]
