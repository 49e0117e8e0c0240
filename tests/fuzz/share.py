"""Requests to the server of a shared folder: HTTP on a connected socket, as the guest sends it."""

from __future__ import annotations

import contextlib
import io
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest import mock

from spicebridge.endpoints.share_server.http import Server
from spicebridge.endpoints.share_server.requests import Application
from tests.fuzz.script import Parser, Script, told

_SERVER: Final = Server(lambda _environ, _start: [])
"""One for all inputs, as cheroot lets go of none; each input has an application of its own."""

_SECRET: Final = b"classified"
_CHEROOT: Final = (
    "spicebridge: share: cannot access local variable 'k' where it is not associated with a value"
)
"""What cheroot 11 makes of a first header that begins with a blank, besides an answer of 500."""

_PATIENCE: Final = 30.0
"""Seconds; an input that takes longer is a finding."""


@contextmanager
def _shared() -> Iterator[Path]:
    """A folder with a file and a folder in it, beside a secret that a link points to."""
    with tempfile.TemporaryDirectory(prefix="sb-") as place:
        folder = Path(place, "shared")
        (folder / "d").mkdir(parents=True)
        (folder / "f").write_bytes(b"0123456789")
        outside = Path(place, "secret")
        outside.write_bytes(_SECRET)
        (folder / "l").symlink_to(outside)
        yield folder
        assert outside.read_bytes() == _SECRET
        assert sorted(each.name for each in Path(place).iterdir()) == ["secret", "shared"]


def _ask(folder: Path, requests: bytes, *, readonly: bool) -> bytes:
    """What the server answers to somebody who asks and ends; it logs in printable lines."""
    _SERVER.wsgi_app = Application(str(folder), readonly=readonly)
    died: list[object] = []
    log = io.StringIO()
    ours, theirs = socket.socketpair()
    with (
        ours,
        contextlib.redirect_stderr(log),
        mock.patch.object(threading, "excepthook", lambda args: died.append(args.exc_value)),
    ):
        ours.settimeout(_PATIENCE)
        _SERVER.serve_connection(theirs)
        ours.sendall(requests)
        ours.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        _SERVER.end(_PATIENCE)
    assert not died, died
    for line in log.getvalue().splitlines():
        assert told(line) == _CHEROOT, line
    return answer


def requests(script: Script) -> bool:
    """Requests on one connection: none fails in a way that nobody has thought of."""
    (readonly,), said = script.flags(1), script.rest()
    with _shared() as folder:
        answer = _ask(folder, said, readonly=readonly)
    assert _SECRET not in answer
    return answer.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))


PARSERS: Final[Sequence[Parser]] = (requests,)
