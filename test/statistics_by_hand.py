"""Statistics from their definitions, as an oracle."""

from __future__ import annotations

import math
from collections.abc import Iterable


def by_hand(column: Iterable[float]) -> dict[str, float]:
    """Mean, deviation and quantiles of numbers."""
    column = sorted(column)
    mean = math.fsum(column) / len(column)

    def quantile(p: float) -> float:
        position = p * (len(column) - 1)
        below = math.floor(position)
        above = min(below + 1, len(column) - 1)
        return column[below] + (position - below) * (column[above] - column[below])

    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in column) / len(column))
    return {"mean": mean, "std": deviation, "q01": quantile(0.01), "q99": quantile(0.99)}
