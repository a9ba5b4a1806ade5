import numpy as np
import pytest

from ki_ros.data.bag import open_bag
from ki_ros.data.episodes import Outcome, read_episodes
from ki_ros.lockstep.collect import Collector, episode_id
from ki_ros.rig import PANDA, CameraRole
from ki_ros.sim.tasks import Task


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bags")
    collector = Collector(directory)
    collected = {task: collector.collect(task, 4) for task in Task}
    collector.close()
    return directory, collected


@pytest.mark.parametrize("task", Task)
def test_the_operator_does_what_is_asked_and_the_bag_has_it(bags, task):
    directory, collected = bags
    assert collected[task].success
    (episode,) = read_episodes(directory / episode_id(task, 4))
    assert episode.id == episode_id(task, 4)
    assert episode.outcome is Outcome.SUCCESS
    assert episode.instruction.split()[0] in {phrase.split()[0] for phrase in task.phrasings}
    assert episode.action_source == "joint_command"
    assert episode.exact
    assert episode.complete
    assert episode.ended
    assert not episode.damage
    assert not episode.refusals
    assert set(episode.segment) == {0}
    assert abs(len(episode) / 15 - collected[task].seconds) < 0.2
    periods = np.diff(episode.stamps_ns) / 1e6
    assert set(periods) <= {66.0, 67.0}
    views = episode.views(len(episode) - 1)
    assert set(views) == {CameraRole.EXTERIOR_1, CameraRole.WRIST}
    assert all(view.shape == (224, 224, 3) and view.std() > 10 for view in views.values())


@pytest.mark.parametrize("task", Task)
def test_commands_keep_the_limits_of_the_arm_and_the_arm_follows_them(bags, task):
    directory, _ = bags
    (episode,) = read_episodes(directory / episode_id(task, 4))
    assert np.all(episode.targets[:, :7] > PANDA.position_lower)
    assert np.all(episode.targets[:, :7] < PANDA.position_upper)
    velocities = np.diff(episode.targets[:, :7], axis=0) * 15.0
    assert np.all(np.abs(velocities) <= PANDA.velocity * 1.02)
    # A target is for the end of its step: the next state is near it.
    assert np.abs(episode.targets[:-1, :7] - episode.states[1:, :7]).max() < 0.12
    assert set(np.unique(episode.targets[:, 7])) <= {0.0, 1.0}
    assert bool(episode.targets[:, 7].any()) is (task is not Task.REACH)


def test_the_bag_holds_the_topics_of_the_running_graph(bags):
    directory, _ = bags
    topics = open_bag(directory / episode_id(Task.PICK, 4)).topics
    assert {
        "/camera/exterior_1/image_raw/compressed",
        "/camera/wrist/image_raw/compressed",
        "/joint_states",
        "/gripper/joint_states",
        "/joint_command",
        "/epoch",
        "/instruction",
        "/episode",
        "/observation_status",
    } == set(topics)


def test_the_same_seed_gives_the_same_demonstration(bags, tmp_path):
    directory, _ = bags
    collector = Collector(tmp_path)
    collector.collect(Task.REACH, 4)
    collector.close()
    (first,), (again,) = (read_episodes(place / episode_id(Task.REACH, 4)) for place in (directory, tmp_path))
    assert len(first) == len(again)
    np.testing.assert_array_equal(first.targets, again.targets)
    np.testing.assert_array_equal(first.states, again.states)
    np.testing.assert_array_equal(first.views(3)[CameraRole.EXTERIOR_1], again.views(3)[CameraRole.EXTERIOR_1])
