"""What the tests of the executable share: its events, its leftovers, and plain sockets as apps."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import socket
import subprocess
import termios
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.conftest import EXECUTABLE, PATIENCE, Spicebridge

Event = dict[str, Any]
"""One line of --log-format json."""

_POLL = 0.01
_RUN = 30.0
"""Seconds that a run to the end may take; the longest that is meant to be waits for 10."""

_TEXT_LINE = re.compile(r"\d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) (?P<bridge>\S+): (?P<text>.+)")
_MARK = "SPICEBRIDGE_TEST_MARK"


def until(what: str, true: Callable[[], bool]) -> None:
    """Waits for something that no descriptor tells."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(_POLL)


def events(running: Spicebridge) -> list[Event]:
    """What has been logged by now; it runs with --log-format json."""
    whole, _, _ = running.stderr().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def find_events(running: Spicebridge, event: str, **fields: object) -> list[Event]:
    """Those events of one kind that have all of `fields`."""
    return [
        each
        for each in events(running)
        if each["event"] == event and all(each.get(key) == fields[key] for key in fields)
    ]


def wait_event(running: Spicebridge, event: str, *, count: int = 1, **fields: object) -> Event:
    """Waits until an event has been logged `count` times; returns the last of them."""

    def ended_without() -> bool:
        return running.process.poll() is not None and len(found()) < count

    def found() -> list[Event]:
        return find_events(running, event, **fields)

    def there() -> bool:
        assert not ended_without(), f"it ended without {event} {fields}: {running.stderr()}"
        return len(found()) >= count

    until(f"{event} {fields} was logged {count} times", there)
    return found()[count - 1]


def connect(path: Path | str) -> socket.socket:
    """An application at a Unix socket, with a bound on everything that it waits for."""
    app = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    app.settimeout(PATIENCE)
    try:
        app.connect(str(path))
    except BaseException:
        app.close()
        raise
    return app


def connect_once_served(path: Path) -> socket.socket:
    """As `connect`, but waits until there is a socket and somebody listens there."""
    apps: list[socket.socket] = []

    def served() -> bool:
        try:
            apps.append(connect(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    until(f"{path} is served", served)
    return apps[0]


def wait_taken(app: socket.socket) -> None:
    """Waits until the other end of a Unix socket has read all that was sent to it."""
    until("all is taken", lambda: not any(fcntl.ioctl(app, termios.TIOCOUTQ, bytes(4))))


def read_all(app: socket.socket) -> bytes:
    """Everything up to end of file."""
    pieces = []
    while piece := app.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def read_exactly(app: socket.socket, size: int) -> bytes:
    """The next `size` bytes."""
    pieces = []
    while size:
        piece = app.recv(min(size, 65536))
        assert piece, f"end of file, {size} bytes early"
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


@dataclass(frozen=True)
class Finished:
    """A run of the executable that has come to its end."""

    code: int
    stdout: bytes
    stderr: str

    def errors(self) -> list[str]:
        """The text of each ERROR line; every line is checked to be one of the log."""
        found = []
        for line in self.stderr.splitlines():
            match = _TEXT_LINE.fullmatch(line)
            assert match, f"not a line of the log: {line!r}"
            if match[1] == "ERROR":
                found.append(match["text"])
        return found


def run(
    *args: str,
    stdin: bytes | int = subprocess.DEVNULL,
    env: dict[str, str] | None = None,
    env_bytes: dict[bytes, bytes] | None = None,
    pass_fds: Sequence[int] = (),
    closed: Iterable[int] = (),
    cwd: Path | None = None,
) -> Finished:
    """Runs the executable to its end, and sees to it that no process of its is left behind.

    Args:
        args: of the command line.
        stdin: what it reads there, or a descriptor.
        env: added to ours.
        env_bytes: added to ours, where it is no text.
        pass_fds: descriptors that it inherits.
        closed: of 0, 1 and 2, those that are not open, as by ``<&-`` in a shell.
        cwd: where it runs.
    """
    mark = uuid.uuid4().hex
    closing = " ".join(f"{fd}>&-" for fd in closed)
    command: list[str | os.PathLike[str]] = [EXECUTABLE, *args]
    if closing:
        command = ["sh", "-c", f'exec "$0" "$@" {closing}', *command]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if isinstance(stdin, bytes) else stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            **os.environb,
            **{os.fsencode(key): os.fsencode(value) for key, value in (env or {}).items()},
            **(env_bytes or {}),
            _MARK.encode(): mark.encode(),
        },
        pass_fds=pass_fds,
        cwd=cwd,
    )
    with process:
        try:
            stdout, stderr = process.communicate(
                stdin if isinstance(stdin, bytes) else None, timeout=_RUN
            )
        finally:
            process.kill()
    assert not marked(mark), "a process was left behind"
    return Finished(process.returncode, stdout, stderr.decode())


def marked(mark: str) -> list[int]:
    """The processes whose environment has a mark."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # it has ended, or is not ours
                pass
    return found


def tree(folder: Path) -> set[str]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Screen:
    """A terminal, seen by who sits at it.

    Attributes:
        slave: the side for a program.
        seen: what has been shown on it.
    """

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        os.set_blocking(self._master, False)
        self.seen = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._master)
        os.close(self.slave)

    def run(self, *args: str, **fds: int) -> subprocess.Popen[bytes]:
        """Starts the executable here: its stderr, and what else is given of stdin and stdout."""
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "24"}
        env.pop("NO_COLOR", None)
        standard = {"stdin": subprocess.DEVNULL, "stderr": self.slave, **fds}
        return subprocess.Popen([EXECUTABLE, *args], env=env, **standard)  # type: ignore[call-overload, no-any-return]

    def type(self, data: bytes) -> None:
        """Presses keys."""
        assert os.write(self._master, data) == len(data)

    def look(self) -> None:
        """Reads what has been shown by now; a program that writes more than fits waits for it."""
        try:
            self.seen += os.read(self._master, 65536)
        except BlockingIOError:
            pass

    def until(self, wanted: bytes) -> None:
        """Waits until something has been shown."""

        def there() -> bool:
            self.look()
            return wanted in self.seen

        until(f"{wanted!r} was shown", there)

    def until_ended(self, process: subprocess.Popen[bytes]) -> None:
        """Waits until a program has ended, and reads all that it has shown."""

        def ended() -> bool:
            self.look()
            return process.poll() is not None

        until("it has ended", ended)
        self.look()
