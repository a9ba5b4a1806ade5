"""Self-collision against brute force, the simulated rig's meshes, MuJoCo's contacts and recordings of real arms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ki_ros.data.droid import Episode
from ki_ros.execution import segments
from ki_ros.execution.capsules import ARM, HAND, ROBOTIQ_2F85, WRIST_CAMERA, Capsule
from ki_ros.execution.self_collision import SelfCollision
from ki_ros.kinematics import FLANGE
from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS, ROBOTS, CameraRole, Robot
from ki_ros.sim import SimulatedRig, SimulationUnavailableError
from ki_ros.sim.cameras import MOUNTS

RESET = np.array(RESET_JOINT_POSITIONS)
EPISODES = 60
HAND_LINK = 7
"""Where the hand's bodies hang in the simulated rig."""


def some_positions(robot: Robot, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(robot.position_lower, robot.position_upper, (count, 7))


@pytest.fixture(scope="module")
def simulated():
    try:
        rig = SimulatedRig(seed=0)
    except SimulationUnavailableError as error:
        pytest.skip(str(error))
    yield rig
    rig.close()


# Segments


def segment_distance(p, u, q, v):
    """Of arguments (..., 3)."""
    return segments.segment_distance(*(np.moveaxis(value, -1, 0) for value in (p, u, q, v)))


def sampled(p, u, q, v, count=200):
    """Smallest distance between `count` points of each segment; the segments are at most `spacing` closer."""
    shares = np.linspace(0, 1, count + 1)[:, None]
    first, second = p + shares * u, q + shares * v
    spacing = (np.linalg.norm(u) + np.linalg.norm(v)) / (2 * count)
    return np.linalg.norm(first[:, None] - second, axis=-1).min(), spacing


def assert_as_sampled(p, u, q, v):
    p, u, q, v = (np.asarray(value, dtype=np.float64) for value in (p, u, q, v))
    distance = segment_distance(p, u, q, v)
    most, spacing = sampled(p, u, q, v)
    assert most - spacing - 1e-9 <= distance <= most + 1e-9
    # Neither the order of the two nor the direction of one is part of the question.
    for other in ((q, v, p, u), (p + u, -u, q, v), (p, u, q + v, -v)):
        assert segment_distance(*other) == pytest.approx(float(distance), abs=1e-7)


def vectors():
    coarse = st.integers(-2, 2).map(lambda i: i / 2)
    return arrays(np.float64, 3, elements=coarse | st.floats(-1, 1, allow_subnormal=False))


@given(p=vectors(), u=vectors(), q=vectors(), v=vectors())
def test_segments_are_as_far_apart_as_their_points(p, u, q, v):
    assert_as_sampled(p, u, q, v)


@given(
    p=vectors(),
    u=vectors(),
    q=vectors(),
    factor=st.floats(-2, 2),
    bend=st.sampled_from([0.0, 1e-15, 1e-9, 1e-6, 1e-3]),
)
def test_parallel_and_nearly_parallel_segments(p, u, q, factor, bend):
    assert_as_sampled(p, u, q, factor * u + [0.0, bend, -bend])


@given(p=vectors(), u=vectors(), q=vectors())
def test_segments_without_length_are_points(p, u, q):
    assert_as_sampled(p, u, q, np.zeros(3))
    assert_as_sampled(p, np.zeros(3), q, u)
    assert segment_distance(p, np.zeros(3), q, np.zeros(3)) == pytest.approx(np.linalg.norm(p - q))


@pytest.mark.parametrize(
    ("p", "u", "q", "v", "expected"),
    [
        ((0, 0, 0), (1, 0, 0), (0.5, -1, 0.25), (0, 2, 0), 0.25),  # they cross at a height
        ((0, 0, 0), (1, 0, 0), (0.5, -1, 0), (0, 2, 0), 0.0),  # they cross
        ((0, 0, 0), (1, 0, 0), (0.25, 0.5, 0), (0.5, 0, 0), 0.5),  # side by side
        ((0, 0, 0), (1, 0, 0), (2, 0, 0), (1, 0, 0), 1.0),  # one after the other
        ((0, 0, 0), (1, 0, 0), (0.5, 0, 0), (1, 0, 0), 0.0),  # one on the other
        ((0, 0, 0), (1, 0, 0), (4, 4, 0), (-1, 0, 0), math.sqrt(4 + 16)),  # antiparallel, ends nearest
        ((0, 0, 0), (1, 0, 0), (2, 1, 0), (1, 5, 0), math.sqrt(2)),  # ends nearest
        ((0, 0, 0), (1, 0, 0), (0.5, 1, 0), (3, 9, 0), 1.0),  # an end and a middle
    ],
)
def test_segments_by_hand(p, u, q, v, expected):
    distance = segment_distance(*(np.array(value, dtype=float) for value in (p, u, q, v)))
    assert distance == pytest.approx(expected, abs=1e-12)


def test_segments_broadcast():
    p, u, q, v = np.random.default_rng(0).normal(size=(4, 5, 3, 3))
    together = segment_distance(p, u, q[:1], v[:1])
    assert together.shape == (5, 3)
    for i, j in np.ndindex(5, 3):
        assert together[i, j] == pytest.approx(float(segment_distance(p[i, j], u[i, j], q[0, j], v[0, j])))


# Capsules


def beyond(capsules: tuple[Capsule, ...], points: np.ndarray) -> float:
    """How far the farthest of the points (N, 3) is outside of all capsules [m], these as rows of many balls."""
    shares = np.linspace(0, 1, 101)[:, None]
    distances = []
    for capsule in capsules:
        centres = np.asarray(capsule.start) + shares * np.subtract(capsule.end, capsule.start)
        nearest = np.full(len(points), np.inf)
        for centre in centres:
            nearest = np.minimum(nearest, np.linalg.norm(points - centre, axis=1))
        distances.append(nearest - capsule.radius)
    return float(np.min(distances, axis=0).max())


def vertices(rig: SimulatedRig, link: int) -> np.ndarray:
    """Vertices of the meshes and boxes on a link, no joint of the arm in between, in its frame, (N, 3) [m]."""
    model, data = rig.model, rig.data
    names = [model.body(body).name for body in range(model.nbody)]
    frame = data.body(f"link{link}")
    found = []
    for geom in range(model.ngeom):
        body = model.geom_bodyid[geom]
        while body and not names[body].startswith("link"):
            body = model.body_parentid[body]
        if names[body] != f"link{link}":
            continue
        mesh = model.geom_dataid[geom]
        if mesh < 0:
            corners = np.stack(np.meshgrid(*[[-1, 1]] * 3), axis=-1).reshape(-1, 3) * model.geom_size[geom]
        else:
            first = model.mesh_vertadr[mesh]
            corners = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
            corners = corners[:: max(1, len(corners) // 2000)]
        world = corners @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
        found.append((world - frame.xpos) @ frame.xmat.reshape(3, 3))
    return np.concatenate(found)


@pytest.mark.parametrize("link", range(8))
def test_a_links_capsules_hold_its_meshes_and_little_else(simulated, link):
    simulated.reset()
    capsules = tuple(capsule for capsule in ARM if capsule.frame == link)
    points = vertices(simulated, link)
    if link == HAND_LINK:
        points = points[points[:, 2] < 0.1]
    assert len(points) > 1000
    assert beyond(capsules, points) < 1e-3
    slimmer = tuple(Capsule(c.part, c.frame, c.start, c.end, c.radius - 0.005) for c in capsules)
    assert beyond(slimmer, points) > 0.001


@pytest.mark.parametrize("angle", [0.0, 0.2, 0.4, 0.6, 0.8])
def test_the_grippers_capsules_hold_its_meshes_at_every_opening(simulated, angle):
    simulated.reset()
    simulated.command(gripper_angle=angle)
    simulated.step(1.0)
    points = vertices(simulated, HAND_LINK) - [0, 0, 0.107]
    assert beyond(ROBOTIQ_2F85, points[points[:, 2] > 0]) < 1e-3


def test_the_wrist_camera_is_where_the_simulated_rig_has_it():
    """Both lenses of the stereo pair, 63 mm apart, are in it. The gripper's base is 3.8 mm in front of the flange."""
    lenses = np.array(MOUNTS[CameraRole.WRIST].position) + np.array([[0, 0, 0.0038], [0, 0.063, 0.0038]])
    assert beyond(WRIST_CAMERA, lenses) < 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": 9}, r"frame of capsule 'thing' is 9; expected 0 \(base\) to 8"),
        ({"frame": 1.5}, r"frame of capsule 'thing' is 1\.5"),
        ({"start": (0, 0)}, r"start of capsule 'thing' is \(0, 0\); expected x, y, z"),
        ({"end": (0, 0, math.nan)}, r"end of capsule 'thing'"),
        ({"radius": 0.0}, r"radius of capsule 'thing' is 0\.0 m; expected more than 0"),
        ({"radius": math.nan}, r"radius of capsule 'thing' is nan"),
    ],
)
def test_a_capsule_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Capsule(**{"part": "thing", "frame": 1, "start": (0, 0, 0), "end": (0, 0, 1), "radius": 0.1} | changes)


# The arm


def test_the_reset_pose_is_clear():
    assert 0.04 < SelfCollision().clearance(RESET) < 0.1


@pytest.mark.parametrize(
    ("q", "parts"),
    [
        # The fingertips 127 mm above the middle of the base's foot: inside of the column that carries the shoulder.
        ((0.0, 1.7, 0.0, -2.2, 0.0, 0.8, 0.0), {"base", "link 1"}),
        # The wrist's centre 76 mm above the middle of the base's foot.
        ((0.0, 1.4, 0.0, -2.9, 0.0, 0.7, 0.0), {"base", "link 1"}),
        # The hand folded back along the forearm, 88 mm beside its axis, open fingers 74 mm to either side.
        ((0.0, 0.0, 0.0, -1.5, 0.0, 0.0, math.pi / 2), {"link 5"}),
    ],
)
def test_the_arm_in_itself_is_seen(q, parts):
    collision = SelfCollision()
    assert collision.clearance(np.array(q)) < -0.02
    assert parts & set(collision.closest(np.array(q)))


@pytest.mark.parametrize("gripper", [0.0, 0.8])
@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_every_contact_of_the_physics_is_an_overlap(simulated, full, name, gripper):
    """MuJoCo takes the convex hulls of the meshes, which fill inner corners that capsules leave free: where those only
    touch, capsules nearly do, and where they overlap by more, so do the capsules. And capsules overlap without that in
    not too many places."""
    import mujoco

    model, data = simulated.model, simulated.data
    simulated.reset()
    simulated.command(gripper_angle=gripper)
    simulated.step(1.0)
    arm = [body for body in range(model.nbody) if "link0" in lineage(model, body)]
    links = np.array([model.joint(f"joint{i}").qposadr[0] for i in range(1, 8)])
    q = some_positions(ROBOTS[name], 20_000 if full else 2_000)
    deepest = np.zeros(len(q))
    for index, positions in enumerate(q):
        data.qpos[links] = positions
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        for contact in data.contact:
            bodies = [model.geom_bodyid[geom] for geom in contact.geom]
            of_the_hand = all("attachment" in lineage(model, body) for body in bodies)
            if all(body in arm for body in bodies) and not of_the_hand:
                deepest[index] = min(deepest[index], contact.dist)
    clearance = SelfCollision(ROBOTIQ_2F85).clearance(q)
    assert (deepest < 0).sum() > len(q) / 100
    assert (clearance[deepest < 0] < 0.005).all()
    assert (clearance[deepest < -0.005] < 0).all()
    assert ((clearance < 0) & (deepest == 0)).mean() < 0.1


def lineage(model, body: int) -> set[str]:
    """Names of a body and of all that carry it."""
    names = set()
    while body:
        names.add(model.body(body).name)
        body = model.body_parentid[body]
    return names


def test_recorded_episodes_stay_clear(test_data):
    """What real arms did was no collision."""
    collision = SelfCollision()
    directory = test_data / "droid_100"
    smallest = [collision.clearance(Episode.load(directory, i).states[:, :7]).min() for i in range(EPISODES)]
    assert min(smallest) > 0.015
    without_camera = SelfCollision(ROBOTIQ_2F85)
    smallest = [without_camera.clearance(Episode.load(directory, i).states[:, :7]).min() for i in range(EPISODES)]
    assert min(smallest) > 0.04


@pytest.mark.parametrize(("name", "least", "most"), [("panda", 0.10, 0.18), ("fr3", 0.04, 0.08)])
def test_how_much_of_the_joint_space_collides(name, least, most):
    share = (SelfCollision().clearance(some_positions(ROBOTS[name], 20_000)) < 0).mean()
    assert least < share < most


def test_the_first_joint_changes_only_the_distance_to_the_base():
    collision = SelfCollision()
    compared = 0
    for q in some_positions(PANDA, 300):
        turned = q + 0.7 * np.eye(7)[0]
        if "base" not in (*collision.closest(q), *collision.closest(turned)):
            assert collision.clearance(turned) == pytest.approx(float(collision.clearance(q)), abs=1e-9)
            compared += 1
    assert compared > 100


def test_a_larger_hand_is_never_clearer():
    q = some_positions(PANDA, 500)
    larger = tuple(Capsule(c.part, c.frame, c.start, c.end, c.radius + 0.01) for c in HAND)
    less = SelfCollision().clearance(q) - SelfCollision(larger).clearance(q)
    assert less.min() >= 0
    assert less.max() == pytest.approx(0.01)


def test_clearance_changes_no_faster_than_the_arm_moves():
    """No point of the arm is further than 1.3 m from an axis: a jump would be a mistake in the distance."""
    rng = np.random.default_rng(5)
    q = some_positions(PANDA, 2_000)
    step = rng.normal(size=q.shape) * 1e-3
    change = np.abs(SelfCollision().clearance(q + step) - SelfCollision().clearance(q))
    assert (change <= 2 * 1.3 * np.abs(step).sum(axis=1)).all()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
def test_batches_are_their_parts(shape):
    collision = SelfCollision()
    q = some_positions(PANDA, math.prod(shape), seed=2).reshape(*shape, 7)
    clearance = collision.clearance(q)
    assert clearance.shape == shape
    assert np.asarray(clearance).dtype == np.float64
    for index in np.ndindex(shape):
        assert clearance[index] == pytest.approx(float(collision.clearance(q[index])), abs=1e-12)


def test_the_closest_parts_are_named():
    first, second = SelfCollision().closest(RESET)
    assert {first, second} <= {capsule.part for capsule in (*ARM, *HAND)}
    ball = Capsule("stick", FLANGE, (0.0, 0.0, 0.0), (0.0, 0.0, 0.2), 0.3)
    assert "stick" in SelfCollision((ball,)).closest(RESET)


@pytest.mark.parametrize(("forearm_roll", "part"), [(0.0, "link 3"), (-1.5, "link 4")])
def test_a_long_tool_folded_back_reaches_the_elbow(forearm_roll, part):
    stick = Capsule("stick", FLANGE, (0.0, 0.0, 0.15), (0.0, 0.0, 0.36), 0.015)
    collision = SelfCollision((stick,))
    folded_back = np.array([0.0, 0.0, 0.0, -1.5, forearm_roll, 0.0, 0.0])
    assert collision.closest(folded_back) == (part, "stick")
    assert collision.clearance(folded_back) < 0


def test_what_is_not_finite_is_nowhere():
    q = np.tile(RESET, (2, 1))
    q[1, 3] = np.nan
    clearance = SelfCollision().clearance(q)
    assert np.isfinite(clearance[0])
    assert np.isnan(clearance[1])


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="q has shape"):
        SelfCollision().clearance(np.zeros((2, 8)))
