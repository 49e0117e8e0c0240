"""The server of a share and connections that ask nothing more."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spicebridge.endpoints.share_server import http
from spicebridge.endpoints.share_server.requests import Application
from tests.conftest import PATIENCE

REQUEST = b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n"
SIZE = 4 * 1024 * 1024


@pytest.fixture
def client(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A connection to a server that is not patient."""
    monkeypatch.setattr(http, "IDLE", 0.05)
    (short_tmp / "file").write_bytes(bytes(SIZE))
    server = http.Server(Application(str(short_tmp), readonly=False))
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    server.serve_connection(theirs)
    with ours:
        yield ours
    server.end(PATIENCE)


def test_one_that_says_nothing_is_closed(client: socket.socket) -> None:
    assert client.recv(1) == b""


def test_one_that_asks_nothing_more_is_closed_behind_its_answer(client: socket.socket) -> None:
    client.sendall(REQUEST)
    answer = bytearray()
    while data := client.recv(65536):
        answer += data
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(answer) > SIZE


def test_requests_that_came_together_are_all_answered(client: socket.socket) -> None:
    client.sendall(REQUEST * 3)
    answer = bytearray()
    while data := client.recv(65536):
        answer += data
    assert answer.count(b"HTTP/1.1 200") == 3


def test_one_that_reads_slowly_is_not_cut_off(client: socket.socket) -> None:
    """The server waits for it far longer than for a request."""
    client.sendall(REQUEST)
    answer = bytearray(client.recv(1))
    time.sleep(4 * http.IDLE)  # its socket is full, and it waits
    while data := client.recv(65536):
        answer += data
    assert len(answer) > SIZE
