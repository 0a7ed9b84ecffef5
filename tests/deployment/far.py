"""Two machines with a bad line between them, made on this one: two network namespaces, a TUN device
in each (Linux's tun.txt), and a thread of the test that carries every packet from one to the other,
late, and now and then not at all. What is lost is for the kernel's TCP to notice.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

_TUN = "/dev/net/tun"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_MOST = 65536  # bytes of a packet


class Machine:
    """A network of its own, as long as its process lives; ``packets`` is what goes in and out."""

    def __init__(self, address: str) -> None:
        self.address = address
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with here, there:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.deployment.far", address, str(there.fileno())],
                cwd=Path(__file__).resolve().parents[2],
                pass_fds=[there.fileno()],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            there.close()
            _, numbers, _, _ = socket.recv_fds(here, 1, 1)
        if not numbers:
            _, said = self._process.communicate()
            raise OSError(said.decode(errors="replace").strip().splitlines()[-1])
        (self.packets,) = numbers

    @property
    def inside(self) -> list[str]:
        """What to write before a command that is to run there."""
        return ["nsenter", f"--net=/proc/{self._process.pid}/ns/net"]

    def close(self) -> None:
        self._process.communicate()  # it ends with its standard input
        os.close(self.packets)


class Line:
    """The way between two machines.

    Args:
        delay: seconds, each way.
        loss: the share of packets that never arrives, drawn for each by a seeded generator.
    """

    def __init__(self, one: Machine, other: Machine, *, delay: float, loss: float, seed: int):
        self._across = {one.packets: other.packets, other.packets: one.packets}
        self._delay, self._loss, self._draw = delay, loss, random.Random(seed)
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self.carried = self.lost = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)

    def _carry(self) -> None:
        while not self._over.is_set():
            now = time.monotonic()
            while self._under_way and self._under_way[0][0] <= now:
                _, _, target, packet = heapq.heappop(self._under_way)
                os.write(target, packet)
            wait = self._under_way[0][0] - now if self._under_way else 0.2
            for source in select.select(list(self._across), [], [], max(wait, 0))[0]:
                self._take(source, os.read(source, _MOST))

    def _take(self, source: int, packet: bytes) -> None:
        if packet[0] >> 4 != 4:
            return  # the kernel's own words in IPv6, which nobody here speaks
        if self._draw.random() < self._loss:
            self.lost += 1
            return
        self.carried += 1
        due = time.monotonic() + self._delay
        heapq.heappush(self._under_way, (due, self.carried, self._across[source], packet))


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Skips the test, saying why, where this machine does not let it make them."""
    missing = [tool for tool in ("nsenter", "ip") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    with ExitStack() as ending:
        made = []
        try:
            for address in ("10.77.0.1", "10.77.0.2"):
                made.append(Machine(address))
                ending.callback(made[-1].close)
        except OSError as error:
            pytest.skip(f"no network of the test's own can be made here: {error}")
        yield made[0], made[1]


def _live(address: str, back: int) -> None:
    """The process of a machine: a new network, its device handed over, then wait for the end."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    packets = os.open(_TUN, os.O_RDWR)
    fcntl.ioctl(packets, _TUNSETIFF, struct.pack("16sH22x", b"far", _IFF_TUN | _IFF_NO_PI))
    _ip("link", "set", "lo", "up")
    _ip("address", "add", f"{address}/24", "dev", "far")
    _ip("link", "set", "far", "up")
    with socket.socket(fileno=back) as parent:
        socket.send_fds(parent, [b"."], [packets])
    os.close(packets)
    sys.stdin.read()


def _ip(*words: str) -> None:
    done: Sequence[str] = ["ip", *words]
    said = subprocess.run(done, capture_output=True, text=True, check=False)
    if said.returncode:
        raise OSError(f"{' '.join(done)}: {said.stderr.strip()}")


if __name__ == "__main__":
    _live(sys.argv[1], int(sys.argv[2]))
