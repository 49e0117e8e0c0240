"""What the tests with real peers share: log events, sockets and streams of bytes."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import EXECUTABLE, PATIENCE, Spicebridge
from tests.peers.processes import PeerError, wait_until

Start = Callable[..., Spicebridge]
"""The fixture `spicebridge`."""

JSON_LOG = ("--log-format", "json")
MIB = 1024 * 1024
CHUNK = 256 * 1024


def events(running: Spicebridge, event: str, **fields: object) -> list[dict[str, Any]]:
    """The log records so far of one event that have all of `fields`."""
    lines = running.stderr().split("\n")[:-1]
    records = [json.loads(line) for line in lines]
    return [
        record
        for record in records
        if record["event"] == event and fields.items() <= record.items()
    ]


def wait_event(
    running: Spicebridge, event: str, *, count: int = 1, **fields: object
) -> dict[str, Any]:
    """Wait until an event has been logged `count` times; return the last of these records."""

    def there() -> bool:
        found = len(events(running, event, **fields)) >= count
        if not found and running.process.poll() is not None:
            raise PeerError(f"spicebridge has ended without {event}:\n{running.stderr()}")
        return found

    wait_until(there, what=f"no {count} times {event} {fields}", timeout=PATIENCE)
    return events(running, event, **fields)[count - 1]


def served_uri(running: Spicebridge) -> str:
    """The URI of a `serve`, from its ready record."""
    address = str(wait_event(running, "ready")["address"])
    path = address.removeprefix("unix:")
    return f"spice://{address}" if path == address else f"spice+unix://{path}"


def communicate(running: Spicebridge, data: bytes | None = None) -> bytes:
    """Give it `data` and end of file on stdin, and return all of its stdout."""
    out: bytes
    out, _ = running.process.communicate(data, timeout=PATIENCE)
    return out


def one_line(running: Spicebridge) -> str:
    """Its stderr, which has to be a single line."""
    lines = running.stderr().splitlines()
    assert len(lines) == 1, running.stderr()
    return lines[0]


@contextmanager
def connection(path: Path) -> Iterator[socket.socket]:
    """A connection to a Unix socket, with a time limit on everything."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        yield sock


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        assert count, f"end of file {len(view)} bytes early"
        view = view[count:]
    return bytes(data)


def receive_until(sock: socket.socket, end: bytes) -> bytes:
    """All up to and with `end`."""
    data = b""
    while not data.endswith(end):
        piece = sock.recv(65536)
        assert piece, f"end of file after {data[-200:]!r}"
        data += piece
    return data


def receive_to_end(sock: socket.socket) -> bytes:
    """All up to the end of file."""
    pieces = []
    while piece := sock.recv(CHUNK):
        pieces.append(piece)
    return b"".join(pieces)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of_fd(fd: int, size: int) -> str:
    """The SHA-256 of the next `size` bytes of a descriptor."""
    whole = hashlib.sha256()
    buffer = memoryview(bytearray(MIB))
    while size:
        count = os.readv(fd, [buffer[: min(size, MIB)]])
        assert count, f"end of file {size} bytes early"
        whole.update(buffer[:count])
        size -= count
    return whole.hexdigest()


class Task:
    """A function in a thread; `result` waits for it and raises what it has raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - `result` raises it
            self._failure = error

    def result(self, timeout: float = PATIENCE) -> Any:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"not done within {timeout} s"
        if self._failure is not None:
            raise self._failure
        return self._result


def exchange(sock: socket.socket, data: bytes, expect: int) -> bytes:
    """Send `data` while `expect` bytes are received, on a socket."""
    sending = Task(lambda: sock.sendall(data))
    received = receive(sock, expect)
    sending.result()
    return received


def list_rows(*arguments: str, env: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The rows of `spicebridge list --json`."""
    rows: list[dict[str, Any]] = json.loads(listing(*arguments, "--json", env=env))
    return rows


def listing(*arguments: str, env: dict[str, str] | None = None) -> str:
    """What `spicebridge list` prints; it must end with 0 and say nothing on stderr."""
    done = subprocess.run(
        [EXECUTABLE, "list", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, **(env or {})},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
