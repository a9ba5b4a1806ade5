"""The command line: ki-ros <command>. Each command lives in `ki_ros.commands`; this file declares their arguments."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import tyro
from rich.console import Console
from rich.markup import escape

from ki_ros import bringup
from ki_ros.files import require_writable


@dataclass
class Demo:
    """Run the simulated rig with the policy and write a report: table, report.json, report.png."""

    seconds: float = 20.0
    """How long to run, on the simulator's clock [s]."""
    output: Path = Path("out")
    """Directory of the report and of the logs."""
    instruction: str = ""
    """What to ask of the policy; empty: to reach each block of the scene in turn."""
    preset: str = ""
    """Model preset; empty: the parameter file's."""
    checkpoint: str = ""
    """Checkpoint; empty: the parameter file's."""
    params_file: str = ""
    """Parameter file; empty: config/droid_sim.yaml."""
    json: Path | None = None
    """Write the figures to this file too."""


@dataclass
class Record:
    """Record demonstrations on a running rig: one bag per episode, begun and ended from the keyboard or by services."""

    output: Path = Path(bringup.RECORDINGS)
    """Directory below which every episode has one of its own."""
    params_file: str = ""
    """Parameter file of the graph, for its topics; empty: config/droid_zed.yaml, with sim config/droid_sim.yaml."""
    instruction: str = ""
    """Instruction of the episodes; empty: the one in force."""
    robot: str = ""
    """Arm, noted in every episode: panda or fr3; empty: the file's."""
    sim: bool = False
    """The rig is the simulated one, and the time is its clock's."""
    auto_episodes: bool = False
    """Each new instruction ends an episode and begins the next."""
    plain: bool = False
    """Run `ros2 bag record` of the same topics instead: one bag, no services, no outcome."""
    print_plain: bool = False
    """Print that command and do nothing."""


@dataclass
class Replay:
    """Publish a recorded DROID episode on the topics of cameras, joints and gripper, as the rig's drivers would."""

    path: Annotated[Path, tyro.conf.Positional]
    """Directory of the episodes: episode_NNN.npz, episodes.json and images/."""
    episode: int = 0
    """Number of the episode."""
    set_instruction: bool = True
    """Set the episode's instruction through the service before it begins."""
    robot: str = "panda"
    """Arm whose joint names are published: panda or fr3."""
    json: Path | None = None
    """Write the figures of the run to this file."""


@dataclass
class Train:
    """Train a policy. Under torchrun, all processes take part: torchrun --nproc-per-node 8 -m ki_ros.cli train ..."""

    config: Annotated[Path, tyro.conf.Positional]
    """The run, as YAML; config/train has examples."""
    bags: Path | None = None
    """Directory of bags to train on, in place of the file's data."""
    set: tuple[str, ...] = ()
    """Fields to set on top of the file, such as optimizer.learning_rate=1e-4."""
    output: Path | None = None
    """Directory of the run; the file's when left out."""
    resume: bool = False
    """Go on from the newest checkpoint in the output."""
    dry_run: bool = False
    """Print what the run needs in memory, for each way to spread it, and allocate nothing."""
    status: Path | None = None
    """Keep this file at where the run is, as JSON, for another process to read."""
    json: Path | None = None
    """Write the figures to this file too."""


@dataclass
class Cache:
    """Read bags once into a cache for training: resumable, only what is new or has changed, several processes."""

    bags: Annotated[Path, tyro.conf.Positional]
    """Directory of the bags, at any depth."""
    output: Annotated[Path, tyro.conf.Positional]
    """Directory of the cache; `ki-ros train` takes BAGS.cache when nothing else is said."""
    params_file: Path | None = None
    """Parameter file of the graph that the bags were recorded with; left out: topics are found in the bags."""
    encoding: Literal["jpeg", "raw"] = "jpeg"
    """How pictures are kept; raw ones are exact and nine times as large."""
    quality: int = 95
    """Of JPEG, 1 to 100."""
    workers: int = 0
    """Processes; 0: one for each core."""
    json: Path | None = None
    """Write the figures to this file too."""


@dataclass
class Bags:
    """Check recordings: each episode's length, rates, gaps, skew, limits exceeded, and a verdict."""

    action: Annotated[Literal["check"], tyro.conf.Positional]
    """What to do with them."""
    directory: Annotated[Path, tyro.conf.Positional]
    """Directory with bags in it or below it, or one bag."""
    strict: bool = False
    """End with status 1 when a verdict is bad, or a bag has no episode."""
    json: Path | None = None
    """Write the figures to this file too."""
    pictures: Path | None = None
    """Directory for a picture of each episode."""
    params_file: Path | None = None
    """Parameter file of the graph that was recorded; without it the topics are found in the bags."""


TaskName = Literal["reach", "push", "pick"]


