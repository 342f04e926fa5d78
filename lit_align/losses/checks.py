"""What the losses ask of their hyper-parameters."""

from __future__ import annotations

import math

from lit_align.errors import UserError


def require_positive(name: str, value: float) -> None:
    """Refuses a hyper-parameter that is not a positive number.

    Raises:
        UserError: If it is zero, negative, infinite or not a number.
    """
    if not 0 < value < math.inf:
        raise UserError(f"{name} must be a positive number, not {value}.")


def require_not_negative(name: str, value: float) -> None:
    """Refuses a hyper-parameter below zero.

    Raises:
        UserError: If it is negative, infinite or not a number.
    """
    if not 0 <= value < math.inf:
        raise UserError(f"{name} must be 0 or a positive number, not {value}.")


def require_flip_rate(epsilon: float) -> None:
    """Refuses an epsilon that is no rate of flipped labels.

    Raises:
        UserError: If it lies outside [0, 0.5): from 0.5 on, the labels would say nothing or the opposite.
    """
    if not 0 <= epsilon < 0.5:
        raise UserError(f"epsilon is the share of flipped labels and must lie in [0, 0.5), not {epsilon}.")
