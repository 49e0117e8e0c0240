"""Connecting: what is tried, what the system answers, and that nothing stays open."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from spicebridge.errors import ConnectError
from spicebridge.transport.address import TcpAddress, UnixAddress
from spicebridge.transport.connect import _alternating, connect
from spicebridge.transport.steps import step
from tests.conftest import PATIENCE
from tests.transport.pairs import read_exactly, settled


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def server(path: Path | None = None, backlog: int = 1) -> tuple[socket.socket, TcpAddress]:
    sock = socket.create_server(("127.0.0.1", 0), backlog=backlog)
    return sock, TcpAddress("127.0.0.1", sock.getsockname()[1])


def assert_kept_alive(sock: socket.socket) -> None:
    """A peer that has gone without a word is found out in 2 minutes; one that stalls may stay."""
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    idle, interval, probes = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
    assert idle + interval * probes == 120
    assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


async def test_a_tcp_server_is_reached_without_delay_of_small_messages() -> None:
    listening, address = server()
    with listening:
        stream = await connect(address)
        peer, _ = listening.accept()
        with peer:
            peer.send(b"hello")
            assert await read_exactly(stream, 5) == b"hello"
            with socket.socket(fileno=os.dup(stream.reader)) as sock:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert_kept_alive(sock)
                assert not os.get_blocking(sock.fileno())
            stream.close()


async def test_a_unix_server_is_reached(short_tmp: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(short_tmp / "s"))
        listening.listen()
        stream = await connect(UnixAddress(str(short_tmp / "s")))
        peer, _ = listening.accept()
        with peer:
            await stream.write_all([memoryview(b"hello")])
            assert peer.recv(10) == b"hello"
            stream.close()


async def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a name that has an IPv6 address where the server listens on IPv4 alone."""
    dead, dead_address = server()
    dead.close()
    listening, address = server()

    async def two(*_: object, **__: object) -> list[object]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", dead_address.port)),
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", address.port)),
        ]

    monkeypatch.setattr("anyio.getaddrinfo", two)
    with listening:
        (await connect(TcpAddress("both.example", 1))).close()


async def test_an_address_family_that_the_kernel_lacks_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with ::1 for localhost where IPv6 is switched off."""
    listening, address = server()

    async def two(*_: object, **__: object) -> list[object]:
        return [
            (socket.AF_IPX, socket.SOCK_STREAM, 0, "", ("::1", address.port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", address.port)),
        ]

    monkeypatch.setattr("anyio.getaddrinfo", two)
    with listening:
        (await connect(TcpAddress("localhost", 1))).close()


async def test_a_refused_connection_says_so_and_asks_whether_the_server_runs() -> None:
    listening, address = server()
    listening.close()
    before = descriptors()
    with pytest.raises(ConnectError) as caught:
        await connect(address)
    assert caught.value.problem == f"connecting to {address}: Connection refused"
    assert "is the server running" in caught.value.hint
    assert descriptors() == before


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        ("missing", "No such file or directory"),
        ("stale", "Connection refused"),
        ("file", "Connection refused"),
    ],
)
async def test_a_unix_path_where_nobody_listens_says_so(
    short_tmp: Path, make: str, problem: str
) -> None:
    path = short_tmp / "s"
    if make == "stale":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    elif make == "file":
        path.touch()
    before = descriptors()
    with pytest.raises(ConnectError) as caught:
        await connect(UnixAddress(str(path)))
    assert caught.value.problem == f"connecting to unix:{path}: {problem}"
    assert caught.value.hint
    assert descriptors() == before


async def test_a_unix_path_that_is_too_long_says_so() -> None:
    with pytest.raises(ConnectError, match="too long"):
        await connect(UnixAddress("/tmp/" + "x" * 200))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..invalid", "ä..invalid", "☃" * 70])
async def test_a_name_that_does_not_resolve_says_so(host: str) -> None:
    before = descriptors()
    with pytest.raises(ConnectError) as caught:
        await connect(TcpAddress(host, 5900))
    assert caught.value.problem.startswith(f"looking up {host}: ")
    assert caught.value.hint == "check the host name"
    assert descriptors() <= before + 1  # a worker thread of the resolver may keep one


async def test_a_step_without_an_answer_ends_with_its_name() -> None:
    with pytest.raises(ConnectError) as caught:
        async with step("waiting for Godot", 0.01):
            await anyio.sleep_forever()
    assert caught.value.problem == "waiting for Godot: no answer within 0.01 seconds"


async def test_a_step_that_ends_in_time_is_not_touched() -> None:
    async with step("this", 60):
        await anyio.lowlevel.checkpoint()
    with pytest.raises(KeyError):
        async with step("this", 60):
            raise KeyError


def full_unix_server(path: Path) -> tuple[socket.socket, list[socket.socket]]:
    """A listening socket that takes no more connections, and those that wait."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(0)
    waiting: list[socket.socket] = []
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except BlockingIOError:
            sock.close()
            return listening, waiting
        waiting.append(sock)


