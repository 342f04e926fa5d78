"""`lit-align fit | validate | test | predict`: LightningCLI, with run folders and errors that are one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import lit_align.data
import lit_align.losses  # noqa: F401  short names in YAML are those of imported classes
from lit_align.cli_errors import ShortErrors, original
from lit_align.errors import UserError
from lit_align.methods import AlignmentModule
from lit_align.runtime import default_callbacks
from lit_align.runtime.config_change import refuse_changes
from lit_align.runtime.failures import remedy
from lit_align.runtime.loggers import RunCSVLogger
from lit_align.runtime.run_folder import RunFolder, fill_from_run, find_checkpoint

SECRET = re.compile(
    r"(api_?key|(access|private|secret)_?key|passw(or)?d|secret|credentials?|authorization|(access|auth|hf|bearer)_?token)$",
    re.IGNORECASE,
)
KEY_LIKE = re.compile(r"\b(sk-|hf_|gh[pousr]_|xox[abp]-|AKIA)[A-Za-z0-9_-]{16,}|\bBearer\s+\S{8,}")
"""Values that are keys of well-known services, wherever they stand."""

OF_ONE_CALL = ("config", "ckpt_path", "overwrite", "accept_changes", "weights_only")
"""What a command was called with that is no part of the run's config."""


class Parser(ShortErrors, LightningArgumentParser):
    """LightningCLI's parser with short errors, which takes for given what the run folder will fill in."""

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Checks a config as it will be once its open places are filled."""
        filled = fill_from_run(namespace, "fit")
        command = namespace.get("subcommand")
        if isinstance(command, str) and isinstance(namespace.get(command), Namespace):
            filled[command] = fill_from_run(namespace[command], command)
        super().validate(filled, *args, **kwargs)


class AlignmentCLI(LightningCLI):
    """Builds model, data and Trainer from configs and arguments, and runs the Trainer's method.

    Raises:
        UserError: Something that whoever started the run can put right; everything of that kind that the parser does not find.
    """

    def __init__(self) -> None:
        try:
            super().__init__(
                save_config_callback=SaveRun,
                seed_everything_default=42,
                parser_class=Parser,
                parser_kwargs={"prog": "lit-align", "allow_abbrev": False},
                auto_configure_optimizers=False,
            )
        except (torch.OutOfMemoryError, MemoryError, OSError, RuntimeError) as error:
            known = remedy(error)
            if known is None:
                raise
            raise UserError(known) from error
        except ValueError as error:
            if "null byte" in str(error):
                raise UserError("A path, or a whole config, has a null byte in it, so it is no text.") from error
            raise

    @property
    def run_folder(self) -> RunFolder | None:
        """The run folder, None where no `run` is given."""
        path = self._get(self.config, "run")
        return None if path is None else RunFolder(Path(path))

    @property
    def writes_run(self) -> bool:
        """True where this command fills a run folder: `fit`, unless it is a dry run."""
        return self.subcommand == "fit" and not self._get(self.config, "trainer.fast_dev_run")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what a run folder needs."""
        parser.add_argument("--run", type=Path | None, default=None, help="The run's folder: runs/<group>/<name>.")
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="fit only: replace the run that the folder holds."
        )
        parser.add_argument(
            "--accept_changes",
            type=bool,
            default=False,
            help="fit only, with --ckpt_path: go on with settings that differ from those the run was started with.",
        )
        parser.add_argument(
            "--threads",
            type=PositiveInt | None,
            default=None,
            help="CPU threads of torch. Models of a few million parameters are fastest with 1: more only wait for each other.",
        )

    def before_instantiate_classes(self) -> None:
        """Refuses what cannot go well before a model is loaded, and fills in what the config left open."""
        run, command = self.run_folder, str(self.subcommand)
        config = self.config[command]
        if not isinstance(config.trainer, Namespace):
            found = "a list" if isinstance(config.trainer, list) else f"{config.trainer!r}"
            raise UserError(f"trainer: expected settings, as in `trainer: {{max_epochs: 1}}`, found {found}.")
        if config.get("threads"):
            torch.set_num_threads(config.threads)
        ckpt_path, overwrite = config.get("ckpt_path"), config.get("overwrite")
        if run is None and self.writes_run:
            raise UserError("A run needs a folder: add `run: runs/<group>/<name>` to the config, or `--run`.")
        if overwrite and not self.writes_run:
            raise UserError("`--overwrite` replaces a run, and nothing is written here: leave it out.")
        if overwrite and ckpt_path is not None:
            raise UserError("`--overwrite` removes the run that `--ckpt_path` would continue: give one of them.")
        if config.get("accept_changes") and (ckpt_path is None or not self.writes_run):
            raise UserError("`--accept_changes` is for a run that goes on from `--ckpt_path`: leave it out.")
        self.save_config_callback = None
        if run is not None and self.writes_run:
            if ckpt_path is None and not overwrite:
                rank_zero_only(run.check_free)()
            rank_zero_only(run.check_writable)()
            self.save_config_callback = SaveRun
            self.save_config_kwargs = {"as_given": config.clone(), "run": run}
        self.config[command] = fill_from_run(config, command)
        if config.get("trainer.fast_dev_run"):
            self._write_nothing(self.config[command].trainer)
        if ckpt_path is not None:
            self.config[command]["ckpt_path"] = find_checkpoint(ckpt_path, run)
        self.parser.add_instantiator(self._build, object)

    def instantiate_classes(self) -> None:
        """Builds everything; an error in a constructor is raised as it was, and not as jsonargparse's report of it."""
        self._failed: Exception | None = None
        try:
            super().instantiate_classes()
        except Exception as error:
            if self._failed is None and "argument after ** must be a mapping" in str(error):
                raise UserError(
                    "The config has a list or a single value where a setting has settings of its own: "
                    "`lit-align fit --model.help <class>` shows which those are."
                ) from error
            raise original(self._failed or error) from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what every run needs; our own modules bring it along.

        Raises:
            UserError: Settings that the Trainer refuses.
        """
        if not isinstance(self.model, AlignmentModule):
            self.trainer_defaults = {**self.trainer_defaults, "callbacks": default_callbacks()}
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UserError(f"trainer: {error}") from error
        except RuntimeError as error:
            if (twice := re.match(r"Found more than one stateful callback of type `(\w+)`", str(error))) is None:
                raise
            raise UserError(
                f"trainer.callbacks: there are two {twice[1]} that a checkpoint cannot tell apart. Leave one out."
            ) from error

    def after_instantiate_classes(self) -> None:
        """Removes the run that this one replaces, now that nothing can be mistyped any more.

        Raises:
            UserError: There is no data, or the settings are not those of the run that is continued.
        """
        if isinstance(self.model, AlignmentModule) and self.datamodule is None:
            name = type(self.model).__name__
            raise UserError(f"{name} needs rows: add `data:` with a class_path such as PreferenceData, or `--data`.")
        if self._get(self.config, "overwrite") and self.run_folder is not None:
            rank_zero_only(self.run_folder.clear)()
        ckpt_path = self._get(self.config, "ckpt_path")
        if ckpt_path is not None and not self._get(self.config, "accept_changes"):
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, SaveRun):
                    callback.refuse_changes(Path(ckpt_path))

    def after_fit(self) -> None:
        """Says where the run is, and what to do next.

        Raises:
            UserError: The last checkpoint could not be saved.
        """
        if self.run_folder is not None and self.writes_run and self.trainer.is_global_zero:
            path = self.run_folder.path
            failure = getattr(self.trainer.strategy.checkpoint_io, "failure", None)
            if failure is not None:
                raise UserError(
                    f"The run is through, and its model is in {self.run_folder.model}, but its last checkpoint is missing: "
                    f"{failure}. Without it the run cannot be continued from its end."
                )
            print(f"The run is in {path}. See it beside its group: lit-align compare {path.parent}")  # noqa: T201

    def _write_nothing(self, trainer: Namespace) -> None:
        """Leaves the checkpoint callbacks out of a dry run, which Lightning lets write `last.ckpt`."""
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        trainer.callbacks = [c for c in callbacks if c is not None and "dirpath" not in (c.get("init_args") or {})]
        trainer.enable_checkpointing = False

    def _build(self, class_type: type, *args: Any, **kwargs: Any) -> Any:
        try:
            refuse_null(class_type, kwargs)
            return class_type(*args, **kwargs)
        except Exception as error:
            self._failed = error
            raise

    def _parse_ckpt_path(self) -> None:
        """Leaves the config alone: Lightning would let a checkpoint's hyper-parameters override YAML and command line."""


