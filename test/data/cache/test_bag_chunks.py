"""Samples of cached episodes against loops over their steps, their statistics, and what is refused."""

from __future__ import annotations

import math
import operator
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from cached_episodes import VIEWS, cached, made, picture
from statistics_by_hand import by_hand

from ki_ros.data.bag_chunks import KEPT_IDLE_STEPS, BagChunks, split_episodes
from ki_ros.data.cache import Cache, CacheError
from ki_ros.data.statistics import compute_norm_stats
from ki_ros.data.subset import Subset
from ki_ros.rig import ActionSpace

VELOCITY, POSITION = ActionSpace.JOINT_VELOCITY, ActionSpace.JOINT_POSITION
EXTERIOR, WRIST = VIEWS


def busy():
    """Episodes with two segments, pauses of several lengths, one across a segment's end, and other outcomes."""
    idle = np.zeros(60, bool)
    idle[[3, *range(10, 18), *range(25, 45), *range(50, 60)]] = True
    return [
        made("plain", 20, 1),
        made("paused", 60, 2, idle=idle, segment=np.repeat([0, 1], 30), instruction="push the green block"),
        made("failed", 9, 3, outcome="failure"),
        made("nobody said", 7, 4, outcome="unknown"),
        made("all idle", 12, 5, idle=np.ones(12, bool)),
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return cached(tmp_path_factory.mktemp("cache"), *busy())


def kept_steps(episode):
    """Steps with samples, counted one by one."""
    kept, run = [], 0
    for step in range(len(episode.idle)):
        same = step > 0 and episode.segment[step] == episode.segment[step - 1]
        run = run + 1 if episode.idle[step] and (same or run == 0) else int(episode.idle[step])
        if not episode.idle[step] or run <= 8:
            kept.append(step)
    return kept


def brute_force(episode, step, horizon, space):
    """Actions and mask of a sample, row by row."""
    rows, mask = [], []
    for at in range(step, step + horizon):
        inside = at < len(episode.segment) and episode.segment[at] == episode.segment[step]
        if inside:
            joints = list(episode.targets[at][:7])
            if space is VELOCITY:
                joints = [(target - q) / 0.2 for target, q in zip(joints, episode.states[at], strict=False)]
            rows.append([*joints, episode.targets[at][7]])
        else:
            rows.append([*([0.0] * 7 if space is VELOCITY else rows[-1][:7]), rows[-1][7]])
        mask.append(inside)
    return np.array(rows), np.array(mask)


@pytest.mark.parametrize("space", [VELOCITY, POSITION])
@pytest.mark.parametrize("horizon", [1, 15])
@pytest.mark.parametrize("drop_idle", [True, False])
def test_samples_are_those_of_a_loop_over_the_steps(cache, space, horizon, drop_idle):
    source = BagChunks(
        cache, horizon=horizon, action_space=space, outcomes=("success", "failure", "unknown"), drop_idle=drop_idle
    )
    index = 0
    for episode in busy():
        for step in kept_steps(episode) if drop_idle else range(len(episode.idle)):
            sample = source[index]
            actions, mask = brute_force(episode, step, horizon, space)
            np.testing.assert_allclose(sample.actions, actions, rtol=0, atol=1e-14)
            np.testing.assert_array_equal(sample.action_mask, mask)
            np.testing.assert_array_equal(sample.state, episode.states[step])
            assert sample.instruction == episode.instruction
            assert list(sample.views) == list(VIEWS)
            for role, view in sample.views.items():
                np.testing.assert_array_equal(view, picture(episode.seed, step, role))
            index += 1
    assert len(source) == index
    assert source.action_space is space


@pytest.mark.parametrize("space", [VELOCITY, POSITION])
def test_holding_after_an_episode_s_end_counts_on_request_and_inside_an_episode_never(tmp_path, space):
    """Nor where an episode was not seen until its end: then it goes on as inside of one."""
    episodes = [*busy(), made("not seen until its end", 18, 6, segment=np.repeat([0, 1], 9), ended=False)]
    cache = cached(tmp_path, *episodes)
    plain = BagChunks(cache, horizon=15, action_space=space, drop_idle=False)
    held = BagChunks(cache, horizon=15, action_space=space, drop_idle=False, hold_after_end=True)
    assert held.fingerprint != plain.fingerprint
    index = 0
    for episode in (e for e in episodes if e.outcome == "success"):
        for step in range(len(episode.segment)):
            _, mask = brute_force(episode, step, 15, space)
            last = episode.ended and episode.segment[step] == episode.segment[-1]
            sample = held[index]
            np.testing.assert_array_equal(sample.action_mask, np.ones(15, bool) if last else mask)
            np.testing.assert_array_equal(sample.actions, plain[index].actions)
            index += 1
    assert index == len(held) == len(plain)
    np.testing.assert_array_equal(held.chunks()[1], [held[k].action_mask for k in range(len(held))])


def test_of_a_pause_the_first_steps_are_kept(cache):
    """A pause goes on no longer than its segment: a new one begins with steps of its own."""
    states, _ = BagChunks(cache, action_space=POSITION, episodes=[1]).states_and_actions()
    expected = [*range(25), *range(25, 30), *range(30, 38), *range(45, 50), *range(50, 58)]
    np.testing.assert_array_equal(states, busy()[1].states[expected])
    assert KEPT_IDLE_STEPS == 8


@pytest.mark.parametrize("space", [VELOCITY, POSITION])
def test_chunks_are_those_of_the_samples(cache, space):
    source = BagChunks(cache, horizon=6, action_space=space)
    actions, masks = source.chunks()
    for index in range(len(source)):
        np.testing.assert_array_equal(actions[index], source[index].actions)
        np.testing.assert_array_equal(masks[index], source[index].action_mask)
    np.testing.assert_array_equal(source.states_and_actions()[1], actions[:, 0])


@pytest.mark.parametrize("space", [VELOCITY, POSITION])
@pytest.mark.parametrize("horizon", [1, 6, 40])
@pytest.mark.parametrize("hold_after_end", [False, True])
def test_some_chunks_are_those_among_all(cache, space, horizon, hold_after_end):
    source = BagChunks(cache, horizon=horizon, action_space=space, hold_after_end=hold_after_end)
    actions, masks = source.chunks()
    np.testing.assert_array_equal(source.whole(), masks.all(1))
    for indices in (np.arange(0, len(source), 7), np.array([len(source) - 1, 0, 3, 3])):
        some, some_masks = source.chunks(indices)
        np.testing.assert_array_equal(some, actions[indices])
        np.testing.assert_array_equal(some_masks, masks[indices])


def test_samples_are_described_by_step_and_episode(cache):
    source = BagChunks(cache, action_space=VELOCITY)
    described = [
        f"step {step} of {e.id!r} of {e.bag}" for e in busy() if e.outcome == "success" for step in kept_steps(e)
    ]
    assert [source.describe(index) for index in range(len(source))] == described
    with pytest.raises(IndexError, match="samples are 0 to"):
        source.describe(len(source))


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [(("success",), (0, 1, 4)), (("failure", "unknown"), (2, 3)), (("success", "unknown"), (0, 1, 3, 4))],
)
def test_only_episodes_of_the_outcomes_are_taken(cache, outcomes, expected):
    source = BagChunks(cache, action_space=VELOCITY, outcomes=outcomes)
    assert source.episodes == expected
    assert {source[index].instruction for index in range(len(source))} == {busy()[n].instruction for n in expected}


