"""The command line: ki-ros <command>. Each command lives in `ki_ros.commands`; this file declares their arguments."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import tyro
from rich.console import Console

from ki_ros import bringup


@dataclass
class Demo:
    """Run the simulated rig with the policy and write a report: table, report.json, report.png."""

    seconds: float = 20.0
    """How long to run, on the simulator's clock [s]."""
    output: Path = Path("out")
    """Directory of the report and of the logs."""
    instruction: str = "pick up the red block and put it on the blue one"
    """What to ask of the policy."""
    preset: str = ""
    """Model preset; empty: ki_tiny."""
    checkpoint: str = ""
    """Checkpoint; empty: untrained weights."""
    params_file: str = ""
    """Parameter file; empty: config/droid_sim.yaml."""
    json: Path | None = None
    """Write the figures to this file too."""


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
    json: Path | None = None
    """Write the figures to this file too."""


@dataclass
class Cache:
    """Read bags once into a cache for training: resumable, only what is new or has changed, several processes."""

    bags: Annotated[Path, tyro.conf.Positional]
    """Directory of the bags, at any depth."""
    output: Annotated[Path, tyro.conf.Positional]
    """Directory of the cache; `ki-ros train` takes BAGS.cache when nothing else is said."""
    parameters: Path | None = None
    """Parameter file of the observation node that they were recorded with; left out: topics are found in the bags."""
    encoding: Literal["jpeg", "raw"] = "jpeg"
    """How pictures are kept; raw ones are exact and nine times as large."""
    quality: int = 95
    """Of JPEG, 1 to 100."""
    workers: int = 0
    """Processes; 0: one for each core."""
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
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Cache, tyro.conf.subcommand("cache")]
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
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        Console(stderr=True).print(f"[red]ki-ros:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _run(command: Command) -> int:
    # Imported here, so that `ki-ros --help` needs neither ROS nor torch.
    if isinstance(command, Demo):
        from ki_ros.commands.demo import demo

        return demo(**vars(command))
    if isinstance(command, Replay):
        from ki_ros.commands.replay import replay

        return replay(**vars(command))
    if isinstance(command, Checkpoint):
        from ki_ros.commands.checkpoint import export_checkpoint, import_checkpoint

        convert = import_checkpoint if isinstance(command.action, CheckpointImport) else export_checkpoint
        return convert(**vars(command.action))
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


if __name__ == "__main__":
    main()
