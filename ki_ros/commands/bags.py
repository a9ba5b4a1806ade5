"""`ki-ros bags check`: what recordings are worth, as a table, as figures, and as a picture of each episode."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ki_ros.commands.progress import progress_bar
from ki_ros.data.actions import CommandTopics
from ki_ros.data.bag import bag_name, find_bags
from ki_ros.data.check import BagCheck, EpisodeFigures, StreamFigures, Verdict, as_json, check_bag
from ki_ros.files import write_json
from ki_ros.observation.rig_streams import RigStreams

console = Console()

_COLOURS = {Verdict.GOOD: "green", Verdict.DOUBTFUL: "yellow", Verdict.BAD: "red"}


def check_bags(
    *,
    directory: Path,
    strict: bool = False,
    json: Path | None = None,
    pictures: Path | None = None,
    params_file: Path | None = None,
) -> int:
    """Checks every bag below a directory and prints a table; returns the exit status.

    Arguments as in `ki_ros.cli.Bags`. With `strict` the status is 1 when a verdict is bad, or a bag has no episode.

    Raises:
        ValueError: a directory without bags, or a parameter file that is wrong.
        OSError: a file that cannot be written.
    """
    if not directory.exists():
        raise ValueError(f"directory is {directory}, which does not exist; give one with bags")
    bags = find_bags(directory)
    if not bags:
        raise ValueError(f"directory is {directory}, and no bag is in it or below it; give one with recordings")
    streams = None if params_file is None else RigStreams.from_parameter_file(params_file)
    commands = None if params_file is None else CommandTopics.from_parameter_file(params_file)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    table = _table()
    verdicts: Counter[Verdict] = Counter()
    unread: list[str] = []
    rows = []
    with progress_bar("checking", "", Console(stderr=True), transient=True) as bar:
        for bag in bar.track(bags):
            check = check_bag(bag, streams, commands)
            name = bag_name(bag, directory)
            _add(table, name, check)
            verdicts += Counter(figures.verdict for _, figures in check.episodes)
            if check.error:
                unread.append(check.error)
            rows.append(as_json(check))
            if pictures is not None:
                _draw(check, name, pictures)
    if table.row_count:
        console.print(table)
    for error in unread:
        console.print(f"[red]no episode:[/] {escape(error)}", highlight=False, soft_wrap=True)
    counts = [f"[{_COLOURS[verdict]}]{verdicts[verdict]} {verdict.value}[/]" for verdict in Verdict]
    console.print(
        f"{_counted(len(bags), 'bag')}, {_counted(verdicts.total(), 'episode')}: {', '.join(counts)}; "
        f"{_counted(len(unread), 'bag')} without an episode",
        highlight=False,
    )
    if json is not None:
        summary = {verdict.value: verdicts[verdict] for verdict in Verdict} | {"unread": len(unread)}
        write_json(json, {"bags": rows, "verdicts": summary})
    return int(strict and (verdicts[Verdict.BAD] > 0 or bool(unread)))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _draw(check: BagCheck, name: str, directory: Path) -> None:
    # Needs matplotlib, which a check without pictures does not.
    from ki_ros.data.check_picture import draw_episode

    for number, (episode, figures) in enumerate(check.episodes, 1):
        stem = re.sub(r"[^\w.-]+", "_", name) + (f"_{number}" if len(check.episodes) > 1 else "")
        draw_episode(episode, figures, directory / f"{stem}.png")


def _table() -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=False)
    table.add_column("episode", overflow="fold")
    table.add_column("instruction, outcome", overflow="fold", max_width=28)
    table.add_column("length")
    table.add_column("streams: rate, longest gap, missing", no_wrap=True)
    table.add_column("skew", justify="right")
    table.add_column("limits")
    table.add_column("idle", justify="right")
    table.add_column("verdict", overflow="fold", max_width=44)
    return table


def _add(table: Table, name: str, check: BagCheck) -> None:
    for _, figures in check.episodes:
        table.add_row(
            # The recorder's directories are named after the time and the episode.
            escape(name if name.endswith(figures.id) else f"{name}: {figures.id}"),
            f"{escape(figures.instruction) or '[red]none[/]'}\n[dim]{figures.outcome}, {figures.action_source}[/]",
            f"{figures.seconds:.1f} s\n{figures.steps} steps\n{figures.segments} segment{'s' * (figures.segments > 1)}",
            "\n".join(_stream(stream, each) for stream, each in figures.streams.items()),
            f"{figures.skew[0] * 1e3:.0f} ms\n≤ {figures.skew[1] * 1e3:.0f} ms",
            _limits(figures),
            f"{figures.idle_share:.0%}",
            _verdict(figures),
        )
        table.add_row()


def _stream(name: str, stream: StreamFigures) -> str:
    if stream.rate is None:
        return f"{name:<12} one message"
    lost = f"[yellow]{stream.lost}[/]" if stream.lost else "0"
    return f"{name:<12} {stream.rate:6.1f} Hz {stream.longest_gap * 1e3:5.0f} ms {lost}"


def _limits(figures: EpisodeFigures) -> str:
    position = f"{figures.position_excess:.3f} rad over" if figures.position_excess else "within"
    tracking = "none" if figures.tracking is None else f"{figures.tracking:.3f} rad"
    return f"position {position}\nvelocity {figures.velocity_share:.0%}\ncommand {tracking}"


def _verdict(figures: EpisodeFigures) -> str:
    colour = _COLOURS[figures.verdict]
    lines = [f"[{colour}]{figures.verdict.value}[/]"]
    lines += [f"[{_COLOURS[finding.verdict]}]-[/] {escape(finding.text)}" for finding in figures.findings]
    return "\n".join(lines)