@dataclass
class Collect:
    """Record demonstrations of the simulated tasks by a scripted operator, one bag each. Resumes what is incomplete."""

    output: Annotated[Path, tyro.conf.Positional]
    """Directory of the bags."""
    tasks: tuple[TaskName, ...] = ("reach", "push", "pick")
    """What to demonstrate."""
    episodes: int = 100
    """Demonstrations of each task."""
    seed: int = 0
    """Seed of the first one; the others have those that follow."""
    quality: int | None = 95
    """Of JPEG images; None for raw ones."""
    workers: int = 0
    """Processes; 0 for as many as there are processors."""
    json: Path | None = None
    """Write the figures to this file too."""


@dataclass
class Evaluate:
    """Run a policy in the simulated tasks, in lockstep: success and language following with 95 % intervals."""

    checkpoint: Path | None = None
    """Checkpoint; left out: untrained weights of the preset."""
    preset: str = "ki_tiny"
    """Model preset, without a checkpoint."""
    task: tuple[TaskName, ...] = ("reach", "push", "pick")
    """What to ask for."""
    episodes: int = 100
    """Episodes of each task."""
    seed: int = 7
    """Of scenes and noise. No demonstration has such scenes."""
    replan: int = 5
    """Rows of a chunk to execute before the next one."""
    latency: float = 0.0
    """Simulated time from an observation to the chunk that answers it [s]."""
    schedule: Literal["synchronous", "latency_compensated", "temporal_ensemble", "rtc", "rtc_trained"] = (
        "latency_compensated"
    )
    """How chunks follow each other. rtc: each agrees with the one before, by guidance; rtc_trained: as a model with
    committed_rows was trained to."""
    num_steps: int = 10
    """Integration steps of an inference."""
    backbone: bool = False
    """Act by the backbone's FAST tokens in place of the action expert."""
    workers: int = 0
    """Processes; 0 for as many as there are processors."""
    json: Path | None = None
    """Write the figures to this file too."""


@dataclass
class CheckpointImport:
    """Take over a public checkpoint: openpi's PyTorch layout or LeRobot's pi05."""

    source: Annotated[Path, tyro.conf.Positional]
    """Directory of an openpi (PyTorch) or LeRobot pi05 checkpoint."""
    output: Annotated[Path, tyro.conf.Positional]
    """New directory of the imported checkpoint."""
    format: Literal["auto", "openpi", "lerobot"] = "auto"
    """Layout of the source; auto: recognised by its files."""
    preset: str = "pi05_droid_ki"
    """Configuration for what the source does not say."""
    action_space: str = ""
    """Action space of a source that does not name its own: joint_velocity or joint_position; empty: the preset's."""
    norm_stats: Path | None = None
    """norm_stats.json to use instead of the source's statistics."""
    tokenizer: Path | None = None
    """Sentencepiece model to put beside the weights."""
    dtype: Literal["", "float32", "bfloat16"] = ""
    """Dtype to cast to; empty: each tensor keeps its own."""
    overwrite: bool = False
    """Replace an output that a conversion wrote."""


@dataclass
class CheckpointExport:
    """Write a checkpoint for openpi or LeRobot."""

    source: Annotated[Path, tyro.conf.Positional]
    """Directory of a checkpoint of this package."""
    output: Annotated[Path, tyro.conf.Positional]
    """New directory of the exported checkpoint."""
    format: Literal["openpi", "lerobot"]
    """Layout to write."""
    asset_id: str = "droid"
    """Asset id of openpi's training configuration, under which it looks for the statistics."""
    dtype: Literal["", "float32", "bfloat16"] = ""
    """Dtype to cast to; empty: each tensor keeps its own."""
    overwrite: bool = False
    """Replace an output that a conversion wrote."""


@dataclass
class Checkpoint:
    """Convert checkpoints from and to other software, without loss."""

    action: (
        Annotated[CheckpointImport, tyro.conf.subcommand("import")]
        | Annotated[CheckpointExport, tyro.conf.subcommand("export")]
    )


@dataclass
class Export:
    """Write demonstrations for other software: a LeRobotDataset v3.0, complete or not at all."""

    format: Annotated[Literal["lerobot"], tyro.conf.Positional]
    """What to write."""
    source: Annotated[Path, tyro.conf.Positional]
    """Directory of a cache, or of bags."""
    output: Annotated[Path, tyro.conf.Positional]
    """New directory of the dataset."""
    images: Literal["video", "png"] = "video"
    """How pictures are kept; png is exact and larger."""
    codec: Literal["av1", "h264"] = "av1"
    """Of videos."""
    quality: int | None = None
    """Constant rate factor of videos, lower is better; left out: 23 for av1, 18 for h264."""
    action_space: Literal["joint_position", "joint_velocity"] = "joint_position"
    """What the first seven values of an action mean."""
    views: tuple[Literal["exterior_1", "exterior_2", "wrist"], ...] = ()
    """Cameras; left out: those of the first episode."""
    outcomes: tuple[Literal["success", "failure", "unknown"], ...] = ("success", "failure", "unknown")
    """Of the episodes to write."""
    instruction: str = ""
    """Of episodes that were recorded without one; empty: they are refused."""
    params_file: Path | None = None
    """Parameter file of the graph that bags were recorded with; left out: topics are found in the bags."""
    json: Path | None = None
    """Write the figures to this file too."""