class SaveRun(SaveConfigCallback):
    """Writes the config into the run folder and to the loggers, and exports the model once training is through.

    Args:
        parser: The parser of `fit`.
        config: The config as it was instantiated.
        as_given: The config as files and command line gave it: with another `run`, it makes the same run elsewhere.
        run: The run folder.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, as_given: Namespace, run: RunFolder) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.as_given = as_given
        self.run = run

    def refuse_changes(self, checkpoint: Path) -> None:
        """Compares the config with that of the run, where it goes on from a checkpoint of its own.

        Raises:
            UserError: Something differs that changes what is computed.
        """
        if self.run.config.exists() and self.run.checkpoints.absolute() in checkpoint.absolute().parents:
            then = yaml.safe_load(self.run.config.read_text(encoding="utf-8"))
            refuse_changes(then, saved_form(self.parser, self.as_given))

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes `config.yaml`; called on rank 0 only."""
        config = saved_form(self.parser, self.as_given)
        self.run.path.mkdir(parents=True, exist_ok=True)
        beside = self.run.config.with_suffix(".yaml.partial")
        beside.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        beside.replace(self.run.config)
        for logger in trainer.loggers:
            logger.log_hyperparams(config)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the numbers that a stopped run logged after the checkpoint that this one continues from."""
        for logger in trainer.loggers:
            if trainer.global_step > 0 and trainer.is_global_zero and isinstance(logger, RunCSVLogger):
                logger.drop_from(trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exports the model, while its weights are still on their devices; every rank has to take part."""
        export = getattr(pl_module, "export", None)
        if callable(export):
            export(self.run.model)


