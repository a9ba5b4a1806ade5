"""Runs over a grid of settings: one file that says which, and what each of them left behind."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ki_ros.model.config import KIConfig
from ki_ros.training.build import resolve_model
from ki_ros.training.config import TrainConfig, apply_overrides, flatten, parse, parse_value, read_yaml
from ki_ros.training.metrics import METRICS_FILE, read_metrics
from ki_ros.training.state import checkpoints, read_progress

CONFIG_FILE = "config.yaml"
"""The run's resolved configuration in its directory, as `ki-ros train` reads it."""

RESULT_FILE = "result.json"
"""What a finished run is reported by; a run without one is not finished."""

MAX_NAME = 120
"""Longest name of a run; of longer ones the end is a digest [characters]."""

_FIELDS = ("output", "base", "set", "grid", "runs", "seeds")
_SHORT = {
    "model.changes.knowledge_insulation_lambda": "lambda",
    "model.changes.knowledge_insulation": "insulation",
}
_SAFE = re.compile(r"[A-Za-z0-9._+-]+")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_MAX_VALUE = 24
_SEED = "seed"


class SweepError(ValueError):
    """A sweep that cannot be run; the message names the field or the run, the value and the fix."""


@dataclass(frozen=True)
class Run:
    """One training of a sweep.

    Attributes:
        name: of its directory, made of its settings.
        point: the name without the seed, which all seeds of the same settings share.
        settings: value of each axis of the sweep by its label; the seed is none of them.
        config: of the training, its output included.
        model: configuration of the model that follows from it.
    """

    name: str
    point: str
    settings: dict[str, Any]
    config: TrainConfig
    model: KIConfig

    @property
    def directory(self) -> Path:
        """Where the run is."""
        return self.config.output


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep, in the order in which they are begun.

    Attributes:
        output: directory whose directories are the runs'.
        axes: labels of the fields that the grid is over, without the seed.
        runs: with unique names and configurations.
    """

    output: Path
    axes: tuple[str, ...]
    runs: tuple[Run, ...]


def load(path: Path, overrides: Sequence[str] = (), output: Path | None = None) -> Sweep:
    """The sweep in a YAML file. Its fields:

    - `output`: directory of the sweep.
    - `base`: training configuration of all runs: a path, relative to the sweep's file, or a mapping.
    - `set`: dotted fields of it to set for all runs, such as `optimizer.learning_rate: 1.0e-4`.
    - `grid`: dotted fields with the list of values of each; every combination is a run.
    - `runs`: list of `{name, set}`, for runs off the grid.
    - `seeds`: every run is made once with each.

    Args:
        path: of the file.
        overrides: as `set`, each as `field=value`, on top of it.
        output: instead of the file's.

    Raises:
        SweepError: an unknown or wrong field, or a run whose configuration is wrong or another run's; names it.
        TrainConfigError: a file that cannot be read as YAML.
    """
    values = read_yaml(path)
    try:
        return _sweep(values, path.parent, overrides, output)
    except SweepError as error:
        raise SweepError(f"{path}: {error}") from None


def require_same(sweep: Sweep) -> None:
    """Raises SweepError if a run's directory is that of a run with another configuration, whatever its output."""
    for run in sweep.runs:
        file = run.directory / CONFIG_FILE
        if not file.exists():
            continue
        recorded, now = (dict(flatten(c.to_dict())) for c in (_recorded(file), run.config))
        fields = [name for name in sorted(recorded.keys() | now.keys()) if recorded.get(name) != now.get(name)]
        differ = [f"{name} {recorded.get(name)!r}, now {now.get(name)!r}" for name in fields if name != "output"]
        if differ:
            raise SweepError(
                f"run {run.name} in {run.directory} was begun with {'; '.join(differ)}; give the sweep another output, "
                "or remove that directory"
            )


def config_text(run: Run) -> str:
    """The content of the run's `CONFIG_FILE`."""
    return yaml.safe_dump(run.config.to_dict(), sort_keys=False)


