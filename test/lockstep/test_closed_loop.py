import numpy as np
import pytest
from scipy.stats import binomtest

from ki_ros.lockstep.evaluation import Evaluator, Result, episode_seed, summarise, wilson
from ki_ros.lockstep.fast_policy import FASTPolicy
from ki_ros.lockstep.loop import Lockstep
from ki_ros.policy import Policy, PolicyError
from ki_ros.rig import RESET_JOINT_POSITIONS, ActionSpace
from ki_ros.sim.expert import Expert
from ki_ros.sim.kinematics import Kinematics
from ki_ros.sim.simulated_rig import SimulatedRig
from ki_ros.sim.tasks import Referee, Task, draw_layout


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (85, 100), (100, 100)])
def test_the_interval_is_wilsons(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(successes, trials), (expected.low, expected.high), atol=1e-6)


def test_without_trials_everything_is_possible():
    assert wilson(0, 0) == (0.0, 1.0)


def result(task, instruction, success, followed):
    return Result(task, 0, instruction, "red", success, 1.0 if success else None, None, followed, 0.1, 0, {}, 0)


def test_figures_are_counted_per_task_and_instruction():
    figures = summarise(
        [
            result("reach", "reach the red block", True, True),
            result("reach", "reach the blue block", False, True),
            result("pick", "pick up the red block", False, False),
        ]
    )
    assert figures["success_rate"] == pytest.approx(1 / 3)
    assert figures["language_following"] == pytest.approx(2 / 3)
    assert figures["tasks"]["reach"]["success_rate"] == 0.5
    assert figures["tasks"]["pick"]["language_following"] == 0.0
    assert figures["instructions"]["reach the red block"]["success_rate"] == 1.0


def test_no_evaluation_shares_a_scene_with_a_demonstration_or_with_another_evaluation():
    seeds = {episode_seed(seed, episode) for seed in range(5) for episode in range(1000)}
    assert len(seeds) == 5000
    assert min(seeds) >= 1_000_000


class Still:
    """A policy that stays where the arm is."""

    action_space = ActionSpace.JOINT_POSITION

    def reseed(self, seed):
        self.seed = seed

    def infer(self, views, state, instruction):
        assert {view.shape for view in views.values()} == {(192, 256, 3)}
        assert instruction
        return np.tile(state, (15, 1))


def test_a_policy_that_stays_has_no_success_and_goes_nowhere():
    policy = Still()
    evaluator = Evaluator(policy)
    outcome = evaluator.run(Task.REACH, episode_seed(7, 0))
    evaluator.close()
    assert policy.seed == episode_seed(7, 0)
    assert not outcome.success
    assert outcome.went_to is None
    assert not outcome.followed
    assert outcome.closest > 0.1


class Silent(Still):
    """A policy that has one chunk, and then none."""

    def __init__(self):
        self.calls = 0

    def infer(self, views, state, instruction):
        self.calls += 1
        return super().infer(views, state, instruction) if self.calls == 1 else None


def test_a_policy_without_actions_is_counted_and_the_arm_is_held():
    policy = Silent()
    evaluator = Evaluator(policy)
    outcome = evaluator.run(Task.REACH, episode_seed(7, 0))
    evaluator.close()
    assert outcome.refused == policy.calls - 1 > 10
    assert outcome.holds.keys() - {"waiting_for_chunk"}
    assert not outcome.success


def test_a_backbone_acts_only_with_the_tokenizer_that_it_was_trained_with(tmp_path):
    with pytest.raises(PolicyError, match="fast is not there; give a checkpoint that was trained with FAST tokens"):
        FASTPolicy(Policy.load(preset="ki_tiny", threads=1), tmp_path)


@pytest.fixture(scope="module")
def rig():
    rig = SimulatedRig()
    yield rig
    rig.close()


@pytest.mark.parametrize("latency", [0.0, 0.2])
def test_the_arm_is_never_held_for_want_of_chunks(rig, latency):
    kinematics = Kinematics(rig.model, rig.robot.position_lower, rig.robot.position_upper)
    layout = draw_layout(Task.REACH, 9, kinematics)
    layout.place(rig)
    expert, referee = Expert(rig, layout, kinematics, horizon=15), Referee(layout, rig)
    calls = []

    def act(observed):
        calls.append(observed.time_ns)
        return expert.act(observed.command)

    start = rig.time_ns
    executor = Lockstep(rig, replan=5, latency=latency).run(
        act, ActionSpace.JOINT_POSITION, 3.0, watch=lambda: bool(referee.look())
    )
    assert referee.success
    # Only before the first chunk.
    assert set(executor.holds) <= {"waiting_for_chunk"}
    assert executor.holds.get("waiting_for_chunk", 0) <= 1
    np.testing.assert_allclose(np.diff(calls) / 1e9, 1 / 3, atol=2e-3)
    assert rig.time_ns - start == pytest.approx(3.02e9, abs=5e6)


