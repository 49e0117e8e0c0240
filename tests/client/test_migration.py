"""A session whose machine moves to another server: with its channels, or anew, or not at all."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from spicebridge.channel import Channel, ChannelClosedError
from spicebridge.client import migration as migration_module
from spicebridge.client.migration import target_there
from spicebridge.client.session import ChannelInfo, Session, open_session
from spicebridge.errors import SessionLostError, UsageError
from spicebridge.protocol.constants import MainCap, Msg, MsgC
from spicebridge.protocol.events import MainInit, Migrate, MigrationTarget, PortInit
from spicebridge.protocol.link import channel_caps
from spicebridge.protocol.messages import encode_main_init, stored_head
from spicebridge.transport.address import TcpAddress, UnixAddress, WebAddress
from spicebridge.transport.target import Target, Trust
from tests.client.fake_servers import SESSION, FakeServer, fake_server, hand_over, hand_over_all
from tests.protocol.wire import encode_target
from tests.transport.pairs import settled, until

PORT0, PORT1 = ChannelInfo(10, 0), ChannelInfo(10, 1)
CANCEL, END = (102, b""), (112, b"")
MIGRATE = (int(Msg.MIGRATE), b"\3\0\0\0")
CONNECTED, CONNECT_ERROR, CONNECTED_SEAMLESS = 102, 103, 111


@pytest.fixture(autouse=True)
def _capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers say that they can take part in a seamless migration."""
    monkeypatch.setattr(
        "spicebridge.protocol.link.channel_caps",
        lambda kind: frozenset({MainCap.SEAMLESS_MIGRATE}) if kind == 1 else channel_caps(kind),
    )


@dataclass
class Stage:
    """A session with one server, and another server.

    Attributes:
        session: it.
        channel: port 0 of it.
        here: the server that the machine leaves.
        there: the other one.
    """

    session: Session
    channel: Channel
    here: FakeServer
    there: FakeServer


@asynccontextmanager
async def stage(mode: str = "seamless", folder: Path | None = None) -> AsyncIterator[Stage]:
    """A session with a port; `mode` is that of the other server."""
    async with (
        fake_server("serves", folder) as here,
        fake_server(mode) as there,
        open_session(Target(here.address)) as session,
    ):
        channel = await session.open_channel(PORT0)
        try:
            yield Stage(session, channel, here, there)
        finally:
            channel.abort()


# Where it is


def there(host: str = "b", port: int | None = 1, tls: int | None = 2) -> MigrationTarget:
    return MigrationTarget(host, port, tls, "")


A, A_TLS = TcpAddress("a", 5900), TcpAddress("a", 5901)
B, B_TLS = TcpAddress("b", 1), TcpAddress("b", 2)


def test_a_target_with_both_ports_is_reached_as_before() -> None:
    target = Target(A, A_TLS, frozenset({1}), username="u", password="p")
    assert target_there(target, there()) == Target(
        B,
        B_TLS,
        frozenset({1}),
        username="u",
        password="p",
    )


def test_what_was_encrypted_stays_encrypted() -> None:
    assert target_there(Target(secure=A_TLS), there()) == Target(secure=B_TLS)
    with pytest.raises(UsageError):
        target_there(Target(secure=A_TLS), there(tls=None))
    with pytest.raises(UsageError):
        target_there(Target(A, A_TLS, frozenset({1})), there(tls=None))


def test_where_nothing_had_to_be_encrypted_there_may_be_no_tls() -> None:
    assert target_there(Target(A, A_TLS), there(tls=None)) == Target(B)


def test_what_was_plain_is_plain_if_that_is_there_and_encrypted_otherwise() -> None:
    assert target_there(Target(A), there()) == Target(B)
    assert target_there(Target(A), there(port=None)) == Target(secure=B_TLS)


def test_a_server_without_any_port_is_none() -> None:
    with pytest.raises(UsageError):
        target_there(Target(A), there(port=None, tls=None))


def test_from_a_unix_socket_it_goes_to_tcp() -> None:
    assert target_there(Target(UnixAddress("/run/spice")), there()) == Target(B)


def test_a_web_server_is_reached_at_the_same_path() -> None:
    target = target_there(Target(WebAddress("a", 80, "/x?y")), there())
    assert target == Target(WebAddress("b", 1, "/x?y"))


def test_the_subject_of_the_certificate_is_that_of_the_other_server() -> None:
    trust = Trust(ca_file="ca", host_subject="CN=a")
    moves = MigrationTarget("b", None, 2, "CN=b")
    told = target_there(Target(secure=A_TLS, trust=trust), moves)
    assert told.trust == Trust(ca_file="ca", host_subject="CN=b")


