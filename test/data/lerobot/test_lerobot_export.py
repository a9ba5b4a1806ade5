"""What an export writes, read with pyarrow, PIL and PyAV alone."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from exported_episodes import VIEWS, Droid, Made, MadeOrigin, cached, episodes, picture
from PIL import Image

from ki_ros.data.bag import BagWriter, encode
from ki_ros.data.lerobot import ExportOptions, ExportProgress, LeRobotError, export_dataset, layout
from ki_ros.data.lerobot.source import open_source
from ki_ros.rig import GRIPPER_JOINT, PANDA, ActionSpace, CameraRole


def export(output: Path, *given: Made, **options) -> Path:
    export_dataset([MadeOrigin(given)], output, ExportOptions(**options))
    return output


def rows(directory: Path) -> dict[str, list]:
    """All rows of `data`, in the order of the files."""
    tables = [pq.read_table(path) for path in sorted(directory.glob("data/*/*.parquet"))]
    return {name: [value for table in tables for value in table[name].to_pylist()] for name in tables[0].column_names}


def listed(directory: Path) -> list[dict]:
    tables = [pq.read_table(path) for path in sorted(directory.glob("meta/episodes/*/*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export with exact pictures, of a cache."""
    directory = tmp_path_factory.mktemp("lerobot")
    cached(directory / "cache", *episodes())
    export_dataset(open_source(directory / "cache"), directory / "png", ExportOptions(images="png"))
    return directory / "png"


def test_rows_are_the_episodes(exported):
    found, given = rows(exported), episodes()
    for name, values in (("observation.state", "states"), ("action", "targets")):
        expected = np.concatenate([getattr(episode, values) for episode in given]).astype(np.float32)
        np.testing.assert_array_equal(np.array(found[name], np.float32), expected)
    np.testing.assert_array_equal(found["idle"], np.concatenate([episode.idle for episode in given]))
    np.testing.assert_array_equal(found["stamp"], np.concatenate([episode.stamps_ns for episode in given]))
    lengths = [20, 13, 7, 9, 5]
    np.testing.assert_array_equal(found["episode_index"], np.repeat(range(5), lengths))
    frames = np.concatenate([np.arange(length) for length in lengths])
    np.testing.assert_array_equal(found["frame_index"], frames)
    np.testing.assert_array_equal(np.array(found["timestamp"], np.float32), (frames / 15).astype(np.float32))
    np.testing.assert_array_equal(found["index"], np.arange(54))
    np.testing.assert_array_equal(found["next.done"], np.isin(np.arange(54), np.cumsum(lengths) - 1))
    assert np.flatnonzero(found["next.success"]).tolist() == [39]


def test_pictures_are_exact(exported):
    found = rows(exported)
    wanted = [(episode.seed, step) for episode in episodes() for step in range(episode.steps)]
    for role in VIEWS:
        for (seed, step), file in zip(wanted, found[f"observation.images.{role.value}"], strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(file["bytes"])))
            np.testing.assert_array_equal(pixels, picture(seed, step, role))


def test_tasks_and_episodes_are_listed(exported):
    table = pq.read_table(exported / "meta/tasks.parquet")
    tasks = dict(zip(table["__index_level_0__"].to_pylist(), table["task_index"].to_pylist(), strict=True))
    assert tasks == {"reach the red block": 0, "push the cup": 1}
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    found = listed(exported)
    assert [row["tasks"] for row in found] == [["reach the red block"]] * 3 + [
        ["push the cup"],
        ["reach the red block"],
    ]
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in found] == [
        (0, 20),
        (20, 33),
        (33, 40),
        (40, 49),
        (49, 54),
    ]
    assert [row["length"] for row in found] == [20, 13, 7, 9, 5]
    assert [(row["episode_id"], row["segment"]) for row in found] == [
        ("one", 0),
        ("one", 1),
        ("one", 2),
        ("two", 0),
        ("two", 0),
    ]
    assert [row["outcome"] for row in found] == ["success"] * 3 + ["failure", "unknown"]
    assert [row["robot"] for row in found] == ["panda"] * 3 + ["fr3", "panda"]
    indices = np.array(rows(exported)["task_index"])
    np.testing.assert_array_equal(indices, np.repeat([0, 0, 0, 1, 0], [20, 13, 7, 9, 5]))


