"""libspice-server: guests that pour, swallow and echo, over TCP and Unix, with a ticket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Self

import pytest

from tests.conftest import PATIENCE
from tests.peers.libspice import SpiceEndpoint, poured
from tests.peers.processes import peak_rss_kib, wait_until
from tests.real.tools import (
    CHUNK,
    JSON_LOG,
    MIB,
    Start,
    Task,
    connection,
    digest_of_fd,
    events,
    exchange,
    list_rows,
    one_line,
    receive,
    receive_to_end,
    sha256,
    wait_event,
)

pytestmark = pytest.mark.real_peer

NAME = "com.example.port"
TICKET = "a ticket"
SIZE = 64 * MIB
PEAK_RSS = 80 * 1024  # KiB
COMPRESSIBLE = b"".join(b"%06d the same and the same again\n" % number for number in range(9973))


@pytest.fixture(params=["tcp", "unix", "tcp with a ticket", "unix with a ticket"])
def server(request: pytest.FixtureRequest) -> dict[str, object]:
    """Arguments of `SpiceEndpoint`."""
    words = request.param.split()
    folder: Path = request.getfixturevalue("short_tmp")
    return {
        "unix": folder / "spice" if words[0] == "unix" else None,
        "ticket": TICKET if len(words) > 1 else None,
    }


@pytest.fixture
def bridge(spicebridge: Start, short_tmp: Path) -> Start:
    """Starts a bridge of a channel to `short_tmp`/s, which knows the ticket."""

    def start(endpoint: SpiceEndpoint, channel: str = f"port={NAME}", *options: str) -> object:
        end = f"unixsocket={short_tmp / 's'}"
        return spicebridge(
            endpoint.uri,
            "--custom-channel",
            f"{channel},{end}",
            *JSON_LOG,
            *options,
            env={"SPICEBRIDGE_PASSWORD": TICKET},
        )

    return start  # type: ignore[return-value]


class Relay:
    """Passes TCP connections on to a server and counts what the server says."""

    def __init__(self, uri: str) -> None:
        host, _, port = uri.removeprefix("spice://").partition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"spice://127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = 0
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._listener.close()

    def _run(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:  # the end
                return
            self._run(self._relay, client, socket.create_connection(self._target))

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        def up() -> None:
            try:
                while data := client.recv(CHUNK):
                    server.sendall(data)
                server.shutdown(socket.SHUT_WR)
            except OSError:  # either has gone
                pass

        upward = threading.Thread(target=up, daemon=True)
        upward.start()
        with closing(client), closing(server):
            try:
                while data := server.recv(CHUNK):
                    self.received += len(data)
                    client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            except OSError:  # either has gone
                pass
            upward.join(PATIENCE)


# Whole streams


def test_what_a_guest_pours_arrives_whole(
    server: dict[str, object], bridge: Start, short_tmp: Path
) -> None:
    with SpiceEndpoint(f"pour:{NAME}", pour=SIZE, **server) as endpoint:  # type: ignore[arg-type]
        running = bridge(endpoint)
        with connection(short_tmp / "s") as sock:
            sock.settimeout(None)
            assert digest_of_fd(sock.fileno(), SIZE) == poured(SIZE)
        assert wait_event(running, "unlinked")["down"] == SIZE
        assert peak_rss_kib(running.process.pid) < PEAK_RSS
        assert running.stop() == 0


def test_what_an_application_sends_arrives_whole(
    server: dict[str, object], bridge: Start, short_tmp: Path
) -> None:
    data = os.urandom(SIZE)
    with SpiceEndpoint(f"swallow:{NAME}", **server) as endpoint:  # type: ignore[arg-type]
        running = bridge(endpoint)
        with connection(short_tmp / "s") as sock:
            sock.sendall(data)
        assert wait_event(running, "unlinked")["up"] == SIZE
        state = endpoint.wait_state(NAME, False)
        assert (state["received"], state["sha256"]) == (SIZE, sha256(data))
        assert peak_rss_kib(running.process.pid) < PEAK_RSS
        assert running.stop() == 0


def test_an_echo_comes_back_whole(
    server: dict[str, object], bridge: Start, short_tmp: Path
) -> None:
    data = os.urandom(SIZE)
    with SpiceEndpoint(f"echo:{NAME}", **server) as endpoint:  # type: ignore[arg-type]
        bridge(endpoint)
        with connection(short_tmp / "s") as sock:
            assert exchange(sock, data, SIZE) == data
            for size in (1, 2, 999, 1000, 1001, 65535, 65536, 65537):
                sock.sendall(data[:size])
                assert receive(sock, size) == data[:size]


def test_single_bytes_go_to_and_fro(bridge: Start, short_tmp: Path) -> None:
    with SpiceEndpoint(f"echo:{NAME}") as endpoint:
        bridge(endpoint)
        with connection(short_tmp / "s") as sock:
            for number in range(1000):
                byte = bytes([number % 256])
                sock.sendall(byte)
                assert sock.recv(1) == byte


def test_lz4_arrives_unpacked(spicebridge: Start, short_tmp: Path) -> None:
    path = short_tmp / "s"
    with (
        SpiceEndpoint(f"pour:{NAME}", pour=SIZE, content=COMPRESSIBLE) as endpoint,
        Relay(endpoint.uri) as relay,
    ):
        running = spicebridge(relay.uri, "--custom-channel", f"port={NAME},unixsocket={path}")
        before = relay.received
        with connection(path) as sock:
            sock.settimeout(None)
            assert digest_of_fd(sock.fileno(), SIZE) == poured(SIZE, COMPRESSIBLE)
        assert before < relay.received < SIZE / 3  # that it was packed
        assert peak_rss_kib(running.process.pid) < PEAK_RSS
        assert running.stop() == 0


def test_the_raw_frames_of_a_webdav_channel_pass(bridge: Start, short_tmp: Path) -> None:
    data = os.urandom(MIB)
    with SpiceEndpoint("echo:org.spice-space.webdav.0") as endpoint:
        bridge(endpoint, "channelid=webdav,demux=off")
        with connection(short_tmp / "s") as sock:
            assert exchange(sock, data, MIB) == data


def test_a_usbredir_channel_passes(bridge: Start, short_tmp: Path) -> None:
    data = os.urandom(MIB)
    with SpiceEndpoint("echo:usbredir") as endpoint:
        bridge(endpoint, "channelid=usbredir")
        with connection(short_tmp / "s") as sock:
            assert exchange(sock, data, MIB) == data


# Slow sides


def test_an_application_slower_than_the_server_gets_everything(
    bridge: Start, short_tmp: Path
) -> None:
    size = 128 * MIB
    with SpiceEndpoint(f"pour:{NAME}", pour=size) as endpoint:
        running = bridge(endpoint)
        with connection(short_tmp / "s") as sock:
            sock.settimeout(None)
            wait_until_stuck(endpoint)
            assert endpoint.stats(NAME)["sent"] < size / 4
            assert digest_of_fd(sock.fileno(), size) == poured(size)
        wait_event(running, "app-gone")
        assert peak_rss_kib(running.process.pid) < PEAK_RSS


def wait_until_stuck(endpoint: SpiceEndpoint) -> None:
    """Wait until the guest of the port has sent something and cannot send more."""
    seen = [0]

    def same() -> bool:
        seen.append(int(endpoint.stats(NAME)["sent"]))
        return seen[-1] > 0 and len(seen) > 10 and len(set(seen[-10:])) == 1

    wait_until(same, what="the guest goes on sending", timeout=PATIENCE)


def test_a_guest_that_takes_nothing_stops_the_application(bridge: Start, short_tmp: Path) -> None:
    data = os.urandom(48 * MIB)
    with SpiceEndpoint(f"silent:{NAME}") as endpoint:
        running = bridge(endpoint)
        with connection(short_tmp / "s") as sock:
            sock.setblocking(False)
            sent = 0
            seen = [0]

            def stuck() -> bool:
                nonlocal sent
                try:
                    while sent < len(data):
                        sent += sock.send(memoryview(data)[sent : sent + CHUNK])
                except BlockingIOError:
                    pass
                seen.append(sent)
                return len(seen) > 20 and len(set(seen[-20:])) == 1

            wait_until(stuck, what="it goes on taking", timeout=PATIENCE)
            assert 0 < sent < len(data)
            assert peak_rss_kib(running.process.pid) < PEAK_RSS
            sock.settimeout(PATIENCE)
            endpoint.take(NAME)
            sock.sendall(memoryview(data)[sent:])
        wait_event(running, "app-gone")
        stats = endpoint.stats(NAME)
        assert (stats["received"], stats["sha256"]) == (len(data), sha256(data))


def test_a_little_reaches_a_guest_that_takes_it_after_we_have_gone(
    bridge: Start, short_tmp: Path
) -> None:
    """libspice-server 0.15 would crash, had it come as DATA."""
    data = os.urandom(4000)
    with SpiceEndpoint(f"silent:{NAME}") as endpoint:
        running = bridge(endpoint)
        with connection(short_tmp / "s") as sock:
            sock.sendall(data)
            assert running.stop() == 0
        endpoint.wait_state(NAME, connected=False)
        endpoint.take(NAME)

        def has_all() -> bool:
            return int(endpoint.stats(NAME)["received"]) == len(data)

        wait_until(has_all, what="the guest does not get all", timeout=PATIENCE)
        assert endpoint.stats(NAME)["sha256"] == sha256(data)


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_an_application_that_closes_after_20_mib_loses_nothing(
    bridge: Start, short_tmp: Path, way: str
) -> None:
    unix = short_tmp / "spice" if way == "unix" else None
    data = os.urandom(20 * MIB)
    with SpiceEndpoint(f"swallow:{NAME}", unix=unix) as endpoint:
        running = bridge(endpoint)
        for times in range(1, 6):
            with connection(short_tmp / "s") as sock:
                sock.sendall(data)
            wait_event(running, "app-gone", count=times)
            state = endpoint.wait_state(NAME, False)
            assert (state["received"], state["sha256"]) == (len(data), sha256(data))


def test_closing_while_the_guest_pours_loses_nothing_on_the_way_up(
    bridge: Start, short_tmp: Path
) -> None:
    """A socket that is closed with unread input is reset, and what it has sent is lost."""
    data = os.urandom(20 * MIB)
    with SpiceEndpoint(f"pour:{NAME}", pour=256 * MIB) as endpoint:
        running = bridge(endpoint)
        for times in range(1, 4):
            with connection(short_tmp / "s") as sock:
                receive(sock, 1)
                sock.sendall(data)
            wait_event(running, "app-gone", count=times)
            state = endpoint.wait_state(NAME, False)
            assert (state["received"], state["sha256"]) == (len(data), sha256(data))


def test_a_guest_that_takes_slowly_gets_everything_where_the_link_stays(
    bridge: Start, short_tmp: Path
) -> None:
    """libspice-server drops what the guest has not taken yet when the client unlinks, and tells
    nobody what it has taken: only a channel that stays linked is safe then."""
    data = os.urandom(512 * 1024)
    with SpiceEndpoint(f"slow-swallow:{NAME}") as endpoint:
        running = bridge(endpoint, f"port={NAME},attach=always")
        with connection(short_tmp / "s") as sock:
            sock.sendall(data)
        wait_event(running, "app-gone")
        wait_until(
            lambda: endpoint.stats(NAME)["received"] == len(data),
            what="the guest has not taken everything",
            timeout=PATIENCE,
        )
        assert endpoint.stats(NAME)["sha256"] == sha256(data)


def test_a_guest_that_takes_slowly_gets_everything_from_one_that_stays(
    bridge: Start, short_tmp: Path
) -> None:
    data = os.urandom(512 * 1024)
    with SpiceEndpoint(f"slow-swallow:{NAME}") as endpoint:
        bridge(endpoint)
        with connection(short_tmp / "s") as sock:
            sock.sendall(data)
            wait_until(
                lambda: endpoint.stats(NAME)["received"] >= len(data),
                what="the guest has not taken everything",
                timeout=PATIENCE,
            )
        assert endpoint.stats(NAME)["sha256"] == sha256(data)


# Port events


def test_the_application_waits_for_a_port_that_opens_later(bridge: Start, short_tmp: Path) -> None:
    with SpiceEndpoint(f"echo:{NAME}", closed=[NAME]) as endpoint:
        assert [row["open"] for row in list_rows(endpoint.uri) if row["port"]] == [False]
        running = bridge(endpoint)
        with connection(short_tmp / "s") as sock:
            sock.sendall(b"early")
            wait_event(running, "linked")
            assert endpoint.stats(NAME)["received"] == 0
            endpoint.event(NAME, "opened")
            assert receive(sock, 5) == b"early"
            endpoint.event(NAME, "closed")
            assert receive_to_end(sock) == b""
        wait_event(running, "app-gone")
        assert not events(running, "error")


def test_end_of_file_comes_behind_all_that_the_guest_has_sent(
    bridge: Start, short_tmp: Path
) -> None:
    size = 8 * MIB
    with SpiceEndpoint(f"pour:{NAME}", pour=size) as endpoint:
        running = bridge(endpoint)
        with connection(short_tmp / "s") as sock:
            wait_event(running, "linked")
            # all is in the hands of libspice-server once this is so, much of it unsent
            reading = Task(lambda: receive(sock, size - MIB))
            wait_until(
                lambda: endpoint.stats(NAME)["sent"] == size,
                what="the guest has not sent everything",
                timeout=PATIENCE,
            )
            endpoint.event(NAME, "closed")
            got = reading.result() + receive_to_end(sock)
        assert (len(got), sha256(got)) == (size, poured(size))


def test_a_break_disturbs_nobody(bridge: Start, short_tmp: Path) -> None:
    with SpiceEndpoint(f"echo:{NAME}") as endpoint:
        running = bridge(endpoint)
        with connection(short_tmp / "s") as sock:
            for number in range(5):
                endpoint.event(NAME, "break")
                sock.sendall(b"%d" % number)
                assert receive(sock, 1) == b"%d" % number
        wait_event(running, "app-gone")
        assert running.stop() == 0


def test_keep_rides_out_closed_and_opened(bridge: Start, short_tmp: Path) -> None:
    with SpiceEndpoint(f"echo:{NAME}") as endpoint:
        bridge(endpoint, f"port={NAME},on-close=keep")
        with connection(short_tmp / "s") as sock:
            for number in range(5):
                sock.sendall(b"%d" % number)
                assert receive(sock, 1) == b"%d" % number
                endpoint.event(NAME, "closed")
                endpoint.event(NAME, "opened")


def test_list_tells_open_ports_from_closed_ones(short_tmp: Path) -> None:
    del short_tmp
    names = [f"com.example.{number}" for number in range(6)]
    closed = names[::2]
    channels = [f"silent:{name}" for name in names]
    with SpiceEndpoint(*channels, closed=closed) as endpoint:
        found = {row["port"]: row["open"] for row in list_rows(endpoint.uri)}
        found.pop(None, None)
        assert found == {name: name not in closed for name in names}


# Sessions


def test_a_new_session_ends_the_old_one_with_8(
    spicebridge: Start, bridge: Start, short_tmp: Path
) -> None:
    old_path = short_tmp / "old"
    with SpiceEndpoint(f"echo:{NAME}") as endpoint:
        old = spicebridge(
            endpoint.uri, "--custom-channel", f"port={NAME},unixsocket={old_path}", "-q"
        )
        with connection(old_path) as sock:
            sock.sendall(b"old")
            assert receive(sock, 3) == b"old"
            bridge(endpoint)
            assert receive_to_end(sock) == b""
            assert old.wait() == 8
        line = one_line(old)
        assert endpoint.uri.removeprefix("spice://") in line
        assert not old_path.exists()
        with connection(short_tmp / "s") as sock:
            sock.sendall(b"new")
            assert receive(sock, 3) == b"new"


def test_the_death_of_the_server_ends_it_with_8(spicebridge: Start, short_tmp: Path) -> None:
    path = short_tmp / "s"
    with SpiceEndpoint(f"pour:{NAME}", pour=MIB) as endpoint:
        running = spicebridge(
            endpoint.uri, "--custom-channel", f"port={NAME},unixsocket={path}", "-q"
        )
        with connection(path) as sock:
            got = receive(sock, MIB)
            assert sha256(got) == poured(MIB)
            endpoint.popen.kill()
            assert receive_to_end(sock) == b""
        assert running.wait() == 8
    assert one_line(running)
    assert not path.exists()


def test_an_unread_channel_does_not_cost_the_session(spicebridge: Start, short_tmp: Path) -> None:
    """Nobody reads a pouring port while another one is busy; the main channel is answered."""
    stuck, lively = short_tmp / "stuck", short_tmp / "lively"
    other = "com.example.other"
    data = os.urandom(MIB)
    with SpiceEndpoint(f"pour:{NAME}", f"echo:{other}", pour=SIZE) as endpoint:
        spicebridge(
            endpoint.uri,
            "--custom-channel",
            f"port={NAME},unixsocket={stuck}",
            "--custom-channel",
            f"port={other},unixsocket={lively}",
        )
        with connection(stuck) as first, connection(lively) as second:
            receive(first, 1)
            for _ in range(32):
                assert exchange(second, data, len(data)) == data
            rest = SIZE - 1
            first.settimeout(None)
            assert digest_of_fd(first.fileno(), rest)


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    wait_until(lambda: threading.active_count() <= before, what="threads are left")
