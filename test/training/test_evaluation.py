"""Held-out figures, with sampled actions that are made so that the right answer is known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from rich.console import Console
from torch import Tensor

from ki_ros.training import config as configuration
from ki_ros.training.assets import make_encoder, open_sources, prepare_assets
from ki_ros.training.batches import TrainingBatch, evaluation_batches
from ki_ros.training.build import resolve_model
from ki_ros.training.distributed import World
from ki_ros.training.evaluation import evaluate

ALONE = World(0, 1, torch.device("cpu"))


@dataclass
class Told:
    """A model that samples what it is told to."""

    samples: Iterator[Tensor]

    def call(self, method: str, *_: object, **__: object) -> object:
        if method == "compute_loss":
            zero = torch.zeros(())
            return SimpleNamespace(flow_loss=zero, fast_loss=zero, fast_accuracy=zero)
        return next(self.samples)


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[TrainingBatch]]:
    """Held-out rows as they were asked for and with the other square named; 6 rows in batches of 4, two of filling."""
    settings = configuration.parse(tiny.settings(tmp_path_factory.mktemp("run")))
    model = resolve_model(settings)
    sources = open_sources(settings, model)
    assets = prepare_assets(settings, sources, Console(quiet=True))
    encoder = make_encoder(settings, model, assets, sources, training=False)
    return {
        name: list(evaluation_batches(source, encoder, samples=6, size=4, rank=0, world_size=1))
        for name, source in (("asked", sources.held_out), ("other", sources.others))
    }


def figures(batches: dict[str, list[TrainingBatch]], share: float) -> dict[str, float]:
    """Of actions that are `share` of the way from those asked for to the others."""
    pairs = zip(batches["asked"], batches["other"], strict=True)
    told = Told(iter([(1 - share) * asked.actions + share * other.actions for asked, other in pairs]))
    return evaluate(
        told, iter(batches["asked"]), ALONE, num_steps=1, autocast=contextlib.nullcontext, others=iter(batches["other"])
    )


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.4, 1.0), (0.6, 0.0), (1.0, 0.0)])
def test_following_is_being_nearer_to_what_was_asked(batches, share: float, expected: float) -> None:
    assert figures(batches, share)["following"] == expected


def test_error_is_the_mean_over_rows_that_count(batches) -> None:
    rows = [
        (asked.actions[i] - other.actions[i]).abs().mean()
        for asked, other in zip(batches["asked"], batches["other"], strict=True)
        for i in range(len(asked.actions))
    ]
    assert figures(batches, 1.0)["action_error"] == pytest.approx(torch.stack(rows[:6]).mean().item(), rel=1e-5)
    assert figures(batches, 0.0)["action_error"] == 0.0


def test_filling_counts_nowhere(batches) -> None:
    assert [batch.counts() for batch in batches["asked"]] == [(4.0, 4.0, 0.0), (2.0, 2.0, 0.0)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_process_has_as_many_batches_and_every_row_comes_once(tmp_path: Path, world_size: int) -> None:
    settings = configuration.parse(tiny.settings(tmp_path))
    model = resolve_model(settings)
    sources = open_sources(settings, model)
    encoder = make_encoder(
        settings, model, prepare_assets(settings, sources, Console(quiet=True)), sources, training=False
    )
    parts = [
        list(evaluation_batches(sources.held_out, encoder, samples=5, size=2, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1
    rows = sorted(
        tuple(batch.actions[i].flatten().tolist())
        for part in parts
        for batch in part
        for i in range(len(batch.actions))
        if batch.action_mask[i].any()
    )
    (alone,) = [
        list(evaluation_batches(sources.held_out, encoder, samples=5, size=5, rank=0, world_size=1)),
    ]
    assert rows == sorted(tuple(row.flatten().tolist()) for row in alone[0].actions)