def test_info_describes_every_column(exported):
    info = json.loads((exported / "meta/info.json").read_text())
    totals = ("codebase_version", "fps", "total_episodes", "total_frames", "total_tasks", "splits")
    assert [info[name] for name in totals] == ["v3.0", 15, 5, 54, 2, {"train": "0:5"}]
    schema = pq.read_schema(exported / "data/chunk-000/file-000.parquet")
    assert set(info["features"]) == set(schema.names)
    assert info["features"]["action"]["names"] == [f"joint_{i}.pos" for i in range(1, 8)] + ["gripper.pos"]
    assert info["features"]["observation.images.wrist"]["shape"] == [24, 32, 3]
    declared = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert declared["observation.images.wrist"] == {"_type": "Image"}
    assert set(declared) == set(schema.names)


def test_statistics_are_those_of_all_rows_and_all_pixels(exported):
    stats = json.loads((exported / "meta/stats.json").read_text())
    found = rows(exported)
    episode = listed(exported)[3]
    per_row = {name: np.array(found[name], np.float64).reshape(54, -1) for name in found if "images" not in name}
    pixels = {
        f"observation.images.{role.value}": np.stack(
            [picture(e.seed, step, role) for e in episodes() for step in range(e.steps)]
        )
        for role in VIEWS
    }
    assert set(stats) == {*per_row, *pixels}
    for part, of, name in [
        (slice(None), lambda feature, key: stats[feature][key], "all"),
        (slice(40, 49), lambda feature, key: episode[f"stats/{feature}/{key}"], "episode"),
    ]:
        for feature, values in (*per_row.items(), *pixels.items()):
            chosen = values[part]
            flat = chosen.reshape(-1, 3) / 255 if feature in pixels else chosen
            assert of(feature, "count") == [len(chosen)], name
            for key, expected in (
                ("min", flat.min(0)),
                ("max", flat.max(0)),
                ("mean", flat.mean(0)),
                ("std", flat.std(0)),
                *((f"q{q:02d}", np.percentile(flat, q, axis=0)) for q in (1, 10, 50, 90, 99)),
            ):
                value = np.array(of(feature, key))
                assert value.shape == ((3, 1, 1) if feature in pixels else (values.shape[1],))
                # A hundred nanoseconds in the stamps of some 10^18 ns, and 1e-9 elsewhere.
                np.testing.assert_allclose(value.ravel(), expected, rtol=1e-9, atol=1e-9, err_msg=f"{feature} {key}")


def test_velocities_are_from_what_was_measured(tmp_path):
    given = Made("one", 6)
    directory = export(tmp_path / "out", given, images="png", action_space=ActionSpace.JOINT_VELOCITY)
    expected = given.targets.copy()
    expected[:, :7] = (given.targets[:, :7] - given.states[:, :7]) / 0.2
    np.testing.assert_array_equal(np.array(rows(directory)["action"], np.float32), expected.astype(np.float32))
    info = json.loads((directory / "meta/info.json").read_text())
    assert info["features"]["action"]["names"][:2] == ["joint_1.vel", "joint_2.vel"]


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_videos_are_close_and_in_time(codec, test_data, tmp_path):
    """Real pictures: each frame is nearer to its own step's than to another's, and within 38 dB of it on average."""
    given = [Droid(test_data / "droid_100", 0, 40), Droid(test_data / "droid_100", 1, 31)]
    directory = export(tmp_path / "out", *given, codec=codec)
    for role in VIEWS:
        key = f"observation.images.{role.value}"
        with av.open(str(directory / f"videos/{key}/chunk-000/file-000.mp4")) as file:
            decoded = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
            assert file.streams.video[0].codec_context.name in {"h264": ("h264",), "av1": ("libdav1d", "av1")}[codec]
        wanted = [episode.views(step)[role] for episode in given for step in range(episode.steps)]
        np.testing.assert_allclose([time for time, _ in decoded], np.arange(71) / 15, rtol=0, atol=1e-6)
        errors = [np.mean((a.astype(float) - b) ** 2) for (_, a), b in zip(decoded, wanted, strict=True)]
        assert 10 * np.log10(255**2 / np.mean(errors)) > 38
        begins = [(row[f"videos/{key}/from_timestamp"], row[f"videos/{key}/to_timestamp"]) for row in listed(directory)]
        np.testing.assert_allclose(begins, [(0, 40 / 15), (40 / 15, 71 / 15)])
    info = json.loads((directory / "meta/info.json").read_text())["features"]["observation.images.wrist"]
    assert (info["dtype"], info["info"]["video.codec"], info["shape"]) == ("video", codec, [224, 224, 3])


