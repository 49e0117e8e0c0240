"""What clients may cost: connections that do not log in, wrong passwords, silence, sessions."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import pytest

from spicebridge.client.session import open_session
from spicebridge.errors import LinkRefusedError, LoginError
from spicebridge.protocol.constants import MsgC
from spicebridge.server.endpoint import Offer
from spicebridge.server.guesses import _MAX_ORIGINS, Guesses
from spicebridge.server.limits import DEFAULT_LIMITS, ServerLimits
from spicebridge.server.lobby import Lobby
from spicebridge.server.tls import server_context
from spicebridge.transport.address import Address, TcpAddress, UnixAddress
from spicebridge.transport.connect import connect
from spicebridge.transport.listen import Listener, listen, origin_of
from spicebridge.transport.stream import Stream
from spicebridge.transport.target import Target
from tests.conftest import PATIENCE
from tests.peers.certificates import CertificateFiles, self_signed
from tests.protocol.wire import message
from tests.server.serving import echo, port, serving, somewhere
from tests.server.test_endpoint import MAIN_MESS, main, still_serves
from tests.transport.pairs import connected, read_exactly, read_to_end

OFFERS = [Offer(10, 0, port("org.x.0")), Offer(9, 0, echo)]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return self_signed(tmp_path_factory.mktemp("tls"), "127.0.0.1")


# Connections that have not logged in


async def test_the_oldest_of_whoever_has_most_has_to_go(caplog: pytest.LogCaptureFixture) -> None:
    lobby = Lobby(4)
    with ExitStack() as stack:
        good = stack.enter_context(lobby.waiting("good"))
        bad = [stack.enter_context(lobby.waiting("bad")) for _ in range(6)]
        other = stack.enter_context(lobby.waiting("other"))
        assert [scope.cancel_called for scope in bad] == [True] * 4 + [False] * 2
        assert not good.cancel_called
        assert not other.cancel_called
    told = [record.getMessage() for record in caplog.records]
    assert told == ["4 connections have not logged in: the oldest of bad had to go (1 in all)"]


async def test_a_place_is_free_again_when_its_connection_has_logged_in() -> None:
    lobby = Lobby(2)
    with lobby.waiting("a") as first:
        for _ in range(5):
            with lobby.waiting("b") as scope:
                assert not scope.cancel_called
        assert not first.cancel_called
    assert not lobby._waiting


async def test_many_silent_connections_keep_nobody_out(short_tmp: Path) -> None:
    limits = ServerLimits(logins=4, login_time=PATIENCE)
    async with serving(somewhere("unix", short_tmp), OFFERS, limits=limits) as address:
        streams = [await connect(address) for _ in range(12)]
        await still_serves(address)
        for stream in streams[:8]:
            assert await read_to_end(stream) == b""
        for stream in streams:
            stream.close()
        await still_serves(address)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00"], ids=["nothing", "half a record"])
async def test_the_time_to_log_in_has_tls_in_it(
    certificates: CertificateFiles, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    tls = server_context(certificates.cert, certificates.key)
    limits = ServerLimits(login_time=0.1)
    async with serving(TcpAddress("127.0.0.1", 0), OFFERS, tls=tls, limits=limits) as address:
        stream = await connect(address)
        await stream.write_all([memoryview(said)])
        assert await read_to_end(stream) == b""
        stream.close()
    assert "waiting for a client to log in: no answer within 0.1 seconds" in caplog.text


# Wrong passwords


def bound_to(host: str, address: Address) -> Stream:
    """A connection from another address of this machine."""
    assert isinstance(address, TcpAddress)
    sock = socket.create_connection((address.host, address.port), source_address=(host, 0))
    return Stream.of_socket(sock)


async def say(stream: Stream, data: bytes) -> None:
    await stream.write_all([memoryview(data)])


async def guess(address: Address, password: str = "wrong") -> None:
    with pytest.raises(LoginError):
        async with open_session(Target(address, password=password)):
            pass


async def test_wrong_passwords_of_one_origin_are_answered_one_by_one() -> None:
    """However many connections it has."""
    limits = ServerLimits(guess_time=0.2)
    async with serving(somewhere("tcp", Path()), OFFERS, "right", limits=limits) as address:
        begun = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(guess, address)
        assert anyio.current_time() - begun >= 3 * limits.guess_time
        async with open_session(Target(address, password="right")):
            pass


async def test_who_guesses_keeps_nobody_else_waiting() -> None:
    limits = ServerLimits(guess_time=1e9, login_time=1e9)
    async with serving(somewhere("tcp", Path()), OFFERS, "right", limits=limits) as address:
        guessing = bound_to("127.0.0.2", address)
        await say(guessing, MAIN_MESS + bytes(128))
        await read_exactly(guessing, 16 + 182)
        async with open_session(Target(address, password="right")):
            pass
        assert guessing.read_nowait(memoryview(bytearray(1))) is None, "it has to wait"
        guessing.close()


async def test_who_has_guessed_is_forgotten() -> None:
    guesses = Guesses(0.0)
    for number in range(10):
        guesses.wrong(str(number))
    assert list(guesses._until) == ["9"]
    guesses = Guesses(1e9)
    for number in range(_MAX_ORIGINS + 10):
        guesses.wrong(str(number))
    assert len(guesses._until) == _MAX_ORIGINS


# Silent clients


@pytest.mark.parametrize("how", ["silent", "wrong", "reads nothing"])
async def test_who_does_not_answer_our_ping_is_gone_after_a_while(
    short_tmp: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    limits = ServerLimits(pong_time=0.2)
    async with serving(somewhere("unix", short_tmp), OFFERS, limits=limits) as address:
        client = await main(address)
        stream = client._wire
        assert isinstance(stream, Stream)
        if how == "wrong":
            await say(stream, 5 * message(MsgC.PONG, struct.pack("<IQ", 0xBAD, 0)))
        with anyio.move_on_after(PATIENCE):
            attach = 1000 * message(MsgC.MAIN_ATTACH_CHANNELS)
            try:
                while how == "reads nothing":
                    await say(stream, attach)
            except OSError:
                pass
        try:
            await read_to_end(stream)
        except ConnectionResetError:
            pass
        client.abort()
        await still_serves(address)
    assert "does not answer pings: disconnected" in caplog.text


async def test_sessions_are_counted(short_tmp: Path) -> None:
    limits = ServerLimits(sessions=1)
    async with serving(somewhere("unix", short_tmp), OFFERS, limits=limits) as address:
        async with open_session(Target(address)):
            with pytest.raises(LinkRefusedError, match=r"1 \(error\)"):
                await main(address)
        await still_serves(address)


async def test_a_session_that_has_a_place_by_then_is_refused_after_the_login(
    short_tmp: Path,
) -> None:
    """Two that link at once have both been told that there is room."""
    limits = ServerLimits(sessions=1)
    async with serving(somewhere("unix", short_tmp), OFFERS, limits=limits) as address:
        late = await connect(address)
        await say(late, MAIN_MESS)
        await read_exactly(late, 16 + 182)
        async with open_session(Target(address)):
            await say(late, bytes(128))
            assert await read_to_end(late) == struct.pack("<I", 1)
        late.close()


# Who they are


async def test_a_connection_counts_for_its_address_network_or_user(short_tmp: Path) -> None:
    with connected("tcp") as (stream, _):
        assert origin_of(stream) == "127.0.0.1"
    for name, origin in {
        "::1": "::/64",
        "2001:db8::1:2": "2001:db8::/64",
        "fe80::1%eth0": "fe80::/64",
        "::ffff:192.0.2.1": "192.0.2.1",
    }.items():

        class Named(socket.socket):
            def getpeername(self, name: str = name) -> tuple[str, int]:
                return name, 1

        with Named(socket.AF_INET6) as sock:
            assert origin_of(Stream.of_socket(sock)) == origin
    with socket.socket() as gone:
        assert origin_of(Stream.of_socket(gone)) == ""
    with await listen(UnixAddress(str(short_tmp / "s"))) as listener:
        client = await connect(listener.address)
        server, _ = await listener.accept()
        assert origin_of(server) == f"uid {os.getuid()}"
        client.close()
        server.close()
    reader, writer = os.pipe()
    stream = Stream.of_pair(reader, writer)
    assert origin_of(stream) == ""
    stream.close()


@contextmanager
def called(name: bytes) -> Iterator[None]:
    """Gives this process another name."""
    own = Path("/proc/self/comm")
    before = own.read_bytes()
    own.write_bytes(name)
    try:
        yield
    finally:
        own.write_bytes(before.strip())


async def test_a_process_with_a_wild_name_is_told_of_in_one_line(short_tmp: Path) -> None:
    with await listen(UnixAddress(str(short_tmp / "s"))) as listener:
        client = await connect(listener.address)
        with called(b"\x1b[2J\nhello\x07"):
            server, name = await listener.accept()
        server.close()
        client.close()
    assert name == f"pid {os.getpid()} (\\x1b[2J\\nhello\\x07)"


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("0.0.0.0", False)])
async def test_a_listener_knows_whether_others_can_reach_it(host: str, local: bool) -> None:
    with await listen(TcpAddress(host, 0)) as listener:
        assert listener.is_local is local


@pytest.mark.parametrize("number", [errno.ENETDOWN, errno.EPROTO, errno.EPERM])
async def test_an_error_of_a_connection_is_not_one_of_ours(number: int) -> None:
    faults = [OSError(number, "a fault")]

    class Faulty(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if faults:
                raise faults.pop()
            return super().accept()

    with Faulty() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        address = TcpAddress("127.0.0.1", sock.getsockname()[1])
        with Listener(sock, address) as listener:
            client = await connect(address)
            server, _ = await listener.accept()
            server.close()
            client.close()


# What users read of it


def test_the_man_page_tells_the_limits() -> None:
    page = (Path(__file__).parents[2] / "man" / "spicebridge.1").read_text(encoding="utf-8")
    text = " ".join(page.split())
    for told in (
        f"A client has {DEFAULT_LIMITS.login_time:g} seconds to log in",
        f"{DEFAULT_LIMITS.logins} connections may be there that have not logged in",
        f"gets no answer, for {DEFAULT_LIMITS.guess_time:g} second.",
        f"{DEFAULT_LIMITS.sessions} sessions may be open",
        f"not answered a ping for {DEFAULT_LIMITS.pong_time:g} seconds",
    ):
        assert told in text
