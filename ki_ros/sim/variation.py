"""What differs from episode to episode beside the blocks' places: colours, lights, the exterior cameras' stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ki_ros.rig import CameraRole
from ki_ros.sim import scene

_COLOUR, _TINT, _LIGHT, _DIRECTION = 0.12, 0.08, 0.25, 0.2
_CAMERA_SHIFT, _CAMERA_TURN = 0.008, 0.01

EXTERIORS = (CameraRole.EXTERIOR_1, CameraRole.EXTERIOR_2)


@dataclass(frozen=True)
class Variation:
    """Changes on top of the scene as it is built.

    Attributes:
        colours: (blocks, 3) factors of the blocks' red, green and blue, in the order of `scene.BLOCK_COLOURS`.
        tint: (3,) factors of the table's colour.
        ambient, diffuse: factors of the light from everywhere, and of the lamps.
        light_turn: (lights, 3) added to the lamps' directions.
        camera_shift: (2, 3) of the exterior cameras [m].
        camera_turn: (2, 3) rotation vectors of the exterior cameras, in their own frames [rad].
    """

    colours: np.ndarray
    tint: np.ndarray
    ambient: float
    diffuse: float
    light_turn: np.ndarray
    camera_shift: np.ndarray
    camera_turn: np.ndarray

    @classmethod
    def draw(cls, random: np.random.Generator, lights: int = 2) -> Variation:
        """A variation: uniform within fixed ranges."""
        return cls(
            colours=1.0 + random.uniform(-_COLOUR, _COLOUR, (len(scene.BLOCK_COLOURS), 3)),
            tint=1.0 + random.uniform(-_TINT, _TINT, 3),
            ambient=1.0 + random.uniform(-_LIGHT, _LIGHT),
            diffuse=1.0 + random.uniform(-_LIGHT, _LIGHT),
            light_turn=random.uniform(-_DIRECTION, _DIRECTION, (lights, 3)),
            camera_shift=random.uniform(-_CAMERA_SHIFT, _CAMERA_SHIFT, (len(EXTERIORS), 3)),
            camera_turn=random.uniform(-_CAMERA_TURN, _CAMERA_TURN, (len(EXTERIORS), 3)),
        )


class Variator:
    """Applies variations to a model, each to the model as it was built and not to the one before."""

    def __init__(self, model) -> None:
        import mujoco

        self._mujoco = mujoco
        self._model = model
        head = model.vis.headlight
        self._original = {name: getattr(model, name).copy() for name in FIELDS}
        self._headlight = head.ambient.copy(), head.diffuse.copy()

    def apply(self, variation: Variation) -> None:
        """Changes the model's looks; nothing that physics depends on."""
        model, v = self._model, variation
        for name, value in self._original.items():
            getattr(model, name)[:] = value
        for factors, colour in zip(v.colours, scene.BLOCK_COLOURS, strict=True):
            rgba = model.mat_rgba[model.material(scene.block_name(colour)).id]
            rgba[:3] = np.clip(rgba[:3] * factors, 0.0, 1.0)
        wood = model.mat_rgba[model.material("wood").id]
        wood[:3] = np.clip(wood[:3] * v.tint, 0.0, 1.0)
        model.vis.headlight.ambient[:] = self._headlight[0] * v.ambient
        model.vis.headlight.diffuse[:] = self._headlight[1] * v.diffuse
        model.light_diffuse[:] *= v.diffuse
        turned = model.light_dir + v.light_turn
        model.light_dir[:] = turned / np.linalg.norm(turned, axis=1, keepdims=True)
        for role, shift, turn in zip(EXTERIORS, v.camera_shift, v.camera_turn, strict=True):
            camera = model.camera(role.value).id
            model.cam_pos[camera] += shift
            self._mujoco.mju_quatIntegrate(model.cam_quat[camera], turn, 1.0)


FIELDS = ("mat_rgba", "light_diffuse", "light_dir", "cam_pos", "cam_quat")
"""Arrays of a model that a variation changes."""
