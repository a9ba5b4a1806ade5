"""Statistics that normalise states and actions, in the format of openpi's `norm_stats.json`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ki_ros.rig import NUM_JOINTS, STATE_DIM


def compute_norm_stats(
    states: ArrayLike, actions: ArrayLike, *, minimum_range: float = 0.0
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Exact mean, standard deviation, 1 % and 99 % quantiles over all rows.

    Give each step once, not once for each chunk that it is part of: `states_and_actions` of a source does.

    Args:
        states: (N, 8), joint positions [rad] and gripper closedness.
        actions: (M, 8), in the action space that will be trained.
        minimum_range: where the 99 % quantile is less than this above the 1 % one, both are moved to be this far apart,
            with their middle where it was. In the units of the dimension. 0 refuses a dimension that does not move: to
            normalise it would magnify its noise without bound.

    Returns:
        `{"norm_stats": {"state": {"mean", "std", "q01", "q99"}, "actions": {...}}}`, lists of eight floats. The
        standard deviation is the population's (divisor N); quantiles interpolate linearly between two rows.

    Raises:
        ValueError: a shape other than (N, 8) with N > 0; a value that is not finite; a dimension that does not move,
            without a minimum range; a minimum range that is negative or not finite.
    """
    if not (np.isfinite(minimum_range) and minimum_range >= 0):
        raise ValueError(f"minimum_range is {minimum_range}; give a finite range of 0 or more")
    return {
        "norm_stats": {
            name: _statistics(name, np.asarray(rows, dtype=np.float64), minimum_range)
            for name, rows in (("state", states), ("actions", actions))
        }
    }


def _statistics(name: str, rows: np.ndarray, minimum_range: float) -> dict[str, list[float]]:
    if rows.ndim != 2 or rows.shape[1] != STATE_DIM or not len(rows):
        raise ValueError(f"{name} has shape {rows.shape}; give (N, {STATE_DIM}) rows, at least one")
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{name}[{row}, {column}] is {rows[row, column]} ({len(bad)} of {rows.size} are not finite); "
            "leave out the episode that has it"
        )
    q01, q99 = np.quantile(rows, (0.01, 0.99), axis=0)
    widen = np.maximum(minimum_range - (q99 - q01), 0.0) / 2.0
    q01, q99 = q01 - widen, q99 + widen
    flat = np.flatnonzero(q99 <= q01)
    if len(flat):
        index = flat[0]
        part = f"joint {index + 1}" if index < NUM_JOINTS else "the gripper"
        raise ValueError(
            f"{name}[{index}], {part}, does not move: its 1 % and 99 % quantiles are both {q01[index]}; add episodes "
            "in which it moves, or give a minimum_range (norm_minimum_range of a training) to normalise it by"
        )
    return {
        "mean": rows.mean(axis=0).tolist(),
        "std": rows.std(axis=0).tolist(),
        "q01": q01.tolist(),
        "q99": q99.tolist(),
    }
