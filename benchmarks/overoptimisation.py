"""Over-optimisation on the embedded task: PPO, and best-of-n, under a proxy that is misspecified on purpose.

    python -m benchmarks.overoptimisation --policy runs/quickstart/sft/model

PPO follows the linear proxy (`lit_align.feedback.LinearProxy`) with a small KL penalty; every few rollouts its KL to the
reference, its proxy and its gold score are computed by enumeration. Best-of-n draws n responses from the reference and keeps
the one that the proxy likes best; its distribution is computed too. Gao et al. 2022 (2210.10760) is the experiment. Writes
`<out>/overoptimisation.json` and the picture.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from lit_align.data import PromptData
from lit_align.data.mini_instruct import enumerated_policy, gold_scores
from lit_align.exact import Frontier, expected_reward, kl_divergence
from lit_align.feedback import LinearProxy, MissingEOSPenalty, WeightedSum
from lit_align.losses import FixedKL
from lit_align.methods import PPO
from lit_align.models import ModelConfig, load_policy, load_tokenizer
from lit_align.rollout import RolloutConfig

BEST_OF = tuple(2**k for k in range(21))  # computed, not drawn: a million costs what two do


def main() -> None:
    """Runs, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="runs/quickstart/sft/model", help="The reference: an exported SFT model.")
    parser.add_argument("--out", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beta", type=float, default=0.05, help="KL coefficient; small, so that the policy goes far.")
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--every", type=int, default=4, help="Rollouts between two exact measurements.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = ModelConfig(given.policy)
    reference = enumerated_policy(load_policy(config).eval(), load_tokenizer(config)).logps
    proxy = LinearProxy()
    measure = Measure(reference, proxy.table(), given.every)
    best_of = [measure.point(best_of_n(reference, proxy.table(), n)) | {"n": n} for n in BEST_OF]
    train(config, proxy, measure, given)
    result: dict[str, Any] = {
        "ppo": measure.points,
        "best_of_n": best_of,
        "settings": {k: str(v) for k, v in vars(given).items()},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "overoptimisation.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(result, Frontier(reference, gold_scores()), given.out / "overoptimisation.png")
    for name in ("ppo", "best_of_n"):
        peak = max(result[name], key=lambda point: float(point["gold"]))
        print(f"{name}: gold peaks at {peak['gold']:.2f} (KL {peak['kl']:.2f}), ends at {result[name][-1]['gold']:.2f}")


class Measure(Callback):
    """Exact KL, proxy and gold of the policy as training goes on.

    Args:
        reference: Log-probabilities of every response under the reference, `(8, S)`.
        proxy: Proxy scores, `(8, S)`.
        every: Rollouts between two measurements.
    """

    def __init__(self, reference: Tensor, proxy: Tensor, every: int) -> None:
        self.reference = reference
        self.proxy = proxy
        self.every = every
        self.points: list[dict[str, float]] = [self.point(reference)]

    def point(self, logps: Tensor) -> dict[str, float]:
        """What a policy is worth, given its log-probabilities, `(8, S)`."""
        return {
            "kl": kl_divergence(logps, self.reference).mean().item(),
            "proxy": expected_reward(logps, self.proxy).mean().item(),
            "gold": expected_reward(logps, gold_scores()).mean().item(),
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last optimiser step on every few rollouts."""
        assert isinstance(pl_module, PPO)
        steps = pl_module.inner_epochs * pl_module.minibatches * self.every
        if trainer.global_step % steps == 0:
            policy = enumerated_policy(pl_module.policy, pl_module.tokenizer)
            self.points.append(self.point(policy.logps) | {"leaked": policy.leaked.max().item()})
            print(f"{trainer.global_step} steps  {self.points[-1]}", flush=True)


def train(config: ModelConfig, proxy: LinearProxy, measure: Measure, given: argparse.Namespace) -> None:
    """PPO on the proxy, and on ending by itself: responses cut by length are outside of what can be enumerated."""
    seed_everything(given.seed, verbose=False)
    module = PPO(
        config,
        reward=WeightedSum({"proxy": proxy, "cut": MissingEOSPenalty(5.0)}, {"proxy": 1.0, "cut": 1.0}),
        rollout=RolloutConfig(max_new_tokens=5),
        kl=FixedKL(given.beta),
        inner_epochs=2,
        minibatches=4,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.0, eps=1e-5),
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[measure],
    )
    trainer.fit(module, PromptData("mini_instruct", max_rows=256 * given.rollouts, batch_size=256, seed=given.seed))


def best_of_n(reference: Tensor, scores: Tensor, n: int) -> Tensor:
    """Log-probabilities of the response that scores best among n draws from the reference, `(X, S)`; ties at random.

    P(score of the best <= s) = F(s)^n, with F the reference's distribution of scores; within one score the reference's own
    proportions remain.
    """
    rows = []
    for logps, row in zip(reference, scores, strict=True):
        levels, level = row.round(decimals=9).unique(return_inverse=True)
        mass = torch.zeros(len(levels), dtype=logps.dtype).index_add(0, level, logps.exp())
        up_to = mass.cumsum(0).clamp(max=1)
        best = up_to.pow(n) - (up_to - mass).clamp(min=0).pow(n)
        rows.append(logps + (best / mass).log()[level])
    return torch.stack(rows)


def draw(result: dict[str, Any], frontier: Frontier, file: Path) -> None:
    """Gold and proxy against the KL, for PPO and best-of-n."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.8))
    farthest = max(point["kl"] for point in result["ppo"])
    curve = [point for point in frontier.points() if point.kl <= farthest]
    axes.plot([p.kl for p in curve], [p.reward for p in curve], color="#9aa5b1", lw=1.5, label="best possible gold")
    for name, label, color in (("ppo", "PPO", "#2f6db0"), ("best_of_n", "best of n", "#d1495b")):
        kl = [point["kl"] for point in result[name]]
        axes.plot(kl, [p["proxy"] for p in result[name]], "--", color=color, lw=1.5, label=f"{label}: proxy")
        axes.plot(kl, [p["gold"] for p in result[name]], "o-", color=color, lw=2, ms=4, label=f"{label}: gold")
    axes.set(
        xlabel="KL from the reference, nats", ylabel="expected score", title="Following a misspecified proxy too far"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncols=2)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