@dataclass
class Sweep:
    """Train over a grid of settings, resumably, and report: table, sweep.json, sweep.md, sweep.png."""

    config: Annotated[Path, tyro.conf.Positional]
    """The sweep, as YAML; config/sweep has examples."""
    set: tuple[str, ...] = ()
    """Fields of all its trainings to set on top of the file, such as steps=100."""
    output: Path | None = None
    """Directory of the sweep; the file's when left out."""
    jobs: int = 1
    """Runs at a time; each has its share of the cores."""
    json: Path | None = None
    """Write the figures to this file too."""


def _up_arguments() -> type:
    """The settings of the graph as a command line: the same names and descriptions as the launch file's arguments."""
    hints = get_type_hints(bringup.Settings)
    return make_dataclass(
        "Up",
        [
            (f.name, Annotated[hints[f.name], tyro.conf.arg(help=f.metadata["help"])], field(default=f.default))
            for f in fields(bringup.Settings)
        ],
        namespace={"__doc__": "Start the graph, as droid_policy.launch.py does, where ROS has no launch package."},
    )


Up = _up_arguments()

Command = (
    Annotated[Up, tyro.conf.subcommand("up")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Record, tyro.conf.subcommand("record")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Bags, tyro.conf.subcommand("bags")]
    | Annotated[Cache, tyro.conf.subcommand("cache")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Checkpoint, tyro.conf.subcommand("checkpoint")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Ends the process with the command's exit status; an error is one message, without a traceback."""
    command = tyro.cli(
        tyro.conf.OmitSubcommandPrefixes[Command],
        prog="ki-ros",
        description="A Knowledge-Insulated vision-language-action policy on a DROID robot.",
        args=arguments,
    )
    try:
        sys.exit(_run(command))
    except KeyboardInterrupt:
        # Whoever is impatient with the interpreter's end gets no traceback of it.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        said = f"[red]ki-ros:[/] {escape(str(error))}"
        Console(stderr=True).print(said, highlight=False, emoji=False, soft_wrap=True)
        sys.exit(1)


def _run(command: Command) -> int:
    _require_writable(command)
    # Imported here, so that `ki-ros --help` needs neither ROS nor torch.
    if isinstance(command, Demo):
        from ki_ros.commands.demo import demo

        return demo(**vars(command))
    if isinstance(command, Record):
        from ki_ros.commands.record import record

        return record(**vars(command))
    if isinstance(command, Replay):
        from ki_ros.commands.replay import replay

        return replay(**vars(command))
    if isinstance(command, Bags):
        from ki_ros.commands.bags import check_bags

        arguments = vars(command)
        del arguments["action"]
        return check_bags(**arguments)
    if isinstance(command, Checkpoint):
        from ki_ros.commands.checkpoint import export_checkpoint, import_checkpoint

        convert = import_checkpoint if isinstance(command.action, CheckpointImport) else export_checkpoint
        return convert(**vars(command.action))
    if isinstance(command, Collect):
        from ki_ros.commands.collect import collect
        from ki_ros.sim.tasks import Task

        return collect(**{**vars(command), "tasks": tuple(map(Task, command.tasks))})
    if isinstance(command, Evaluate):
        from ki_ros.commands.evaluate import evaluate
        from ki_ros.sim.tasks import Task

        return evaluate(**{**vars(command), "task": tuple(map(Task, command.task))})
    if isinstance(command, Export):
        from ki_ros.commands.export import export_lerobot

        arguments = vars(command)
        del arguments["format"]
        return export_lerobot(**arguments)
    if isinstance(command, Sweep):
        from ki_ros.commands.sweep import sweep

        return sweep(**vars(command))
    if isinstance(command, Cache):
        from ki_ros.commands.cache import cache

        return cache(**vars(command))
    if isinstance(command, Train):
        from ki_ros.commands.train import train

        return train(**vars(command))
    from ki_ros.commands.up import up

    return up(bringup.Settings(**vars(command)))


def _require_writable(command: Command) -> None:
    """Finds out before the work what could not be written after it."""
    if os.environ.get("RANK", "0") != "0":
        # Of the processes of a training, only the first writes.
        return
    # These a command makes itself.
    made = {getattr(command, name, None) for name in ("output", "pictures")}
    for name in ("json", "status"):
        file: Path | None = getattr(command, name, None)
        if file is not None and (file.parent.exists() or file.parent not in made):
            require_writable(file, name)


if __name__ == "__main__":
    main()
