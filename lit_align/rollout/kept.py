"""One rollout for a whole run: responses are sampled once, before the first step, and served in every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lit_align.rollout.loader import RolloutBatch, RolloutLoader


class KeptRolloutLoader(RolloutLoader):
    """Collects one rollout from all prompts, and serves it in every epoch, each time in another order.

    An epoch has as many batches as the loader of prompts. The position always holds the rollout, between epochs too, so that a
    run that goes on has the responses it began with. Only `prompts`, `collect` and `collate` are given.
    """

    def __iter__(self) -> Iterator[RolloutBatch]:
        if self._rollout is None:
            self._rollout = self.collect(list(self.prompts))
        if not self._plan:
            self._plan = self._cut(len(self._rollout.groups), len(self.prompts))
        while self._plan:
            yield self._rollout.minibatch(self._plan.pop(0))

    def position(self) -> dict[str, Any]:
        """Where the loader stands, with the rollout."""
        rollout = None if self._rollout is None else self._rollout.state()
        return super().position() | {"rollout": rollout}
