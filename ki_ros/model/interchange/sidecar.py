"""`ki_ros.json`: beside an exported checkpoint, what the other layout has no place for. Other software ignores it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ki_ros.model.config import ConfigError, KIConfig
from ki_ros.model.interchange.documents import encode, read_object
from ki_ros.model.interchange.errors import InterchangeError

SIDE_FILE = "ki_ros.json"
_VERSION = 1
_FIELDS = {"version", "config", "norm_stats"}


@dataclass(frozen=True)
class Sidecar:
    """The model's configuration and, where the layout cannot hold it whole, the document `norm_stats.json`."""

    config: KIConfig
    norm_stats: dict[str, Any] | None = None

    def write(self, directory: Path) -> None:
        """Writes `ki_ros.json`."""
        values = {"version": _VERSION, "config": self.config.to_dict(), "norm_stats": self.norm_stats}
        (directory / SIDE_FILE).write_bytes(encode(values))

    @classmethod
    def read(cls, directory: Path) -> Sidecar | None:
        """What is in `ki_ros.json`; None when there is none. Raises InterchangeError when it is not whole."""
        file = directory / SIDE_FILE
        if not file.is_file():
            return None
        values = read_object(file)
        if values.get("version") != _VERSION:
            raise InterchangeError(f"{file}: version is {values.get('version')!r}; this software reads {_VERSION}")
        if set(values) != _FIELDS:
            raise InterchangeError(f"{file} has the fields {sorted(values)}; expected {sorted(_FIELDS)}. Export again")
        try:
            config = KIConfig.from_dict(values["config"])
        except ConfigError as error:
            raise InterchangeError(f"{file}: {error}") from error
        return cls(config, values["norm_stats"])
