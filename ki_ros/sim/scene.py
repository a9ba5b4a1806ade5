"""The MuJoCo scene: a Franka arm with a Robotiq 2F-85 on a table, coloured blocks, a plain lab, three cameras.

The world's frame is the robot's base frame: x forwards, y to the robot's left, z up, the table's top at z = 0. [m, rad]
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from ki_ros.rig import NUM_JOINTS, CameraRole, Robot
from ki_ros.sim import textures
from ki_ros.sim.assets import asset_directory, require_mujoco
from ki_ros.sim.cameras import MOUNTS

TIMESTEP = 0.001
"""Physics step [s]: the rate of a Franka's own control loop."""

BLOCK_COLOURS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "red": (0.78, 0.08, 0.08),
        "green": (0.10, 0.52, 0.16),
        "blue": (0.08, 0.20, 0.68),
        "yellow": (0.92, 0.74, 0.07),
        "purple": (0.42, 0.14, 0.52),
    }
)
BLOCK_HALF_SIZE = 0.025
"""Half an edge of a block [m]: it fits the gripper's 85 mm with room to spare."""

AREA = "marked_area"
"""Name of the square marked on the table; it touches nothing, and lies out of sight until it is placed."""

AREA_HALF_SIZE = 0.06
"""Half an edge of the marked square [m]."""

BLOCK_AREA = ((0.38, 0.62), (-0.24, 0.24))
"""Where blocks are scattered: range of x and of y [m]."""

TABLE_HEIGHT = 0.76
"""The table's top over the floor [m]."""

END_STOP = 0.003
"""How far inside of a joint's position limit its end stop begins [rad]: a stop gives way a little when the arm is
driven into it, and the joint must still be inside of its limit then."""

ARM_JOINTS = tuple(f"joint{i}" for i in range(1, NUM_JOINTS + 1))
ARM_ACTUATORS = tuple(f"actuator{i}" for i in range(1, NUM_JOINTS + 1))
GRIPPER_ACTUATOR = "fingers_actuator"
GRIPPER_DRIVER = "left_driver_joint"
"""The knuckle that a Robotiq driver reports as `robotiq_85_left_knuckle_joint`."""


def block_name(colour: str) -> str:
    """Name of the body (and of the free joint) of the block of that colour."""
    return f"block_{colour}"


def build(robot: Robot, stiffness: np.ndarray, damping: np.ndarray, *, shadows: bool = True):
    """A compiled `mujoco.MjModel` of the scene with the joint ranges of `robot`.

    The arm's actuators take a joint position [rad] each and apply gravity compensation + stiffness * (ctrl - q)
    - damping * qd, limited to the torque of a Franka's joint. stiffness: (7,) [N m/rad]. damping: (7,) [N m s/rad].
    Both a Panda and an FR3 have the Panda's geometry and inertia.

    Raises SimulationUnavailableError when mujoco or the robot's model is not installed.
    """
    require_mujoco()
    import mujoco

    spec = mujoco.MjSpec.from_file(str(asset_directory() / "panda.xml"))
    spec.modelname = "ki_ros_rig"
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10
    _drop_sensors(spec)
    _mount_gripper(spec)
    _control_arm(spec, robot, stiffness, damping, mujoco)
    _add_lab(spec, mujoco, shadows)
    _add_area(spec, mujoco)
    _add_blocks(spec, mujoco)
    _add_cameras(spec, mujoco)
    return spec.compile()


def _drop_sensors(spec) -> None:
    # They cost time in every step and nothing reads them.
    for sensor in list(spec.sensors):
        spec.delete(sensor)


def _mount_gripper(spec) -> None:
    # On a DROID rig the gripper is square with the base at q7 = 0, where a Franka Hand would stand at 45 degrees.
    spec.body("attachment").quat = [0.0, 0.0, 0.0, 1.0]


