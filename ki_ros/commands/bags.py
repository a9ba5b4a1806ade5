"""`ki-ros bags check`: what recordings are worth, in words, as figures, and as a picture of each episode."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

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
    """Checks every bag below a directory and prints what they are worth; returns the exit status.

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
    verdicts: Counter[Verdict] = Counter()
    unread: list[str] = []
    rows = []
    with progress_bar("checking", "", Console(stderr=True), transient=True) as bar:
        for bag in bar.track(bags):
            check = check_bag(bag, streams, commands)
            name = bag_name(bag, directory)
            for _, figures in check.episodes:
                _print(name, figures)
            verdicts += Counter(figures.verdict for _, figures in check.episodes)
            if check.error:
                unread.append(check.error)
            rows.append(as_json(check))
            if pictures is not None:
                _draw(check, name, pictures)
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


def _print(name: str, figures: EpisodeFigures) -> None:
    """An episode in lines that a terminal of 80 columns holds, the verdict in the first."""
    colour = _COLOURS[figures.verdict]
    # The recorder's directories are named after the time and the episode.
    title = name if name.endswith(figures.id) else f"{name}: {figures.id}"
    console.print(f"[{colour}]{figures.verdict.value:<8}[/] [bold]{escape(title)}[/]", highlight=False, soft_wrap=True)
    for line in (
        f"{escape(repr(figures.instruction)) if figures.instruction else '[red]no instruction[/]'}, {figures.outcome}",
        f"{figures.seconds:.1f} s, {_counted(figures.steps, 'step')}, {_counted(figures.segments, 'segment')}, "
        f"{figures.idle_share:.0%} idle, actions: {escape(figures.action_source)}",
        *(_stream(stream, each) for stream, each in figures.streams.items()),
        f"skew {figures.skew[0] * 1e3:.0f} ms, at most {figures.skew[1] * 1e3:.0f} ms; {_limits(figures)}",
        *(f"[{_COLOURS[finding.verdict]}]-[/] {escape(finding.text)}" for finding in figures.findings),
    ):
        console.print(Padding(line, (0, 0, 0, 9)), highlight=False)
    console.print()


def _stream(name: str, stream: StreamFigures) -> str:
    if stream.rate is None:
        return f"{name:<12} one message"
    lost = f"[yellow]{stream.lost} missing[/]" if stream.lost else "none missing"
    return f"{name:<12} {stream.rate:6.1f} Hz, longest gap {stream.longest_gap * 1e3:.0f} ms, {lost}"


def _limits(figures: EpisodeFigures) -> str:
    position = f"position {figures.position_excess:.3f} rad beyond" if figures.position_excess else "position within"
    tracking = "no command" if figures.tracking is None else f"{figures.tracking:.3f} rad from the command"
    return f"{position} the limits, velocity {figures.velocity_share:.0%}, {tracking}"
