#!/usr/bin/env python3
"""Draws docs/images/tasks.png: the beginning and the end of one demonstration of each simulated task, both cameras.

scripts/run python scripts/draw_tasks.py [FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ki_ros.data.episodes import read_episodes
from ki_ros.lockstep.collect import Collector
from ki_ros.rig import POLICY_VIEWS
from ki_ros.sim.tasks import Task

SEED = 1
SIDE, CROP, GAP, TITLE = 224, slice(28, 196), 6, 26
"""Pixels: a view's width, its rows without the bars of its padding, the space around it, the height of a title."""


def draw(file: Path) -> None:
    """Writes the picture: a row for each task; begin and end, of each the exterior and the wrist camera's view."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        collector = Collector(Path(directory), None)
        for task in Task:
            made = collector.collect(task, SEED)
            (episode,) = read_episodes(Path(directory) / made.id)
            pictures = []
            for step in (0, len(episode) - 1):
                views = episode.views(step)
                pictures += [views[role][CROP] for role in POLICY_VIEWS]
            rows.append(titled(episode.instruction, pictures))
        collector.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).quantize(256).save(file, optimize=True)


def titled(title: str, pictures: list[np.ndarray]) -> np.ndarray:
    """The pictures in a row, below a title."""
    height = pictures[0].shape[0]
    row = np.full((TITLE + height + GAP, len(pictures) * (SIDE + GAP) - GAP, 3), 255, np.uint8)
    cv2.putText(row, title, (0, TITLE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    for k, picture in enumerate(pictures):
        row[TITLE : TITLE + height, k * (SIDE + GAP) : k * (SIDE + GAP) + SIDE] = picture
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "file", nargs="?", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "tasks.png"
    )
    draw(parser.parse_args().file)
