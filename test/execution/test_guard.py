"""The guard: what leaves it keeps every limit, what keeps them passes, and what does not is followed as fast as it may.

The limits are those of `stream_checker`, which shares nothing with the guard.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from stream_checker import TABLE, Stream, velocity_interval, violations

from ki_ros.execution.guard import Guard, GuardOptions
from ki_ros.execution.state import Intervention
from ki_ros.rig import FR3, PANDA, ROBOTS

PERIOD = 0.01
MIDDLE = {name: (robot.position_lower + robot.position_upper) / 2 for name, robot in ROBOTS.items()}


def guard_at(robot, positions, period=PERIOD, barriers=(), **options) -> Guard:
    guard = Guard(robot, GuardOptions(**options), period, barriers)
    guard.reset(positions)
    return guard


class Ride:
    """A guard that is ridden with an arm that follows perfectly, and a checker that listens."""

    def __init__(self, guard: Guard, name: str) -> None:
        self.guard, self.stream = guard, Stream(name, guard.period)
        self.commands: list[np.ndarray] = []
        self.velocities: list[np.ndarray] = []
        self.decided: list[np.ndarray] = []
        self.interventions: set[Intervention] = set()

    def tick(self, wanted, measured=None, dt=None):
        dt = self.guard.period if dt is None else dt
        measured = self.guard.decided if measured is None else measured
        done = self.guard.stop(dt) if wanted is None else self.guard.follow(wanted, measured, dt)
        self.stream.add(dt, done.positions, done.velocities)
        self.commands.append(done.positions)
        self.velocities.append(done.velocities)
        self.decided.append(self.guard.decided)
        self.interventions |= set(done.interventions)
        return done


# A seed has no simpler one.
@settings(phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    name=st.sampled_from(sorted(ROBOTS)),
    rate=st.sampled_from([50.0, 100.0, 250.0, 1000.0]),
    share=st.sampled_from([0.9, 0.3]),
    jerk_scale=st.sampled_from([0.9, 0.3, 0.02]),
    margin=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 2**32 - 1),
)
# Ticks that come 0.1 ms apart, with little jerk: the differences are mostly rounding.
@example(name="fr3", rate=1000.0, share=0.9, jerk_scale=0.02, margin=0.05, seed=2123)
def test_whatever_is_wanted_what_leaves_keeps_every_limit(name, rate, share, jerk_scale, margin, seed):
    """Jumps, noise, ramps, the ends of the joints and beyond, NaN, stops, and an arm that is held back."""
    robot, rng = ROBOTS[name], np.random.default_rng(seed)
    guard = guard_at(
        robot,
        MIDDLE[name],
        1 / rate,
        velocity_scale=share,
        acceleration_scale=share,
        jerk_scale=jerk_scale,
        position_margin=margin,
    )
    ride = Ride(guard, name)
    wanted, pace, lag = MIDDLE[name].copy(), np.zeros(7), np.zeros(7)
    for _ in range(150):
        kind = rng.integers(0, 9)
        if kind == 0:
            wanted = rng.uniform(robot.position_lower - 0.5, robot.position_upper + 0.5)
        elif kind == 1:
            pace = rng.normal(0, 2, 7)
        elif kind == 2:
            wanted = np.where(rng.random(7) < 0.5, robot.position_lower, robot.position_upper)
        elif kind == 3:
            pace = np.zeros(7)
        elif kind == 4:
            lag = rng.normal(0, 0.2, 7)
        for _ in range(rng.integers(1, 12)):
            wanted = wanted + pace / rate
            given_now = wanted
            if kind == 5:
                given_now = wanted + rng.normal(0, 0.02, 7)
            elif kind == 6:
                given_now = np.where(rng.random(7) < 0.2, np.nan, wanted)
            elif kind == 7:
                given_now = None
            dt = 1 / rate * (rng.uniform(0, 2) if kind == 8 else 1)
            ride.tick(given_now, guard.decided + lag, dt)
    assert ride.stream.violations(share, jerk_scale) == []
    lower, upper, *_ = np.array(TABLE[name]).T
    commands = np.array(ride.commands)
    assert np.all(commands >= lower + margin - 1e-9)
    assert np.all(commands <= upper - margin + 1e-9)


@pytest.mark.parametrize("name", ROBOTS)
@pytest.mark.parametrize("rate", [100.0, 250.0, 1000.0])
def test_what_keeps_the_limits_passes_exactly(name, rate):
    top = np.array([row[2] for row in TABLE[name]])
    times = np.arange(0, 6, 1 / rate)
    # From rest and back to it.
    angle = np.minimum(times / 6, 1) * 2 * np.pi
    wanted = MIDDLE[name] + 0.1 * top * (1 - np.cos(angle))[:, None] * np.sin(2 * times)[:, None]
    ride = Ride(guard_at(ROBOTS[name], wanted[0], 1 / rate), name)
    for target in wanted:
        ride.tick(target)
    assert np.array_equal(ride.decided, wanted)
    assert ride.interventions == set()
    # The command passes a period later, as the mean of three neighbours.
    mean = (wanted[:-2] + 4 * wanted[1:-1] + wanted[2:]) / 6
    np.testing.assert_allclose(ride.commands[2:], mean, atol=1e-12)
    assert np.abs(mean - wanted[1:-1]).max() < 20 / rate**2 / 6


def test_a_recording_of_a_real_arm_passes_untouched(test_data):
    """An FR3 that is teleoperated. Its samples were stamped on reception, up to 3 ms early or late: taken at their word
    they make accelerations of 2000 rad/s^2. So it is fitted over 20 ms, to 0.14 mrad (root of the mean square)."""
    data = np.load(test_data / "fr3_1khz_teleop.npy", allow_pickle=False)
    stamps, positions = (data[:, 0] - data[0, 0]) * 1e-9, data[:, 1:8]
    times = np.arange(0, stamps[-1], 1e-3)
    fitted = np.array([_local(stamps, positions, time, 0.02) for time in times])
    ride = Ride(guard_at(FR3, fitted[0], 1e-3), "fr3")
    for target in np.concatenate((fitted[:1], fitted)):
        ride.tick(target)
    changed = np.any(np.array(ride.decided[1:]) != fitted, axis=1)
    assert changed.mean() == 0
    assert ride.interventions == set()


def _local(stamps, positions, time, width):
    """The parabola through the samples near a time, by least squares with weights of a bell."""
    first, last = np.searchsorted(stamps, [time - 4 * width, time + 4 * width])
    away = stamps[first:last] - time
    weight = np.exp(-0.25 * (away / width) ** 2)[:, None]
    basis = np.stack((np.ones_like(away), away, away**2), axis=1)
    return np.linalg.lstsq(basis * weight, positions[first:last] * weight, rcond=None)[0][0]


def test_sixty_recorded_episodes_pass_untouched(test_data):
    """DROID's at 15 Hz, as smooth paths through the recorded positions at 100 Hz, by a Panda's guard."""
    lengths = json.loads((test_data / "droid_100" / "episodes.json").read_text())
    changed = total = 0
    worst = 0.0
    for number in range(len(lengths)):
        state = np.load(test_data / "droid_100" / f"episode_{number:03d}.npz", allow_pickle=False)["state"][:, :7]
        times = np.arange(len(state)) / 15
        path = CubicSpline(times, state, bc_type="clamped")(np.arange(0, times[-1], PERIOD))
        ride = Ride(guard_at(PANDA, path[0]), "panda")
        for target in np.concatenate((path[:1], path)):
            ride.tick(target)
        away = np.abs(np.array(ride.decided[1:]) - path).max(1)
        changed, total, worst = changed + int((away > 1e-9).sum()), total + len(path), max(worst, float(away.max()))
        assert ride.stream.violations() == []
    assert total > 10_000
    assert changed / total < 0.02, f"{changed} of {total} changed, by up to {worst:.4f} rad"


@pytest.mark.parametrize("name", ROBOTS)
@pytest.mark.parametrize("rate", [100.0, 1000.0])
@pytest.mark.parametrize("distance", [0.003, 0.05, 0.6])
def test_a_jump_is_followed_nearly_as_fast_as_can_be_and_without_overshoot(name, rate, distance):
    _, _, top, acceleration, jerk = np.array(TABLE[name]).T
    ride = Ride(guard_at(ROBOTS[name], MIDDLE[name], 1 / rate, max_tracking_error=10), name)
    target = MIDDLE[name] + distance
    for _ in range(int(1.5 * rate)):
        ride.tick(target)
    decided = np.array(ride.decided)
    assert np.all(decided <= target + 1e-5)
    np.testing.assert_allclose(decided[-1], target, atol=1e-9)
    arrived = np.argmax(np.abs(decided - target) <= 1e-4, axis=0) / rate
    # The fastest without a jerk limit, with the shares that may be used: a triangle of the velocity, or a trapezoid.
    a, v = 0.9 * acceleration, 0.9 * np.minimum(top, velocity_interval(name, target[None])[1][0])
    fastest = np.where(distance < v**2 / a, 2 * np.sqrt(distance / a), distance / v + v / a)
    assert np.all(arrived <= 1.15 * fastest + 3 / rate + 3 * acceleration / jerk)
    assert {Intervention.VELOCITY_LIMITED, Intervention.ACCELERATION_LIMITED} & ride.interventions


def test_a_target_that_moves_on_is_caught_up_with():
    """It starts at a speed that the arm needs time for; from then on the arm is at it."""
    ride = Ride(guard_at(PANDA, MIDDLE["panda"]), "panda")
    wanted = MIDDLE["panda"].copy()
    away = []
    for _ in range(120):
        wanted = wanted + 0.8 * PERIOD
        ride.tick(wanted)
        away.append(np.abs(wanted - ride.guard.decided))
    assert np.max(away) < 0.06
    assert np.max(away[80:]) < 1e-9


@pytest.mark.parametrize("name", ROBOTS)
def test_a_stop_is_as_short_as_the_limits_allow(name):
    for rate in (100.0, 1000.0):
        ride = Ride(guard_at(ROBOTS[name], MIDDLE[name], 1 / rate), name)
        wanted = MIDDLE[name].copy()
        for _ in range(int(0.5 * rate)):
            wanted = wanted + 0.5 / rate
            ride.tick(wanted)
        for _ in range(int(0.3 * rate)):
            ride.tick(None)
        speeds = np.abs(ride.velocities[int(0.5 * rate) :])
        still = np.argmax(speeds == 0, axis=0) / rate
        acceleration = 0.9 * np.array(TABLE[name])[:, 3]
        assert np.all(speeds[-1] == 0)
        assert np.all(still <= 0.5 / acceleration + 4 / rate + 0.006)
        assert ride.stream.violations() == []


def test_the_way_to_rest_is_what_a_stop_does():
    guard = guard_at(FR3, MIDDLE["fr3"])
    wanted = MIDDLE["fr3"].copy()
    for tick in range(60):
        wanted = wanted + 0.02 * np.sin(tick / 9)
        guard.follow(wanted, guard.decided, PERIOD)
    times, positions, velocities = guard.to_rest()
    for position, velocity in zip(positions[1:], velocities[1:], strict=True):
        done = guard.stop(PERIOD)
        np.testing.assert_allclose(done.positions, position, atol=1e-12)
        np.testing.assert_allclose(done.velocities, velocity, atol=1e-10)
    np.testing.assert_allclose(times, PERIOD * np.arange(len(times)), atol=1e-12)
    assert not velocities[-1].any()


def test_staying_is_always_allowed():
    for name, robot in ROBOTS.items():
        for outside in (-0.05, 0.0, 0.05):
            for at in (robot.position_lower - outside, robot.position_upper + outside):
                ride = Ride(guard_at(robot, at), name)
                for _ in range(20):
                    assert np.array_equal(ride.tick(at).positions, at)
                assert ride.interventions == set()


def test_an_arm_outside_goes_inwards_only():
    at = PANDA.position_upper + 0.05
    ride = Ride(guard_at(PANDA, at), "panda")
    for _ in range(50):
        ride.tick(at + 0.1)
    assert np.array_equal(ride.commands[-1], at)
    assert ride.interventions == {Intervention.POSITION_LIMITED}
    for _ in range(200):
        ride.tick(at - 0.3)
    np.testing.assert_allclose(ride.commands[-1], at - 0.3, atol=1e-9)
    assert np.all(np.diff(ride.commands, axis=0) <= 1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_brings_the_arm_to_rest(value):
    guard = guard_at(PANDA, MIDDLE["panda"])
    wanted = MIDDLE["panda"] + 0.001
    wanted[2] = value
    done = guard.follow(wanted, MIDDLE["panda"], PERIOD)
    assert done.refused
    assert np.array_equal(done.positions, MIDDLE["panda"])


def test_a_joint_at_its_limit_does_not_hold_up_the_others():
    for name, robot in ROBOTS.items():
        for margin in (0.0, 0.05):
            at = MIDDLE[name].copy()
            at[0] = robot.position_upper[0] - margin
            ride = Ride(guard_at(robot, at, position_margin=margin), name)
            for tick in range(1, 100):
                ride.tick(at + 0.0005 * tick)
            assert ride.commands[-1][0] == at[0]
            np.testing.assert_allclose(ride.decided[-1][1:], at[1:] + 0.0495, atol=1e-9)


def test_a_blocked_arm_is_not_pushed_ever_harder():
    measured = MIDDLE["panda"]
    ride = Ride(guard_at(PANDA, measured, max_tracking_error=0.1), "panda")
    for tick in range(300):
        ride.tick(measured + 0.01 * tick, measured)
    np.testing.assert_allclose(ride.commands[-1], measured + 0.1, atol=1e-9)
    assert np.max(ride.commands) <= np.max(measured) + 0.1 + 1e-9
    assert Intervention.TRACKING_LIMITED in ride.interventions


def test_a_late_tick_moves_no_further_than_a_period_and_an_early_one_by_its_time():
    guard = guard_at(PANDA, MIDDLE["panda"])
    wanted, last = MIDDLE["panda"].copy(), None
    for tick in range(200):
        dt = (PERIOD, 0.3 * PERIOD, 7 * PERIOD, 0.0)[tick % 4 if tick > 100 else 0]
        wanted = wanted + 0.5 * PERIOD
        done = guard.follow(wanted, guard.decided, dt)
        if tick > 101:
            moved = done.positions - last
            assert np.all(moved >= 0)
            assert np.all(moved <= 0.9 * PANDA.velocity * min(dt, PERIOD) + 1e-12)
        last = done.positions


class Wall:
    """A region where the sum of two joints is above a value; a barrier as plain as can be."""

    intervention = Intervention.WORKSPACE_LIMITED

    def __init__(self, most: float) -> None:
        self.most = most

    def depth(self, positions):
        return positions[..., 0] + positions[..., 1] - self.most


@pytest.mark.parametrize("speed", [0.05, 0.5, 2.0])
def test_a_barrier_is_not_crossed_and_can_be_left(speed):
    at = MIDDLE["panda"]
    wall = Wall(at[0] + at[1] + 0.3)
    ride = Ride(guard_at(PANDA, at, barriers=[wall]), "panda")
    direction = np.array([1, 0.7, -0.3, 0, 0, 0.2, 0])
    wanted = at.copy()
    for _ in range(int(0.6 / speed * 100)):
        wanted = wanted + speed * PERIOD * direction
        ride.tick(wanted)
    deepest = wall.depth(np.array(ride.commands))
    assert deepest.max() <= 1e-9
    assert deepest[-1] > -0.05
    assert Intervention.WORKSPACE_LIMITED in ride.interventions
    for _ in range(200):
        ride.tick(at)
    np.testing.assert_allclose(ride.commands[-1], at, atol=1e-9)
    assert ride.stream.violations() == []


def test_behind_a_barrier_the_arm_may_only_come_nearer():
    at = MIDDLE["panda"]
    wall = Wall(at[0] + at[1] - 0.1)
    ride = Ride(guard_at(PANDA, at, barriers=[wall]), "panda")
    for _ in range(50):
        ride.tick(at + 0.2)
    assert np.array_equal(ride.commands[-1], at)
    for _ in range(100):
        ride.tick(at - 0.2)
    np.testing.assert_allclose(ride.commands[-1], at - 0.2, atol=1e-9)


def test_equal_calls_give_equal_commands():
    rng = np.random.default_rng(3)
    calls = [(MIDDLE["fr3"] + rng.normal(0, 0.2, 7), rng.uniform(0, 0.02)) for _ in range(100)]
    rides = [Ride(guard_at(FR3, MIDDLE["fr3"]), "fr3") for _ in range(2)]
    for wanted, dt in calls:
        for ride in rides:
            ride.tick(wanted, dt=dt)
    assert np.array_equal(rides[0].commands, rides[1].commands)


@pytest.mark.parametrize(
    "wrong",
    [
        {"velocity_scale": 0},
        {"velocity_scale": 1.1},
        {"acceleration_scale": np.nan},
        {"jerk_scale": 0},
        {"position_margin": -0.1},
        {"max_tracking_error": 0},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GuardOptions(**wrong)
    with pytest.raises(ValueError, match="period is 0"):
        Guard(PANDA, period=0)


def test_the_checkers_own_table_is_used():
    """Were the arm's limits raised in the package, the checker would say so."""
    fast = dataclasses.replace(PANDA, velocity=PANDA.velocity * 2)
    ride = Ride(guard_at(fast, MIDDLE["panda"]), "panda")
    for _ in range(100):
        ride.tick(MIDDLE["panda"] + 1.0, measured=MIDDLE["panda"] + 1.0)
    assert "velocity" in {violation.kind for violation in ride.stream.violations()}
    assert violations("panda", np.arange(4.0), np.tile(MIDDLE["panda"], (4, 1))) == []


@pytest.mark.parametrize("name", ROBOTS)
@pytest.mark.parametrize("first", [0.05, 0.5, 0.97, 0.985])
def test_a_motion_that_is_wanted_at_an_early_tick(name, first):
    """Even ticks after one that came early are resampled at 1 kHz like all even ticks."""
    ride = Ride(guard_at(ROBOTS[name], MIDDLE[name], PERIOD), name)
    for _ in range(4):
        ride.tick(MIDDLE[name])
    rest, early = len(ride.commands), PERIOD * first
    ride.guard.follow(MIDDLE[name] + 0.2, ride.guard.decided, early)
    assert np.array_equal(ride.guard.decided, MIDDLE[name]) == (first < 0.98)
    ride.stream = Stream(name, PERIOD)
    for _ in range(60):
        ride.tick(MIDDLE[name] + 0.2)
    assert np.abs(np.array(ride.commands[rest:])[-1] - MIDDLE[name] - 0.2).max() < 1e-9
    assert ride.stream.violations() == []
