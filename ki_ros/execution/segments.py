"""Distances between line segments."""

from __future__ import annotations

import numpy as np

_TINY = 1e-30
"""Keeps a division finite [m^2, m^4]: of segments without length or in parallel, for which any quotient is right."""


def segment_distance(p: np.ndarray, u: np.ndarray, q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Smallest distances between the segments from p to p + u and those from q to q + v.

    The squared distance of p + s u and q + t v is convex in (s, t), both in [0, 1]. First the best s with t left
    free; then the best t for it. If that t is in [0, 1], this is the answer; if not, the best point has t at the end
    that was exceeded, and the best s for that end completes it (compare Lumelsky, "On fast computation of distance
    between line segments", 1985). Parallel segments have a whole line of best (s, t) when t is free, and any of it
    will do. A segment without length is a point.

    Args:
        p, u, q, v: (3, ...) [m], of shapes that broadcast. x, y and z come first, so that numpy's innermost loops are
            long.

    Returns:
        (...) float64 [m], 0 or more. NaN where an argument has a NaN.
    """
    r = p - q
    uu, vv, uv = _dot(u, u), _dot(v, v), _dot(u, v)
    ur, vr = _dot(u, r), _dot(v, r)
    s = _share(uv * vr - vv * ur, uu * vv - uv * uv)
    t = _share(vr + s * uv, vv)
    s = _share(t * uv - ur, uu)
    gap = r + s * u - t * v
    return np.sqrt(_dot(gap, gap))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.add.reduce(a * b, axis=0)


def _share(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient in [0, 1]; of a positive denominator."""
    return np.minimum(np.maximum(numerator / np.maximum(denominator, _TINY), 0.0), 1.0)
