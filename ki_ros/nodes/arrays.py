"""Arrays for message fields."""

import array

import numpy as np


def doubles(values: np.ndarray) -> array.array:
    """Float64 values for a float64[] field. rclpy takes an array over as it is; of a list it checks every entry."""
    return array.array("d", np.ascontiguousarray(values, dtype=np.float64).tobytes())
