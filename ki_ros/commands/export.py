"""`ki-ros export lerobot`: demonstrations for other software."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console

from ki_ros.commands.losses import print_damaged, print_left_out
from ki_ros.commands.progress import progress_bar
from ki_ros.data.lerobot import ExportOptions, ExportProgress, ExportReport, export_dataset
from ki_ros.data.lerobot.features import Images
from ki_ros.data.lerobot.source import open_source
from ki_ros.data.lerobot.video import Codec
from ki_ros.files import write_json
from ki_ros.rig import ActionSpace, CameraRole

console = Console()


def export_lerobot(
    *,
    source: Path,
    output: Path,
    images: Images,
    codec: Codec,
    quality: int | None,
    action_space: Literal["joint_position", "joint_velocity"],
    views: tuple[str, ...],
    outcomes: tuple[str, ...],
    instruction: str,
    params_file: Path | None,
    json: Path | None,
) -> int:
    """Exports with a bar and prints what was written; returns the exit status. Arguments as in `ki_ros.cli`.

    Raises:
        ValueError, OSError: as `source.open_source` and `export_dataset`.
    """
    options = ExportOptions(
        action_space=ActionSpace.parse(action_space),
        images=images,
        codec=codec,
        quality=quality,
        views=tuple(CameraRole(view) for view in views) or None,
        outcomes=outcomes,
        instruction=instruction,
    )
    origins = open_source(source, params_file)
    with progress_bar("exporting", "{task.fields[frames]:,} frames", console, transient=True) as bar:
        task = bar.add_task("", total=None, frames=0)

        def show(progress: ExportProgress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, frames=progress.frames)

        report = export_dataset(origins, output, options, progress=show)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    _print(report, output, size)
    if json is not None:
        write_json(json, vars(report) | {"output": str(output), "bytes": size})
    return 0


def _print(report: ExportReport, output: Path, size: int) -> None:
    print_left_out(console, report.refused)
    for outcome, count in sorted(report.other_outcomes.items()):
        console.print(f"[yellow]left out[/] {count} of outcome {outcome}", highlight=False)
    print_damaged(console, report.damaged)
    console.print(
        f"{output}: {report.recorded} episodes as {report.episodes}, {report.frames:,} frames, {report.tasks} tasks, "
        f"{size / 1e6:.1f} MB",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
