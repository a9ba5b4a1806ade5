"""What a checkpoint of another layout says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(kw_only=True)
class Foreign:
    """Read from a directory by `openpi.read` or `lerobot.read`; None where it does not say.

    Attributes:
        action_dim, action_horizon, max_token_len, image_size: as in KIConfig.
        norm_stats: bytes of `norm_stats.json`.
        norm_stats_file: where they come from.
        entries: names in the directory that were read.
        not_carried: what was read and has no place in this package's layout.
        assumed: what was taken for granted.
    """

    action_dim: int | None = None
    action_horizon: int | None = None
    max_token_len: int | None = None
    image_size: int | None = None
    norm_stats: bytes | None = None
    norm_stats_file: Path | None = None
    entries: set[str] = field(default_factory=set)
    not_carried: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