@pytest.mark.parametrize("space", [VELOCITY, POSITION])
def test_statistics_are_exact_over_the_steps_that_are_trained_on(cache, space):
    source = BagChunks(cache, action_space=space)
    computed = compute_norm_stats(*source.states_and_actions())["norm_stats"]
    rows = {"state": [], "actions": []}
    for number in (0, 1, 4):
        episode = busy()[number]
        for step in kept_steps(episode):
            rows["state"].append(episode.states[step])
            rows["actions"].append(brute_force(episode, step, 1, space)[0][0])
    for name, values in rows.items():
        for dim in range(8):
            found = {key: computed[name][key][dim] for key in ("mean", "std", "q01", "q99")}
            assert found == pytest.approx(by_hand([float(row[dim]) for row in values]), rel=1e-12, abs=1e-12)


def test_another_process_sees_the_same_samples(cache):
    source = BagChunks(cache, action_space=VELOCITY)
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        there, here = pool.submit(operator.getitem, source, 33).result(), source[33]
    np.testing.assert_array_equal(there.actions, here.actions)
    np.testing.assert_array_equal(there.views[WRIST], here.views[WRIST])


def test_what_is_done_to_a_sample_stays_there(cache):
    source = BagChunks(cache, action_space=POSITION)
    before = source[3]
    for values in (before.state, before.actions, before.action_mask):
        values[...] = 0
    assert source[3].state.all()
    assert source[3].actions.all()
    assert source[3].action_mask.all()


