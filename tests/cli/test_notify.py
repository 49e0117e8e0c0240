"""What the service manager is told: READY, STATUS, STOPPING and WATCHDOG (sd_notify(3))."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from spicebridge.cli.notify import Notifier
from tests.cli.conftest import Offered
from tests.cli.tools import connect, until
from tests.conftest import PATIENCE, Spicebridge

Start = Callable[..., Spicebridge]
Message = dict[str, str]

_PATIENT = str(60_000_000)
"""Microseconds of a watchdog that is told nothing within a test."""


class Manager:
    """What a service manager hears at its socket.

    Attributes:
        told: the variable for who is to tell it.
    """

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.told = {"NOTIFY_SOCKET": address}
        self._sock = sock

    def next(self) -> Message:
        """The next message."""
        self._sock.settimeout(PATIENCE)
        return self._parse(self._sock.recv(4097))

    def rest(self) -> list[Message]:
        """All messages that are there."""
        self._sock.setblocking(False)
        found = []
        try:
            while True:
                found.append(self._parse(self._sock.recv(4097)))
        except BlockingIOError:
            return found

    def fill(self) -> None:
        """Has no room for any more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            try:
                while True:
                    sock.sendto(b"OTHER=1", self._sock.getsockname())
            except BlockingIOError:
                pass

    @staticmethod
    def _parse(data: bytes) -> Message:
        assert len(data) <= 4096  # more is dropped by systemd
        pairs = [line.partition("=") for line in data.decode().split("\n")]
        return {name: value for name, _, value in pairs}


@contextmanager
def _manager(address: str) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{address[1:]}" if address[0] == "@" else address)
        yield Manager(sock, address)


@pytest.fixture
def manager(short_tmp: Path) -> Iterator[Manager]:
    with _manager(f"{short_tmp}/notify") as manager:
        yield manager


# The executable


@pytest.mark.parametrize("place", ["{}/notify", "@{}/notify"], ids=["path", "abstract"])
def test_the_manager_is_told_of_the_start_and_of_the_end(
    spicebridge: Start, offered: Offered, short_tmp: Path, place: str
) -> None:
    specs = [f"channelid=128,unixsocket={short_tmp}/a", f"port=solo,unixsocket={short_tmp}/b"]
    with _manager(place.format(short_tmp)) as manager:
        bridge = spicebridge(
            offered.uri, *[f"--custom-channel={spec}" for spec in specs], env=manager.told
        )
        does = (
            f"bridging channelid=128 to unixsocket={short_tmp}/a, "
            f"port=solo to unixsocket={short_tmp}/b"
        )
        assert manager.next() == {"READY": "1", "STATUS": does}
        assert bridge.stop() == 0
        assert manager.rest() == [{"STOPPING": "1", "STATUS": "draining"}]


def test_serve_tells_where_it_listens(
    spicebridge: Start, short_tmp: Path, manager: Manager
) -> None:
    listen = f"unix:{short_tmp}/spice"
    args = ("serve", "--listen", listen, "--custom-channel=channelid=128,exec=cat")
    spicebridge(*args, env=manager.told)
    does = f"listening on {listen}: channelid=128 to exec=cat"
    assert manager.next() == {"READY": "1", "STATUS": does}


def test_nobody_is_told_ready_when_it_is_not(
    spicebridge: Start, short_tmp: Path, manager: Manager
) -> None:
    args = (f"spice+unix://{short_tmp}/none", "--custom-channel=channelid=128,exec=cat")
    assert spicebridge(*args, ready=False, env=manager.told).wait() == 3
    assert manager.rest() == []


def test_the_watchdog_hears_that_it_is_alive(
    spicebridge: Start, offered: Offered, short_tmp: Path, manager: Manager
) -> None:
    spec = f"channelid=128,unixsocket={short_tmp}/a"
    watched = {**manager.told, "WATCHDOG_USEC": "100000"}
    bridge = spicebridge(offered.uri, "--custom-channel", spec, env=watched)
    heard = [manager.next() for _ in range(4)]
    assert {"WATCHDOG": "1"} in heard[2:]
    bridge.process.send_signal(signal.SIGSTOP)  # as in a loop that hangs
    until("it stands", lambda: _state(bridge.process.pid) == "T")
    manager.rest()
    assert manager.rest() == []
    bridge.process.send_signal(signal.SIGCONT)
    assert manager.next() == {"WATCHDOG": "1"}
    assert bridge.stop() == 0


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


NOT_WATCHED = {
    "another-process": {"WATCHDOG_USEC": "100", "WATCHDOG_PID": "1"},
    "no-number": {"WATCHDOG_USEC": "100 s"},
    "no-time": {"WATCHDOG_USEC": "0"},
    "no-pid": {"WATCHDOG_USEC": "100", "WATCHDOG_PID": "me"},
}


