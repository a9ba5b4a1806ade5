"""Held-out data: both losses, and how far the sampled actions are from those that were taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat

import torch

from ki_ros.model.fast_decoder import FASTDecoder
from ki_ros.model.losses import LossCounts
from ki_ros.rig import STATE_DIM
from ki_ros.training.batches import TrainingBatch
from ki_ros.training.distributed import Parallel, World


def evaluate(
    parallel: Parallel,
    batches: Iterator[TrainingBatch],
    world: World,
    *,
    num_steps: int,
    autocast: Callable[[], torch.autocast],
    decoder: FASTDecoder | None = None,
    others: Iterator[TrainingBatch] | None = None,
) -> dict[str, float]:
    """Metrics over all processes' batches.

    Args:
        parallel: the model; with shards, every process must have as many batches.
        batches: of `evaluation_batches`.
        world: the processes.
        num_steps: integration steps of the sampled actions.
        autocast: context in which the model computes.
        decoder: for what the backbone itself would do.
        others: the same rows with another instruction and its actions, from data that have such.

    Returns:
        `flow_loss`, `fast_loss`, `fast_accuracy`; `action_error`, the mean absolute error of the sampled actions in
        normalised units over valid steps; with a decoder `fast_action_error` of the backbone's own actions,
        `fast_disagreement` between these and the sampled ones, and `fast_unfinished`, the share of rows whose
        tokens had no end; with others `following`, the share of rows whose sampled actions are closer to those that
        were asked for than to the others': about half for a policy that does not listen.
    """
    names = ("flow", "fast", "accuracy", "flow_rows", "fast_rows", "error", "values")
    totals = dict.fromkeys((*names, "fast_error", "disagreement", "decoded", "unfinished", "following", "asked"), 0.0)
    for batch, other in zip(batches, others if others is not None else repeat(None), strict=False):
        batch = batch.to(world.device)
        counts = batch.counts()
        mask = batch.action_mask
        with autocast():
            loss = parallel.call(
                "compute_loss",
                batch.observation,
                batch.actions,
                action_mask=mask,
                noise=batch.noise,
                time=batch.time,
                counts=LossCounts(1.0, 1.0),
            )
            sampled = parallel.call(
                "sample_actions", batch.observation, noise=batch.noise[:, 0], num_steps=num_steps, views_required=False
            )
        error = (sampled - batch.actions)[..., :STATE_DIM].abs()
        values = [loss.flow_loss, loss.fast_loss, loss.fast_accuracy, *counts[:2]]
        values += [error[mask].sum(), mask.sum() * STATE_DIM]
        for name, value in zip(names, values, strict=True):
            totals[name] += float(value)
        if other is not None:
            # Distances count the same steps on either side; a row that is repeated as filling has none.
            away = (sampled - other.actions.to(sampled.device))[..., :STATE_DIM].abs()
            near, far = ((distance.mean(-1) * mask).sum(1) for distance in (error, away))
            asked = mask.any(1)
            totals["following"] += float(((near < far) & asked).sum())
            totals["asked"] += float(asked.sum())
        if decoder is not None:
            with autocast():
                decoded = decoder(batch.observation)
            for row, actions in enumerate(decoded):
                if not bool(mask[row].all()):
                    continue
                if actions is None:
                    totals["unfinished"] += 1
                    continue
                actions = actions.to(sampled.device)
                totals["decoded"] += 1
                totals["fast_error"] += float((actions - batch.actions[row, :, :STATE_DIM]).abs().mean())
                totals["disagreement"] += float((actions - sampled[row, :, :STATE_DIM]).abs().mean())
    total = dict(zip(totals, world.sum(list(totals.values())), strict=True))

    def ratio(above: str, below: str) -> float:
        return total[above] / total[below] if total[below] else float("nan")

    metrics = {
        "flow_loss": ratio("flow", "flow_rows"),
        "fast_loss": ratio("fast", "fast_rows"),
        "fast_accuracy": ratio("accuracy", "fast_rows"),
        "action_error": ratio("error", "values"),
    }
    if others is not None:
        metrics["following"] = ratio("following", "asked")
    if decoder is not None:
        rows = total["decoded"] + total["unfinished"]
        metrics |= {
            "fast_action_error": ratio("fast_error", "decoded"),
            "fast_disagreement": ratio("disagreement", "decoded"),
            "fast_unfinished": total["unfinished"] / rows if rows else float("nan"),
        }
    return metrics
