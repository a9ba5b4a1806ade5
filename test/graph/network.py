"""A network between two machines that are network namespaces: this process carries every packet, or loses it.

    network.py NAMESPACE

Run in the namespace of one machine; the other's is named. Writes "ready", then takes lines from standard input: the
share of packets to lose from there on, 0 to 1. With 1 the cable is pulled. Ends with its input.
"""

from __future__ import annotations

import fcntl
import os
import random
import selectors
import struct
import subprocess
import sys
import threading

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
"""Of linux/if_tun.h."""

FRAME = 2048
"""More than an Ethernet frame has."""


def interface(name: str) -> int:
    """A network interface of this namespace whose packets are this process's: a file that they are read from."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Wire:
    """Carries packets between two interfaces until the process ends."""

    def __init__(self, ends: tuple[int, int]) -> None:
        self.loss = 0.0
        self._ends = ends
        self._random = random.Random(0)

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        for end, other in (self._ends, self._ends[::-1]):
            selector.register(end, selectors.EVENT_READ, other)
        while True:
            for key, _ in selector.select():
                self._carry(key.fd, key.data)

    def _carry(self, source: int, sink: int) -> None:
        while True:
            try:
                packet = os.read(source, FRAME)
            except BlockingIOError:
                return
            if self._random.random() >= self.loss:
                try:
                    os.write(sink, packet)
                except BlockingIOError:
                    return


def main(other: str) -> None:
    ends = (interface("here"), interface("there"))
    ip("link", "set", "there", "netns", other)
    for namespace, name, address in (((), "here", "10.0.0.1/24"), (("-n", other), "there", "10.0.0.2/24")):
        ip(*namespace, "address", "add", address, "dev", name)
        ip(*namespace, "link", "set", "lo", "up")
        ip(*namespace, "link", "set", name, "up", "txqueuelen", "5000")
        ip(*namespace, "route", "add", "default", "dev", name)
    wire = Wire(ends)
    threading.Thread(target=wire.run, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        wire.loss = float(line)


if __name__ == "__main__":
    main(sys.argv[1])