# Seamless


@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
async def test_a_session_goes_on_at_the_other_server(short_tmp: Path, unix: bool) -> None:
    async with stage(folder=short_tmp if unix else None) as on:
        await on.here.main.says(on.there.begin())
        await on.here.main.hears(CONNECTED_SEAMLESS)
        for key in ((1, 0), (10, 0)):
            assert on.there.links[key].request.connection_id == SESSION
        assert on.there.main.heard == [(110, b"\1\0\0\0")]
        assert set(on.there.links) == {(1, 0), (10, 0)}, "it links what was not linked here"
        assert on.here.main.request.channel_caps >= {0, 2, 3}

        await on.here.port.says((Msg.DATA, b"before"))
        await hand_over_all(on.here, on.there)
        await until(lambda: on.here.port.ended and on.here.main.ended)
        await until(lambda: str(on.session.target) == str(on.there.address))
        assert not on.session.lost.is_set()

        await on.there.port.says((Msg.PORT_EVENT, b"\0"), (Msg.DATA, b"after"))
        assert await on.channel.read() == b"before"
        assert await on.channel.read() == b"after"
        assert on.channel.port == PortInit("org.x", opened=True)
        await on.channel.send(b"up")
        await on.there.port.hears(Msg.COMPRESSED_DATA, stored_head(2) + b"up")
        await on.there.main.says((Msg.PING, bytes(12)))
        await on.there.main.hears(MsgC.PONG, bytes(12))

        on.there.mode = "serves"
        other = await on.session.open_channel(PORT1)
        assert on.there.links[10, 1].request.connection_id == SESSION
        other.abort()
        on.there.main.dies()
        await on.session.lost.wait()
        assert str(on.there.address) in str(on.session.failure)
        assert on.session.successor is None


async def test_the_machine_may_move_back(short_tmp: Path) -> None:
    del short_tmp
    async with stage() as on:
        for here, there in ((on.here, on.there), (on.there, on.here)):
            there.mode = "seamless"
            source = here.main
            await source.says(there.begin())
            await source.hears(CONNECTED_SEAMLESS)
            await hand_over_all(here, there)
            await until(lambda: source.ended)  # noqa: B023
        await on.here.port.says((Msg.DATA, b"home"))
        assert await on.channel.read() == b"home"


@pytest.mark.parametrize("when", ["while it links", "once it has linked"])
async def test_a_channel_that_is_linked_meanwhile_moves_too(when: str) -> None:
    async with stage() as on:
        on.there.answer = None
        await on.here.main.says(on.there.begin())
        await on.there.linked(10, 0)
        if when == "once it has linked":
            await on.there.main.says((117, b""))
            await on.here.main.hears(CONNECTED_SEAMLESS)
        other = await on.session.open_channel(PORT1)
        if when == "while it links":
            await on.there.main.says((117, b""))
        await on.here.main.hears(CONNECTED_SEAMLESS)
        await on.there.linked(10, 1)
        await hand_over_all(on.here, on.there, (10, 1))
        await on.there.links[10, 1].says((Msg.DATA, b"after"))
        assert await other.read() == b"after"
        other.abort()


async def test_migrate_of_one_channel_has_it_looked_for_on_all() -> None:
    """Nobody reads port 0 here; the other server waits for its state all the same."""
    async with stage() as on:
        await on.here.main.says(on.there.begin())
        await on.here.main.hears(CONNECTED_SEAMLESS)
        await hand_over(on.here.main, on.there.main, b"main")
        await on.here.port.says((Msg.DATA, b"before"))
        await hand_over(on.here.port, on.there.port, b"port")
        await until(lambda: on.here.main.ended)
        assert await on.channel.read() == b"before"


async def test_a_channel_that_is_lost_on_the_way_leaves_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with stage() as on:
        await on.here.main.says(on.there.begin())
        await on.here.main.hears(CONNECTED_SEAMLESS)
        await hand_over(on.here.main, on.there.main, b"main")
        on.here.port.dies()
        with pytest.raises(ChannelClosedError):
            await on.channel.read()
        await until(lambda: on.there.port.ended)
        await until(lambda: str(on.session.target) == str(on.there.address))
        assert not on.session.lost.is_set()
    assert "port:0 was lost in a live migration" in caplog.text


