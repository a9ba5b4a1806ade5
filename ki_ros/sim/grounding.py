"""Pictures in which it is known where the blocks are: what a vision-language model learns to find them from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ki_ros.rig import POLICY_VIEWS, CameraRole
from ki_ros.sim import scene
from ki_ros.sim.kinematics import Kinematics
from ki_ros.sim.simulated_rig import SimulatedRig
from ki_ros.sim.tasks import Task, draw_layout


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        blocks: by colour, (H, W) bool, true where that block is seen. Blocks that are not seen are not there.
    """

    pixels: np.ndarray
    blocks: Mapping[str, np.ndarray]


class Photographer:
    """Takes pictures of the scenes of demonstrations. Not for several threads."""

    def __init__(self) -> None:
        self._rig = SimulatedRig()
        self._kinematics = Kinematics.of(self._rig)
        self._renderer = self._rig.make_renderer()
        model = self._rig.model
        self._geoms = {
            colour: [g for g in range(model.ngeom) if model.geom_bodyid[g] == model.body(scene.block_name(colour)).id]
            for colour in scene.BLOCK_COLOURS
        }

    def take(self, seed: int) -> list[Picture]:
        """What the cameras of `POLICY_VIEWS` see at the beginning of the demonstration of reaching with that seed."""
        rig = self._rig
        layout = draw_layout(Task.REACH, seed, self._kinematics, anywhere=True)
        layout.place(rig)
        self._renderer.take_looks(rig.model)
        return [self._picture(role, layout.blocks) for role in POLICY_VIEWS]

    def _picture(self, role: CameraRole, colours: Mapping[str, np.ndarray]) -> Picture:
        snapshot = self._rig.snapshot()
        geoms = self._renderer.segment(role, snapshot)
        masks = {colour: np.isin(geoms, self._geoms[colour]) for colour in colours}
        pixels = self._renderer.render(role, snapshot)
        return Picture(pixels, {colour: mask for colour, mask in masks.items() if mask.any()})

    def close(self) -> None:
        """Frees the graphics contexts."""
        self._renderer.close()
        self._rig.close()
