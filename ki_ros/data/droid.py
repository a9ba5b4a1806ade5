"""Episodes of the DROID dataset as files: states, instruction and camera images at 15 Hz.

A directory holds `episode_NNN.npz` (`state`, (T, 8): joint positions [rad] and gripper closedness), `episodes.json`
(by episode: `task`, the instruction) and, where there are images, `images/episode_NNN/`, one file for each step and
camera.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ki_ros.rig import STATE_DIM, CameraRole

CAMERAS = {
    CameraRole.EXTERIOR_1: "exterior_image_1_left",
    CameraRole.EXTERIOR_2: "exterior_image_2_left",
    CameraRole.WRIST: "wrist_image_left",
}
"""DROID's names of the cameras."""

_IMAGE_NAME = re.compile(r"(?P<camera>\w+?)__image_(?P<step>\d+)\.\w+")


class EpisodeError(ValueError):
    """An episode that is missing or incomplete. The message names the file or the step, and what there is."""


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        name: such as `episode_000`.
        instruction: what the operator was asked to do.
        states: (T, 8) float64, joint positions [rad] and gripper closedness [0 open .. 1 closed].
        image_files: for each camera, T paths in the order of the steps; empty where the episode has no images.
    """

    name: str
    instruction: str
    states: np.ndarray
    image_files: dict[CameraRole, list[Path]]

    def __len__(self) -> int:
        return len(self.states)

    def image(self, role: CameraRole, step: int) -> np.ndarray:
        """The image of a camera at a step, (H, W, 3) uint8 RGB."""
        with Image.open(self.image_files[role][step]) as image:
            return np.asarray(image.convert("RGB"))

    @classmethod
    def load(cls, directory: Path, number: int) -> Episode:
        """Reads an episode; its images are opened when they are asked for.

        Raises:
            EpisodeError: no such episode, states of a wrong shape or not finite, or steps without an image.
        """
        name = f"episode_{number:03d}"
        file = directory / f"{name}.npz"
        if not file.is_file():
            there = sorted(int(path.stem.removeprefix("episode_")) for path in directory.glob("episode_[0-9]*.npz"))
            known = f"{there[0]} to {there[-1]}" if there else "none"
            raise EpisodeError(f"{file} does not exist; episodes in {directory}: {known}")
        with np.load(file, allow_pickle=False) as arrays:
            states = arrays["state"].astype(np.float64)
        if states.ndim != 2 or states.shape[1] != STATE_DIM or not np.isfinite(states).all():
            raise EpisodeError(f"{file}: state has shape {states.shape}; expected finite (T, {STATE_DIM})")
        listing = directory / "episodes.json"
        if not listing.is_file():
            raise EpisodeError(f"{listing} does not exist; it holds the instruction of each episode as its `task`")
        episodes = json.loads(listing.read_text(encoding="utf-8"))
        if "task" not in episodes.get(name, {}):
            raise EpisodeError(f"{listing} has no task of {name}; add it, or leave the episode out")
        images = {role: _files(directory / "images" / name, camera) for role, camera in CAMERAS.items()}
        for role, files in images.items():
            if files and len(files) != len(states):
                raise EpisodeError(f"{name} has {len(states)} steps, but {len(files)} images of {role.value}")
        return cls(name, episodes[name]["task"], states, {role: files for role, files in images.items() if files})


def _files(directory: Path, camera: str) -> list[Path]:
    found = {}
    for path in directory.glob(f"{camera}__image_*"):
        match = _IMAGE_NAME.fullmatch(path.name)
        if match and match["camera"] == camera:
            found[int(match["step"])] = path
    if found and sorted(found) != list(range(min(found), min(found) + len(found))):
        missing = sorted(set(range(min(found), max(found))) - set(found))
        raise EpisodeError(f"{directory}: {camera} has no image of step {missing[0]} ({len(missing)} missing)")
    return [found[step] for step in sorted(found)]
