"""Very many streams through two processes, and what they leave there: nothing."""

from __future__ import annotations

import os
import random
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.echo import echo_server, raise_limit
from tests.cli.tools import connect, read_all, read_exactly, until
from tests.conftest import Spicebridge

AT_ONCE = 1000
IN_ALL = 100_000
LANES = 8
"""Connections at a time while `IN_ALL` come one after another."""

GROWTH = 4096
"""KiB by which the memory of a process may have grown in the end; a kilobyte that every stream
left behind would be 25 times that."""


@dataclass
class Processes:
    """A server whose connections become streams, and a bridge that makes connections of them.

    Attributes:
        path: where to connect.
        both: the processes.
    """

    path: Path
    both: tuple[Spicebridge, Spicebridge]

    def fds(self) -> list[set[str]]:
        """The descriptors of each."""
        return [set(os.listdir(f"/proc/{each.process.pid}/fd")) for each in self.both]

    def memory(self) -> list[int]:
        """KiB that are resident of each."""
        return [_resident(each.process.pid) for each in self.both]

    def until_closed(self, before: list[set[str]]) -> None:
        """Waits until each has the descriptors again that it had."""
        until("every descriptor is closed", lambda: self.fds() == before)

    def stop(self) -> None:
        """Both end as they should, and have logged no trouble."""
        for each in reversed(self.both):
            assert each.stop() == 0
            assert "WARNING" not in each.stderr()
            assert "ERROR" not in each.stderr()


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


@pytest.fixture
def processes(spicebridge: Callable[..., Spicebridge], short_tmp: Path) -> Iterator[Processes]:
    """Two executables; an echo server has the streams."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_limit()
    with echo_server(short_tmp / "echo"):
        server = spicebridge(
            *("serve", "--listen", f"unix:{short_tmp}/spice"),
            *("--custom-channel", f"channelid=webdav,unixsocket={short_tmp}/in"),
        )
        bridge = spicebridge(
            f"spice+unix://{short_tmp}/spice",
            *("--custom-channel", f"channelid=webdav,unixsocket={short_tmp}/echo"),
        )
        for each in (server, bridge):
            until("the channel is linked", lambda: "linked" in each.stderr())  # noqa: B023
        yield Processes(short_tmp / "in", (server, bridge))
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def ask(path: Path, data: bytes) -> None:
    """One stream from its beginning to its end."""
    with connect(path) as app:
        app.sendall(data)
        app.shutdown(socket.SHUT_WR)
        assert read_all(app) == data


def test_a_thousand_streams_at_once(processes: Processes) -> None:
    dice = random.Random(1)
    fds = processes.fds()
    for turn in range(3):
        with ExitStack() as stack:
            apps = [stack.enter_context(connect(processes.path)) for _ in range(AT_ONCE)]
            words = [dice.randbytes(1 + dice.randrange(8000)) for _ in apps]
            for app, word in zip(apps, words, strict=True):
                app.sendall(word)
            for app, word in zip(apps, words, strict=True):
                assert read_exactly(app, len(word)) == word
            assert all(
                len(now) == len(before) + AT_ONCE
                for now, before in zip(processes.fds(), fds, strict=True)
            )
            dice.shuffle(apps)
            for number, app in enumerate(apps):
                app.sendall(b"%d again" % number)
                app.shutdown(socket.SHUT_WR)
            for number, app in enumerate(apps):
                assert read_all(app) == b"%d again" % number
        processes.until_closed(fds)
        if not turn:
            memory = processes.memory()  # with the room that a thousand tasks have taken
    now = processes.memory()
    print(f"memory in KiB: {memory}, then {now}")
    assert all(after - before <= GROWTH for after, before in zip(now, memory, strict=True))
    processes.stop()


def test_a_hundred_thousand_streams_one_after_another(processes: Processes) -> None:
    failures: list[BaseException] = []

    def lane(number: int, count: int) -> None:
        try:
            for turn in range(count):
                ask(processes.path, b"%d of %d" % (turn, number))
        except BaseException as failure:  # noqa: BLE001 - told below
            failures.append(failure)

    def run(count: int) -> None:
        lanes = [threading.Thread(target=lane, args=(n, count // LANES)) for n in range(LANES)]
        for each in lanes:
            each.start()
        for each in lanes:
            each.join()
        assert not failures

    fds = processes.fds()
    run(2000)
    processes.until_closed(fds)
    memory = processes.memory()
    start = time.monotonic()
    run(IN_ALL - 2000)
    rate = (IN_ALL - 2000) / (time.monotonic() - start)
    processes.until_closed(fds)
    now = processes.memory()
    print(f"{rate:.0f} streams per second; memory in KiB: {memory}, then {now}")
    assert all(after - before <= GROWTH for after, before in zip(now, memory, strict=True))
    processes.stop()
