"""The sampler against a search through every message that was ever given to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.observation import ObservationSampler, Reason, Refusal, Sample, StreamSpec

NAMES = ("a", "b", "c")
LIMITS = {"a": 20, "b": 40, "c": 60}
SPREAD = 30


def make_sampler(decode=lambda payload: payload, **options) -> ObservationSampler:
    # As many messages as any of these tests sends: the oracle forgets nothing either.
    specs = [StreamSpec(name, LIMITS[name], decode, capacity=1000) for name in NAMES]
    return ObservationSampler(specs, SPREAD, **options)


def expected(messages: dict[str, list[int]], reference: int) -> Reason | dict[str, int]:
    chosen = {}
    for name in NAMES:
        usable = [stamp for stamp in messages[name] if stamp <= reference]
        if not messages[name]:
            return Reason.NEVER_RECEIVED
        if not usable:
            return Reason.NOT_YET
        if reference - max(usable) > LIMITS[name]:
            return Reason.STALE
        chosen[name] = max(usable)
    if max(chosen.values()) - min(chosen.values()) > SPREAD:
        return Reason.SPREAD
    return chosen


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from(NAMES), st.integers(-80, 30)), max_size=8),
            st.integers(0, 40),
        ),
        min_size=1,
        max_size=25,
    )
)
def test_sampler_agrees_with_a_search(steps):
    """Messages out of order, late, twice and ahead of time; reference times that go forward."""
    sampler, messages, reference = make_sampler(), {name: [] for name in NAMES}, 1000
    sampled, refused = 0, 0
    for arriving, forward in steps:
        reference += forward
        for name, offset in arriving:
            sampler.add(name, reference + offset, (name, reference + offset))
            messages[name].append(reference + offset)
        want, got = expected(messages, reference), sampler.sample(reference)
        if isinstance(want, Reason):
            assert isinstance(got, Refusal)
            assert got.reason is want
            assert got.stream in got.message
            refused += 1
        else:
            assert isinstance(got, Sample)
            assert {name: sample.stamp_ns for name, sample in got.streams.items()} == want
            for name, sample in got.streams.items():
                assert sample.age_ns == reference - sample.stamp_ns <= LIMITS[name]
                assert sample.value == (name, sample.stamp_ns)
            sampled += 1
    assert sampler.sampled == sampled
    assert sum(sampler.refused.values()) == refused


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_sampling_goes_on_after_the_clock_is_set_back(first, back):
    sampler = make_sampler(clock_tolerance_ns=0)
    start = 2 * 10**6
    for name in NAMES:
        sampler.add(name, start + first, "old")
    assert isinstance(sampler.sample(start + first), Sample)
    now = start + first - back
    for name in NAMES:
        sampler.add(name, now, "new")
    result = sampler.sample(now)
    assert {sample.value for sample in result.streams.values()} == {"new"}
    assert sampler.clock_steps_back == 1


def test_limits_are_inclusive():
    sampler = make_sampler()
    for name, stamp in zip(NAMES, (1000, 970, 970), strict=True):
        sampler.add(name, stamp, name)
    assert isinstance(sampler.sample(1000), Sample)
    refusal = sampler.sample(1021)
    assert (refusal.reason, refusal.stream) == (Reason.STALE, "a")


def test_the_clock_has_not_started():
    assert make_sampler().sample(0).reason is Reason.CLOCK


def test_a_zero_stamp_is_refused_by_name_until_stamped_messages_arrive():
    sampler = make_sampler()
    sampler.add("a", 0, "unstamped")
    refusal = sampler.sample(1000)
    assert (refusal.reason, refusal.stream) == (Reason.NO_STAMP, "a")
    assert "stamp_source" in refusal.message
    sampler.add("a", 1000, "stamped")
    assert sampler.sample(1000).stream == "b"


def test_only_sampled_messages_are_decoded_and_each_once():
    decoded = []
    sampler = make_sampler(lambda payload: decoded.append(payload) or payload)
    for name in NAMES:
        for stamp in range(990, 1000):
            sampler.add(name, stamp, (name, stamp))
    sampler.sample(1000)
    sampler.sample(1001)
    assert decoded == [(name, 999) for name in NAMES]


def test_what_cannot_be_decoded_is_a_refusal_with_the_decoders_words():
    def decode(payload):
        if payload == "bad":
            raise ValueError("encoding is 'yuv'")
        return payload

    sampler = make_sampler(decode)
    for name in NAMES:
        sampler.add(name, 1000, "bad" if name == "b" else "good")
    refusal = sampler.sample(1000)
    assert (refusal.reason, refusal.stream) == (Reason.UNDECODABLE, "b")
    assert "encoding is 'yuv'" in refusal.message
    sampler.add("b", 1001, "good")
    assert isinstance(sampler.sample(1001), Sample)


def test_a_useless_message_explains_why_a_stream_is_stale():
    sampler = make_sampler()
    for name in NAMES:
        sampler.add(name, 1000, name)
    sampler.reject("a", Reason.FOREIGN_JOINTS, "the message carries x instead of y")
    assert isinstance(sampler.sample(1010), Sample)
    refusal = sampler.sample(1030)
    assert refusal.reason is Reason.FOREIGN_JOINTS
    assert "x instead of y" in refusal.message
    assert sampler.rejected("a") == {Reason.FOREIGN_JOINTS: 1}


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_streams_must_be_there_and_differ(names):
    with pytest.raises(ValueError, match="at least one"):
        ObservationSampler([StreamSpec(name, 1, str) for name in names], 1)
