"""The buffer of a stream against a plain list that is searched from end to end."""

from hypothesis import given
from hypothesis import strategies as st

from ki_ros.observation import StreamBuffer

STEP_BACK = 50
stamps = st.integers(1, 400)


class ListBuffer:
    """What StreamBuffer must do, in the most obvious way."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.entries: list[tuple[int, int]] = []

    def add(self, stamp: int, payload: int) -> None:
        if self.entries and stamp < max(self.entries)[0] - STEP_BACK:
            self.entries = [entry for entry in self.entries if entry[0] <= stamp]
        self.entries = [entry for entry in self.entries if entry[0] != stamp] + [(stamp, payload)]
        while len(self.entries) > self.capacity:
            self.entries.remove(min(self.entries))

    def at(self, reference: int) -> tuple[int, int] | None:
        return max((entry for entry in self.entries if entry[0] <= reference), default=None)


@given(
    st.integers(1, 8),
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), stamps),
            st.tuples(st.just("at"), stamps),
            st.tuples(st.just("drop_before"), stamps),
            st.tuples(st.just("drop_after"), stamps),
        ),
        max_size=60,
    ),
)
def test_buffer_agrees_with_a_list(capacity, operations):
    buffer, oracle = StreamBuffer(capacity, STEP_BACK), ListBuffer(capacity)
    for payload, (operation, stamp) in enumerate(operations):
        if operation == "add":
            buffer.add(stamp, payload)
            oracle.add(stamp, payload)
        elif operation == "drop_before":
            buffer.drop_before(stamp)
            oracle.entries = [entry for entry in oracle.entries if entry[0] >= stamp]
        elif operation == "drop_after":
            buffer.drop_after(stamp)
            oracle.entries = [entry for entry in oracle.entries if entry[0] <= stamp]
        assert buffer.at(stamp) == oracle.at(stamp)
        assert len(buffer) == len(oracle.entries) <= capacity
        assert buffer.newest_ns == max((entry[0] for entry in oracle.entries), default=None)
        assert buffer.oldest_ns == min((entry[0] for entry in oracle.entries), default=None)


@given(st.lists(st.integers(1, STEP_BACK), unique=True, min_size=1), st.randoms())
def test_order_of_arrival_does_not_matter_within_the_step(every, random):
    in_order, shuffled = StreamBuffer(100, STEP_BACK), StreamBuffer(100, STEP_BACK)
    for stamp in sorted(every):
        in_order.add(stamp, stamp)
    random.shuffle(every)
    for stamp in every:
        shuffled.add(stamp, stamp)
    for reference in range(STEP_BACK + 1):
        assert in_order.at(reference) == shuffled.at(reference)


def test_a_source_that_was_set_back_is_followed():
    buffer = StreamBuffer(4, STEP_BACK)
    for stamp in (1000, 1010, 1020, 1030):
        buffer.add(stamp, "before")
    buffer.add(5, "after")
    assert (buffer.steps_back, buffer.newest_ns, len(buffer)) == (1, 5, 1)


def test_one_stamp_far_ahead_does_not_block_the_stream():
    buffer = StreamBuffer(4, STEP_BACK)
    buffer.add(10**9, "wrong")
    for stamp in range(10, 100, 10):
        buffer.add(stamp, stamp)
    assert buffer.at(95) == (90, 90)
