"""Video files of a dataset: many episodes, one after another, at a constant rate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import av
import numpy as np

from ki_ros.data.lerobot.errors import LeRobotError

Codec = Literal["av1", "h264"]
CODECS: tuple[Codec, ...] = get_args(Codec)

KEYFRAME_INTERVAL = 2
"""Frames from one keyframe to the next, as in LeRobot's own videos: a random frame costs at most two decoded ones."""

_ENCODERS = {"av1": ("libsvtav1", {"preset": "8"}), "h264": ("libx264", {"preset": "medium"})}
_PIXEL_FORMAT = "yuv420p"


class VideoWriter:
    """Encodes frames into an MP4 file; frame i is shown at i / rate.

    Attributes:
        path: of the file.
        frames: how many were written.
        size: what they take so far [bytes], but for those that the encoder still holds.
    """

    def __init__(self, path: Path, *, rate: int, height: int, width: int, codec: Codec, quality: int) -> None:
        """Creates the file.

        Args:
            path: of the file.
            rate: frames per second.
            height, width: of a frame [pixels].
            codec: "av1" or "h264".
            quality: the encoder's constant rate factor; lower is better and larger.

        Raises:
            LeRobotError: an odd height or width, which 4:2:0 video cannot have.
            OSError: no such directory, or the like.
        """
        if height % 2 or width % 2:
            raise LeRobotError(
                f"a view has {height}x{width} pixels, and video needs an even height and width; give images=png"
            )
        # SVT-AV1 writes its settings to the terminal unless it is told to report errors alone.
        os.environ.setdefault("SVT_LOG", "1")
        self.path = path
        self.frames = 0
        self.size = 0
        self._shape = (height, width, 3)
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        name, options = _ENCODERS[codec]
        options = {**options, "g": str(KEYFRAME_INTERVAL), "crf": str(quality)}
        self._stream = self._container.add_stream(name, rate=rate, options=options)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = _PIXEL_FORMAT
        self._stream.codec_context.time_base = Fraction(1, rate)

    def write(self, image: np.ndarray) -> None:
        """Appends an (H, W, 3) uint8 frame. Raises LeRobotError for another shape, OSError of the disk."""
        if image.shape != self._shape:
            raise LeRobotError(f"a frame has shape {image.shape}, those before it {self._shape}; resize it to the same")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts = self.frames
        frame.time_base = self._stream.codec_context.time_base
        self._encode(frame)
        self.frames += 1

    def close(self) -> None:
        """Writes what the encoder still holds, and the file's index. Raises OSError of the disk."""
        try:
            self._encode(None)
        except BaseException:
            # Left open it would be closed some time later, when its file may be gone.
            with suppress(av.FFmpegError):
                self._container.close()
            raise
        try:
            self._container.close()
        except av.FFmpegError as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error

    def _encode(self, frame: av.VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(frame):
                self.size += packet.size
                self._container.mux(packet)
        except av.FFmpegError as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del error, trace
        if kind is None:
            self.close()
        else:
            self._container.close()


def video_info(codec: Codec, *, rate: int, height: int, width: int) -> dict[str, Any]:
    """What `info.json` says of a video feature."""
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": codec,
        "video.pix_fmt": _PIXEL_FORMAT,
        "video.is_depth_map": False,
        "video.fps": rate,
        "video.channels": 3,
        "has_audio": False,
    }


def read_frames(path: Path, *, start: float, rate: float, count: int, first: int = 0) -> Iterator[np.ndarray]:
    """Frames `first` to `count` - 1 of the episode that begins at `start` in a video.

    Decodes forward from the keyframe before, one frame at a time.

    Args:
        path: of the video.
        start: when the episode begins [s].
        rate: frames per second of the dataset.
        count: frames of the episode.
        first: the first one that is wanted, less than `count`.

    Yields:
        (H, W, 3) uint8 RGB.

    Raises:
        LeRobotError: a file that is missing or cannot be decoded, or a frame that it does not have.
    """
    wanted = first
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise LeRobotError(f"{path} has no video stream; copy it again")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            # A little early: times in the file are rounded to its time base.
            moment = max(0.0, start + (first - 0.5) / rate)
            container.seek(int(moment / stream.time_base), stream=stream, backward=True)
            for frame in container.decode(stream):
                position = (frame.time - start) * rate
                if position < wanted - 0.5:
                    continue
                if position > wanted + 0.5:
                    break
                yield frame.to_ndarray(format="rgb24")
                wanted += 1
                if wanted == count:
                    return
    except FileNotFoundError:
        raise LeRobotError(f"{path} does not exist; copy the dataset's videos, or give a part without them") from None
    except av.FFmpegError as error:
        raise LeRobotError(f"{path} cannot be decoded ({error}); copy it again") from error
    if wanted < count:
        raise LeRobotError(
            f"{path} has no frame at {start + wanted / rate:.4f} s, frame {wanted} of {count} of an episode; "
            "copy it again, or leave the episode out"
        )
