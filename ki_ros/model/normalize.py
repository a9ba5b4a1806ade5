"""Quantile normalisation between the rig's units and the policy's space, where 1 % and 99 % quantiles are -1 and 1."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.rig import STATE_DIM

_EPS = 1e-6


class NormStatsError(ValueError):
    """Statistics that cannot normalise; the message names the file, the field, the value and the fix."""


def normalize_quantile(x: np.ndarray, q01: np.ndarray, q99: np.ndarray) -> np.ndarray:
    """`(x - q01) / (q99 - q01 + 1e-6) * 2 - 1` over the last dimension, not clipped (openpi, `Normalize`).

    x (..., D) with quantiles of at least D values, of which the first D count; float64 out whatever the dtype of x.

    Raises:
        ValueError: fewer quantiles than values.
    """
    x, q01, q99 = (np.asarray(array, dtype=np.float64) for array in (x, q01, q99))
    dim = x.shape[-1]
    if len(q01) < dim:
        raise ValueError(f"x has {dim} values, the quantiles only {len(q01)}; give one quantile for each")
    q01, q99 = q01[:dim], q99[:dim]
    return (x - q01) / (q99 - q01 + _EPS) * 2.0 - 1.0


def unnormalize_quantile(x: np.ndarray, q01: np.ndarray, q99: np.ndarray) -> np.ndarray:
    """The inverse of `normalize_quantile`; values past the last quantile are padding and stay as they are.

    x (..., D) with quantiles of at most D values, float64 out. As in openpi, x + 1 is rounded to the dtype of x.

    Raises:
        ValueError: more quantiles than values.
    """
    x, q01, q99 = np.asarray(x), np.asarray(q01, dtype=np.float64), np.asarray(q99, dtype=np.float64)
    dim = len(q01)
    if x.shape[-1] < dim:
        raise ValueError(f"x has {x.shape[-1]} values, the quantiles {dim}; give a value for each quantile")
    return np.concatenate(((x[..., :dim] + 1.0) / 2.0 * (q99 - q01 + _EPS) + q01, x[..., dim:]), axis=-1)


@dataclass(frozen=True)
class Quantiles:
    """1 % and 99 % quantiles of one quantity, (D,) float64 each, in the rig's units."""

    q01: np.ndarray
    q99: np.ndarray

    def normalize(self, x: np.ndarray) -> np.ndarray:
        """(..., D) in the rig's units -> (..., D) float64."""
        return normalize_quantile(x, self.q01, self.q99)

    def unnormalize(self, x: np.ndarray) -> np.ndarray:
        """(..., D) of the policy -> (..., D) float64 in the rig's units."""
        return unnormalize_quantile(x, self.q01, self.q99)


@dataclass(frozen=True)
class NormStats:
    """Quantiles of states and of actions."""

    state: Quantiles
    actions: Quantiles

    @classmethod
    def load(cls, path: str | Path, dim: int = STATE_DIM) -> NormStats:
        """The statistics in openpi's `norm_stats.json`; its mean and std take no part in quantile normalisation.

        Vectors may be longer than `dim` where the rest is zero, as statistics of padded models are.

        Raises:
            NormStatsError: not that format; a key that is missing; a vector of another length; a value that is not
                finite; a 99 % quantile that is not above the 1 % one.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise NormStatsError(f"{path}: cannot be read as JSON ({error}); give openpi's norm_stats.json") from error
        stats = _entry(path, values, "norm_stats", "")
        return cls(*(_quantiles(path, stats, name, dim) for name in ("state", "actions")))


def _entry(path: Path, values: Any, key: str, parent: str) -> Any:
    if not isinstance(values, dict) or key not in values:
        raise NormStatsError(f"{path}: {parent}{key} is missing; add it as openpi's norm_stats.json has it")
    return values[key]


def _quantiles(path: Path, stats: Any, name: str, dim: int) -> Quantiles:
    entry = _entry(path, stats, name, "norm_stats.")
    q01, q99 = (_vector(path, entry, name, key, dim) for key in ("q01", "q99"))
    flat = np.flatnonzero(q99 <= q01)
    if len(flat):
        index = flat[0]
        raise NormStatsError(
            f"{path}: {name}.q99[{index}] is {q99[index]}, not above {name}.q01[{index}] {q01[index]}; "
            "compute the statistics over data in which this dimension moves"
        )
    return Quantiles(q01, q99)


def _vector(path: Path, entry: Any, name: str, key: str, dim: int) -> np.ndarray:
    value = _entry(path, entry, key, f"norm_stats.{name}.")
    try:
        vector = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise NormStatsError(f"{path}: {name}.{key} is {value!r}; give a list of {dim} numbers") from None
    if vector.ndim != 1 or len(vector) < dim or np.any(vector[dim:] != 0):
        raise NormStatsError(
            f"{path}: {name}.{key} has shape {vector.shape}; expected ({dim},), with nothing but zeros after that"
        )
    bad = np.flatnonzero(~np.isfinite(vector))
    if len(bad):
        raise NormStatsError(f"{path}: {name}.{key}[{bad[0]}] is {vector[bad[0]]}; give finite numbers")
    vector = vector[:dim]
    vector.setflags(write=False)
    return vector
