"""Which features of a dataset are the rig's state, action, cameras, instruction and outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from ki_ros.data.cache.episode import OUTCOMES
from ki_ros.data.lerobot import layout
from ki_ros.data.lerobot.errors import LeRobotError
from ki_ros.data.lerobot.features import ACTION_NAMES, image_key
from ki_ros.rig import ROBOTS, STATE_DIM, ActionSpace, CameraRole


@dataclass(frozen=True)
class FeatureMap:
    """Names of features.

    Attributes:
        state: one after the other the eight values of the state: joint positions [rad], gripper closedness [0..1].
        action: one after the other the eight values of the action.
        action_space: of `action`; None to tell it from the names of its values.
        images: cameras; those that a dataset need not have are left out where it has not.
        optional: cameras of `images` that a dataset need not have.
        instruction: features with text; the first that is not empty is what was to be done. The task where none is.
        success: a feature that is true at one step at least of an episode that succeeded; None for none.
        outcome: of all episodes where there is no such feature.
        robot: the arm, where the dataset does not say.
        image_size: side of the square that pictures are fitted into [pixels]; None to keep them as they are.
    """

    state: tuple[str, ...] = (layout.STATE,)
    action: tuple[str, ...] = (layout.ACTION,)
    action_space: ActionSpace | None = None
    images: Mapping[CameraRole, str] = field(default_factory=lambda: {role: image_key(role) for role in CameraRole})
    optional: tuple[CameraRole, ...] = tuple(CameraRole)
    instruction: tuple[str, ...] = ()
    success: str | None = layout.SUCCESS
    outcome: Literal["success", "failure", "unknown"] = "unknown"
    robot: str = "panda"
    image_size: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {
            "action_space": self.action_space.value if self.action_space else None,
            "images": {role.value: name for role, name in self.images.items()},
            "optional": [role.value for role in self.optional],
        }

    def changed(self, changes: Mapping[str, Any]) -> FeatureMap:
        """This map with other values, given as plain ones such as a YAML file has.

        Raises:
            LeRobotError: an unknown field, or a value that it cannot have.
        """
        known = [each.name for each in fields(self)]
        for name in changes:
            if name not in known:
                raise LeRobotError(f"features.{name}: there is no such field; use some of {', '.join(known)}")
        values: dict[str, Any] = dict(changes)
        for name in ("state", "action", "instruction"):
            if name in values:
                given = values[name]
                values[name] = (given,) if isinstance(given, str) else tuple(given or ())
        if values.get("action_space") is not None:
            values["action_space"] = ActionSpace.parse(values["action_space"])
        if "images" in values:
            values["images"] = {_role(role): name for role, name in dict(values["images"]).items()}
            # What is named by hand is meant to be there.
            values.setdefault("optional", ())
        if "optional" in values:
            values["optional"] = tuple(_role(role) for role in values["optional"])
        if values.get("outcome", self.outcome) not in OUTCOMES:
            raise LeRobotError(f"features.outcome is {values['outcome']!r}; use one of {', '.join(OUTCOMES)}")
        if values.get("robot", self.robot) not in ROBOTS:
            raise LeRobotError(f"features.robot is {values['robot']!r}; use one of {', '.join(ROBOTS)}")
        return replace(self, **values)

    def resolved(self, features: Mapping[str, Any]) -> FeatureMap:
        """This map for a dataset: without optional cameras that it does not have, and with its action space.

        Args:
            features: of the dataset's `info.json`.

        Raises:
            LeRobotError: a feature that is missing, or of another dtype or shape; an action space that nothing tells.
        """
        for kind in ("state", "action"):
            names = getattr(self, kind)
            sizes = [_vector(features, name, kind) for name in names]
            if sum(sizes) != STATE_DIM:
                stated = " + ".join(f"{name} ({size})" for name, size in zip(names, sizes, strict=True))
                raise LeRobotError(
                    f"features.{kind}: {stated} have {sum(sizes)} values; {STATE_DIM} are needed, seven joints and the "
                    "gripper"
                )
        images = {}
        for role, name in self.images.items():
            if name not in features and role in self.optional:
                continue
            _require(features, name, f"images.{role.value}", ("image", "video"))
            shape = list(features[name]["shape"])
            if len(shape) != 3 or 3 not in (shape[0], shape[2]):
                raise LeRobotError(f"features.images.{role.value}: {name} has shape {shape}; 3 channels are needed")
            images[role] = name
        for name in self.instruction:
            _require(features, name, "instruction", ("string",))
        success = self.success
        if success == layout.SUCCESS and success not in features:
            success = None
        if success is not None:
            _require(features, success, "success", ("bool",))
        return replace(self, images=images, success=success, action_space=self._space(features))

    def _space(self, features: Mapping[str, Any]) -> ActionSpace:
        if self.action_space is not None:
            return self.action_space
        names = features[self.action[0]].get("names")
        for space, known in ACTION_NAMES.items():
            if names == known:
                return space
        raise LeRobotError(
            f"features.action_space is missing, and the names of {self.action[0]}, {names}, do not tell it; give "
            f"{' or '.join(space.value for space in ActionSpace)}"
        )


_DROID = FeatureMap(
    state=("observation.state.joint_position", "observation.state.gripper_position"),
    action=("action.joint_position", "action.gripper_position"),
    action_space=ActionSpace.JOINT_POSITION,
    images={
        CameraRole.EXTERIOR_1: "observation.images.exterior_1_left",
        CameraRole.EXTERIOR_2: "observation.images.exterior_2_left",
        CameraRole.WRIST: "observation.images.wrist_left",
    },
    instruction=("language_instruction", "language_instruction_2", "language_instruction_3"),
    success="is_episode_successful",
    image_size=224,
)

PRESETS = {
    "ki_ros": FeatureMap(),
    "droid": _DROID,
    "droid_velocity": replace(
        _DROID,
        action=("action.joint_velocity", "action.gripper_position"),
        action_space=ActionSpace.JOINT_VELOCITY,
    ),
}
"""Maps by name: what this package exports, and DROID as LeRobot publishes it, with its commanded positions or
velocities."""


def choose_map(preset: str, features: Mapping[str, Any]) -> FeatureMap:
    """The preset of that name; "auto" for the one whose state a dataset has.

    Raises:
        LeRobotError: no such preset, or none for these features.
    """
    if preset == "auto":
        for name in ("droid", "ki_ros"):
            if all(feature in features for feature in PRESETS[name].state):
                return PRESETS[name]
        raise LeRobotError(
            f"no preset fits a dataset with the features {_listed(features)}; name the state in features.state and "
            "the action in features.action"
        )
    if preset not in PRESETS:
        raise LeRobotError(f"preset is {preset!r}; use auto or one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def _role(name: Any) -> CameraRole:
    try:
        return CameraRole(name)
    except ValueError:
        raise LeRobotError(
            f"features.images: {name!r} is no camera; use some of {', '.join(role.value for role in CameraRole)}"
        ) from None


def _require(features: Mapping[str, Any], name: str, kind: str, dtypes: tuple[str, ...]) -> None:
    if name not in features:
        raise LeRobotError(f"features.{kind}: the dataset has no feature {name!r}; it has {_listed(features)}")
    dtype = features[name]["dtype"]
    if dtype not in dtypes:
        raise LeRobotError(f"features.{kind}: {name} has dtype {dtype!r}; {' or '.join(dtypes)} is needed")


def _vector(features: Mapping[str, Any], name: str, kind: str) -> int:
    _require(features, name, kind, ("float32", "float64"))
    shape = features[name]["shape"]
    if len(shape) != 1:
        raise LeRobotError(f"features.{kind}: {name} has shape {list(shape)}; a row of values is needed")
    return int(shape[0])


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(sorted(set(features) - set(layout.INDEX_FEATURES))) or "none"
