"""A small made-up task that takes the picture, the instruction and the state to solve. Needs no files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ki_ros.rig import (
    NUM_JOINTS,
    POLICY_VIEWS,
    RESET_JOINT_POSITIONS,
    STATE_DIM,
    VELOCITY_TO_DELTA,
    ActionSpace,
    CameraRole,
)
from ki_ros.sample import Sample, sample_index

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230), "yellow": (230, 210, 50)}
"""RGB of the squares, before noise. The order decides when the gripper closes."""

PHRASINGS = ("point at the {colour} square", "move to the {colour} square")

REACH = 0.3
"""How far from the reset position joints 1 and 2 point at a square at the picture's edge [rad]."""

MAX_SPREAD = 0.2
"""Largest spread [rad] at which no velocity exceeds 1, at any horizon."""

MIN_HORIZON = len(COLOURS)
"""Steps that it takes for the gripper to close at another one for each colour."""

_MIN_SIDE = 16
_NOISE = 20
_MAX_OPEN = 0.2
_FOLD = np.array([0.1, -0.1, 0.1, -0.1, 0.1])
_RETURN = 0.25
_RESET = np.array(RESET_JOINT_POSITIONS)


class Pointing:
    """Coloured squares on a noisy background, and an arm that is told which one to point at: a `SampleSource`.

    It is a test of learning, not of robotics. It shows whether a policy can be trained to use all of its inputs, and
    how far it follows language: the same picture with another instruction asks for other actions. It has no dynamics,
    no geometry of a camera, no contact and no errors of an operator, and success at it says nothing about a real arm.

    The rule, in joint_velocity space:

    - Joints 1 and 2 end at the reset position plus `REACH` times (x, y), the named square's centre relative to the
      picture's: -1 to 1 from left to right and from top to bottom. Where they start is in the state alone.
    - Joints 3 to 7 move by (0.1, -0.1, 0.1, -0.1, 0.1) rad minus a quarter of their offset from the reset position.
    - All follow the profile of least jerk over the chunk, 10 s^3 - 15 s^4 + 6 s^5 (Flash and Hogan, 1985).
    - The gripper is open (0) before step (k + 1) * horizon // 5 and closed (1) from then on, for colour k of `COLOURS`.

    Joints start uniformly within `spread` of the reset position, the gripper within 0 to 0.2. The exterior view is the
    picture, with squares of side // 5 pixels; the wrist view is its middle half at twice the size, with noise of its
    own. All masks are true.

    A sample is a pure function of the parameters and its index, made when it is asked for; another seed gives other
    samples of the same task, to hold out. Can be pickled.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        horizon: int = 15,
        side: int = 64,
        squares: int = 2,
        spread: float = 0.1,
        views: tuple[CameraRole, ...] = POLICY_VIEWS,
    ) -> None:
        """Makes nothing yet.

        Args:
            length: number of samples.
            seed: of everything that is random; 0 or more.
            horizon: H, rows of actions of a sample.
            side: height and width of a view [pixels], a multiple of four.
            squares: how many, each of another colour, one of them named.
            spread: how far from the reset position a joint may start [rad], 0 to `MAX_SPREAD`.
            views: exterior_1 and wrist, or less; the task cannot be solved without the former.

        Raises:
            ValueError: a value out of its range.
        """
        for name, value, least in (
            ("length", length, 1),
            ("seed", seed, 0),
            ("horizon", horizon, MIN_HORIZON),
            ("side", side, _MIN_SIDE),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; give at least {least}")
        if side % 4:
            raise ValueError(f"side is {side}; give a multiple of 4")
        if not 2 <= squares <= len(COLOURS):
            raise ValueError(f"squares is {squares}; give 2 to {len(COLOURS)}")
        if not 0.0 <= spread <= MAX_SPREAD:
            raise ValueError(f"spread is {spread} rad; give 0 to {MAX_SPREAD} rad")
        views = tuple(views)
        unknown = [view for view in views if view not in POLICY_VIEWS]
        if unknown or len(set(views)) < len(views):
            raise ValueError(
                f"views is {views}; give each of {', '.join(view.value for view in POLICY_VIEWS)} at most once"
            )
        self.length = length
        self.seed = seed
        self.horizon = horizon
        self.side = side
        self.squares = squares
        self.spread = spread
        self.views = tuple(CameraRole(view) for view in views)
        self._edge = side // 5
        self._profile = np.diff(_least_jerk(np.arange(horizon + 1) / horizon))

    @property
    def action_space(self) -> ActionSpace:
        """Normalised joint velocity."""
        return ActionSpace.JOINT_VELOCITY

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the parameters and of the first sample, so that it also tells when the rule has changed."""
        parameters = {
            "task": "pointing",
            "length": self.length,
            "seed": self.seed,
            "horizon": self.horizon,
            "side": self.side,
            "squares": self.squares,
            "spread": self.spread,
            "views": [view.value for view in self.views],
        }
        first = self[0]
        digest = hashlib.sha256(json.dumps([parameters, first.instruction], sort_keys=True).encode())
        for values in (first.state.astype("<f8"), first.actions.astype("<f8"), *first.views.values()):
            digest.update(values.tobytes())
        return digest.hexdigest()

    def states_and_actions(self) -> tuple[np.ndarray, np.ndarray]:
        """What statistics are computed over: all states, and all rows of all chunks, which have no step in common.

        Returns:
            (length, 8) and (length * H, 8) float64. No picture is drawn.
        """
        scenes = [self._scene(index) for index in range(self.length)]
        states = np.stack([scene.state for scene in scenes])
        return states, np.concatenate([self._actions(scene) for scene in scenes])

    def chunks(self, indices: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Actions (N, H, 8) float64 and masks (N, H) of samples by their indices (N,), or of all.

        No picture is drawn.
        """
        chosen = range(self.length) if indices is None else indices
        actions = np.stack([self._actions(self._scene(index)) for index in chosen])
        return actions, np.ones(actions.shape[:2], dtype=bool)

    def whole(self) -> np.ndarray:
        """(length,) bool, true: every chunk is whole."""
        return np.ones(self.length, dtype=bool)

    def named_and_other(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Actions (H, 8) that the sample's instruction asks for, and those that point at the other square instead.

        A policy that follows language is closer to the former; one that does not is as far from one as from the other.
        With more than two squares, the other one is any of the rest.
        """
        scene = self._scene(index)
        return self._actions(scene), self._actions(scene.other())

    def counterfactual(self, index: int) -> Sample:
        """The same views and state, bit for bit, with an instruction that names the other square, and its actions."""
        return self._sample(index, self._scene(index).other())

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """The sample of that index.

        Raises:
            IndexError: an index that is not in 0 .. len - 1.
        """
        return self._sample(index, self._scene(index))

    def describe(self, index: int) -> str:
        """The sample's picture by what it is made of."""
        return f"picture {index} of seed {self.seed}"

    def _scene(self, index: int) -> _Scene:
        index = sample_index(index, self.length)
        rng = np.random.default_rng((self.seed, index, 0))
        names = list(COLOURS)
        colours = tuple(names[k] for k in rng.permutation(len(names))[: self.squares])
        corners: list[np.ndarray] = []
        while len(corners) < self.squares:
            corner = rng.integers(0, self.side - self._edge, size=2, endpoint=True)
            if all(np.abs(corner - there).max() >= self._edge for there in corners):
                corners.append(corner)
        state = np.empty(STATE_DIM)
        state[:NUM_JOINTS] = _RESET + rng.uniform(-self.spread, self.spread, NUM_JOINTS)
        state[NUM_JOINTS] = rng.uniform(0.0, _MAX_OPEN)
        phrasing = PHRASINGS[rng.integers(len(PHRASINGS))]
        return _Scene(colours, np.stack(corners), state, phrasing, background=int(rng.integers(90, 166)))

    def _sample(self, index: int, scene: _Scene) -> Sample:
        return Sample(
            views=self._render(index, scene) if self.views else {},
            state=scene.state,
            instruction=scene.phrasing.format(colour=scene.colours[0]),
            actions=self._actions(scene),
            action_mask=np.ones(self.horizon, dtype=bool),
        )

    def _actions(self, scene: _Scene) -> np.ndarray:
        """(H, 8) actions towards the first square of the scene."""
        centre = (scene.corners[0] + self._edge / 2.0) / (self.side / 2.0) - 1.0
        offset = scene.state[:NUM_JOINTS] - _RESET
        displacement = np.concatenate((REACH * centre - offset[:2], _FOLD - _RETURN * offset[2:]))
        actions = np.zeros((self.horizon, STATE_DIM))
        actions[:, :NUM_JOINTS] = np.outer(self._profile, displacement) / VELOCITY_TO_DELTA
        rank = list(COLOURS).index(scene.colours[0])
        actions[(rank + 1) * self.horizon // (len(COLOURS) + 1) :, NUM_JOINTS] = 1.0
        return actions

    def _render(self, index: int, scene: _Scene) -> dict[CameraRole, np.ndarray]:
        """The views, (side, side, 3) uint8 each. Both are drawn, so that one does not depend on which are asked for."""
        rng = np.random.default_rng((self.seed, index, 1))
        picture = np.full((self.side, self.side, 3), scene.background, dtype=np.int64)
        for colour, (x, y) in zip(scene.colours, scene.corners, strict=True):
            picture[y : y + self._edge, x : x + self._edge] = COLOURS[colour]
        quarter = self.side // 4
        middle = picture[quarter:-quarter, quarter:-quarter].repeat(2, axis=0).repeat(2, axis=1)
        drawn = {
            CameraRole.EXTERIOR_1: _noisy(picture, rng),
            CameraRole.WRIST: _noisy(middle, rng),
        }
        return {view: drawn[view] for view in self.views}


class Counterfactuals:
    """The samples of a `Pointing` with the other square named instead, a `SampleSource` of the same order."""

    def __init__(self, source: Pointing) -> None:
        self._source = source

    @property
    def action_space(self) -> ActionSpace:
        """The source's."""
        return self._source.action_space

    @property
    def fingerprint(self) -> str:
        """Other than the source's."""
        return hashlib.sha256(f"counterfactuals of {self._source.fingerprint}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        """As `Pointing.counterfactual`."""
        return self._source.counterfactual(index)

    def describe(self, index: int) -> str:
        """The source's sample, and that the other square is named."""
        return f"{self._source.describe(index)} with the other square named"


@dataclass(frozen=True)
class _Scene:
    """What is random in a sample, but for the pixels' noise. N squares.

    Attributes:
        colours: names, N; the first square is the one to point at.
        corners: (N, 2) int64, x and y of the upper left pixel; squares do not overlap.
        state: (8,) float64.
        phrasing: one of `PHRASINGS`.
        background: its grey.
    """

    colours: tuple[str, ...]
    corners: np.ndarray
    state: np.ndarray
    phrasing: str
    background: int

    def other(self) -> _Scene:
        """The same scene with the second square to point at."""
        order = [1, 0, *range(2, len(self.colours))]
        colours = tuple(self.colours[k] for k in order)
        return _Scene(colours, self.corners[order], self.state, self.phrasing, self.background)


def _least_jerk(s: np.ndarray) -> np.ndarray:
    """Fraction of the way at the fraction s of the time."""
    return s**3 * (10.0 - 15.0 * s + 6.0 * s**2)


def _noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.integers(-_NOISE, _NOISE, size=picture.shape, endpoint=True)
    return (picture + noise).clip(0, 255).astype(np.uint8)
