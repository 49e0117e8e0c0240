"""``unixsocket=`` and ``tcp=``, listening and connecting."""

# ruff: noqa: ASYNC240 - the test is the application, and blocks as one

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Self

import anyio
import pytest

from spicebridge import (
    ConnectingEndpoint,
    EndpointError,
    ListeningEndpoint,
    TcpAddress,
    UnixAddress,
    parse_host_port,
)
from spicebridge.endpoints.sockets import TCP_LINGER
from tests.conftest import PATIENCE
from tests.endpoints.tools import accepted, connect, open_fds, read_exactly, read_some, write


def listening(path: Path, *, perm: int = 0o600, linger: float | None = None) -> ListeningEndpoint:
    return ListeningEndpoint(f"unixsocket={path}", UnixAddress(str(path)), perm=perm, linger=linger)


def connecting(path: Path, *, linger: float | None = None) -> ConnectingEndpoint:
    return ConnectingEndpoint(f"unixsocket={path}", UnixAddress(str(path)), linger=linger)


async def test_an_application_connects_to_our_unix_socket(short_tmp: Path) -> None:
    path = short_tmp / "s"
    async with listening(path) as endpoint:
        with connect(path) as app:
            application = await endpoint.accept()
            app.sendall(b"up")
            assert await read_exactly(application, 2) == b"up"
            await write(application, b"down")
            assert app.recv(4) == b"down"
            app.shutdown(socket.SHUT_WR)
            assert await read_some(application) == b""
            assert not application.stream.hung_up()
            application.stream.end()
            assert app.recv(1) == b""
            await application.aclose()


async def test_a_unix_application_is_named_by_its_pid_and_program(short_tmp: Path) -> None:
    async with listening(short_tmp / "s") as endpoint:
        with connect(short_tmp / "s"):
            application = await endpoint.accept()
            own = Path("/proc/self/comm").read_text().strip()
            assert application.name == f"pid {os.getpid()} ({own})"
            await application.aclose()


async def test_applications_come_one_after_another_in_their_order(short_tmp: Path) -> None:
    async with listening(short_tmp / "s") as endpoint:
        assert (endpoint.waits, endpoint.repeats) == (True, True)
        with connect(short_tmp / "s") as first, connect(short_tmp / "s") as second:
            first.sendall(b"1")
            second.sendall(b"2")
            for number in (b"1", b"2"):
                application = await endpoint.accept()
                assert await read_exactly(application, 1) == number
                await application.aclose()


async def test_a_cancelled_accept_takes_nobody(short_tmp: Path) -> None:
    async with listening(short_tmp / "s") as endpoint:
        with anyio.move_on_after(0.01) as scope:
            await endpoint.accept()
        assert scope.cancelled_caught
        with connect(short_tmp / "s") as app:
            application = await endpoint.accept()
            app.sendall(b"here")
            assert await read_exactly(application, 4) == b"here"
            await application.aclose()


@pytest.mark.parametrize("perm", [0o600, 0o660, 0o777])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
async def test_the_mode_of_a_socket_is_what_was_asked_for_under_any_umask(
    short_tmp: Path, perm: int, umask: int
) -> None:
    before = os.umask(umask)
    try:
        async with listening(short_tmp / "s", perm=perm):
            assert stat.S_IMODE((short_tmp / "s").stat().st_mode) == perm
    finally:
        os.umask(before)


async def test_the_socket_is_removed_at_the_end(short_tmp: Path) -> None:
    async with listening(short_tmp / "s"):
        assert (short_tmp / "s").is_socket()
    assert not list(short_tmp.iterdir())


async def test_a_stale_socket_is_replaced(short_tmp: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(short_tmp / "s"))
    async with listening(short_tmp / "s") as endpoint:
        with connect(short_tmp / "s"):
            await (await endpoint.accept()).aclose()


async def test_a_live_socket_stays_as_it_is(short_tmp: Path) -> None:
    async with listening(short_tmp / "s") as endpoint:
        with pytest.raises(EndpointError, match="another program answers there"):
            await listening(short_tmp / "s").open()
        with connect(short_tmp / "s"):
            await (await endpoint.accept()).aclose()