async def test_a_server_with_a_full_backlog_is_waited_for(short_tmp: Path) -> None:
    listening, waiting = full_unix_server(short_tmp / "s")
    connected: list[bool] = []

    async def reach() -> None:
        (await connect(UnixAddress(str(short_tmp / "s")))).close()
        connected.append(True)

    with listening:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reach)
            await settled()
            assert not connected
            for _ in waiting:
                listening.accept()[0].close()
    assert connected
    for sock in waiting:
        sock.close()


async def test_a_cancelled_connect_to_a_unix_socket_leaves_nothing_open(short_tmp: Path) -> None:
    listening, waiting = full_unix_server(short_tmp / "s")
    async with anyio.create_task_group() as tasks:
        before = descriptors()
        tasks.start_soon(connect, UnixAddress(str(short_tmp / "s")))
        await settled()
        assert descriptors() == before + 1
        tasks.cancel_scope.cancel()
    assert descriptors() == before
    for sock in (listening, *waiting):
        sock.close()


async def test_a_cancelled_connect_over_tcp_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peer of a SYN that nobody answers: a listener whose queue is full."""
    listening, address = server(backlog=0)
    waiting = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        assert sock.connect_ex((address.host, address.port)) == errno.EINPROGRESS
        waiting.append(sock)
    async with anyio.create_task_group() as tasks:
        await settled()
        before = descriptors()
        tasks.start_soon(connect, address)
        await anyio.sleep(0.05)  # the resolver's thread; how long does not matter to the result
        tasks.cancel_scope.cancel()
    assert descriptors() <= before + 1
    for sock in (listening, *waiting):
        sock.close()


# The addresses of one name


Answer = tuple[int, int, int, str, tuple[str, int]]


def answer(address: TcpAddress) -> Answer:
    return socket.AF_INET, socket.SOCK_STREAM, 0, "", (address.host, address.port)


@pytest.fixture
def silent() -> Iterator[TcpAddress]:
    """Where nobody answers a SYN: a listener whose queue is full."""
    listening, address = server(backlog=0)
    with ExitStack() as stack:
        stack.enter_context(listening)
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            assert sock.connect_ex((address.host, address.port)) == errno.EINPROGRESS
        yield address


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: Answer) -> None:
    async def resolve(*_: object, **__: object) -> list[Answer]:
        return list(answers)

    monkeypatch.setattr("anyio.getaddrinfo", resolve)


async def test_an_address_that_does_not_answer_does_not_keep_the_next_one_waiting(
    monkeypatch: pytest.MonkeyPatch, silent: TcpAddress
) -> None:
    """As with a name whose IPv6 address leads nowhere."""
    listening, address = server()
    resolving(monkeypatch, answer(silent), answer(silent), answer(address))
    with listening:
        before = descriptors()
        with anyio.fail_after(PATIENCE):
            stream = await connect(TcpAddress("three.example", 1), timeout=float("inf"))
        assert descriptors() == before + 1
        listening.accept()[0].close()
        stream.close()
    assert descriptors() == before - 1


async def test_an_address_that_answers_late_is_not_given_up_for_one_that_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead, dead_address = server()
    dead.close()
    listening, address = server()
    resolving(monkeypatch, answer(dead_address), answer(address), answer(dead_address))
    with listening:
        (await connect(TcpAddress("three.example", 1))).close()


async def test_where_no_address_answers_the_reason_is_that_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead, address = server()
    dead.close()
    nowhere = (socket.AF_IPX, socket.SOCK_STREAM, 0, "", ("x", 1))
    resolving(monkeypatch, answer(address), nowhere)
    before = descriptors()
    with pytest.raises(ConnectError, match=r"connecting to two\.example:1: Connection refused; is"):
        await connect(TcpAddress("two.example", 1))
    assert descriptors() == before


async def test_no_address_in_time_is_an_error_that_names_the_step(
    monkeypatch: pytest.MonkeyPatch, silent: TcpAddress
) -> None:
    resolving(monkeypatch, answer(silent), answer(silent))
    before = descriptors()
    with pytest.raises(ConnectError, match=r"connecting to two\.example:1: no answer within 0\.3 "):
        await connect(TcpAddress("two.example", 1), timeout=0.3)
    assert descriptors() == before


def test_families_take_turns_in_the_order_of_the_resolver() -> None:
    four, six = socket.AF_INET, socket.AF_INET6
    found = [
        (family, socket.SOCK_STREAM, 0, "", number)
        for number, family in enumerate([six, six, six, four])
    ]
    assert [info[4] for info in _alternating(found)] == [0, 3, 1, 2]
