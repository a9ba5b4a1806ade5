"""The orthonormal discrete cosine transform over time (DCT-II and its inverse), float64.

`X[k] = s(k) * sum_t x[t] * cos(pi * (2t + 1) * k / (2H))` with `s(0) = sqrt(1/H)` and `s(k) = sqrt(2/H)`.

Sums run over time in a fixed order, element by element, and not through a matrix product of the linear algebra
library, whose order of summation depends on the batch and the processor: the same chunk has the same coefficients, to
the last bit, alone, in any batch and on any machine. A fast Fourier transform sums in yet another order. The two differ
by about 1e-15 of the values, so a rounded coefficient can differ only when it is that close to halfway between
two integers. Values exactly halfway need a scale and a horizon that are both exact in binary; at scale 10 no such chunk
is representable except by the rounding of its own values.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def transform(x: np.ndarray) -> np.ndarray:
    """Coefficients (N, H, D) of (N, H, D) float64, the lowest frequency first."""
    return _apply(_matrix(x.shape[1]), x)


def inverse(coefficients: np.ndarray) -> np.ndarray:
    """(N, H, D) float64 of its coefficients (N, H, D): the transpose, as the matrix is orthonormal."""
    return _apply(_matrix(coefficients.shape[1]).T, coefficients)


@lru_cache(maxsize=32)
def _matrix(horizon: int) -> np.ndarray:
    """(frequency, time), read-only."""
    frequency, time = np.arange(horizon)[:, None], np.arange(horizon)[None, :]
    # The angle's multiple of pi/2H is reduced to one turn as an integer, so that cos has a small argument.
    turn = (2 * time + 1) * frequency % (4 * horizon)
    matrix = np.sqrt(2.0 / horizon) * np.cos(np.pi * turn / (2 * horizon))
    matrix[0] = np.sqrt(1.0 / horizon)
    matrix.setflags(write=False)
    return matrix


def _apply(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`matrix @ x` for each of the N, in a fixed order of summation."""
    count, horizon, dim = x.shape
    columns = np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(horizon, count * dim)
    total = np.zeros_like(columns)
    product = np.empty_like(columns)
    # An overflow shows as a coefficient that is not finite, which the caller refuses with its place.
    with np.errstate(over="ignore", invalid="ignore"):
        for time in range(horizon):
            np.multiply(matrix[:, time, None], columns[time], out=product)
            total += product
    return total.reshape(horizon, count, dim).transpose(1, 0, 2)
