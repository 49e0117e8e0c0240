"""The faulty relay does what the tests that lean on it believe."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bridge.tools import open_fds
from tests.peers.faulty_relay import Fault, FaultyRelay, Flow, Plan
from tests.peers.processes import PATIENCE

MUCH = bytes(range(256)) * 16384


class Ends:
    """A client and a server, and a relay with a plan between them."""

    def __init__(self, stack: ExitStack, folder: Path | None, plan: Plan) -> None:
        if folder:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(folder / "server"))
            listener.listen()
            uri = f"spice+unix://{folder / 'server'}"
        else:
            listener = socket.create_server(("127.0.0.1", 0))
            uri = f"spice://127.0.0.1:{listener.getsockname()[1]}"
        self.relay = FaultyRelay(uri, lambda number: plan, unix=folder and folder / "relay")
        stack.enter_context(self.relay)
        with listener:
            self.client = stack.enter_context(reach(self.relay))
            self.server = stack.enter_context(listener.accept()[0])
        self.server.settimeout(PATIENCE)
        self.connection = self.relay.wait_connection(0)

    def closed(self) -> None:
        """Waits until the relay has done with them."""
        self.relay.wait(lambda: self.connection.closed, "the connection is not closed")


def reach(relay: FaultyRelay) -> socket.socket:
    """A client's connection to a relay."""
    scheme, _, place = relay.uri.partition("://")
    client = socket.socket(socket.AF_UNIX if scheme.endswith("unix") else socket.AF_INET)
    client.settimeout(PATIENCE)
    try:
        if scheme.endswith("unix"):
            client.connect(place)
        else:
            client.connect(("127.0.0.1", int(place.rpartition(":")[2])))
    except BaseException:
        client.close()
        raise
    return client


def read(sock: socket.socket, size: int = len(MUCH) + 1) -> bytes:
    """So many bytes, or all up to the end of file."""
    data = b""
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return data


@pytest.fixture(params=["tcp", "unix"])
def folder(request: pytest.FixtureRequest, short_tmp: Path) -> Path | None:
    """Where Unix sockets go; None for TCP."""
    return short_tmp if request.param == "unix" else None


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before, threads = open_fds(), threading.active_count()
    yield
    assert (open_fds(), threading.active_count()) == (before, threads)


def test_it_is_transparent(folder: Path | None) -> None:
    with ExitStack() as stack:
        ends = Ends(stack, folder, Plan())
        for sender, receiver in ((ends.client, ends.server), (ends.server, ends.client)):
            sending = threading.Thread(target=sender.sendall, args=(MUCH,))
            sending.start()
            assert read(receiver, len(MUCH)) == MUCH
            sending.join()
            sender.shutdown(socket.SHUT_WR)
            assert read(receiver) == b""
        ends.closed()
        assert (ends.relay.passed_up, ends.relay.passed_down) == (len(MUCH), len(MUCH))


@pytest.mark.parametrize("after", [0, 1, 1000])
def test_it_closes_behind_a_byte(folder: Path | None, after: int) -> None:
    with ExitStack() as stack:
        ends = Ends(stack, folder, Plan(down=Flow(Fault.CLOSE, after)))
        if after:
            ends.server.sendall(bytes(2000))
        assert read(ends.client) == bytes(after)
        assert read(ends.server) == b""
        assert ends.connection.down.passed == after


def test_it_resets_behind_a_byte() -> None:
    with ExitStack() as stack:
        ends = Ends(stack, None, Plan(up=Flow(Fault.RESET, 3)))
        ends.client.sendall(b"12345")
        ends.closed()
        for sock in (ends.client, ends.server):
            with pytest.raises(ConnectionResetError):
                read(sock)
        assert ends.connection.up.passed == 3


def test_it_spares_the_server() -> None:
    with ExitStack() as stack:
        ends = Ends(stack, None, Plan(down=Flow(Fault.RESET, 3), spare=True))
        ends.server.sendall(b"12345")
        with pytest.raises(ConnectionResetError):
            read(ends.client)
        assert read(ends.server) == b""
        ends.server.sendall(MUCH)
        assert not ends.connection.closed
        ends.server.close()
        ends.closed()


def test_it_closes_one_half(folder: Path | None) -> None:
    with ExitStack() as stack:
        ends = Ends(stack, folder, Plan(up=Flow(Fault.HALF_CLOSE, 3)))
        ends.client.sendall(b"12345")
        assert read(ends.server) == b"123"
        ends.client.sendall(MUCH)  # dropped
        ends.server.sendall(b"down")
        assert read(ends.client, 4) == b"down"


def test_it_stalls_and_resumes(folder: Path | None) -> None:
    with ExitStack() as stack:
        ends = Ends(stack, folder, Plan(up=Flow(Fault.STALL, 3)))
        ends.client.sendall(b"12345")
        assert read(ends.server, 3) == b"123"
        ends.relay.wait(lambda: ends.connection.up.stalled, "it does not stall")
        ends.server.sendall(b"down")
        assert read(ends.client, 4) == b"down"
        assert ends.connection.up.passed == 3
        ends.connection.resume()
        assert read(ends.server, 2) == b"45"


def test_a_fault_comes_when_it_is_called(folder: Path | None) -> None:
    with ExitStack() as stack:
        ends = Ends(stack, folder, Plan())
        ends.connection.fail(Fault.STALL)
        ends.client.sendall(b"up")
        ends.connection.resume()
        assert read(ends.server, 2) == b"up"
        ends.relay.fail(Fault.CLOSE)
        assert read(ends.server) == read(ends.client) == b""


def test_single_bytes_are_read_one_by_one(short_tmp: Path) -> None:
    with ExitStack() as stack:
        ends = Ends(stack, short_tmp, Plan(up=Flow(piece=1)))
        ends.client.sendall(b"12345")
        assert [ends.server.recv(9) for _ in range(5)] == [b"1", b"2", b"3", b"4", b"5"]


def test_late_bytes_are_late(folder: Path | None) -> None:
    with ExitStack() as stack:
        ends = Ends(stack, folder, Plan(up=Flow(delay=0.05)))
        begun = time.monotonic()
        ends.client.sendall(b"12345")
        assert read(ends.server, 5) == b"12345"
        assert time.monotonic() - begun >= 0.05


def test_it_passes_a_reset_on_behind_what_came_before() -> None:
    with ExitStack() as stack:
        ends = Ends(stack, None, Plan())
        ends.client.sendall(b"unread")
        ends.relay.wait(lambda: ends.connection.up.passed == 6, "it does not pass")
        ends.server.sendall(b"last")
        ends.server.close()
        assert read(ends.client, 4) == b"last"
        with pytest.raises(ConnectionResetError):
            ends.client.recv(1)


def test_it_refuses_while_it_is_away_and_comes_back_to_the_same_place(folder: Path | None) -> None:
    with ExitStack() as stack:
        ends = Ends(stack, folder, Plan())
        with ends.relay.away():
            assert read(ends.client) == read(ends.server) == b""
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                reach(ends.relay)
        with reach(ends.relay) as client:  # nobody listens behind it any more
            assert read(client) == b""
        assert ends.relay.refused == 1
