"""`ki-ros train --dry-run`: what a run needs in memory, before anything is allocated."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ki_ros.training.config import TrainConfig

console = Console()


def show_memory(config: TrainConfig, json: Path | None) -> int:
    raise NotImplementedError
