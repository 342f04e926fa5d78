"""What a reward model learned, seen on the validation groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.base import ask, log_now, output_folder, quiet
from callbacks.calibration import Calibration, calibration
from callbacks.reward_distance import reward_distance
from callbacks.tables import log_table
from lit_align.data.rows import read_rows
from lit_align.errors import UserError
from lit_align.groups import GroupBatch, preferred_pairs
from lit_align.models import ModelConfig, load_reward_model, load_tokenizer, placed, response_rewards
from lit_align.runtime import gather_per_rank

QUANTILES = (0.1, 0.5, 0.9)


class Scored(NamedTuple):
    """Responses of the validation groups with what is known of them; `other` is empty without another model.

    Args:
        rewards: By the model that is trained, `(N,)`.
        other: By the other model, `(N,)` or `(0,)`.
        scores: As the rows have them, `(N,)`.
        rows: Row number of each response's group, `(N,)`.
    """

    rewards: Tensor
    other: Tensor
    scores: Tensor
    rows: Tensor


class RewardModelReport(Callback):
    """A report on the reward model at every validation: where it is right, how sure it may be, how it differs from another.

    Metrics, over all pairs of validation responses whose scores differ: `eval/reward_model/accuracy`, and `/accuracy/<subset>`
    for each subset; `/top_choice`, share of groups whose highest reward is at a best response; `/ece`, calibration error of
    sigmoid(difference), 15 bins; `/margin_10`, `/margin_50` and `/margin_90`, quantiles of the better's reward minus the
    worse's. With `other`: `/agreement`, share of these pairs that both models order alike, `/distance` with `/distance_low` and
    `/distance_high` (see `reward_distance`), and `/scale_ratio`.

    `<run>/eval/reward_model.png` shows calibration and margins, `reward_model_subsets.csv` the subsets.

    Args:
        subset: A column of the validation rows to tell subsets by. If not given, the files they come from are the subsets.
        other: A reward model to compare with, with the same tokenizer: that of another seed, or of more data.
    """

    def __init__(self, subset: str | None = None, other: ModelConfig | None = None) -> None:
        if other is not None:
            other.refuse_training("RewardModelReport.other")
        self.subset = subset
        self.other = other
        self._other_model: Any = None
        self._batches: list[Scored] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins anew, and loads the other model the first time."""
        ask(pl_module, "rewards", self)
        self._batches = []
        if self.other is not None and self._other_model is None:
            if load_tokenizer(self.other).get_vocab() != ask(pl_module, "tokenizer", self).get_vocab():
                raise UserError(
                    f"RewardModelReport: {self.other.path!r} has another tokenizer, so it cannot read the validation rows as "
                    "they are encoded. Compare with a model of the same family."
                )
            with quiet(trainer, pl_module, seed=0), torch.inference_mode(False):
                other = load_reward_model(self.other).requires_grad_(False).eval()
                self._other_model = placed(other, pl_module.device, getattr(pl_module, "reward_model", None))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: GroupBatch, *rest: Any
    ) -> None:
        """Keeps the rewards of the batch."""
        if batch.scores is None:
            raise UserError(
                "RewardModelReport compares the responses to a prompt, and these rows have labels instead of scores: leave it "
                "out, or validate on PreferenceData or RankingData."
            )
        with quiet(trainer, pl_module, seed=0), trainer.precision_plugin.forward_context():
            rewards = ask(pl_module, "rewards", self)(batch)
            other = rewards[:0] if self._other_model is None else response_rewards(self._other_model, batch)
        # A filler is run all the same: where weights are sharded, every rank has to run a model equally often.
        if batch.is_filler:
            return
        scored = Scored(rewards.float(), other, batch.scores, batch.rows[batch.group_index])
        self._batches.append(Scored(*(values.cpu() for values in scored)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs what all batches of all ranks say."""
        everyone = [scored for of_rank in gather_per_rank(self._batches) for scored in of_rank]
        self._batches = []
        if trainer.sanity_checking or not everyone:
            return
        scored = Scored(*(torch.cat(column) for column in zip(*everyone, strict=True)))
        subsets = self._subsets(trainer, scored.rows)
        metrics, table, drawn = report(scored, subsets)
        log_now(trainer, {f"eval/reward_model/{name}": value for name, value in metrics.items()})
        if table:
            log_table(trainer, "reward_model_subsets", table)
        if (folder := output_folder(trainer)) is not None:
            plot(*drawn, folder / "reward_model.png")

    def _subsets(self, trainer: Trainer, rows: Tensor) -> list[str]:
        """The subset of each response; all the same where there is only one file."""
        source = getattr(getattr(trainer.val_dataloaders, "groups", None), "source", None)
        if source is None:
            if self.subset is not None:
                raise UserError("RewardModelReport: these data do not say where a row came from: leave subset out.")
            return [""] * len(rows)
        sources = [str(source(row)) for row in rows.tolist()]
        if self.subset is None:
            return [name.rpartition(", row ")[0] for name in sources]
        (name,) = trainer.datamodule.names["val"]  # type: ignore[attr-defined]
        column = {str(where): row.get(self.subset) for where, row in read_rows(name) if isinstance(row, Mapping)}
        if all(value is None for value in column.values()):
            raise UserError(f"RewardModelReport: no row of {name} has a column {self.subset!r} to tell subsets by.")
        return [str(column.get(where)) for where in sources]


def report(
    scored: Scored, subsets: list[str]
) -> tuple[dict[str, float], list[dict[str, float | str]], tuple[Calibration, Tensor]]:
    """Metrics, a table of the subsets (empty where there is only one), and what is to be drawn.

    Args:
        scored: N responses.
        subsets: The subset of each.
    """
    _, group_index = torch.unique(scored.rows, return_inverse=True)
    chosen, rejected = preferred_pairs(scored.scores, group_index)
    margins = scored.rewards[chosen] - scored.rewards[rejected]
    right = (margins.sign().double() + 1) / 2
    calibrated = calibration(margins)
    quantiles = margins.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    metrics = {"accuracy": right.mean().item(), "top_choice": top_choice(scored, group_index), "ece": calibrated.ece}
    metrics |= {f"margin_{q * 100:.0f}": value for q, value in zip(QUANTILES, quantiles, strict=True)}
    if len(scored.other):
        others = scored.other[chosen] - scored.other[rejected]
        distance = reward_distance(scored.rewards, scored.other, group_index)
        metrics |= {"agreement": (margins.sign() == others.sign()).double().mean().item(), "distance": distance.epic}
        metrics |= {"distance_low": distance.low, "distance_high": distance.high, "scale_ratio": distance.scale_ratio}
    names, subset_of = sorted(set(subsets)), [subsets[index] for index in chosen.tolist()]
    table: list[dict[str, float | str]] = []
    for name in names if len(names) > 1 else []:
        mine = torch.tensor([subset == name for subset in subset_of])
        if mine.any():
            metrics[f"accuracy/{name}"] = accuracy = right[mine].mean().item()
            mean = margins[mine].mean().item()
            table.append({"subset": name, "pairs": int(mine.sum()), "accuracy": accuracy, "margin": mean})
    return metrics, table, (calibrated, margins)


def top_choice(scored: Scored, group_index: Tensor) -> float:
    """Share of groups in which a response of the highest reward is one of the highest score."""
    n_groups = int(group_index.max()) + 1

    def highest(values: Tensor) -> Tensor:
        best = values.new_full((n_groups,), -torch.inf).scatter_reduce(0, group_index, values, "amax")
        return values == best[group_index]

    both = (highest(scored.rewards) & highest(scored.scores)).double()
    return torch.zeros(n_groups, dtype=torch.float64).scatter_reduce(0, group_index, both, "amax").mean().item()


def plot(calibrated: Calibration, margins: Tensor, file: Path) -> None:
    """Draws calibration beside the distribution of the margins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    left.scatter(calibrated.predicted, calibrated.happened, s=10 + 400 * calibrated.share.numpy())
    left.set(
        xlabel="probability given",
        ylabel="share that came true",
        title=f"ECE {calibrated.ece:.3f}",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    right.hist(margins.numpy(), bins=40)
    right.axvline(0, color="0.4", linewidth=1)
    right.set(xlabel="reward of the better minus that of the worse", ylabel="pairs", title=f"{len(margins):,} pairs")
    figure.savefig(file, dpi=120)