async def test_a_main_channel_that_is_lost_on_the_way_has_the_session_begin_anew_there() -> None:
    async with stage() as on:
        await on.here.main.says(on.there.begin())
        await on.here.main.hears(CONNECTED_SEAMLESS)
        await on.here.port.says(MIGRATE)
        while not any(isinstance(item, Migrate) for item in await on.channel.receive() or ()):
            pass
        await settled()
        on.here.main.dies()
        await on.session.lost.wait()
        assert isinstance(on.session.failure, SessionLostError)
        assert on.session.successor is not None
        assert str(on.session.successor.dialer.target) == str(on.there.address)
        assert on.session.successor.main is None


# Anew


def no_seamless(on: Stage, patch: pytest.MonkeyPatch) -> None:
    """BEGIN, without _SEAMLESS."""
    del on, patch


def refused(on: Stage, patch: pytest.MonkeyPatch) -> None:
    """The other server does not take the state of channels."""
    del patch
    on.there.answer = 118


def unable(on: Stage, patch: pytest.MonkeyPatch) -> None:
    """The other server does not know of seamless migrations."""
    del on
    patch.setattr("spicebridge.protocol.link.channel_caps", channel_caps)


@pytest.mark.parametrize(
    ("prepare", "version"),
    [(no_seamless, None), (refused, 1), (unable, 1)],
    ids=["semi", "NACK", "no cap"],
)
async def test_a_session_begins_anew_on_the_links_that_wait_there(
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[Stage, pytest.MonkeyPatch], None],
    version: int | None,
) -> None:
    async with stage("semi") as on:
        prepare(on, monkeypatch)
        await on.here.main.says(on.there.begin(version))
        await on.here.main.hears(CONNECTED)
        assert (110 in on.there.main.numbers) == (prepare is refused)
        assert CONNECTED_SEAMLESS not in on.here.main.numbers
        await on.here.port.says((Msg.DATA, b"goes on"))
        assert await on.channel.read() == b"goes on"

        port = on.there.port
        await on.here.main.says(END)
        await on.there.main.hears(109)
        await on.session.lost.wait()
        assert "the machine has left" in str(on.session.failure)
        successor = on.session.successor
        assert successor is not None
        await on.there.main.says((Msg.MAIN_INIT, encode_main_init(MainInit(SESSION))))
        await until(lambda: port.ended)  # the guest is to see it go
        on.there.mode = "serves"
        count = on.there.count
        async with (
            open_session(successor.dialer.target, predecessor=on.session) as session,
            await session.open_channel(PORT0) as channel,
        ):
            assert on.there.count == count + 1, "main is linked again"
            assert channel.port == PortInit("org.x", opened=True)
            assert on.there.port.request.connection_id == SESSION
            await on.there.port.says((Msg.DATA, b"anew"))
            assert await channel.read() == b"anew"
        await until(lambda: on.there.main.ended)


async def test_a_machine_that_has_left_though_its_other_server_closed_is_dialled_there() -> None:
    async with stage("semi") as on:
        await on.here.main.says(on.there.begin(None))
        await on.here.main.hears(CONNECTED)
        on.there.main.dies()
        on.there.port.dies()
        await settled()
        await on.here.main.says(END)
        await on.session.lost.wait()
        successor = on.session.successor
        assert successor is not None
        assert str(successor.dialer.target) == str(on.there.address)
        successor.close()


@pytest.mark.parametrize("first", [True, False], ids=["at once", "after BEGIN"])
async def test_a_session_begins_anew_where_it_is_switched_to(first: bool) -> None:
    async with stage("serves") as on:
        if not first:
            await on.here.main.says(on.there.begin(None))
            await on.here.main.hears(CONNECTED)
        await on.here.main.says(on.there.switch())
        await on.session.lost.wait()
        successor = on.session.successor
        assert successor is not None
        assert successor.main is None
        count = on.there.count
        async with (
            open_session(successor.dialer.target, predecessor=on.session) as session,
            await session.open_channel(PORT0),
        ):
            assert on.there.main.request.connection_id == 0
            assert on.there.count == count + 2


async def test_a_session_that_cannot_go_where_it_is_switched_to_is_lost() -> None:
    async with stage() as on:
        nowhere = MigrationTarget("127.0.0.1", None, None, "")
        await on.here.main.says((111, encode_target(nowhere)))
        await on.session.lost.wait()
        assert isinstance(on.session.failure, UsageError)
        assert on.session.successor is None


# It stays


@pytest.mark.parametrize("version", [1, None], ids=["seamless", "semi"])
async def test_a_machine_that_stays(version: int | None) -> None:
    async with stage("semi" if version is None else "seamless") as on:
        await on.here.main.says(on.there.begin(version))
        await on.here.main.hears(CONNECTED if version is None else CONNECTED_SEAMLESS)
        main, port = on.there.main, on.there.port
        await on.here.main.says(CANCEL)
        await until(lambda: main.ended and port.ended)
        await on.channel.send(b"x" * 100)
        await on.here.port.hears(Msg.COMPRESSED_DATA, stored_head(100) + b"x" * 100)
        await on.here.port.says((Msg.DATA, b"still here"))
        assert await on.channel.read() == b"still here"
        assert not on.session.lost.is_set()
        # and moves another time
        await on.here.main.says(on.there.begin(version))
        await until(lambda: on.there.count == 4)