def saved_form(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """A command's config as `config.yaml` has it: without secrets, and without what belongs to one call alone."""
    dumped = yaml.safe_load(parser.dump(config, skip_none=False, format="yaml"))
    return dict(without_secrets({key: value for key, value in dumped.items() if key not in OF_ONE_CALL}))


def build_module(config: Path) -> Any:
    """The LightningModule that the config.yaml of a run describes, untrained.

    Raises:
        UserError: There is no module in it.
    """
    parser = Parser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    loaded = yaml.safe_load(config.read_text(encoding="utf-8"))
    if not isinstance(loaded, dict) or "model" not in loaded:
        raise UserError(f"{config} has no `model`, so it is not the config of a run.")
    try:
        return parser.instantiate(parser.parse_object({"model": loaded["model"]})).model
    except ValueError as error:
        raise original(error) from None


def refuse_null(class_type: type, arguments: Mapping[str, Any]) -> None:
    """Refuses `null` for an argument that has to have a value; to the parser it only says that there is none.

    Raises:
        UserError: There is such an argument.
    """
    empty = [name for name, value in arguments.items() if value is None]
    if not empty:
        return
    try:
        hints = get_type_hints(class_type.__init__)  # type: ignore[misc]
    except (NameError, TypeError):
        return  # types that only a type checker sees
    for name in empty:
        if name in hints and hints[name] is not Any and NoneType not in (hints[name], *get_args(hints[name])):
            raise UserError(f"{class_type.__name__} needs a value for {name!r}, and the config has null.")


def without_secrets(config: Any) -> Any:
    """A config with asterisks where a key or password stands, by the name of its setting or by its own form."""
    if isinstance(config, dict):
        return {
            key: "***" if value and SECRET.search(str(key)) else without_secrets(value) for key, value in config.items()
        }
    if isinstance(config, str):
        return KEY_LIKE.sub("***", config)
    return [without_secrets(value) for value in config] if isinstance(config, list) else config