@pytest.mark.parametrize("said", NOT_WATCHED.values(), ids=[*NOT_WATCHED])
async def test_the_watchdog_of_somebody_else(manager: Manager, said: Mapping[str, str]) -> None:
    notifier = Notifier({**manager.told, **said})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(notifier.run)
        await anyio.sleep(0.02)  # some hundred intervals of 100 µs
        tasks.cancel_scope.cancel()
    assert manager.rest() == []


def test_a_manager_that_is_missing_does_no_harm(
    spicebridge: Start, offered: Offered, short_tmp: Path
) -> None:
    spec = f"channelid=128,unixsocket={short_tmp}/a"
    told = {"NOTIFY_SOCKET": f"{short_tmp}/none", "WATCHDOG_USEC": "1000"}
    bridge = spicebridge(offered.uri, "--custom-channel", spec, env=told)
    assert bridge.stop() == 0
    assert "ERROR" not in bridge.stderr()


@pytest.mark.parametrize("address", ["/dev/null", "@nobody", "vsock:2:1", "@", "x" * 200])
def test_a_place_where_nobody_listens_does_no_harm(address: str) -> None:
    Notifier({"NOTIFY_SOCKET": address}).ready("bridging")


def test_a_manager_without_room_is_told_later(
    spicebridge: Start, offered: Offered, short_tmp: Path, manager: Manager
) -> None:
    manager.fill()
    spec = f"channelid=128,unixsocket={short_tmp}/a"
    bridge = spicebridge(offered.uri, "--custom-channel", spec, env=manager.told)
    with connect(short_tmp / "a"):  # ready, whether the manager knows it or not
        pass
    while (message := manager.next()) == {"OTHER": "1"}:
        pass
    assert message == {
        "READY": "1",
        "STATUS": f"bridging channelid=128 to unixsocket={short_tmp}/a",
    }
    manager.fill()
    assert bridge.stop() == 0


@pytest.mark.parametrize("command", ["exec", "password-command"])
def test_programs_see_nothing_of_the_manager(
    spicebridge: Start, short_tmp: Path, manager: Manager, command: str
) -> None:
    script = f"sh -c 'env > {short_tmp}/env; echo password; cat > /dev/null'"
    end = script if command == "exec" else "cat"
    args = ["serve", "--listen", f"unix:{short_tmp}/spice"]
    args += ["--custom-channel", f"channelid=128,attach=always,exec={end}"]
    if command == "password-command":
        args += ["--password-command", script]
    names = ("WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    said = dict.fromkeys(names, "1") | manager.told
    server = spicebridge(*args, env=said)
    until("it has run", lambda: "PATH=" in _read(short_tmp / "env"))
    seen = {line.partition("=")[0] for line in _read(short_tmp / "env").splitlines()}
    assert not seen & set(said)
    assert manager.next()["READY"] == "1"
    assert server.stop() == 0


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# The notifier by itself


def test_a_status_is_one_line_that_is_not_too_long(manager: Manager) -> None:
    notifier = Notifier(manager.told)
    notifier.status("a port\nREADY=1\x1b[2J\udcff")
    assert manager.next() == {"STATUS": r"a port\nREADY=1\x1b[2J\udcff"}
    notifier.status("é" * 5000)
    assert manager.next() == {"STATUS": "é" * 1024}


def test_an_empty_status_is_that_of_the_start(manager: Manager) -> None:
    notifier = Notifier(manager.told)
    notifier.ready("bridging")
    notifier.status("reconnecting to vmhost:5900 in 3 s")
    notifier.status("")
    assert [each["STATUS"] for each in manager.rest()] == [
        "bridging",
        "reconnecting to vmhost:5900 in 3 s",
        "bridging",
    ]


async def test_the_last_status_is_told_when_there_is_room_again(manager: Manager) -> None:
    said = {
        **manager.told,
        "WATCHDOG_USEC": _PATIENT,
        "WATCHDOG_PID": str(os.getpid()),
    }
    notifier = Notifier(said)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(notifier.run)
        manager.fill()
        for text in ("first", "last"):
            notifier.status(text)
            await anyio.sleep(0.15)  # it tries again meanwhile, in vain
        assert {"STATUS": "last"} not in manager.rest()
        with anyio.fail_after(PATIENCE):
            while not (heard := manager.rest()):
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert heard == [{"STATUS": "last"}]


async def test_without_a_manager_nothing_runs() -> None:
    notifier = Notifier({})
    notifier.ready("bridging")
    with anyio.fail_after(PATIENCE):
        await notifier.run()
