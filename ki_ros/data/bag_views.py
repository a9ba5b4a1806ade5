"""The views of an episode's steps, read from its bag as they are asked for: some pictures are held, never all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ki_ros.data.bag import Bag
from ki_ros.data.recording import RecordingError, UndecodableError
from ki_ros.observation.rig_streams import RigSampler, RigStreams
from ki_ros.rig import CameraRole


@dataclass(frozen=True)
class _Need:
    """The steps that show an image: from the first to the last."""

    first: int
    last: int


class BagViews:
    """Views by step. In order of the steps the bag is read once; going back begins it again.

    Args:
        bag: the bag.
        streams: what was sampled of it.
        frames: by camera, (T,) int64, which message of its topic a step shows, counted from 0.
    """

    def __init__(self, bag: Bag, streams: RigStreams, frames: Mapping[CameraRole, np.ndarray]) -> None:
        self._bag = bag
        self._rig = RigSampler(streams)
        self._frames = {role: numbers.tolist() for role, numbers in frames.items()}
        self._roles = {camera.image_topic: role for role, camera in streams.cameras.items()}
        self._needs: dict[CameraRole, dict[int, _Need]] = {role: {} for role in frames}
        for role, numbers in self._frames.items():
            for step, number in enumerate(numbers):
                need = self._needs[role].get(number)
                self._needs[role][number] = _Need(step if need is None else need.first, step)
        self._reading: Iterator[tuple[CameraRole, int, bytes]] | None = None
        self._held: dict[CameraRole, dict[int, np.ndarray | ValueError]] = {}
        self._step = 0

    def __call__(self, step: int) -> dict[CameraRole, np.ndarray]:
        """The views of a step, (image_size, image_size, 3) uint8 RGB by camera, as arrays of their own.

        Raises:
            UndecodableError: an image that cannot be decoded.
            RecordingError: one that is not in the bag any more.
        """
        if self._reading is None or step < self._step:
            self._reading = self._read()
            self._held = {role: {} for role in self._needs}
        self._step = step
        for role, held in self._held.items():
            needs = self._needs[role]
            self._held[role] = {number: pixels for number, pixels in held.items() if needs[number].last >= step}
        while any(numbers[step] not in self._held[role] for role, numbers in self._frames.items()):
            self._take_next()
        return {role: self._view(role, step) for role in self._frames}

    def _take_next(self) -> None:
        for role, number, raw in self._reading:
            need = self._needs[role].get(number)
            if need is None or need.last < self._step:
                continue
            try:
                self._held[role][number] = self._rig.view(role, raw)
            except ValueError as error:
                self._held[role][number] = error
            return
        self._reading = None
        raise RecordingError(
            f"{self._bag.path} ends before the pictures of step {self._step}: it changed since its episodes were "
            "read; read them again"
        )

    def _view(self, role: CameraRole, step: int) -> np.ndarray:
        number = self._frames[role][step]
        pixels = self._held[role][number]
        if isinstance(pixels, ValueError):
            raise UndecodableError(
                f"{self._bag.path}: the picture of {role.value} at step {step} (message {number} of its topic) cannot "
                f"be decoded: {pixels}; read the episodes with decode_images to leave such steps out"
            )
        return pixels.copy()

    def _read(self) -> Iterator[tuple[CameraRole, int, bytes]]:
        counts: Counter[str] = Counter()
        for message in self._bag.messages(set(self._roles)):
            yield self._roles[message.topic], counts[message.topic], message.raw
            counts[message.topic] += 1
