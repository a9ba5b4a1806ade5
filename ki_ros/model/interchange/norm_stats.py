"""The document `norm_stats.json`, carried as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.model.interchange.errors import InterchangeError
from ki_ros.model.normalize import NormStats
from ki_ros.rig import STATE_DIM

QUANTITIES = ("state", "actions")
STATISTICS = ("mean", "std", "q01", "q99")


def read_norm_stats(file: Path) -> tuple[bytes, dict[str, Any]]:
    """The file's bytes and its document, which `NormStats` takes. Raises NormStatsError."""
    NormStats.load(file)
    content = file.read_bytes()
    return content, json.loads(content)


def vectors(file: Path, document: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Quantity -> statistic -> (8,) float64: the rig's values, without their padding; what is absent stays absent."""
    return {
        quantity: {
            name: _vector(file, document["norm_stats"][quantity][name], f"{quantity}.{name}")
            for name in STATISTICS
            if document["norm_stats"][quantity].get(name) is not None
        }
        for quantity in QUANTITIES
    }


def _vector(file: Path, value: Any, name: str) -> np.ndarray:
    try:
        vector = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        vector = np.empty(0)
    if vector.ndim != 1 or len(vector) < STATE_DIM:
        raise InterchangeError(f"{file}: {name} is {str(value)[:60]}; give a list of {STATE_DIM} numbers or more")
    return vector[:STATE_DIM]
