"""What every run needs whether or not a config names it."""

from lightning.pytorch import Callback

from lit_align.runtime.fsdp import FSDP2, refuse_other_sharding
from lit_align.runtime.orderly_end import OrderlyEnd, Stopped
from lit_align.runtime.resume import EpochCount, RandomState, gather_per_rank
from lit_align.runtime.samples import log_samples


def default_callbacks() -> list[Callback]:
    """The callbacks that every run gets."""
    return [RandomState(), EpochCount(), OrderlyEnd()]


__all__ = [
    "FSDP2",
    "EpochCount",
    "OrderlyEnd",
    "RandomState",
    "Stopped",
    "default_callbacks",
    "gather_per_rank",
    "log_samples",
    "refuse_other_sharding",
]
