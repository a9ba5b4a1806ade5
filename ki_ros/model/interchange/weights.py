"""The weights of a checkpoint, whole or refused, as a stream of another dtype and other names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ki_ros.model.checkpoint import (
    DEAD,
    EMBEDDING,
    EMBEDDING_ALIAS,
    INDEX_FILE,
    StoredTensor,
    open_weights,
    read_headers,
    require_match,
    require_same_embedding,
    weight_files,
)
from ki_ros.model.config import KIConfig
from ki_ros.model.interchange.errors import InterchangeError
from ki_ros.model.interchange.stream import StreamedTensor
from ki_ros.model.model import KIModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What weights can be converted to."""

DEAD_HEAD = DEAD
"""The expert's language head: every file of openpi and LeRobot holds it, and no computation reads it."""

_TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _TORCH_DTYPES.items()}
_PIECE = 1 << 22
"""Values of a piece: up to 32 MB."""


def weight_entries(directory: Path) -> set[str]:
    """Names of the files in a directory that its weights are in, the index of shards included."""
    files = {file.name for file in weight_files(directory)}
    return files | ({INDEX_FILE} if INDEX_FILE in {file.name for file in directory.iterdir()} else set())


def first_name(directory: Path) -> str:
    """The name of a tensor of the checkpoint, as the file has it."""
    for file in weight_files(directory):
        with open_weights(file) as handle:
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                return name
    raise InterchangeError(f"{directory} holds no tensor; give a pi0.5 checkpoint")


@dataclass(frozen=True)
class _Target:
    source: StoredTensor
    dtype: torch.dtype


class Weights:
    """All tensors of a checkpoint in a directory; a context that keeps its files open.

    Args:
        directory: of the checkpoint.
        config: sizes of the model.
        dtype: None keeps every tensor's. Others are as DTYPES; with "bfloat16" the layers that compute in float32 all
            the same (`KIModel.parameter_dtype`) keep theirs.

    Raises:
        CheckpointError: tensors that are missing, left over, of a wrong shape or not floating point; a damaged file.
    """

    def __init__(self, directory: Path, config: KIConfig, dtype: str | None) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise InterchangeError(f"dtype is {dtype!r}; use one of {', '.join(DTYPES)}, or leave it out")
        stored = read_headers(weight_files(directory))
        with torch.device("meta"):
            model = KIModel(config)
        expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        alias = stored.pop(EMBEDDING_ALIAS, None)
        if alias is not None:
            require_same_embedding(directory, alias, stored.setdefault(EMBEDDING, alias))
        dead = stored.pop(DEAD_HEAD, None)
        require_match(directory, expected, stored)
        self.has_dead_head = dead is not None
        self._dead_shape = (config.language.vocab_size, config.expert.width)
        self._targets = {name: _Target(stored[name], _target(name, stored[name], dtype)) for name in expected}
        self._stack = ExitStack()
        self._handles: Mapping[Path, Any] = {}

    def __enter__(self) -> Weights:
        files = {target.source.file for target in self._targets.values()}
        self._handles = {file: self._stack.enter_context(open_weights(file)) for file in files}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def precision(self) -> str:
        """The dtype that most values are written in: "float32" or "bfloat16"."""
        values = dict.fromkeys(_NAMES, 0)
        for target in self._targets.values():
            values[target.dtype] += torch.Size(target.source.shape).numel()
        return "bfloat16" if max(values, key=values.__getitem__) in (torch.bfloat16, torch.float16) else "float32"

    def tensors(self, *, prefix: str = "", dead_head: bool = False) -> list[StreamedTensor]:
        """What to write: names begin with `prefix`, and the tied embedding goes by its head's name.

        `dead_head` adds the expert's unused head, as zeros, for loaders that insist on it.
        """
        tensors = [
            StreamedTensor(
                prefix + (EMBEDDING_ALIAS if name == EMBEDDING else name),
                _NAMES[target.dtype],
                target.source.shape,
                partial(self._pieces, target),
            )
            for name, target in self._targets.items()
        ]
        if dead_head:
            dtype = _NAMES[self._targets[EMBEDDING].dtype]
            tensors.append(StreamedTensor(prefix + DEAD_HEAD, dtype, self._dead_shape))
        return tensors

    def _pieces(self, target: _Target) -> Iterator[memoryview]:
        source = target.source
        for piece in self._handles[source.file].get_tensor(source.name).reshape(-1).split(_PIECE):
            cast = piece.to(target.dtype)
            if cast is not piece and not torch.equal(cast.isfinite(), piece.isfinite()):
                raise InterchangeError(
                    f"{source.file}: {source.name} holds values beyond the range of {target.dtype}; leave dtype out"
                )
            yield memoryview(cast.view(torch.uint8).numpy())


def _target(name: str, source: StoredTensor, dtype: str | None) -> torch.dtype:
    own = _TORCH_DTYPES[source.dtype]
    if dtype is None:
        return own
    wanted = DTYPES[dtype]
    return wanted if KIModel.parameter_dtype(name, wanted) == wanted else own