def _control_arm(spec, robot: Robot, stiffness: np.ndarray, damping: np.ndarray, mujoco) -> None:
    for body in spec.bodies:
        if body.name != "world":
            body.gravcomp = 1.0
    for i, (joint_name, actuator_name) in enumerate(zip(ARM_JOINTS, ARM_ACTUATORS, strict=True)):
        joint, actuator = spec.joint(joint_name), spec.actuator(actuator_name)
        joint.range = [robot.position_lower[i] + END_STOP, robot.position_upper[i] - END_STOP]
        joint.solref_limit = [0.004, 1.0]
        joint.solimp_limit = [0.95, 0.99, 0.001, 0.5, 2.0]
        # The torque limit holds for the sum of gravity compensation and control, as on the arm itself.
        torque = actuator.ctrlrange[1]
        joint.actgravcomp = True
        joint.actfrclimited = True
        joint.actfrcrange = [-torque, torque]
        actuator.ctrllimited = False
        actuator.gaintype = mujoco.mjtGain.mjGAIN_FIXED
        actuator.biastype = mujoco.mjtBias.mjBIAS_AFFINE
        actuator.gainprm[0] = stiffness[i]
        actuator.biasprm[:3] = [0.0, -stiffness[i], -damping[i]]


def _add_texture(spec, mujoco, name: str, pixels: np.ndarray, repeat: tuple[float, float], **material) -> None:
    texture = spec.add_texture(
        name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, nchannel=3, width=pixels.shape[1], height=pixels.shape[0]
    )
    texture.data = pixels.tobytes()
    textures_of_material = [""] * int(mujoco.mjtTextureRole.mjNTEXROLE)
    textures_of_material[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = name
    spec.add_material(name=name, textures=textures_of_material, texrepeat=repeat, texuniform=True, **material)


def _add_lab(spec, mujoco, shadows: bool) -> None:
    spec.visual.headlight.ambient = [0.36, 0.36, 0.37]
    spec.visual.headlight.diffuse = [0.22, 0.22, 0.22]
    spec.visual.headlight.specular = [0.0, 0.0, 0.0]
    spec.visual.map.znear = 0.02
    spec.visual.map.zfar = 12.0
    spec.visual.map.shadowclip = 2.5
    spec.visual.quality.shadowsize = 4096 if shadows else 0
    spec.stat.center = [0.4, 0.0, 0.3]
    spec.stat.extent = 1.0

    _add_texture(spec, mujoco, "wood", textures.wood(), (1.0, 1.0), specular=0.15, shininess=0.2)
    _add_texture(spec, mujoco, "floor", textures.speckle((112, 114, 116), 36), (0.8, 0.8), specular=0.0)
    _add_texture(spec, mujoco, "wall", textures.speckle((206, 205, 200), 12), (0.5, 0.5), specular=0.0)

    world = spec.worldbody
    world.add_light(
        name="ceiling",
        pos=[0.9, -0.5, 2.2],
        dir=[-0.25, 0.25, -1.0],
        diffuse=[0.55, 0.54, 0.52],
        specular=[0.2, 0.2, 0.2],
        castshadow=shadows,
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
    )
    world.add_light(
        name="window",
        pos=[-0.5, 1.5, 1.6],
        dir=[0.5, -1.0, -0.8],
        diffuse=[0.22, 0.23, 0.25],
        specular=[0.1, 0.1, 0.1],
        castshadow=False,
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
    )
    scenery = {"contype": 0, "conaffinity": 0}
    box, plane = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE
    world.add_geom(
        name="table",
        type=box,
        size=[0.62, 0.75, 0.02],
        pos=[0.42, 0.0, -0.02],
        material="wood",
        friction=[0.9, 0.005, 0.0001],
    )
    for x in (-0.14, 0.98):
        for y in (-0.69, 0.69):
            world.add_geom(type=box, size=[0.03, 0.03, 0.36], pos=[x, y, -0.4], rgba=[0.18, 0.18, 0.19, 1], **scenery)
    world.add_geom(name="floor", type=plane, size=[4, 4, 0.1], pos=[0, 0, -TABLE_HEIGHT], material="floor")
    up = np.array([0.0, 0.0, 1.0])
    for name, x, y, towards in (
        ("front", 2.3, 0.0, (-1.0, 0.0)),
        ("left", 0.0, 2.4, (0.0, -1.0)),
        ("right", 0.0, -2.4, (0.0, 1.0)),
        ("back", -2.0, 0.0, (1.0, 0.0)),
    ):
        normal = np.array([*towards, 0.0])
        wall = world.add_geom(name=f"wall_{name}", type=plane, size=[4, 2, 0.1], pos=[x, y, 0.6], material="wall")
        wall.contype = wall.conaffinity = 0
        wall.quat = _quaternion(np.stack([np.cross(up, normal), up, normal], axis=1), mujoco)
    # Furniture at the walls, so that the background is a room and not a void.
    for position, size, colour in (
        ((2.05, -0.7, -0.36), (0.22, 0.8, 0.40), (0.30, 0.33, 0.37)),
        ((2.05, 1.1, 0.05), (0.2, 0.45, 0.81), (0.72, 0.70, 0.66)),
        ((2.0, -1.05, 0.22), (0.03, 0.28, 0.17), (0.06, 0.06, 0.07)),
        ((0.6, -2.15, -0.33), (0.7, 0.22, 0.43), (0.52, 0.40, 0.28)),
        ((0.2, -2.15, 0.25), (0.16, 0.14, 0.15), (0.16, 0.30, 0.42)),
        ((0.8, 2.15, -0.3), (0.6, 0.22, 0.46), (0.36, 0.40, 0.40)),
        ((1.0, 2.1, 0.29), (0.2, 0.12, 0.13), (0.62, 0.28, 0.18)),
    ):
        world.add_geom(type=box, pos=position, size=size, rgba=[*colour, 1.0], **scenery)
    world.add_geom(
        name="mounting_plate",
        type=box,
        size=[0.13, 0.11, 0.006],
        pos=[-0.04, 0, 0.0],
        rgba=[0.32, 0.33, 0.34, 1],
        **scenery,
    )


def _add_area(spec, mujoco) -> None:
    # Above the wood by less than a block sinks into it, and under the floor until a task wants it.
    area = spec.worldbody.add_geom(
        name=AREA,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[AREA_HALF_SIZE, AREA_HALF_SIZE, 0.001],
        pos=[0.0, 0.0, -2.0 * TABLE_HEIGHT],
        rgba=[0.93, 0.93, 0.90, 1.0],
    )
    area.contype = area.conaffinity = 0


def _add_blocks(spec, mujoco) -> None:
    for index, (colour, rgb) in enumerate(BLOCK_COLOURS.items()):
        spec.add_material(name=f"block_{colour}", rgba=[*rgb, 1.0], specular=0.2, shininess=0.3)
        body = spec.worldbody.add_body(name=block_name(colour), pos=[0.4 + 0.06 * index, 0.0, BLOCK_HALF_SIZE])
        body.add_freejoint(name=block_name(colour))
        body.add_geom(
            name=block_name(colour),
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[BLOCK_HALF_SIZE] * 3,
            mass=0.08,
            material=f"block_{colour}",
            friction=[1.0, 0.005, 0.0001],
            condim=4,
        )


def _add_cameras(spec, mujoco) -> None:
    for camera in list(spec.cameras):
        spec.delete(camera)
    for role in CameraRole:
        mount = MOUNTS[role]
        right, up = mount.axes()
        rotation = np.stack([right, up, np.cross(right, up)], axis=1)
        spec.body(mount.body).add_camera(
            name=role.value, pos=mount.position, quat=_quaternion(rotation, mujoco), fovy=mount.fovy
        )


def _quaternion(rotation: np.ndarray, mujoco) -> np.ndarray:
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).reshape(9))
    return quaternion