def test_one_policy_thinks_about_one_observation_at_a_time(rig):
    rig.reset(seed=0)
    asked = []

    def act(observed):
        asked.append((observed.time_ns, observed.commitment))
        return np.tile(np.append(np.array(RESET_JOINT_POSITIONS), 0.0), (15, 1))

    Lockstep(rig, replan=1, latency=0.2).run(act, ActionSpace.JOINT_POSITION, 2.0)
    times = np.array([time for time, _ in asked])
    # The first observation after 0.2 s is the fourth, or the third where rounding to milliseconds has it so.
    assert np.diff(times).min() >= 0.2e9
    assert np.diff(times).max() <= 0.27e9
    assert asked[0][1] is None
    # 0.2 s are three rows, and three or four of the fifteen are over when the next observation is made; of the first
    # chunk, which began with row 0 when it came, one at most.
    assert {commitment.rows for _, commitment in asked[1:]} == {3}
    assert len(asked[1][1].actions) in (14, 15)
    assert {len(commitment.actions) for _, commitment in asked[2:]} <= {11, 12}


def test_whoever_stops_to_think_is_asked_at_rest(rig):
    rig.reset(seed=0)
    asked = []

    def act(observed):
        asked.append(observed.time_ns)
        return np.tile(np.append(np.array(RESET_JOINT_POSITIONS), 0.0), (15, 1))

    executor = Lockstep(rig, replan=5, latency=0.1, schedule="synchronous").run(act, ActionSpace.JOINT_POSITION, 3.0)
    # Thinking, five rows, and up to one period until the next observation.
    assert np.diff(asked).min() >= 0.1e9 + 5e9 / 15
    assert np.diff(asked).max() <= 0.11e9 + 6e9 / 15
    assert executor.holds["chunk_exhausted"] >= len(asked) - 2 > 3


class Agreeable(Still):
    """A policy that writes down what it is told of the arm."""

    def __init__(self):
        self.told = []

    def infer(self, views, state, instruction, *commitment, **how):
        self.told.append((commitment, how))
        return super().infer(views, state, instruction)


@pytest.mark.parametrize("schedule", ["latency_compensated", "rtc", "rtc_trained"])
def test_only_real_time_chunking_tells_the_policy_what_the_arm_is_committed_to(schedule):
    policy = Agreeable()
    evaluator = Evaluator(policy, latency=0.1, schedule=schedule)
    evaluator.run(Task.REACH, episode_seed(7, 0))
    evaluator.close()
    if schedule == "latency_compensated":
        assert all(commitment == () for commitment, _ in policy.told)
        return
    assert policy.told[0][0] == (None,)
    assert {commitment.rows for (commitment,), _ in policy.told[1:]} == {2}
    assert {how["trained"] for _, how in policy.told} == {schedule == "rtc_trained"}


def test_a_schedule_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"schedule is 'eager'; use one of .*rtc_trained"):
        Evaluator(Still(), schedule="eager")


def test_a_chunk_is_executed_row_by_row(rig):
    rig.reset(seed=0)
    start = np.array(RESET_JOINT_POSITIONS)
    rows = np.zeros((15, 8))
    rows[:, :7] = start
    rows[:, 0] = 0.02 * np.arange(1, 16)
    ends = {}

    class Watch:
        def on_state(self, time_ns, rig):
            pass

        def on_image(self, time_ns, role, pixels):
            pass

        def on_observation(self, time_ns, exposed_ns):
            assert exposed_ns == time_ns
            ends[time_ns] = None

        def on_tick(self, time_ns, tick):
            if tick.positions is not None:
                ends[time_ns] = tick.positions[0]

    began = rig.time_ns
    Lockstep(rig, replan=5, phase=0.0).run(lambda _: rows, ActionSpace.JOINT_POSITION, 0.3, listener=Watch())
    # Two rows of a fifteenth of a second have been gone through at 0.14 s, less what it took to start moving.
    reached = {round((time - began) / 1e6): q for time, q in ends.items() if q is not None}
    assert reached[140] == pytest.approx(0.02 * 0.14 * 15, abs=0.008)
    assert reached[270] == pytest.approx(0.02 * 0.27 * 15, abs=0.008)


def test_values_that_cannot_be_are_refused(rig):
    with pytest.raises(ValueError, match="replan is 0"):
        Lockstep(rig, replan=0)
    with pytest.raises(ValueError, match=r"latency is 0\.7 s"):
        Lockstep(rig, latency=0.7)
    with pytest.raises(ValueError, match=r"phase is 0\.1 s"):
        Lockstep(rig, phase=0.1)
