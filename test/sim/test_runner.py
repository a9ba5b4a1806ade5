"""The two threads of a running rig, without ROS."""

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

from ki_ros.rig import RESET_JOINT_POSITIONS, CameraRole
from ki_ros.sim import CameraSize, SimulatedRig
from ki_ros.sim.runner import Runner, RunnerOptions

pytestmark = pytest.mark.usefixtures("graphics")
DEADLINE = 30.0


class Recorder:
    """Keeps what a runner tells; `wait` is for a condition on it."""

    def __init__(self, render_delay=0.0):
        self.changed = threading.Condition()
        self.clock, self.states, self.failures = [], [], []
        self.images = {role: [] for role in CameraRole}
        self.render_delay = render_delay
        self.fail_on_image = None

    def _keep(self, where, item):
        with self.changed:
            where.append(item)
            self.changed.notify_all()

    def on_clock(self, time_ns):
        self._keep(self.clock, time_ns)

    def on_state(self, rig):
        self._keep(self.states, (rig.time_ns, rig.joint_positions))

    def on_image(self, role, time_ns, pixels):
        if self.fail_on_image is not None:
            raise self.fail_on_image
        time.sleep(self.render_delay)
        self._keep(self.images[role], (time_ns, pixels))

    def on_failure(self, error):
        self._keep(self.failures, error)

    def wait(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE), "the rig did not do it in time"


@pytest.fixture(scope="module")
def small_rig():
    return SimulatedRig(sizes=dict.fromkeys(CameraRole, CameraSize(64, 36)))


@pytest.fixture
def run(small_rig):
    runners = []

    def start(recorder, **options):
        small_rig.reset(seed=0)
        runners.append(Runner(small_rig, recorder, RunnerOptions(**options)))
        runners[-1].start()
        return runners[-1]

    yield start
    for runner in runners:
        runner.stop()
    assert not any(thread.name in ("physics", "rendering") for thread in threading.enumerate())


def stamps(recorder, role):
    return [time_ns for time_ns, _ in recorder.images[role]]


def test_everything_comes_at_its_rate_in_simulated_time(run, small_rig):
    recorder = Recorder()
    begin = small_rig.time_ns
    run(recorder, camera_rate=15.0, state_rate=100.0, clock_rate=200.0)
    recorder.wait(lambda: all(len(images) >= 15 for images in recorder.images.values()))
    first = stamps(recorder, CameraRole.WRIST)
    for role in CameraRole:
        # Every period from the start has its picture, and all cameras have it of the same instant.
        assert stamps(recorder, role)[:15] == first[:15]
    assert np.abs(np.diff(first) - 1e9 / 15).max() <= 1.1e6
    with recorder.changed:
        assert set(np.diff(recorder.clock)) == {5_000_000}
        assert set(np.diff([t for t, _ in recorder.states])) == {10_000_000}
        assert recorder.clock[0] > begin


def test_cameras_may_expose_one_after_the_other(run):
    recorder = Recorder()
    run(recorder, camera_offsets={CameraRole.WRIST: 0.02})
    recorder.wait(lambda: all(len(images) >= 5 for images in recorder.images.values()))
    lag = np.array(stamps(recorder, CameraRole.WRIST)[:4]) - np.array(stamps(recorder, CameraRole.EXTERIOR_1)[1:5])
    assert np.all(np.abs(lag % 66_666_667 - 20_000_000) < 2e6)


def test_slow_pictures_slow_time_down_and_none_is_left_out(run):
    recorder = Recorder(render_delay=0.05)
    runner = run(recorder, camera_rate=30.0)
    recorder.wait(lambda: len(recorder.images[CameraRole.WRIST]) >= 20)
    status = runner.status()
    assert status.limited_by == "rendering"
    assert status.factor < 0.5
    assert status.pending <= 12
    assert np.diff(stamps(recorder, CameraRole.WRIST)).max() < 35_000_000


def test_a_command_reaches_the_arm_and_a_bad_one_comes_back(run):
    recorder = Recorder()
    runner = run(recorder)
    target = np.array(RESET_JOINT_POSITIONS) + 0.1
    runner.submit(lambda rig: rig.command(target)).result(DEADLINE)
    recorder.wait(lambda: recorder.states and np.abs(recorder.states[-1][1] - target).max() < 0.01)
    with pytest.raises(ValueError, match="arm command"):
        runner.submit(lambda rig: rig.command(np.zeros(3))).result(DEADLINE)


def test_a_listener_that_fails_ends_the_run_and_is_reported(run):
    recorder = Recorder()
    run(recorder)
    recorder.fail_on_image = OSError("no space")
    recorder.wait(lambda: recorder.failures)
    assert str(recorder.failures[0]) == "no space"


def test_stopping_is_quick_and_cancels_what_comes_after(run):
    runner = run(Recorder())
    begin = time.monotonic()
    runner.stop()
    assert time.monotonic() - begin < 2.0
    with pytest.raises(CancelledError):
        runner.submit(lambda rig: rig.reset()).result(1.0)


def test_a_backend_that_cannot_draw_is_reported_by_start(small_rig, monkeypatch):
    monkeypatch.setattr(small_rig, "make_renderer", lambda: (_ for _ in ()).throw(RuntimeError("no context")))
    with pytest.raises(RuntimeError, match="no context"):
        Runner(small_rig, Recorder()).start()


def test_an_impossible_rate_is_refused_by_name(small_rig):
    with pytest.raises(ValueError, match=r"rate of joint states must be in \(0, 1000\] Hz, got 2000"):
        Runner(small_rig, Recorder(), RunnerOptions(state_rate=2000.0))
