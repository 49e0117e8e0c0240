"""The part of the demo that shares a folder: HTTP connections through one webdav channel."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from spicebridge.cli.demo_moved import Moved

_SMALL: Final = 100  # files of _SMALL_SIZE bytes, over _CONNECTIONS at once
_SMALL_SIZE: Final = 4096
_CONNECTIONS: Final = 8
_LARGE: Final = 32 * 1024 * 1024
_BLOCK: Final = 1024 * 1024
_TIMEOUT: Final = 30.0  # seconds without an answer


def can_share() -> bool:
    """Whether the extra that `share=` needs is installed."""
    return find_spec("wsgidav") is not None and find_spec("cheroot") is not None


def use_share(path: Path, folder: Path) -> list[Moved]:
    """Plays programs of the guest that use the shared folder; blocks, so it is for a thread.

    Args:
        path: a Unix socket where each connection becomes a stream.
        folder: what is shared.
    """
    data = os.urandom(_LARGE)
    begun = time.monotonic()
    connection = _Connection(path)
    connection.request("PUT", "/large", data)
    connection.getresponse().read()
    put = Moved(
        "webdav: a file to the folder",
        _LARGE,
        time.monotonic() - begun,
        _digest((folder / "large").read_bytes()) == _digest(data),
    )
    begun = time.monotonic()
    connection.request("GET", "/large")
    got = connection.getresponse().read()
    connection.close()
    get = Moved("webdav: and back", _LARGE, time.monotonic() - begun, _digest(got) == _digest(data))
    return [put, get, _many(path, folder)]


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT, blocksize=_BLOCK)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _many(path: Path, folder: Path) -> Moved:
    """Several connections fetch small files at the same time."""
    names = [f"small-{number}" for number in range(_SMALL)]
    for name in names:
        (folder / name).write_bytes(os.urandom(_SMALL_SIZE))

    def fetch(mine: list[str]) -> bool:
        connection = _Connection(path)
        whole = True
        for name in mine:
            connection.request("GET", f"/{name}")
            whole &= connection.getresponse().read() == (folder / name).read_bytes()
        connection.close()
        return whole

    begun = time.monotonic()
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        shares = [names[number::_CONNECTIONS] for number in range(_CONNECTIONS)]
        whole = all(pool.map(fetch, shares))
    return Moved(
        f"webdav: {_SMALL} files, {_CONNECTIONS} connections",
        _SMALL * _SMALL_SIZE,
        time.monotonic() - begun,
        whole,
    )


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