@pytest.mark.parametrize("images", ["png", "video"])
def test_a_full_file_is_followed_by_another(images, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "DATA_FILE_MB", 0.25)
    monkeypatch.setattr(layout, "CHUNKS_SIZE", 2)
    monkeypatch.setattr(layout, "MAX_VIDEO_SECONDS", 3.0)
    given = [Made(f"run {number}", 20, number) for number in range(6)]
    directory = export(tmp_path / "out", *given, images=images, codec="h264")
    found = listed(directory)
    if images == "png":
        places = [(row["data/chunk_index"], row["data/file_index"]) for row in found]
        assert places == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0)]
        # An episode takes 20 x 2 pictures of 24 x 32 x 3 bytes that cannot be compressed: two of them fit.
        assert all(0.15 * 2**20 < path.stat().st_size < 0.25 * 2**20 for path in directory.glob("data/*/*.parquet"))
    else:
        key = "videos/observation.images.wrist"
        places = [(row[f"{key}/chunk_index"], row[f"{key}/file_index"]) for row in found]
        assert places == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0)]
        assert [row[f"{key}/from_timestamp"] for row in found] == [0, 20 / 15] * 3
    expected = np.concatenate([episode.states for episode in given]).astype(np.float32)
    np.testing.assert_array_equal(np.array(rows(directory)["observation.state"], np.float32), expected)


def test_views_and_outcomes_are_chosen(tmp_path):
    (given,) = [episodes()]
    options = ExportOptions(images="png", views=(CameraRole.WRIST,), outcomes=("failure",))
    report = export_dataset([MadeOrigin(tuple(given))], tmp_path / "out", options)
    assert (report.recorded, report.frames, dict(report.other_outcomes)) == (1, 9, {"success": 1, "unknown": 1})
    assert [name for name in rows(tmp_path / "out") if "images" in name] == ["observation.images.wrist"]


def test_an_instruction_can_be_given_for_episodes_without_one(tmp_path):
    given = Made("one"), Made("two", instruction="")
    export(tmp_path / "out", *given, images="png", instruction="clear the table")
    assert [row["tasks"] for row in listed(tmp_path / "out")] == [["reach the red block"], ["clear the table"]]


@pytest.mark.parametrize(
    ("second", "options", "message"),
    [
        ({"instruction": " "}, {}, "'second' of made has no instruction"),
        ({"rate": 10.0}, {}, r"rate of 10.0 Hz, episode 'first' of made one of 15.0 Hz"),
        ({"rate": 7.5}, {}, "rate of 7.5 Hz; LeRobot has whole frames"),
        ({"roles": VIEWS[:1]}, {}, r"'second' of made has no view wrist; it has exterior_1\. Name in views"),
        ({}, {"views": (CameraRole.EXTERIOR_2,)}, "'first' of made has no view exterior_2; it has exterior_1, wrist"),
        ({"size": (26, 32)}, {}, r"has shape \(26, 32, 3\) .* those before it \(24, 32, 3\)"),
        ({}, {"outcomes": ("failure",)}, "outcomes is failure, but the episodes are 2 of success"),
    ],
)
def test_what_does_not_fit_is_refused(second, options, message, tmp_path):
    with pytest.raises(LeRobotError, match=message):
        export(tmp_path / "out", Made("first"), Made("second", **second), images="png", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "gif"}, "images is 'gif'; use video or png"),
        ({"codec": "mpeg"}, "codec is 'mpeg'; use one of av1, h264"),
        ({"codec": "h264", "quality": 60}, "quality is 60; give 0 to 51"),
        ({"outcomes": ()}, r"outcomes is \[\]"),
        ({"views": VIEWS[:1] * 2}, "give each camera once"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(LeRobotError, match=message):
        ExportOptions(**options)


def test_odd_pictures_need_png(tmp_path):
    with pytest.raises(LeRobotError, match=r"25x32 pixels, and video needs an even height and width; give images=png"):
        export(tmp_path / "out", Made("one", size=(25, 32)))
    export(tmp_path / "out", Made("one", size=(25, 32)), images="png")


def test_an_output_in_use_stays_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LeRobotError, match="which is not empty; give another path"):
        export(tmp_path, Made("one"))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("images", ["png", "video"])
def test_a_failed_export_leaves_nothing(images, tmp_path):
    with pytest.raises(ValueError, match="the picture of step 5 is damaged"):
        export(tmp_path / "out", Made("one"), Made("two", broken_at=5), images=images)
    assert list(tmp_path.iterdir()) == []


