"""spice-client-glib shares a folder with `spicebridge serve`: streams at another demultiplexer."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Spicebridge
from tests.peers import glib_client
from tests.real.tools import JSON_LOG, MIB, Start, events, served_uri, sha256, wait_event

pytestmark = pytest.mark.real_peer

BIG = 8 * MIB


class UnixConnection(http.client.HTTPConnection):
    """HTTP through the socket of the served channel: one connection is one stream."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@pytest.fixture
def running(spicebridge: Start, short_tmp: Path) -> Spicebridge:
    spec = f"channelid=webdav,unixsocket={short_tmp / 'guest'}"
    return spicebridge("serve", "--listen", "127.0.0.1:0", "--custom-channel", spec, *JSON_LOG)


@contextmanager
def shared(running: Spicebridge, folder: Path) -> Iterator[None]:
    with glib_client.share(served_uri(running), folder) as client:
        client.wait_message(opened=True, timeout=PATIENCE)
        yield


def get(path: Path, name: str) -> bytes:
    """The library's server (phodav 3.0) ends each connection behind its first answer."""
    with closing(UnixConnection(path)) as connection:
        connection.request("GET", f"/{name}")
        return connection.getresponse().read()


def test_a_large_file_of_its_folder_is_read(running: Spicebridge, short_tmp: Path) -> None:
    folder = short_tmp / "folder"
    folder.mkdir()
    data = os.urandom(BIG)
    (folder / "large").write_bytes(data)
    with shared(running, folder):
        assert sha256(get(short_tmp / "guest", "large")) == sha256(data)
        wait_event(running, "stream-end", id=1)
    assert [(each["id"], each["reason"]) for each in events(running, "stream-end")] == [(1, "")]


def test_connections_at_once_do_not_meet(running: Spicebridge, short_tmp: Path) -> None:
    folder = short_tmp / "folder"
    folder.mkdir()
    wanted = [f"{number} ".encode() * 10_000 for number in range(100)]
    for number, data in enumerate(wanted):
        (folder / str(number)).write_bytes(data)
    with shared(running, folder), ThreadPoolExecutor(20) as pool:
        got = list(pool.map(lambda n: get(short_tmp / "guest", str(n)), range(100)))
        wait_event(running, "stream-end", count=100)
    assert got == wanted