async def test_a_live_socket_with_a_full_backlog_is_alive_too(short_tmp: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other, connectors() as waiting:
        other.bind(str(short_tmp / "s"))
        other.listen(0)
        waiting.fill(short_tmp / "s")
        with pytest.raises(EndpointError, match="another program answers there"):
            await listening(short_tmp / "s").open()
    assert (short_tmp / "s").is_socket()


class connectors:  # noqa: N801 - reads like a function
    """Connections that fill a backlog."""

    def __init__(self) -> None:
        self._socks: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._socks:
            sock.close()

    def fill(self, path: Path) -> None:
        """Connects until there is no room."""
        while True:
            sock = socket.socket(socket.AF_UNIX)
            self._socks.append(sock)
            sock.setblocking(False)
            try:
                sock.connect(str(path))
            except BlockingIOError:
                return


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "link"])
async def test_what_is_no_socket_is_never_touched(short_tmp: Path, kind: str) -> None:
    path = short_tmp / "s"
    match kind:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(short_tmp / "nowhere")
    before = path.lstat()
    with pytest.raises(EndpointError, match="it exists and is no socket"):
        await listening(path).open()
    assert path.lstat() == before


async def test_somebody_elses_socket_at_our_path_is_not_removed(short_tmp: Path) -> None:
    """As when somebody tidied up, and another program has the path now."""
    path = short_tmp / "s"
    async with listening(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.is_socket()


async def test_a_path_may_have_107_bytes(short_tmp: Path) -> None:
    longest = short_tmp / ("x" * (107 - len(str(short_tmp)) - 1))
    async with listening(longest) as endpoint:
        with connect(longest):
            await (await endpoint.accept()).aclose()
    with pytest.raises(EndpointError, match="108 bytes"):
        await listening(short_tmp / (longest.name + "x")).open()


async def test_bytes_of_a_path_are_counted_not_its_letters(short_tmp: Path) -> None:
    with pytest.raises(EndpointError, match="107 at most"):
        await listening(short_tmp / ("ü" * 50)).open()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_an_application_connects_to_our_tcp_port(host: str) -> None:
    endpoint = ListeningEndpoint(f"tcp={host}:0", parse_host_port(f"{host}:0"))
    try:
        await endpoint.open()
    except EndpointError:
        if host != "[::1]":
            raise
        pytest.skip("no IPv6 here")
    try:
        # its name tells the port that it has taken
        address = parse_host_port(endpoint.name.removeprefix("tcp="))
        assert address.port
        with socket.create_connection((address.host, address.port), PATIENCE) as app:
            application = await endpoint.accept()
            assert str(app.getsockname()[1]) in application.name
            app.sendall(b"up")
            assert await read_exactly(application, 2) == b"up"
            await write(application, b"down")
            assert app.recv(4) == b"down"
            await application.aclose()
            assert app.recv(1) == b""
    finally:
        endpoint.close()


async def test_a_tcp_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = TcpAddress("127.0.0.1", other.getsockname()[1])
        with pytest.raises(EndpointError, match=f"cannot listen on {address}: .* in use"):
            await ListeningEndpoint("tcp", address).open()


async def test_we_connect_to_an_application_that_listens(short_tmp: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_tmp / "s"))
        listener.listen()
        async with accepted(connecting(short_tmp / "s")) as application:
            app, _ = listener.accept()
            with app:
                app.sendall(b"up")
                assert await read_exactly(application, 2) == b"up"
                application.stream.end()
                assert app.recv(1) == b""
        assert (short_tmp / "s").exists()  # it is not ours


async def test_a_socket_that_came_while_ours_was_there_is_not_removed(short_tmp: Path) -> None:
    """No file gets the inode of ours as long as we have it, however soon it was removed."""
    path = short_tmp / "s"
    for _ in range(20):
        async with listening(path):
            path.unlink()
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(path))
        assert path.is_socket()
        path.unlink()