def test_a_subset_can_be_trained_on(cache):
    few = Subset(BagChunks(cache, horizon=4, action_space=VELOCITY), 5)
    assert len(few) == 5
    assert all(few[index].action_mask.all() for index in range(5))


def test_the_fingerprint_is_the_same_wherever_the_cache_lies_and_whatever_else_is_in_it(cache, tmp_path):
    plain = BagChunks(cache, action_space=VELOCITY, episodes=[0, 1])
    copy = Cache(shutil.copytree(cache.directory, tmp_path / "copy"))
    assert BagChunks(copy, action_space=VELOCITY, episodes=[1, 0]).fingerprint == plain.fingerprint
    more = cached(tmp_path / "more", made("new", 5, 9), *busy())
    assert BagChunks(more, action_space=VELOCITY, episodes=[1, 2]).fingerprint == plain.fingerprint
    assert pickle.loads(pickle.dumps(plain)).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"instruction": "reach the red  block"},
        {"states": 1},
        {"targets": 1},
        {"segment": np.repeat([0, 1], 10)},
        {"seed": 8},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_fingerprint_changes_with_the_episode(tmp_path, changes):
    episode, other = made("one", 20, 1), made("one", 20, 1)
    for name, value in changes.items():
        if name in ("states", "targets"):
            value = getattr(other, name).copy()
            value[7, 2] = np.nextafter(value[7, 2], 1)
        setattr(other, name, value)
    first, second = (
        BagChunks(cached(tmp_path / str(n), e), action_space=VELOCITY).fingerprint
        for n, e in enumerate((episode, other))
    )
    assert first != second


@pytest.mark.parametrize(
    "changes",
    [
        {"horizon": 14},
        {"action_space": POSITION},
        {"views": (WRIST,)},
        {"views": ()},
        {"episodes": [0]},
        {"drop_idle": False},
        {"outcomes": ("success", "failure")},
    ],
)
def test_the_fingerprint_changes_with_the_choice(cache, changes):
    usual = {"action_space": VELOCITY}
    assert BagChunks(cache, **usual).fingerprint != BagChunks(cache, **(usual | changes)).fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon is 0; give at least 1"),
        ({"action_space": "torque"}, "action_space 'torque' is not known"),
        ({"views": ("left",)}, "views has 'left', which is no camera; use some of exterior_1"),
        ({"views": (WRIST, WRIST)}, "views has wrist, wrist; give each once"),
        ({"outcomes": ()}, "outcomes has 'nothing'; use some of success"),
        ({"outcomes": ("good",)}, "outcomes has 'good'; use some of success"),
        ({"episodes": [5]}, "episodes has 5; .* has 0 to 4"),
        ({"episodes": [1, 1]}, "episodes has 1 twice"),
        ({"episodes": [2, 3]}, "no episode of outcome success among 2 .there are: 1 of outcome failure, 1 of outcome"),
        ({"missing_views": "skip"}, "missing_views is 'skip'"),
    ],
)
def test_what_makes_no_sense_is_refused(cache, changes, message):
    with pytest.raises(ValueError, match=message):
        BagChunks(cache, **({"action_space": VELOCITY} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction": " "}, "1 of 2 episodes have no instruction, the first is 'odd' of made"),
        ({"rate": 30.0}, "1 of 2 episodes do not have the 15 steps a second .* is 'odd' of made with 30.0"),
        (
            {"roles": (WRIST,)},
            r"1 of 2 episodes lack a view, the first is 'odd' of made without exterior_1 \(it has wrist\)",
        ),
    ],
)
def test_an_episode_that_does_not_fit_is_named(tmp_path, changes, message):
    cache = cached(tmp_path, made("plain", 5, 1), made("odd", 5, 2, **changes))
    with pytest.raises(CacheError, match=message):
        BagChunks(cache, action_space=VELOCITY)
    assert len(BagChunks(cache, action_space=VELOCITY, episodes=[0])) == 5


