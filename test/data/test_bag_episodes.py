"""Episodes of made recordings whose answers are known, or found by brute force."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from made_bags import CAMERAS, START, TYPES, MadeBag, S, joints_at, ns, picture, stamped

from ki_ros.data.bag import BagWriter, encode
from ki_ros.data.episodes import Outcome, RecordingError, read_episodes
from ki_ros.data.idle import idle_steps
from ki_ros.observation import cdr
from ki_ros.observation.rig_streams import CameraStream, RigStreams
from ki_ros.resize import resize_with_pad
from ki_ros.rig import FR3, PANDA, CameraRole

STEP = S / 15
LIMITS = {"exterior_1": 0.15, "wrist": 0.15, "/joint_states": 0.1, "/gripper/joint_states": 0.25}


def by_brute_force(made: MadeBag, first: int, count: int):
    """Reference times with an observation by hand: {reference: {topic: newest message}}, and those without one."""
    limits = {CAMERAS[role]: LIMITS[role] for role in CAMERAS} | {t: v for t, v in LIMITS.items() if t[0] == "/"}
    found, refused = {}, []
    for k in range(count):
        reference = first + round(k * STEP)
        newest = {}
        for topic, _, log, raw in made.messages:
            if topic not in limits or log > reference:
                continue
            stamp = cdr.stamp_ns(raw)
            if stamp <= reference and (topic not in newest or stamp > newest[topic][0]):
                newest[topic] = (stamp, raw)
        stamps = [stamp for stamp, _ in newest.values()]
        fresh = all(reference - newest[topic][0] <= limit * S for topic, limit in limits.items())
        if fresh and max(stamps) - min(stamps) <= 0.15 * S:
            found[reference] = newest
        else:
            refused.append(reference)
    return found, refused


def test_every_step_is_what_brute_force_finds(tmp_path):
    made = MadeBag()
    random = np.random.default_rng(3)
    kept = [t for t in np.arange(0, 3, 1 / 30) if random.random() < 0.5]
    made.camera("exterior_1", np.arange(0.02, 3, 1 / 25))
    made.camera("wrist", kept, first=1000)
    made.arm(np.sort(random.uniform(0, 3, 500)))
    made.gripper(np.arange(0.0, 3, 1 / 20))
    made.instruction(0.0, "  wipe the table ")
    (episode,) = read_episodes(made.write(tmp_path / "bag"))

    first = max(
        min(log for topic, _, log, _ in made.messages if topic == t)
        for t in (*CAMERAS.values(), *LIMITS)
        if t[0] == "/"
    )
    last = max(log for _, _, log, _ in made.messages)
    found, refused = by_brute_force(made, first, int((last - first) / STEP) + 1)
    assert refused, "the recording must have times without an observation"
    assert sum(episode.refusals.values()) == len(refused)
    # The last step before something is missing has no step that says what was done in it.
    steps = list(found)
    with_target = [s for s in steps if any(abs(n - s - STEP) < 2 for n in steps)]
    assert episode.stamps_ns.tolist() == with_target
    for i, reference in enumerate(with_target):
        sampled = found[reference]
        positions = cdr.read_joint_state(sampled["/joint_states"][1]).positions
        angle = cdr.read_joint_state(sampled["/gripper/joint_states"][1]).positions[0]
        np.testing.assert_array_equal(episode.states[i], [*positions, angle / 0.8])
        views = episode.views(i)
        for role, topic in CAMERAS.items():
            image = cdr.read_image(sampled[topic][1])
            pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
            np.testing.assert_array_equal(views[CameraRole(role)], resize_with_pad(pixels, 224))
    starts = np.flatnonzero(np.diff(episode.segment)) + 1
    assert [with_target[i] for i in starts] == [s for p, s in itertools.pairwise(with_target) if s - p > 1.5 * STEP]
    assert episode.instruction == "wipe the table"
    assert (episode.outcome, episode.action_source, episode.exact) == (Outcome.UNKNOWN, "measured", False)
    for i in range(len(episode) - 1):
        if episode.segment[i] == episode.segment[i + 1]:
            np.testing.assert_array_equal(episode.targets[i], episode.states[i + 1])


def test_views_in_any_order(tmp_path):
    made = MadeBag().rig(1.5)
    made.instruction(0.0, "go")
    path = made.write(tmp_path / "bag")
    (episode,) = read_episodes(path)
    in_order = [episode.views(t) for t in range(len(episode))]
    for t in (5, 2, 2, len(episode) - 1, 0, 7):
        for role, pixels in episode.views(t).items():
            np.testing.assert_array_equal(pixels, in_order[t][role])
    with pytest.raises(IndexError):
        episode.views(len(episode))


def test_references_and_samples_of_the_live_node(tmp_path):
    """Where the recording says what live sampling had, that is what a step is, whatever was there since."""
    made = MadeBag().rig(2.0)
    made.instruction(0.0, "go")
    expected = {}
    for k in range(1, 20):
        reference = 0.1 + k * 0.07
        # The live node had got nothing of the last 40 ms.
        sampled = {}
        for stream, topic in {**CAMERAS, "joint_states": "/joint_states", "gripper": "/gripper/joint_states"}.items():
            stamps = [cdr.stamp_ns(raw) for t, _, _, raw in made.messages if t == topic]
            sampled[stream] = max(s for s in stamps if s <= ns(reference - 0.04))
        complete = k != 9
        ages = [(ns(reference) - stamp) / S for stamp in sampled.values()]
        raw = (
            encode.observation_status(ns(reference), True, streams=list(sampled), ages=ages)
            if complete
            else encode.observation_status(ns(reference), False, "stale", "wrist", "too old")
        )
        made.put("/observation_status", "status", reference + 0.01, raw)
        if complete:
            expected[ns(reference)] = sampled
    (episode,) = read_episodes(made.write(tmp_path / "bag"))
    assert episode.exact
    assert episode.refusals == {("wrist", "stale"): 1}
    # The steps before the refusal and at the end have no next one.
    assert episode.stamps_ns.tolist() == [r for r in expected if r not in (ns(0.1 + 8 * 0.07), ns(0.1 + 19 * 0.07))]
    for i, reference in enumerate(episode.stamps_ns.tolist()):
        assert {name: int(stamps[i]) for name, stamps in episode.samples_ns.items()} == expected[reference]
        measured = next(m for m in made.messages if m[2] == expected[reference]["joint_states"] + S // 1000)
        np.testing.assert_array_equal(episode.states[i, :7], cdr.read_joint_state(measured[3]).positions)
        number = round((expected[reference]["exterior_1"] - START) / S * 30)
        np.testing.assert_array_equal(episode.views(i)[CameraRole.EXTERIOR_1], resize_with_pad(picture(number), 224))
    assert np.unique(episode.segment).tolist() == [0, 1]
    assert not episode.substituted


def test_a_picture_that_the_recorder_lost_is_said(tmp_path):
    made = MadeBag().rig(1.0)
    for k in range(1, 9):
        reference = k / 10
        sampled = {"exterior_1": reference - 1 / 30, "wrist": 0.011 + (3 * k - 2) / 30, "joint_states": reference}
        ages = [(ns(reference) - ns(t)) / S for t in sampled.values()]
        status = encode.observation_status(ns(reference), True, streams=list(sampled), ages=ages)
        made.put("/observation_status", "status", reference + 0.01, status)
    made.instruction(0.0, "go")
    lost = next(m for m in made.messages if m[0] == CAMERAS["wrist"] and cdr.stamp_ns(m[3]) == ns(0.011 + 10 / 30))
    made.messages.remove(lost)
    (episode,) = read_episodes(made.write(tmp_path / "bag"), RigStreams(rate=10))
    assert episode.substituted == {"wrist": 1}
    assert len(episode) == 7
    assert episode.samples_ns["wrist"][3] == ns(0.011 + 9 / 30)


# Clocks


@pytest.mark.parametrize("seconds", [3600, 86_400, 31_536_000])
def test_a_time_in_which_nothing_arrives_is_one_gap_however_long(tmp_path, seconds):
    """A recording that was paused, and one whose clock was set forward, which looks the same."""
    made = MadeBag().rig(4.0)
    made.instruction(0.0, "go")
    made.set_clock(2.0, seconds)
    (episode,) = recorded(tmp_path, made)
    after = episode.stamps_ns > ns(3.0)
    # Samples may be 0.1 s old, and the last steps of both parts have no next one.
    assert [int((~after).sum()), int(after.sum())] == pytest.approx([30, 28], abs=1)
    assert episode.stamps_ns[after][0] == pytest.approx(ns(2.0) + seconds * S, abs=2 * STEP)
    assert np.array_equal(episode.segment, after)
    assert 1 <= len(episode.refused) <= 4
    for step in np.flatnonzero(after)[:2]:
        # What is sampled is as fresh as ever.
        assert all(episode.stamps_ns[step] - stamps[step] <= 0.05 * S for stamps in episode.samples_ns.values())


@pytest.mark.parametrize("first", [True, False])
def test_one_camera_with_a_clock_of_its_own_is_refused_and_the_others_are_read_by_theirs(tmp_path, first):
    """Stamps since boot: whichever message comes first, log times remain what the other streams are read by."""
    made = MadeBag().rig(2.0)
    earlier = S // 100 if first else -S // 100
    for i, (topic, kind, log, raw) in enumerate(made.messages):
        if topic == CAMERAS["exterior_1"]:
            made.messages[i] = (topic, kind, log - earlier, stamped(raw, kind, 500 * S - START))
    with pytest.raises(RecordingError, match=r"has no observation: (\d+) of \1 times were refused: exterior_1 stale"):
        recorded(tmp_path, made)
    wrist = RigStreams(cameras={CameraRole.WRIST: CameraStream(CAMERAS["wrist"])})
    (episode,) = read_episodes(tmp_path / "bag", wrist)
    assert len(episode) == pytest.approx(29, abs=1)
    assert not episode.refusals


def turning(seconds: float, rate: float = 0.3) -> MadeBag:
    """The first joint turns steadily [rad/s], and is commanded to; the pictures' numbers tell their time."""
    made = MadeBag()
    made.camera("exterior_1", np.arange(0, seconds, 1 / 30))
    made.camera("wrist", np.arange(0.011, seconds, 1 / 30), first=100_000)
    made.arm(np.arange(0, seconds, 1 / 200), lambda t: np.array([rate * t, -0.6, 0, -2.4, 0, 1.9, 0]))
    made.gripper(np.arange(0.002, seconds, 1 / 50))
    for t in np.arange(0.0, seconds, 0.01):
        made.command(t, [rate * (t + 0.05), -0.6, 0, -2.4, 0, 1.9, 0])
    return made


