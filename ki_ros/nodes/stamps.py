"""Time stamps: nanoseconds in our own code, builtin_interfaces/Time in messages."""

from builtin_interfaces.msg import Time

NANOSECONDS = 1_000_000_000


def to_message(nanoseconds: int) -> Time:
    """The message for a time in nanoseconds."""
    sec, nanosec = divmod(nanoseconds, NANOSECONDS)
    return Time(sec=sec, nanosec=nanosec)


def from_message(time: Time) -> int:
    """Nanoseconds of a message."""
    return time.sec * NANOSECONDS + time.nanosec
