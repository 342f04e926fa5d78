"""What a misspelt word was probably meant to be: the nearest option, argument, class, module or file."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1]
"""The folder that holds this package and the callbacks that come with it."""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """A hint at the nearest name, or at all of them where they are no more than two lines and none is near."""
    names = list(dict.fromkeys(names))
    if near := near_name(word, names):
        return f"; did you mean {near!r}?"
    return f"; there {'is' if len(names) == 1 else 'are'} {', '.join(names)}" if 0 < len(names) <= 24 else ""


def near_name(word: str, names: Iterable[str]) -> str | None:
    """The nearest name, whether or not its capitals are the word's; None where none is near."""
    by_small = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_small, n=1, cutoff=0.6)
    return by_small[near[0]] if near else None


def near_file(path: Path) -> str:
    """A hint at the nearest config of the same folder, or at one of that name below `configs`."""
    same_name = [str(file) for file in sorted(Path("configs").rglob(path.name))]
    beside = [str(file) for file in path.parent.glob("*") if file.suffix in (".yaml", ".yml") and file.is_file()]
    near = same_name or difflib.get_close_matches(str(path), beside, n=1)
    return f"; did you mean {shown(Path(near[0]))}?" if near else ""


def shown(path: Path) -> str:
    """A path, relative to the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path)


def argument_names(class_path: str) -> list[str]:
    """The names of a class's constructor arguments, those of its bases included."""
    found: dict[str, None] = {}
    for base in inspect.getmro(load(class_path)):
        if "__init__" in vars(base) and base is not object:
            found.update(dict.fromkeys(inspect.signature(base).parameters))
    return [name for name in found if name not in ("self", "args", "kwargs")]


def field_names(class_path: str, argument: str) -> list[str]:
    """The fields of the dataclass that a constructor argument takes; none where it takes something else."""
    types = [part for part in argument_types(class_path, argument) if dataclasses.is_dataclass(part)]
    return [field.name for field in dataclasses.fields(types[0])] if types else []


def argument_types(class_path: str, argument: str) -> list[type]:
    """The classes that a constructor argument takes, or that the functions it takes return; none where that cannot be told."""
    try:
        waiting = [typing.get_type_hints(load(class_path).__init__).get(argument)]
    except (NameError, TypeError):  # annotations that are imported for type checkers alone, or are no types
        return []
    found = []
    while waiting:
        part = waiting.pop(0)
        waiting += typing.get_args(part)
        if inspect.isclass(part) and part is not type(None):
            found.append(part)
    return found


def load(class_path: str) -> Any:
    """The class that a dotted path names."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def classes_of(module: str) -> list[str]:
    """The names of the classes of an imported module."""
    return [name for name, value in vars(sys.modules[module]).items() if inspect.isclass(value)]


def module_names() -> list[str]:
    """Modules that a config may name: those of the current folder, and ours."""
    here = [path.stem for path in Path.cwd().iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    ours = [f"lit_align.{path.stem}" for path in (HOME / "lit_align").iterdir() if path.suffix in ("", ".py")]
    return [*here, *ours, "callbacks", "torch.optim", "torch.optim.lr_scheduler"]


def class_names(key: str, class_path: str = "") -> list[str]:
    """The short names that a config may give at a key such as `model` or `trainer.callbacks`.

    Args:
        key: Where in the config, dotted.
        class_path: The class whose argument the key's last part is, or "".
    """
    import torch
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from lightning.pytorch.loggers import Logger

    import lit_align.losses

    bases: dict[str, type] = {
        "model": LightningModule,
        "data": LightningDataModule,
        "trainer.callbacks": Callback,
        "trainer.logger": Logger,
    }
    taken = [bases[key]] if key in bases else argument_types(class_path, key.rpartition(".")[2]) if class_path else []
    if fitting := [subclass.__name__ for base in taken for subclass in below(base) if not inspect.isabstract(subclass)]:
        return [name for name in dict.fromkeys(fitting) if not name.startswith("_")]
    torch_bases = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
    return [*classes_of(lit_align.losses.__name__), *(c.__name__ for base in torch_bases for c in below(base))]


def below(base: type) -> Iterator[type]:
    """Every subclass of a class."""
    subclasses: list[type] = base.__subclasses__()
    for subclass in subclasses:
        yield subclass
        yield from below(subclass)


def shadowed(module: str) -> str:
    """A remark where a `callbacks` folder of the user's own hides the one that comes with lit_align."""
    if module.split(".", maxsplit=1)[0] != "callbacks" or not (HOME / "callbacks").is_dir():
        return ""
    spec = importlib.util.find_spec("callbacks")
    found = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    if not found or any(folder.is_relative_to(HOME) for folder in found):
        return ""
    return (
        f". Your folder {shown(found[0])} hides lit_align's callbacks under `python -m lit_align`; "
        "start the script `lit-align` instead, which puts ours first, or rename the folder"
    )