@pytest.mark.parametrize("rate", [5.0, 10.0, 30.0])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("space", [VELOCITY, POSITION])
def test_episodes_that_a_policy_would_go_through_at_another_speed_are_refused(tmp_path, rate, labelled, space):
    """Also where all are alike, and where only their stamps tell: rows are executed a fifteenth of a second apart."""
    changes = {"stamps_ns": 10**18 + np.arange(5, dtype=np.int64) * round(1e9 / rate)}
    changes |= {"rate": rate} if labelled else {}
    cache = cached(tmp_path, *(made(f"run {number}", 5, number, **changes) for number in range(3)))
    with pytest.raises(CacheError, match=f"3 of 3 episodes do not have the 15 .* 'run 0' of made with {rate:.1f}"):
        BagChunks(cache, action_space=space)


def test_a_gap_is_no_other_rate(tmp_path):
    """Nor is a clock that runs a little fast, nor an episode of one step."""
    stamps = 10**18 + np.array([0, 1, 60, 61, 120, 121], dtype=np.int64) * 66_000_000
    gaps = made("gaps", 6, 1, stamps_ns=stamps, segment=np.repeat([0, 1, 2], 2))
    assert len(BagChunks(cached(tmp_path, gaps, made("short", 1, 2)), action_space=VELOCITY)) == 7


def test_missing_views_are_left_out_on_request(tmp_path):
    cache = cached(tmp_path, made("plain", 5, 1), made("odd", 5, 2, roles=(WRIST,)))
    source = BagChunks(cache, action_space=VELOCITY, missing_views="mask")
    assert [set(source[index].views) for index in (4, 5)] == [set(VIEWS), {WRIST}]


def test_episodes_without_an_instruction_get_the_given_one(tmp_path):
    cache = cached(tmp_path, made("plain", 5, 1), made("silent", 5, 2, instruction=""))
    source, other = (BagChunks(cache, action_space=VELOCITY, instruction=text) for text in ("push it", "pull it"))
    assert [source[index].instruction for index in (4, 5)] == ["reach the red block", "push it"]
    assert source.fingerprint != other.fingerprint


def test_an_index_out_of_range_is_named(cache):
    source = BagChunks(cache, action_space=VELOCITY, episodes=[0])
    for index in (-1, 20):
        with pytest.raises(IndexError, match=rf"index is {index}; samples are 0 to 19"):
            source[index]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    episodes = [made(f"run {number // 2}", 1, number, size=(2, 2)) for number in range(80)]
    return cached(tmp_path_factory.mktemp("many"), *episodes)


@pytest.mark.parametrize(("held_out", "count"), [(0, 0), (0.1, 4), (0.001, 1), (0.5, 20), (1, 1), (13, 13), (39, 39)])
def test_as_many_are_held_out_as_asked_for_and_equal_ids_stay_together(many, held_out, count):
    train, apart = split_episodes(many, range(80), held_out)
    assert sorted((*train, *apart)) == list(range(80))
    names = [{many.episodes[number].id for number in side} for side in (train, apart)]
    assert len(names[1]) == count
    assert not names[0] & names[1]


def test_more_episodes_move_few_from_one_side_to_the_other(many):
    before = set(split_episodes(many, range(60), 0.2)[1])
    after = set(split_episodes(many, range(80), 0.2)[1])
    assert split_episodes(many, range(60), 0.2) == split_episodes(many, list(range(60))[::-1], 0.2)
    assert len(before & after) >= len(before) - 4
    assert after - before


@pytest.mark.parametrize("held_out", [-0.1, 1.5, math.nan, math.inf, 40, 41])
def test_a_split_that_makes_no_sense_is_refused(many, held_out):
    with pytest.raises(ValueError, match=f"held_out is {held_out:g}"):
        split_episodes(many, range(80), held_out)


def test_the_cameras_of_a_sample_are_in_the_order_asked_for(cache):
    assert list(BagChunks(cache, action_space=VELOCITY, views=(WRIST, EXTERIOR))[0].views) == [WRIST, EXTERIOR]