def finished(run: Run) -> dict[str, Any] | None:
    """What `measure` said when the run had ended; None for a run that has not.

    Raises:
        SweepError: a file that is damaged.
    """
    file = run.directory / RESULT_FILE
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return {name: result[name] for name in ("steps", "seconds", "revision", "evaluation")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(f"{file} cannot be read ({error!r}); remove it, and the sweep makes it again") from error


def measure(run: Run) -> dict[str, Any]:
    """The result of a run whose process has ended well.

    Returns:
        `steps`; `seconds` spent up to the last checkpoint, evaluations before it and all resumed parts included;
        `revision` of the code at its end, None outside a clone; `evaluation`, the metrics of its last step on held-out
        data, empty where there are none. What is not finite is None.

    Raises:
        SweepError: the run has no checkpoint of its last step.
        MetricsError: its metrics are damaged.
    """
    steps = run.config.steps
    there = checkpoints(run.directory)
    if steps not in there:
        raise SweepError(f"run {run.name} ended, but {run.directory} has no checkpoint of step {steps}; see its log")
    progress = read_progress(there[steps])
    last: dict[str, Any] = {}
    for line in read_metrics(run.directory / METRICS_FILE):
        if line["kind"] == "eval" and line["step"] == steps:
            last = {name: value for name, value in line.items() if name not in ("step", "kind")}
    # Not a number is not equal to itself, and no JSON.
    evaluation = {name: value if value == value else None for name, value in last.items()}
    return {"steps": steps, "seconds": progress.seconds, "revision": progress.git, "evaluation": evaluation}


def _sweep(values: Mapping[str, Any], directory: Path, overrides: Sequence[str], output: Path | None) -> Sweep:
    for name, value in values.items():
        if name not in _FIELDS:
            raise SweepError(f"{name} is {value!r}, but there is no such field; remove it ({', '.join(_FIELDS)})")
    if output is None:
        output = Path(_typed(values, "output", str, "give the directory of the sweep"))
    base = _base(values, directory)
    grid, common = _grid(values), _settings(values.get("set", {}), "set")
    seeds = _seeds(values, grid)
    axes = [name for name in grid if name != _SEED]
    for name in (*common, *(override.partition("=")[0] for override in overrides)):
        if name in grid or (name == _SEED and seeds is not None):
            raise SweepError(f"set has {name}, which differs from run to run; change its values in grid or seeds")
    base = _given("set", apply_overrides, _applied("set", base, common), overrides)
    labels = _labels(axes)

    runs = []
    for point, settings in _points(values, grid, axes, labels):
        for seed in seeds if seeds is not None else (None,):
            name = point if seed is None else f"{point},seed={seed}" if point else f"seed={seed}"
            name = _bounded(name or "run")
            at = f"run {name}"
            resolved = _applied(at, base, settings)
            resolved |= {"output": str(output / name)} | ({_SEED: seed} if seed is not None else {})
            config = _given(at, parse, resolved)
            model = _given(at, resolve_model, config)
            shown = {label: _value(config, model, field) for field, label in zip(axes, labels, strict=True)}
            runs.append(Run(name, point or "run", shown, config, model))
    _require_distinct(runs)
    return Sweep(output, tuple(labels), tuple(runs))


def _typed(values: Mapping[str, Any], name: str, kind: type | tuple[type, ...], fix: str) -> Any:
    if name not in values:
        raise SweepError(f"{name} is missing; {fix}")
    if not isinstance(values[name], kind):
        raise SweepError(f"{name} is {values[name]!r}; {fix}")
    return values[name]


def _given(at: str, function: Any, *arguments: Any) -> Any:
    """What a function returns, its error with the run that it is about."""
    try:
        return function(*arguments)
    except (ValueError, OSError) as error:
        raise SweepError(f"{at}: {error}") from None


def _base(values: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    given = _typed(values, "base", (str, dict), "give the path of a training configuration, or its fields")
    return _given("base", read_yaml, directory / given) if isinstance(given, str) else given


def _settings(given: Any, name: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise SweepError(f"{name} is {given!r}; give a mapping of fields to values, such as steps: 100")
    if "output" in given:
        raise SweepError(f"{name}.output is {given['output']!r}; leave it out: each run has a directory of its own")
    return {str(field): value for field, value in given.items()}


def _grid(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    grid = _settings(values.get("grid", {}), "grid")
    for name, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise SweepError(f"grid.{name} is {choices!r}; give a list of at least one value")
    # As an override has them: 1e-4 is a number in a list of values, too.
    return {
        name: [parse_value(value) if isinstance(value, str) else value for value in choices]
        for name, choices in grid.items()
    }


def _seeds(values: Mapping[str, Any], grid: dict[str, list[Any]]) -> list[int] | None:
    if _SEED in grid and "seeds" in values:
        raise SweepError(f"grid.seed is {grid[_SEED]!r}, seeds is {values['seeds']!r}; give one of them")
    name = "grid.seed" if _SEED in grid else "seeds"
    seeds = grid.get(_SEED, values.get("seeds"))
    if seeds is None and "seeds" not in values:
        return None
    numbers = isinstance(seeds, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds)
    if not seeds or not numbers:
        raise SweepError(f"{name} is {seeds!r}; give a list of numbers, 0 or more, or leave it out")
    return seeds


def _points(
    values: Mapping[str, Any], grid: dict[str, list[Any]], axes: list[str], labels: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of each point, whatever the seed: those of the grid, then those off it."""
    listed = values.get("runs", [])
    if not isinstance(listed, list):
        raise SweepError(f"runs is {listed!r}; give a list of {{name, set}}")
    if axes or not listed:
        for choice in itertools.product(*(grid[name] for name in axes)):
            name = ",".join(f"{label}={_text(value)}" for label, value in zip(labels, choice, strict=True))
            yield name, dict(zip(axes, choice, strict=True))
    for number, entry in enumerate(listed):
        at = f"runs[{number}]"
        if not isinstance(entry, dict) or entry.keys() - {"name", "set"}:
            raise SweepError(f"{at} is {entry!r}; give a mapping of name and set, and nothing else")
        name = entry.get("name")
        if not isinstance(name, str) or not _SAFE.fullmatch(name) or name.startswith("."):
            raise SweepError(f"{at}.name is {name!r}; give letters, digits and . _ + -, not beginning with a dot")
        settings = _settings(entry.get("set", {}), f"{at}.set")
        if _SEED in settings:
            raise SweepError(f"{at}.set.seed is {settings[_SEED]!r}; give seeds, which hold for all runs")
        yield name, settings


def _labels(fields: Sequence[str]) -> list[str]:
    """The last part of each field where that tells them apart, a shorter word for some, and else the whole field."""
    short = [_SHORT.get(field, field.rpartition(".")[2]) for field in fields]
    count = Counter(short)
    return [label if count[label] == 1 else field for label, field in zip(short, fields, strict=True)]


def _text(value: Any) -> str:
    """A value as a part of a file's name; with a digest where it had to be changed for that."""
    if isinstance(value, float):
        text = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    if len(text) <= _MAX_VALUE and _SAFE.fullmatch(text):
        return text
    return f"{_UNSAFE.sub('_', text).strip('_')[:_MAX_VALUE]}-{_digest(text)}"


def _bounded(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 9]}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _applied(at: str, base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested values with dotted fields set, each value replaced as a whole."""
    texts = [f"{name}={yaml.safe_dump(value, default_flow_style=True)}" for name, value in settings.items()]
    return _given(at, apply_overrides, base, texts)


def _value(config: TrainConfig, model: KIConfig, field: str) -> Any:
    """What a run has at a dotted field, whether it was set for it or is the base's or the preset's."""
    prefix = "model.changes."
    at: Any = model.to_dict() if field.startswith(prefix) else config.to_dict()
    for part in field.removeprefix(prefix).split("."):
        at = at.get(part) if isinstance(at, Mapping) else None
    return at


def _require_distinct(runs: Sequence[Run]) -> None:
    names: dict[str, str] = {}
    contents: dict[str, str] = {}
    for run in runs:
        # Some file systems do not tell capitals from small letters.
        if run.name.casefold() in names:
            raise SweepError(f"run {run.name} is there twice; give each value, seed and name once")
        names[run.name.casefold()] = run.name
        content = json.dumps({**run.config.to_dict(), "output": None, "model": run.model.to_dict()}, sort_keys=True)
        content += str(run.config.model.init)
        if content in contents:
            raise SweepError(f"run {run.name} has the same configuration as run {contents[content]}; remove one")
        contents[content] = run.name


def _recorded(file: Path) -> TrainConfig:
    return _given(f"{file.parent}: cannot be compared; give the sweep another output", parse, read_yaml(file))
