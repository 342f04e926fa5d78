"""What every method shares: the reduction, the optimiser, the metrics, the frozen reference. Methods are what remains."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from lit_align.errors import UserError
from lit_align.groups import GroupBatch
from lit_align.methods.reference_cache import ReferenceCache
from lit_align.methods.schedule import Schedule
from lit_align.models import (
    CachedReference,
    FrozenReference,
    ModelConfig,
    MovingReference,
    Reference,
    ReferenceConfig,
    is_adapted,
    is_sharded,
    load_policy,
    load_tokenizer,
    moving_copy,
    response_logps,
    shard,
)
from lit_align.runtime import default_callbacks, refuse_other_sharding
from lit_align.runtime.bad_batch import StepRecord
from lit_align.runtime.precision import warn_of_lost_updates, warn_of_slow_bf16


class StepOutput(NamedTuple):
    """What a method makes of one batch.

    Args:
        losses: One value for each thing the loss averages over (pair, response, token or group), `(E,)`. What is trained is
            their mean over the whole optimiser step: all accumulated batches of all ranks.
        metrics: For each name, one value for each thing it averages over, any length. The mean is logged.
    """

    losses: Tensor
    metrics: dict[str, Tensor]


class AlignmentModule(LightningModule, ABC):
    """Base of the methods. A method builds its models in `configure_model` and says what a batch costs in `step`.

    Lightning divides a loss by the number of accumulated batches, and DDP the gradient by the number of ranks; with ragged
    batches, in which one holds 3 pairs and the next 8, neither is the mean over pairs. So `training_step` returns a **sum**,
    and before clipping the gradients are divided by the all-reduced count of the whole window. Four accumulated batches, or
    two ranks, therefore equal one large batch.

    Args:
        policy: The model that is trained.
        optimizer: A class of `torch.optim` (or of your own) with its arguments.
        lr_scheduler: `{warmup, decay, final}`, or a class of `torch.optim.lr_scheduler` with its arguments, which then steps
            once an optimiser step.
    """

    prog_bar: tuple[str, ...] = ("loss",)
    """Names of the metrics that the progress bar shows."""

    uses_token_weights: ClassVar[bool] = False
    """Whether the method counts each token for what `GroupBatch.token_weights` says; the others refuse rows with weights."""

    def __init__(
        self, policy: ModelConfig, optimizer: OptimizerCallable, lr_scheduler: Schedule | LRSchedulerCallable
    ) -> None:
        super().__init__()
        self.policy_config = policy
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.tokenizer = load_tokenizer(policy)
        self._reference: Reference | None = None
        self._reference_config: ReferenceConfig = FrozenReference()
        self._reference_cache: ReferenceCache | None = None
        self._window: dict[str, Tensor] = {}
        self._record = StepRecord()
        self._val_metrics = nn.ModuleDict()

    @abstractmethod
    def configure_model(self) -> None:
        """Builds the models, once, however often it is called."""

    @abstractmethod
    def step(self, batch: Any) -> StepOutput:
        """The losses and metrics of one batch; the same in training and validation."""

    @abstractmethod
    def export(self, folder: str | Path) -> None:
        """Writes the trained model and its tokenizer as a Hugging Face folder. Every rank has to call."""

    def setup(self, stage: str) -> None:
        """Refuses strategies under which a method would silently compute something else."""
        refuse_other_sharding(self.trainer)

    def shard(self, **options: Any) -> None:
        """Shards every model of the method, and the reference, over ranks; FSDP2 calls it once the models are built.

        Args:
            options: As `torch.distributed.fsdp.fully_shard` takes them.
        """
        models = [child for child in self.children() if next(child.parameters(), None) is not None]
        if self._reference is not None and self._reference.in_memory:
            models.append(self._reference.model)
        for model in models:
            if not is_sharded(model):
                shard(model, **options)
        if any(is_adapted(model) for model in models):
            # The strategy reads one file weight by weight, and what is frozen is in none; `on_load_checkpoint` checks that.
            self.strict_loading = False

    def keep_reference(self, model: nn.Module, config: ReferenceConfig = FrozenReference()) -> None:
        """Makes `model` as it is now the reference, never in train mode.

        Unless it moves it is in no checkpoint, optimiser or DDP bucket.
        """
        self._reference_config = config
        if isinstance(config, MovingReference):
            self.reference = moving_copy(model)
        elif isinstance(config, CachedReference):
            self._reference = Reference(model, None if is_adapted(model) else partial(load_policy, self.policy_config))
            self._reference_cache = ReferenceCache(Path(config.folder), self._reference)
        else:
            self._reference = Reference(model)

    def reference_model(self) -> Any:
        """The model that the policy is compared with, on this module's device; loaded now if its log-probs are cached.

        Raises:
            UserError: The method has none.
        """
        if isinstance(self._reference_config, MovingReference):
            return self.reference.eval()
        if self._reference is None:
            raise UserError(f"{type(self).__name__} has no reference model.")
        model = self._reference.model
        return model if is_sharded(model) else model.to(self.device)

    def reference_logps(self, batch: GroupBatch) -> Tensor:
        """Log-probability of every response token under the reference, nats, `(M,)`, without gradient."""
        with torch.no_grad():
            return response_logps(self.reference_model(), batch)

    def reference_sums(self, batch: GroupBatch, part: str = "responses") -> Tensor:
        """Log-probability of every response under the reference, each token times its weight, nats, `(N,)`, without gradient.

        Args:
            batch: What the DataModule served, or a part of it.
            part: The name that `reference_batches` gives it.
        """
        if self._reference_cache is not None:
            return self._reference_cache.sums(self.trainer, batch, part)
        return batch.weighted_sums(self.reference_logps(batch))

    def reference_batches(self, batch: Any) -> dict[str, GroupBatch]:
        """The parts of a batch whose `reference_sums` the method asks for, by name; what a `CachedReference` caches."""
        return {"responses": batch}

    def on_fit_start(self) -> None:
        """Brings the reference into the run's precision; reads or makes what a `CachedReference` knows of the rows."""
        warn_of_slow_bf16(self.trainer)
        warn_of_lost_updates(self.trainer)
        self._convert_reference()
        if isinstance(self._reference_config, MovingReference):
            # Lightning warns of modules in eval mode, and `reference_model` puts this one there whenever it is used.
            self.reference.train()
        if self._reference_cache is not None:
            self._reference_cache.prepare(self, "train")
            self._reference_cache.prepare(self, "val")

    def on_validation_start(self) -> None:
        """The same where the Trainer only validates."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._convert_reference()
            if self._reference_cache is not None:
                self._reference_cache.prepare(self, "val")

    def _convert_reference(self) -> None:
        """Does to a reference in memory what Lightning does to the module's own models, as under `bf16-true`."""
        if self._reference is not None and self._reference.in_memory:
            self.trainer.precision_plugin.convert_module(self._reference.model)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, and lets a `MovingReference` follow before a checkpoint of this step can be written."""
        super().optimizer_step(*args, **kwargs)
        config = self._reference_config
        if not isinstance(config, MovingReference) or config.every == "round":
            return
        if (self.trainer.global_step + 1) % config.every == 0:
            self.move_reference()

    def move_reference(self) -> None:
        """Lets a `MovingReference` follow the policy as it is now."""
        assert isinstance(self._reference_config, MovingReference)
        self._reference_config.move(self.reference, cast("nn.Module", self.policy))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes which reference the run is compared with; its weights stay out of the checkpoint."""
        if self._reference is not None:
            checkpoint["reference_fingerprint"] = self._reference.fingerprint
        checkpoint["adapted"] = self._adapted()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on against another reference, or with an adapter to other weights."""
        if self._reference is not None:
            self._reference.check(checkpoint.get("reference_fingerprint"))
        for name, found in checkpoint.get("adapted", {}).items():
            if (mine := self._adapted().get(name)) not in (None, found):
                raise UserError(
                    f"The checkpoint holds an adapter to other weights (fingerprint {found}) than those that the path of "
                    f"{name} gives now ({mine}). Point it at the model the run started from."
                )

    def _adapted(self) -> dict[str, str]:
        """Fingerprints of the frozen weights below each adapter."""
        return {name: str(child.base_fingerprint) for name, child in self.named_children() if is_adapted(child)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The batch's summed loss, in the form that leaves the division to `on_before_optimizer_step`."""
        self._check_weights(batch)
        output = self.step(batch)
        self._record.note(batch, output.losses)
        counts = 0.0 if batch.is_filler else 1.0
        for name, values in {"loss": output.losses, **output.metrics}.items():
            total = torch.stack([values.detach().float().sum(), values.new_tensor(len(values), dtype=torch.float)])
            self._window[name] = self._window.get(name, 0.0) + counts * total
        # Lightning is about to divide by the number of accumulated batches, which is not the number of losses.
        return output.losses.sum() * counts * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divides the window's summed gradients by its global count, and logs its means.

        Raises:
            UserError: The loss is not finite; every rank raises it.
        """
        names = list(self._window)
        totals = self.trainer.strategy.reduce(torch.stack([self._window[name] for name in names]), reduce_op="sum")
        assert isinstance(totals, Tensor)
        self._window = {}
        loss, count = totals[names.index("loss")].tolist()
        if not math.isfinite(loss):
            self._record.refuse(self, f"The loss of step {self.trainer.global_step} is {loss}")
        if count > 0:
            # DDP and FSDP average over ranks, and this undoes it.
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(gradients, self.trainer.world_size / count)
        means = {name: total / n for name, (total, n) in zip(names, totals.tolist(), strict=True) if n > 0}
        for name, mean in means.items():
            self.log(f"train/{name}", mean, prog_bar=name in self.prog_bar)
        self.on_step_metrics(means)
        self.log("train/lr", optimizer.param_groups[0]["lr"])

    def on_step_metrics(self, means: dict[str, float]) -> None:
        """For methods that act on what an optimiser step's metrics were, the same on every rank."""

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips as the Trainer was told, and logs the norm before clipping.

        By norm it calls torch directly: Lightning 2.6 refuses fused optimisers under mixed precision there, though bf16 has
        no scaler to unscale.

        Raises:
            UserError: The norm is not finite; every rank raises it. With a scaler (16-mixed) that is nothing unusual: it
                leaves the step out and scales less.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_val is not None and gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        limit = gradient_clip_val if gradient_clip_val and gradient_clip_algorithm != "value" else float("inf")
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.log("train/grad_norm", norm)
        # The device was waited for a moment ago, for the count, so that this wait is for the norm alone.
        if getattr(self.trainer.precision_plugin, "scaler", None) is None and not math.isfinite(float(norm)):
            what = f"The gradients of step {self.trainer.global_step} have the norm {float(norm)}, though its loss is finite"
            self._record.refuse(self, what)
        self._record.forget()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the batch's losses and metrics, averaged over every row of every rank."""
        self.validate_batch(batch)

    def validate_batch(self, batch: GroupBatch) -> StepOutput:
        """What `validation_step` does, for methods that have more to log from the same output."""
        self._check_weights(batch)
        output = self.step(batch)
        self.log_validation({"loss": output.losses, **output.metrics}, is_filler=batch.is_filler)
        return output

    def _check_weights(self, batch: Any) -> None:
        if not self.uses_token_weights and getattr(batch, "token_weights", None) is not None:
            raise UserError(
                f"{type(self).__name__} counts every token alike, so the weights in the rows would have no effect. Take the "
                "columns with weights out, with data.columns for example, or use SFT or DPO."
            )

    def log_validation(self, metrics: dict[str, Tensor], is_filler: bool) -> None:
        """Logs the mean of each metric over every value of every batch and rank."""
        for name, values in metrics.items():
            if name not in self._val_metrics:
                # Else it would add up in bfloat16 under `bf16-true`, where a sum of ones ends at 256.
                self._val_metrics[name] = MeanMetric().set_dtype(torch.float32).to(self.device)
            metric = cast("MeanMetric", self._val_metrics[name])
            metric.update(values.detach().float(), weight=0.0 if is_filler else 1.0)
            self.log(
                f"val/{name}",
                metric,
                on_step=False,
                on_epoch=True,
                prog_bar=name in self.prog_bar,
                metric_attribute=f"_val_metrics.{name}",
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser trains, in groups as `torch.optim` takes them: everything that asks for gradients."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, stepped once an optimiser step."""
        optimizer = self.optimizer(self.parameter_groups())
        if isinstance(self.lr_scheduler, Schedule):
            steps = self.trainer.estimated_stepping_batches
            if steps == float("inf") and self.lr_scheduler != Schedule():
                raise UserError(
                    "A warm-up or decay is a share of the run: set trainer.max_epochs or trainer.max_steps."
                )
            scheduler: Any = self.lr_scheduler(optimizer, int(min(steps, sys.maxsize)))
        else:
            scheduler = self.lr_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """What every run needs whether or not it is asked for: exact resume, and an end that loses nothing."""
        return default_callbacks()