async def test_a_machine_that_stays_while_we_still_link() -> None:
    async with stage("silent") as on:
        await on.here.main.says(on.there.begin())
        await settled()
        await on.here.main.says(CANCEL)
        await on.here.port.says((Msg.DATA, b"still here"))
        assert await on.channel.read() == b"still here"
        on.there.mode = "seamless"
        await on.here.main.says(on.there.begin())
        await on.here.main.hears(CONNECTED_SEAMLESS)
        assert CONNECT_ERROR not in on.here.main.numbers


async def test_a_cancel_and_another_begin_at_once() -> None:
    """So libspice-server says that it has been told of another target."""
    async with stage() as on, fake_server("seamless") as third:
        await on.here.main.says(on.there.begin())
        await on.here.main.hears(CONNECTED_SEAMLESS)
        await on.here.main.says(CANCEL, third.begin())
        await third.linked(10, 0)
        await until(lambda: on.there.main.ended and on.there.port.ended)
        await until(lambda: on.here.main.numbers.count(CONNECTED_SEAMLESS) == 2)
        await hand_over_all(on.here, third)
        await third.port.says((Msg.DATA, b"third"))
        assert await on.channel.read() == b"third"


async def test_of_two_targets_the_last_word_counts() -> None:
    async with stage() as on, fake_server("seamless") as third:
        await on.here.main.says(on.there.begin(), third.begin())
        await third.linked(10, 0)
        await on.here.main.hears(CONNECTED_SEAMLESS)
        await until(lambda: all(each.ended for each in on.there.links.values()))
        await hand_over_all(on.here, third)


# We cannot follow


def closed_port() -> MigrationTarget:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return MigrationTarget("127.0.0.1", sock.getsockname()[1], None, "")


@pytest.mark.parametrize("why", ["nobody", "closes", "silent", "no port"])
async def test_a_target_that_cannot_be_linked_is_told_to_the_server(
    why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migration_module, "ANSWER_TIMEOUT", 0.2)
    async with stage({"closes": "refuses", "silent": "silent"}.get(why, "seamless")) as on:
        target = on.there.as_target()
        if why == "nobody":
            target = closed_port()
        elif why == "no port":
            target = MigrationTarget("127.0.0.1", None, None, "")
        await on.here.main.says((101, encode_target(target)))
        await on.here.main.hears(CONNECT_ERROR)
        await on.here.port.says((Msg.DATA, b"still here"))
        assert await on.channel.read() == b"still here"
        for _ in range(30):
            await on.channel.send(b"x")
        assert not on.session.lost.is_set()
        assert CONNECTED not in on.here.main.numbers
    (told,) = [each for each in caplog.records if "cannot follow at once" in each.getMessage()]
    assert told.levelno == logging.WARNING
    assert "\n" not in told.getMessage()


async def test_a_target_whose_channel_is_refused_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_module, "ANSWER_TIMEOUT", 0.2)
    async with stage() as on:
        on.there.answer = None
        await on.here.main.says(on.there.begin())
        await on.here.main.hears(CONNECT_ERROR)
        await until(lambda: on.there.main.ended and on.there.port.ended)


async def test_a_session_that_ends_while_we_cannot_follow_is_lost_and_no_more() -> None:
    """The block that has opened it goes on."""
    async with stage() as on:
        main = on.here.main
        await main.says((Msg.PING, bytes(12)), (101, encode_target(closed_port())))
        main.dies()
        await on.session.lost.wait()
        await anyio.sleep(0.1)
        assert isinstance(on.session.failure, SessionLostError)
        assert on.session.successor is None


async def test_leaving_the_block_amid_a_migration_leaves_nothing_open() -> None:
    async with fake_server("seamless") as other, fake_server() as here:
        async with open_session(Target(here.address)):
            await here.main.says(other.begin())
            await here.main.hears(CONNECTED_SEAMLESS)
            assert other.open == 1
        await until(lambda: not other.open)


async def test_leaving_the_block_while_linking_leaves_nothing_open() -> None:
    async with fake_server("silent") as other, fake_server() as here:
        async with open_session(Target(here.address)):
            await here.main.says(other.begin())
            await settled()
        await until(lambda: not other.open)
