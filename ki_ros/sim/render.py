"""Pictures of the rig without a window, from a thread of its own if need be."""

from __future__ import annotations

import copy
import ctypes.util
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ki_ros.rig import CameraRole
from ki_ros.sim.assets import SimulationUnavailableError, require_mujoco
from ki_ros.sim.cameras import CameraSize
from ki_ros.sim.meshes import reduce_meshes
from ki_ros.sim.variation import FIELDS

BACKENDS = ("osmesa", "egl")
_GROUPS_DRAWN = (0, 1, 2)

_PIXEL_AT_A_METRE = 2.0
"""Size of a pixel of an exterior camera at the arm's distance, times the picture's width [m]."""

_GRIPPER_DETAIL = 0.4
"""The wrist camera is that much closer to the gripper than the exterior cameras are to the arm."""


_SAMPLES = 4
"""Samples of a pixel where a graphics device draws; on a CPU two of them double the time of a picture."""


def resolve_backend(name: str = "auto") -> str:
    """What draws the pictures: "osmesa" or "egl".

    "auto" follows the environment variable MUJOCO_GL when it is set, else takes EGL on a machine with a graphics
    device and OSMesa, which draws on the CPU, on one without.

    Raises:
        ValueError: the name is not known.
        SimulationUnavailableError: the library of that backend is not installed.
    """
    if name == "auto":
        name = os.environ.get("MUJOCO_GL") or ("egl" if _has_graphics_device() else "osmesa")
    if name not in BACKENDS:
        raise ValueError(f"gl_backend {name!r} is not known; use auto, {' or '.join(BACKENDS)}")
    if name == "osmesa" and ctypes.util.find_library("OSMesa") is None:
        raise SimulationUnavailableError(
            "OSMesa, which draws the cameras' pictures on the CPU, is not installed: apt-get install libosmesa6"
        )
    if name == "egl" and ctypes.util.find_library("EGL") is None:
        raise SimulationUnavailableError("EGL is not installed: apt-get install libegl1, or use gl_backend osmesa")
    return name


def _has_graphics_device() -> bool:
    return Path("/dev/nvidia0").exists() or any(Path("/dev/dri").glob("renderD*"))


def _context(backend: str, width: int, height: int):
    # Imported by name: mujoco.GLContext is fixed by the environment when mujoco is first imported, maybe for a window.
    if backend == "egl":
        from mujoco.egl import GLContext
    else:
        from mujoco.osmesa import GLContext
    return GLContext(width, height)


class SceneRenderer:
    """Draws what the cameras see at a given state. It belongs to the thread that made it.

    model: mujoco.MjModel of the scene, which is only read. sizes: picture size by camera role.
    backend: as for `resolve_backend`.
    Meshes are drawn about as finely as a pixel: on a CPU the robot's CAD meshes would cost ten times the picture.

    Raises SimulationUnavailableError when there is no graphics context to be had, or ValueError for an unknown backend.
    """

    def __init__(self, model, sizes: Mapping[CameraRole, CameraSize], *, shadows: bool = False, backend: str = "auto"):
        require_mujoco()
        backend = resolve_backend(backend)
        import mujoco

        self._mujoco = mujoco
        self._sizes = dict(sizes)
        width = max(size.width for size in sizes.values())
        height = max(size.height for size in sizes.values())
        self._model = copy.copy(model)
        cell = _PIXEL_AT_A_METRE / width
        self.faces = reduce_meshes(
            self._model, lambda mesh: cell if mesh.startswith("link") else cell * _GRIPPER_DETAIL
        )
        self._model.vis.global_.offwidth = width
        self._model.vis.global_.offheight = height
        self._model.vis.quality.offsamples = _SAMPLES if backend == "egl" else 0
        self._data = mujoco.MjData(self._model)
        self._scene = mujoco.MjvScene(self._model, maxgeom=2 * self._model.ngeom)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = [group in _GROUPS_DRAWN for group in range(len(self._options.geomgroup))]
        self._options.sitegroup[:] = 0
        self._cameras = {}
        for role in CameraRole:
            camera = mujoco.MjvCamera()
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = self._model.camera(role.value).id
            self._cameras[role] = camera
        self._gl = self._context = None
        try:
            self._gl = _context(backend, width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:
            self.close()
            raise SimulationUnavailableError(
                f"no graphics context from {backend}: {error}; try gl_backend (or MUJOCO_GL) "
                f"{'osmesa' if backend == 'egl' else 'egl'}"
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def render(self, role: CameraRole, snapshot: np.ndarray) -> np.ndarray:
        """What that camera sees at a `SimulatedRig.snapshot`: (H, W, 3) uint8 RGB, rows from the top."""
        mujoco = self._mujoco
        if not np.array_equal(self._data.qpos, snapshot) or not self._data.xquat.any():
            self._data.qpos[:] = snapshot
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_camlight(self._model, self._data)
        # Of several renderers in one thread, each draws in its own context; otherwise a picture stays unwritten memory.
        self._gl.make_current()
        size = self._sizes[role]
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._options,
            None,
            self._cameras[role],
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        viewport = mujoco.MjrRect(0, 0, size.width, size.height)
        pixels = np.empty((size.height, size.width, 3), dtype=np.uint8)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return np.ascontiguousarray(pixels[::-1])

    def segment(self, role: CameraRole, snapshot: np.ndarray) -> np.ndarray:
        """Which geom each pixel of that picture shows: (H, W) int32 ids of the model, -1 for none."""
        mujoco, flags = self._mujoco, self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        try:
            pixels = self.render(role, snapshot).astype(np.int32)
        finally:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = False
        # A colour is the number of what was drawn, plus one; black is nothing.
        number = pixels @ np.array([1, 1 << 8, 1 << 16], dtype=np.int32)
        ids = np.full(self._scene.ngeom + 1, -1, dtype=np.int32)
        for drawn in self._scene.geoms[: self._scene.ngeom]:
            if drawn.segid >= 0 and drawn.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                ids[drawn.segid + 1] = drawn.objid
        return ids[number]

    def take_looks(self, model) -> None:
        """Takes over what a variation or a task changed in the rig's model: colours, lights, cameras, places."""
        for name in (*FIELDS, "geom_pos"):
            getattr(self._model, name)[:] = getattr(model, name)
        for name in ("ambient", "diffuse"):
            getattr(self._model.vis.headlight, name)[:] = getattr(model.vis.headlight, name)
        # Kinematics are computed anew for the next picture, also of the same state: the area's place depends on them.
        self._data.qpos[:] = np.nan

    def close(self) -> None:
        """Frees the graphics context, in the thread that made it."""
        if self._gl is not None and self._context is not None:
            # What is freed belongs to the current context, and another renderer of this thread may have drawn last.
            self._gl.make_current()
        if self._context is not None:
            self._context.free()
            self._context = None
        if self._gl is not None:
            self._gl.free()
            self._gl = None
