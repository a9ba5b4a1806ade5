"""The learning rate as a function of the step alone, so that a resumed run goes on where it was."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, end: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, half a cosine, then a constant; the schedule that public pi0 policies were trained with.

    Step 0 has `peak / (warmup_steps + 1)`, so that the first update is not lost; step `warmup_steps` has `peak`, step
    `total_steps` and all later ones have `end`.

    Args:
        step: number of updates made before this one.
        peak, end: learning rates, positive; `end` may be zero.
        warmup_steps: length of the warm-up; 0 for none.
        total_steps: step at which the cosine ends; it counts the warm-up.

    Raises:
        ValueError: a value that no schedule has; names the argument.
    """
    if step < 0:
        raise ValueError(f"step is {step}; give a number of updates, 0 or more")
    if not (math.isfinite(peak) and peak > 0):
        raise ValueError(f"peak is {peak}; give a positive learning rate")
    if not 0 <= end <= peak:
        raise ValueError(f"end is {end}; give a learning rate from 0 to peak, {peak}")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps is {warmup_steps}; give a number of steps, 0 or more")
    if total_steps <= warmup_steps:
        raise ValueError(
            f"total_steps is {total_steps}, which leaves nothing after warmup_steps, {warmup_steps}; "
            "train longer or warm up for fewer steps"
        )
    if step < warmup_steps:
        start = peak / (warmup_steps + 1)
        return start + (peak - start) * step / warmup_steps
    if step >= total_steps:
        return end
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