@pytest.mark.parametrize("back", [0.15, 0.6, 2.0, 3600.0])
def test_no_step_mixes_what_was_before_and_after_a_clock_was_set_back(tmp_path, back):
    made = turning(6.0)
    made.instruction(0.0, "turn")
    # Cameras are slower than the arm: pictures from before are still underway.
    made.messages = [m if m[1] != "image" else (*m[:2], m[2] + S // 20, m[3]) for m in made.messages]
    before, underway = (sum(message[2] < ns(t) for message in made.messages) for t in (3.0, 3.05))
    made.set_clock(3.0, -back)
    for i, (topic, kind, log, raw) in enumerate(made.messages[before:underway], before):
        if kind == "image":
            made.messages[i] = (topic, kind, log, stamped(raw, kind, round(back * S)))
    episodes = read_episodes(made.write(tmp_path / "bag", by_log_time=False))
    assert len(episodes) == 2
    # Until a second after the clock was set back, when nothing stamped before can be underway any more.
    for episode, begin, end in zip(episodes, (0.1, 4.0), (3.0, 6.0), strict=True):
        assert episode.instruction == "turn"
        assert len(episode) == pytest.approx((end - begin) * 15, abs=3)
        shift = round(back * S) if episode is episodes[1] else 0
        times = (episode.stamps_ns + shift - START) / S
        # The arm's states end 50 ms before the pictures do, and its commands with a step, not before that ends.
        np.testing.assert_allclose(episode.states[:, 0], 0.3 * times, atol=0.3 * 0.06)
        np.testing.assert_allclose(episode.targets[:-1, 0], 0.3 * (times[:-1] + 1 / 15 + 0.05), atol=0.3 * 0.06)
        for step in (0, len(episode) // 2, len(episode) - 1):
            taken = int((episode.samples_ns["exterior_1"][step] + shift - START) / S * 30 + 0.5)
            assert times[step] - 0.12 < taken / 30 <= times[step]
            np.testing.assert_array_equal(
                episode.views(step)[CameraRole.EXTERIOR_1], resize_with_pad(picture(taken), 224)
            )
        assert any(damage.kind == "clock" and "was set back" in damage.detail for damage in episode.damage)


def test_an_episode_goes_on_when_the_clock_is_set_back(tmp_path):
    """It is two, and the operator's word holds for the part in which it was given."""
    made = turning(8.0)
    made.put("/episode", "episode", 0.5, encode.episode(ns(0.5), "a", "one", 0, 0, "panda", ""))
    made.epoch(1.0, "two")
    made.put("/episode", "episode", 6.0, encode.episode(ns(6.0), "a", "", 1, 1, "panda", ""))
    made.start(7.0, "b", "three")
    made.set_clock(3.0, -100.0)
    episodes = read_episodes(made.write(tmp_path / "bag", by_log_time=False))
    assert [(e.id, e.instruction, e.outcome, e.complete, e.ended) for e in episodes] == [
        ("a", "one", "unknown", True, False),
        ("a#2", "two", "unknown", False, False),
        ("a#3", "two", "success", True, True),
        ("b", "three", "unknown", False, False),
    ]
    assert [round((e.stamps_ns[0] - START) / S, 1) for e in episodes] == [0.5, 1.0, -96.0, -93.0]


# What begins and ends an episode


def recorded(tmp_path, made: MadeBag, streams: RigStreams | None = None):
    return read_episodes(made.write(tmp_path / "bag"), streams)


def test_two_episodes_in_one_bag(tmp_path):
    made = MadeBag().rig(4.0)
    made.start(0.5, "first", "open the drawer")
    made.stop(1.5, "first", outcome=1)
    made.start(2.0, "second", "close the drawer")
    made.stop(3.0, "second", outcome=2)
    first, second = recorded(tmp_path, made)
    assert (first.id, first.instruction, first.outcome) == ("first", "open the drawer", "success")
    assert (second.id, second.instruction, second.outcome) == ("second", "close the drawer", "failure")
    assert first.complete
    assert first.note == "well done"
    assert first.stamps_ns[0] == ns(0.5), "the grid begins with the episode"
    assert second.stamps_ns[0] == ns(2.0)
    assert first.stamps_ns[-1] <= ns(1.5)
    assert second.stamps_ns[-1] <= ns(3.0)
    assert len(first) == len(second) == 15
    # Going from one episode's pictures to the other's is possible in any order.
    wrist = second.views(0)[CameraRole.WRIST], first.views(0)[CameraRole.WRIST]
    assert not np.array_equal(*wrist)


def test_a_killed_recording_has_a_start_only(tmp_path):
    made = MadeBag().rig(2.0)
    made.start(0.5, "killed", "open the drawer")
    (episode,) = recorded(tmp_path, made)
    assert (episode.id, episode.outcome, episode.complete) == ("killed", Outcome.UNKNOWN, False)
    assert episode.stamps_ns[0] == ns(0.5)
    assert episode.stamps_ns[-1] > ns(1.8)


def test_a_stop_only(tmp_path):
    made = MadeBag().rig(2.0)
    made.instruction(0.1, "open the drawer")
    made.stop(1.0, "begun before", outcome=1)
    (episode,) = recorded(tmp_path, made)
    assert (episode.id, episode.instruction, episode.outcome) == ("begun before", "open the drawer", "success")
    assert episode.stamps_ns[-1] <= ns(1.0)


def test_a_start_before_the_stop_of_the_one_before(tmp_path):
    made = MadeBag().rig(3.0)
    made.start(0.5, "a", "one")
    made.start(1.5, "b", "two")
    made.stop(2.5, "b")
    a, b = recorded(tmp_path, made)
    assert (a.id, a.outcome, a.complete) == ("a", Outcome.UNKNOWN, False)
    assert (b.id, b.outcome, b.complete) == ("b", "success", True)
    assert a.stamps_ns[-1] < ns(1.5) <= b.stamps_ns[0]


@pytest.mark.parametrize("started", [False, True])
def test_what_is_latched_of_earlier_episodes_is_none_of_a_recording(tmp_path, started):
    """`/episode` gives whoever begins to listen the last ten beginnings and ends."""
    made = MadeBag().rig(4.0)
    made.instruction(0.05, "put the marker in the pot")
    for k, id in enumerate(("old", "older")):
        for event in (0, 1) if started else (1,):
            raw = encode.episode(ns(-60 + 10 * k + event), id, "wipe the table", event, event, "panda", "")
            made.put("/episode", "episode", 0.3, raw)
    (plain,) = recorded(tmp_path, made)
    assert (plain.id, plain.instruction, plain.outcome) == ("bag", "put the marker in the pot", Outcome.UNKNOWN)
    assert len(plain) == pytest.approx(59, abs=1)
    assert not plain.damage
    made.start(1.0, "new", "new task")
    made.stop(3.0, "new")
    (new,) = read_episodes(made.write(tmp_path / "with a new one"))
    assert (new.id, new.instruction, new.outcome, len(new)) == ("new", "new task", "success", 30)


def test_what_is_latched_of_an_episode_in_progress_counts(tmp_path):
    made = MadeBag().rig(2.0)
    made.put("/episode", "episode", 0.3, encode.episode(ns(-60), "old", "wipe the table", 1, 1, "panda", ""))
    made.put("/episode", "episode", 0.3, encode.episode(ns(-5), "now", "fold the towel", 0, 0, "panda", ""))
    made.stop(1.5, "now")
    (episode,) = recorded(tmp_path, made)
    assert (episode.id, episode.instruction, episode.outcome) == ("now", "fold the towel", "success")
    assert ns(0.3) <= episode.stamps_ns[0] < episode.stamps_ns[-1] <= ns(1.5)


def test_an_episode_that_ends_before_the_cameras_are_found_swallows_nothing(tmp_path):
    made = MadeBag()
    made.rig(4.0)
    made.messages = [message for message in made.messages if message[2] > ns(1.5)]
    made.instruction(0.0, "put the marker in the pot")
    made.stop(1.0, "begun before")
    (episode,) = recorded(tmp_path, made)
    assert (episode.id, episode.instruction) == ("bag", "put the marker in the pot")


def test_a_recorder_that_hears_itself_starts_once(tmp_path):
    made = MadeBag().rig(2.0)
    made.start(0.5, "a", "one")
    topic, kind, _, raw = made.messages[-1]
    made.messages.append((topic, kind, ns(0.51), raw))
    made.stop(1.5, "a")
    (episode,) = recorded(tmp_path, made)
    assert episode.stamps_ns[0] == ns(0.5)


def test_a_change_of_instruction_splits(tmp_path):
    made = MadeBag().rig(3.0)
    made.epoch(0.2, "old task", set_at=-100.0)
    made.start(0.5, "a", "one")
    made.epoch(0.6, "one", set_at=0.55)
    made.epoch(1.5, "two")
    made.stop(2.5, "a", outcome=1)
    one, two = recorded(tmp_path, made)
    assert (one.id, one.instruction, one.outcome) == ("a", "one", "unknown")
    assert (two.id, two.instruction, two.outcome) == ("a#2", "two", "success")
    assert one.stamps_ns[-1] < ns(1.5) <= two.stamps_ns[0]


@pytest.mark.parametrize("latched", [True, False])
def test_the_instruction_of_a_plain_recording(tmp_path, latched):
    made = MadeBag().rig(4.0)
    if latched:
        made.instruction(0.3, "wave")
    else:
        made.epoch(3.0, "wave")
    (episode,) = recorded(tmp_path, made)
    assert episode.instruction == "wave"
    assert episode.id == "bag"
    # What was latched held before it arrived; what was set later did not, and steps without an instruction are none.
    assert episode.stamps_ns[0] == pytest.approx(ns(0.015 if latched else 3.0), abs=STEP)


def test_no_instruction_at_all(tmp_path):
    (episode,) = recorded(tmp_path, MadeBag().rig(1.0))
    assert episode.instruction == ""


def cut_off(made: MadeBag, topic: str, t: float) -> None:
    """Nothing more of a topic from this time of the recording on [s]."""
    made.messages = [message for message in made.messages if message[0] != topic or message[2] < ns(t)]


@pytest.mark.parametrize("commanded", [True, False])
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("ended by somebody", [True]),
        ("ended late", [False]),
        ("ended by nobody", [False]),
        ("killed", [False]),
        ("another instruction", [False, True]),
        ("a gap", [True]),
        ("plain", [False]),
    ],
)
def test_an_episode_ended_where_somebody_ended_it_and_it_was_seen(tmp_path, how, expected, commanded):
    made = MadeBag().rig(3.0)
    if commanded:
        for t in np.arange(0.05, 3.0, 0.01):
            made.command(t, joints_at(t + 0.02), 0.1)
    made.instruction(0.0, "go")
    if how != "plain":
        made.start(0.5, "a", "go")
    if how not in ("plain", "killed"):
        made.stop(2.5, "a", outcome=0 if how == "ended by nobody" else 1)
    if how == "ended late":
        # The camera failed: nobody saw what the arm did until the operator noticed.
        cut_off(made, CAMERAS["wrist"], 2.0)
    elif how == "another instruction":
        made.epoch(1.5, "stop")
    elif how == "a gap":
        gone = [m for m in made.messages if m[0] == CAMERAS["wrist"] and ns(1.0) < m[2] < ns(1.5)]
        made.messages = [message for message in made.messages if message not in gone]
    assert [episode.ended for episode in recorded(tmp_path, made)] == expected


def test_an_episode_without_an_observation_is_told_as_damage(tmp_path):
    made = MadeBag().rig(1.0)
    made.start(0.3, "good", "one")
    made.stop(0.9, "good")
    made.start(5.0, "blind", "two")
    made.stop(6.0, "blind")
    (episode,) = recorded(tmp_path, made)
    assert any("'blind'" in damage.lost for damage in episode.damage)


def test_an_observation_without_a_target_is_no_step_and_that_is_said(tmp_path):
    """Without commands the target is what is measured a step later: of a single observation there is none."""
    made = MadeBag().rig(1.5)
    made.start(0.5, "one", "go")
    made.stop(0.56, "one")
    with pytest.raises(RecordingError, match="has no step: its only observation has no target, as no command"):
        recorded(tmp_path, made)
    made.start(0.8, "two", "go")
    made.stop(1.2, "two")
    (episode,) = read_episodes(made.write(tmp_path / "two"))
    (damage,) = episode.damage
    assert "no step: its only observation has no target" in damage.detail
    assert damage.lost == "episode 'one'"


def test_a_stream_without_a_message_is_named(tmp_path):
    made = MadeBag().rig(1.0)
    cut_off(made, CAMERAS["wrist"], 0.0)
    with BagWriter(tmp_path / "bag") as writer:
        writer.add_topic(CAMERAS["wrist"], "sensor_msgs/msg/Image")
        for topic, kind, time, raw in made.ordered():
            writer.add_topic(topic, TYPES[kind])
            writer.write(topic, time, raw)
    with pytest.raises(RecordingError, match="has no observation: no message of wrist was recorded"):
        read_episodes(tmp_path / "bag")


# Actions


def test_the_command_in_force_at_the_end_of_a_step(tmp_path):
    made = MadeBag().rig(3.0)
    made.instruction(0.0, "go")
    random = np.random.default_rng(0)
    sent = [(t, random.uniform(-1, 1, 7), 0.4 if t > 1.5 else None) for t in np.arange(0.8, 2.9, 0.01)]
    for t, positions, angle in sent:
        made.command(t, positions, angle)
    (episode,) = recorded(tmp_path, made)
    assert episode.action_source == "joint_command"
    ends = episode.stamps_ns + round(STEP)
    for i, end in enumerate(ends.tolist()):
        before = [(positions, angle) for t, positions, angle in sent if ns(t) <= end]
        follows = i + 1 < len(episode)
        if before:
            np.testing.assert_array_equal(episode.targets[i, :7], before[-1][0])
        else:
            np.testing.assert_array_equal(episode.targets[i, :7], episode.states[i + 1, :7])
        if before and before[-1][1] is not None:
            assert episode.targets[i, 7] == pytest.approx(0.5)
        else:
            assert episode.targets[i, 7] == episode.states[i + 1 if follows else i, 7]
    assert 0 < episode.commanded.sum() < len(episode)
    # A commanded last step stays.
    assert episode.stamps_ns[-1] > ns(2.9)


def test_commands_straight_to_the_controllers(tmp_path):
    made = MadeBag().rig(2.0)
    made.instruction(0.0, "go")
    for k in range(20):
        t = 0.05 + k * 0.1
        made.put("/forward_position_controller/commands", "numbers", t, encode.float64_multi_array([k / 100.0] * 7))
    made.put("/forward_position_controller/commands", "numbers", 0.07, encode.float64_multi_array([9.0] * 3))
    made.put("/gripper_position_controller/commands", "numbers", 1.0, encode.float64_multi_array([0.8]))
    (episode,) = recorded(tmp_path, made)
    assert episode.action_source == "/forward_position_controller/commands"
    assert episode.refusals["/forward_position_controller/commands", "undecodable"] == 1
    for target, end in zip(episode.targets, episode.stamps_ns + round(STEP), strict=True):
        k = int(((end - START) / S - 0.05) / 0.1 + 1e-6)
        if end > ns(0.051):
            assert target[0] == pytest.approx(min(k, 19) / 100)
        assert (target[7] == 1.0) == (end >= ns(1.0))


def test_commands_that_are_none_are_counted(tmp_path):
    made = MadeBag().rig(1.0)
    made.instruction(0.0, "go")
    for t in np.arange(0, 1, 0.01):
        made.command(t, [np.nan] * 7)
    (episode,) = recorded(tmp_path, made)
    assert episode.action_source == "measured"
    assert episode.refusals["/joint_command", "non_finite"] == 100


def idle_by_hand(states, targets, segment, rate):
    idle = []
    for t in range(len(states)):
        ahead = [k for k in range(t, min(t + round(rate), len(states))) if segment[k] == segment[t]]
        idle.append(
            all(max(abs(targets[k][:7] - states[t][:7])) <= 0.01 for k in ahead)
            and all(abs(targets[k][7] - targets[t][7]) <= 0.05 for k in ahead)
        )
    return idle


def test_idle_steps():
    random = np.random.default_rng(5)
    still = np.repeat(random.normal(size=(8, 8)), 30, axis=0)
    states = still + random.uniform(-0.004, 0.004, still.shape)
    targets = still + random.uniform(-0.004, 0.004, still.shape)
    segment = np.repeat(np.arange(3), 80)
    idle = idle_steps(states, targets, segment, 15.0)
    assert idle.tolist() == idle_by_hand(states, targets, segment, 15.0)
    assert 0.2 < idle.mean() < 0.8
    assert idle_steps(states[:1], targets[:1], segment[:1], 15.0).tolist() == [True]


# Streams


def test_a_missing_camera_is_named(tmp_path):
    made = MadeBag().rig(1.0)
    streams = RigStreams(
        cameras={CameraRole.EXTERIOR_2: CameraStream("/left/image"), CameraRole.WRIST: CameraStream(CAMERAS["wrist"])}
    )
    with pytest.raises(RecordingError, match=r"no topic /left/image \(exterior_2.topic\).*/camera/wrist/image_raw"):
        recorded(tmp_path, made, streams)


def test_a_topic_of_another_type_is_named(tmp_path):
    made = MadeBag().rig(1.0)
    streams = RigStreams(cameras={CameraRole.WRIST: CameraStream("/joint_command")})
    made.command(0.5, [0.0] * 7)
    with pytest.raises(RecordingError, match="JointState, expected sensor_msgs/msg/Image"):
        recorded(tmp_path, made, streams)


def test_only_the_cameras_that_are_asked_for(tmp_path):
    streams = RigStreams(cameras={CameraRole.WRIST: CameraStream(CAMERAS["wrist"])})
    (episode,) = recorded(tmp_path, MadeBag().rig(1.0), streams)
    assert list(episode.views(0)) == [CameraRole.WRIST]


def test_two_cameras_that_could_be_the_same_are_refused(tmp_path):
    made = MadeBag().rig(1.0)
    made.put("/zed_wrist/zed_node/left/color/rect/image", "image", 0.5, encode.image(ns(0.5), "", picture(0)))
    with pytest.raises(RecordingError, match=r"several cameras that could be wrist: .*/zed_wrist.*--params-file"):
        recorded(tmp_path, made)


def test_the_arm_is_told_by_its_joints(tmp_path):
    made = MadeBag().rig(1.0)
    made.messages = [m for m in made.messages if m[0] != "/joint_states"]
    for t in np.arange(0, 1, 0.01):
        made.put("/franka/joint_states", "joints", t, encode.joint_state(ns(t), FR3.joint_names, joints_at(t)))
    (episode,) = recorded(tmp_path, made)
    assert episode.robot == "fr3"
    assert episode.streams.joint_states_topic == "/franka/joint_states"


def test_of_two_topics_with_the_arm_that_of_the_rig_whose_cameras_are_there(tmp_path):
    """A joint_state_publisher repeats the arm's joints where the gripper's are."""
    zed = {
        role: f"/zed_{name}/zed_node/left/color/rect/image" for role, name in (("exterior_1", "left"), ("wrist",) * 2)
    }
    topics = {CAMERAS[role]: zed[role] for role in zed} | {"/gripper/joint_states": "/joint_states"}
    made = MadeBag().rig(1.0)
    made.arm(np.arange(0, 1, 0.01), topic="/franka/joint_states")
    made.messages = [(topics.get(topic, topic), *rest) for topic, *rest in made.messages]
    (episode,) = recorded(tmp_path / "zed", made)
    assert episode.streams.joint_states_topic == "/franka/joint_states"
    assert episode.streams.gripper_topic == "/joint_states"
    back = {zed[role]: CAMERAS[role] for role in zed}
    made.messages = [(back.get(topic, topic), *rest) for topic, *rest in made.messages]
    (episode,) = recorded(tmp_path / "simulated", made)
    assert episode.streams.joint_states_topic == "/joint_states"


def test_no_arm(tmp_path):
    made = MadeBag().rig(1.0)
    made.messages = [m for m in made.messages if m[0] != "/joint_states"]
    with pytest.raises(RecordingError, match="no topic with the seven joints of a known arm"):
        recorded(tmp_path, made)


def test_compressed_images(tmp_path):
    made = MadeBag().rig(1.0)
    made.messages = [m for m in made.messages if m[0] != CAMERAS["wrist"]]
    _, png = cv2.imencode(".png", picture(7)[..., ::-1])
    for k, t in enumerate(np.arange(0, 1, 1 / 30)):
        data = png.tobytes()[: -20 if k in (15, 16) else None]
        raw = encode.compressed_image(ns(t), "wrist", "rgb8; png compressed bgr8", data)
        made.put(CAMERAS["wrist"] + "/compressed", "compressed", t, raw)
    (episode,) = recorded(tmp_path, made)
    assert episode.streams.cameras[CameraRole.WRIST].transport == "compressed"
    np.testing.assert_array_equal(episode.views(0)[CameraRole.WRIST], resize_with_pad(picture(7), 224))
    assert episode.refusals == {("wrist", "undecodable"): 1}


def test_a_picture_that_only_decoding_finds_damaged(tmp_path):
    made = MadeBag().rig(1.0)
    made.messages = [m for m in made.messages if m[0] != CAMERAS["wrist"]]
    _, png = cv2.imencode(".png", picture(7)[..., ::-1])
    bad = bytearray(png.tobytes())
    bad[20:30] = bytes(10)
    for t in np.arange(0, 1, 1 / 30):
        raw = encode.compressed_image(ns(t), "wrist", "png", bytes(bad) if 0.5 < t < 0.6 else png.tobytes())
        made.put(CAMERAS["wrist"] + "/compressed", "compressed", t, raw)
    path = made.write(tmp_path / "bag")
    (episode,) = read_episodes(path)
    with pytest.raises(RecordingError, match=r"wrist at step \d+ .*cannot be decoded"):
        [episode.views(t) for t in range(len(episode))]
    (episode,) = read_episodes(path, decode_images=True)
    assert episode.refusals["wrist", "undecodable"] >= 1
    assert all(episode.views(t) for t in range(len(episode)))


def test_a_simulation_recorded_without_its_clock(tmp_path):
    """Log times of the system, stamps of a simulation that began at 50 s."""
    made = MadeBag().rig(2.0)
    made.instruction(0.0, "go")
    (live,) = recorded(tmp_path, made)
    shift = START - 50 * S
    simulated = MadeBag()
    for topic, kind, log, raw in made.messages:
        simulated.messages.append((topic, kind, log, stamped(raw, kind, -shift)))
    (episode,) = read_episodes(simulated.write(tmp_path / "simulated"))
    assert episode.stamps_ns[0] >= 50 * S
    assert len(episode) == pytest.approx(len(live), abs=1)
    assert not episode.refusals
    assert episode.instruction == "go"


def test_a_parameter_file_says_what_to_sample(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(
        "/**: {ros__parameters: {use_sim_time: true}}\n"
        "observation:\n  ros__parameters:\n    exterior_1.topic: ''\n    wrist: {topic: /hand, transport: compressed}\n"
        "    rate: 10\n"
    )
    streams = RigStreams.from_parameter_file(file, {"robot": "fr3"})
    assert streams == RigStreams(
        cameras={CameraRole.WRIST: CameraStream("/hand", "compressed")}, rate=10.0, robot="fr3"
    )
    assert streams.cameras[CameraRole.WRIST].image_topic == "/hand/compressed"
    with pytest.raises(ValueError, match=r"no parameter 'wirst\.topic'; did you mean 'wrist.topic'"):
        RigStreams.from_parameter_file(file, {"wirst.topic": "/a"})
    with pytest.raises(ValueError, match="rate is 'fast'"):
        RigStreams.from_parameter_file(file, {"rate": "fast"})


def test_limits_of_the_panda_hold_for_the_made_arm():
    times = np.arange(0, 4, 0.1)
    assert all(
        (PANDA.position_lower < joints_at(t)).all() and (joints_at(t) < PANDA.position_upper).all() for t in times
    )