async def test_the_file_is_gone_before_nobody_listens(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another spicebridge could take it for one that was left behind, and have the path."""
    path = short_tmp / "s"
    there = []
    async with listening(path) as endpoint:
        monkeypatch.setattr(anyio, "notify_closing", lambda _: there.append(path.exists()))
        endpoint.close()
    assert there == [False]


@pytest.mark.parametrize("mode", ["listen", "connect"])
async def test_a_tcp_application_that_goes_without_a_word_is_found_out(mode: str) -> None:
    if mode == "listen":
        endpoint = ListeningEndpoint("tcp", TcpAddress("127.0.0.1", 0))
        await endpoint.open()
        address = parse_host_port(endpoint.name.removeprefix("tcp="))
        app = socket.create_connection((address.host, address.port), PATIENCE)
        application = await endpoint.accept()
        endpoint.close()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = TcpAddress(*listener.getsockname())
            application = await ConnectingEndpoint("tcp", address).accept()
            app, _ = listener.accept()
    sock = application.stream.socket
    assert sock is not None
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    await application.aclose()
    app.close()


async def test_we_connect_to_an_application_at_a_tcp_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = TcpAddress(*listener.getsockname())
        async with accepted(ConnectingEndpoint(f"tcp={address}", address)) as application:
            app, _ = listener.accept()
            with app:
                await write(application, b"down")
                assert app.recv(4) == b"down"
                assert application.name == str(address)


async def test_nobody_listens_where_we_connect(short_tmp: Path) -> None:
    async with connecting(short_tmp / "s") as endpoint:
        assert not endpoint.waits
        with pytest.raises(EndpointError, match="start the application that listens there first"):
            await endpoint.accept()


async def test_connecting_waits_for_a_place_in_a_full_backlog(short_tmp: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, connectors() as waiting:
        listener.bind(str(short_tmp / "s"))
        listener.listen(0)
        waiting.fill(short_tmp / "s")
        async with connecting(short_tmp / "s") as endpoint, anyio.create_task_group() as tasks:

            async def accept() -> None:
                with anyio.fail_after(PATIENCE):
                    await (await endpoint.accept()).aclose()

            tasks.start_soon(accept)
            await anyio.sleep(0.05)
            listener.setblocking(False)
            try:
                while True:
                    listener.accept()[0].close()
            except BlockingIOError:
                pass


def test_a_unix_socket_needs_no_linger_and_tcp_has_one(short_tmp: Path) -> None:
    tcp = TcpAddress("127.0.0.1", 1)
    assert ListeningEndpoint("tcp", tcp)._linger == TCP_LINGER
    assert ConnectingEndpoint("tcp", tcp)._linger == TCP_LINGER
    assert ListeningEndpoint("tcp", tcp, linger=7)._linger == 7
    assert ListeningEndpoint("tcp", tcp, linger=0)._linger == 0
    assert listening(short_tmp / "s")._linger is None
    assert listening(short_tmp / "s", linger=7)._linger == 7
    assert connecting(short_tmp / "s")._linger is None


async def test_a_unix_socket_tells_an_application_that_has_gone_from_one_that_has_ended_sending(
    short_tmp: Path,
) -> None:
    async with listening(short_tmp / "s") as endpoint:
        app = connect(short_tmp / "s")
        application = await endpoint.accept()
        app.shutdown(socket.SHUT_WR)
        assert await read_some(application) == b""
        assert not application.stream.hung_up()
        app.close()
        assert application.stream.hung_up()
        await application.aclose()


async def test_no_descriptor_is_left_open(short_tmp: Path) -> None:
    async with accepted_pair(short_tmp):
        pass  # what the event loop opens for itself is open now
    before = open_fds()
    async with accepted_pair(short_tmp):
        assert open_fds() > before
    with pytest.raises(EndpointError):
        await connecting(short_tmp / "nobody").accept()
    (short_tmp / "file").touch()
    with pytest.raises(EndpointError):
        await listening(short_tmp / "file").open()
    with pytest.raises(EndpointError):
        await listening(short_tmp / "missing" / "s").open()
    assert open_fds() == before


class accepted_pair:  # noqa: N801 - reads like a function
    """A listening endpoint, an application at it, and both closed again."""

    def __init__(self, folder: Path) -> None:
        self._endpoint = listening(folder / "s")
        self._path = folder / "s"

    async def __aenter__(self) -> None:
        await self._endpoint.open()
        self._app = connect(self._path)
        self._application = await self._endpoint.accept()
        with anyio.move_on_after(0.001):
            await self._application.stream.readable()

    async def __aexit__(self, *_: object) -> None:
        await self._application.aclose()
        self._app.close()
        self._endpoint.close()