def test_an_origin_that_cannot_be_read_is_left_out_and_named(tmp_path):
    class Unreadable(MadeOrigin):
        def episodes(self):
            raise ValueError("no bag")

    origins = [Unreadable((), "broken"), MadeOrigin((Made("one"),))]
    report = export_dataset(origins, tmp_path / "out", ExportOptions(images="png"))
    assert (report.refused, report.frames) == ({"broken": "no bag"}, 12)
    with pytest.raises(LeRobotError, match="no episode can be exported: broken: no bag"):
        export_dataset(origins[:1], tmp_path / "other")


def test_a_killed_export_leaves_no_output(tmp_path):
    script = textwrap.dedent(
        """
        import sys, threading
        from pathlib import Path
        from exported_episodes import Made, MadeOrigin
        from ki_ros.data.lerobot import ExportOptions, export_dataset

        class Waiting(Made):
            def views(self, step):
                if step == 6:
                    print("writing", flush=True)
                    threading.Event().wait()
                return super().views(step)

        export_dataset([MadeOrigin((Waiting("one"),))], Path(sys.argv[1]), ExportOptions(images="png"))
        """
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    export(tmp_path / "out", Made("one"), images="png")
    assert len(rows(tmp_path / "out")["index"]) == 12


@pytest.mark.parametrize("codec", ["av1", "h264"])
def test_an_interrupt_while_videos_are_closed_is_no_failure(tmp_path, capfd, codec):
    """Interrupts an export at moments spread over its end, which begins with the last report of progress."""
    ends = []

    def closing(after: float) -> Callable[[ExportProgress], None]:
        def show(progress: ExportProgress) -> None:
            if progress.done == progress.total:
                ends.append(time.perf_counter())
                signal.setitimer(signal.ITIMER_REAL, after)

        return show

    def run(name: str, after: float) -> None:
        options = ExportOptions(codec=codec)
        export_dataset([MadeOrigin((Made("one", steps=60),))], tmp_path / name, options, progress=closing(after))

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        run("whole", 0.0)
        duration = time.perf_counter() - ends[0]
        for part in range(1, 20):
            with suppress(KeyboardInterrupt):
                run(f"interrupted_{part}", duration * part / 20)
                signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert "av.error" not in capfd.readouterr().err


def test_command_exports_bags(tmp_path):
    bag = tmp_path / "bags" / "run"
    second = 10**9
    with BagWriter(bag) as writer:
        for topic in ("/camera/exterior_1/image_raw", "/camera/wrist/image_raw"):
            writer.add_topic(topic, "sensor_msgs/msg/Image")
        for topic in ("/joint_states", "/gripper/joint_states"):
            writer.add_topic(topic, "sensor_msgs/msg/JointState")
        writer.add_topic("/instruction", "std_msgs/msg/String")
        writer.write("/instruction", second, encode.string("reach the cup"))
        for tick in range(60):
            now = second + tick * second // 30
            for n, topic in enumerate(("/camera/exterior_1/image_raw", "/camera/wrist/image_raw")):
                writer.write(topic, now, encode.image(now, "", np.full((20, 32, 3), tick + 100 * n, np.uint8)))
            writer.write("/joint_states", now, encode.joint_state(now, PANDA.joint_names, [0.01 * tick - 0.5] * 7))
            writer.write("/gripper/joint_states", now, encode.joint_state(now, (GRIPPER_JOINT,), [0.4]))
    given = [tmp_path / "bags", tmp_path / "out", "--images", "png", "--json", tmp_path / "out.json"]
    done = subprocess.run(
        [sys.executable, "-m", "ki_ros.cli", "export", "lerobot", *map(str, given)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "out.json").read_text())
    found = rows(tmp_path / "out")
    assert figures["frames"] == len(found["index"]) > 20
    assert f"1 episodes as 1, {figures['frames']} frames, 1 tasks" in done.stdout
    state = np.array(found["observation.state"])
    np.testing.assert_allclose(state[:, 7], 0.5, atol=1e-6)
    # The state of each step is the newest when its pictures were: both are of the same tick.
    for row, file in zip(state, found["observation.images.wrist"], strict=True):
        tick = int(np.asarray(Image.open(io.BytesIO(file["bytes"])))[112, 112, 0]) - 100
        assert row[0] == pytest.approx(0.01 * tick - 0.5, abs=0.0101)
