"""A channel that goes on at another server: nothing lost, nothing said out of turn."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Final

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from hypothesis import given, settings
from hypothesis import strategies as st

from spicebridge.channel import Channel, ChannelClosedError
from spicebridge.channel.move import Move
from spicebridge.protocol.constants import (
    MAX_MIGRATE_DATA,
    RECEIVE_BUFFER,
    SEND_DATA,
    MigrateFlags,
    Msg,
    MsgC,
    PortEventType,
    SpicevmcCap,
)
from spicebridge.protocol.events import Event, Migrate, PortEvent, PortInit
from spicebridge.protocol.framing import Framing
from spicebridge.protocol.messages import encode_port_init, stored_head
from spicebridge.transport.stream import Stream
from spicebridge.transport.wire import Wire
from tests.channel.hasty import make_hasty
from tests.conftest import PATIENCE
from tests.protocol.wire import Item, append, message, messages
from tests.transport.pairs import connected, settled, until
from tests.transport.peer import PING, SMALL, Peer, linked

MIGRATE: Final = message(Msg.MIGRATE, struct.pack("<I", 3))
FLUSH_MARK: Final = (int(MsgC.MIGRATE_FLUSH_MARK), b"")
OPENED: Final = PortEvent(PortEventType.OPENED)
INIT_CLOSED: Final = message(Msg.PORT_INIT, encode_port_init(PortInit("", opened=False)))
GREETING: Final = INIT_CLOSED + PING + PING
"""What libspice-server says of itself at the start of a port to which a machine moves."""

PONG: Final = (int(MsgC.PONG), bytes(12))
MOVED: Final = Migrate(MigrateFlags(3))

Message = tuple[int, bytes]


def state_of(size: int) -> bytes:
    """The state of a channel, some bytes."""
    return (b"SVMD" + bytes(range(251)) * (size // 251 + 1))[:size]


def state(payload: bytes) -> bytes:
    """MIGRATE_DATA of the server that a machine leaves."""
    return message(Msg.MIGRATE_DATA, payload)


class Server:
    """One of the two servers; hears all that it is told, as messages.

    Attributes:
        wire: the bytes that it has heard.
        ended: whether the client has ended its side.
        paused: whether it takes nothing for now.
    """

    def __init__(self, peer: Peer, *, mini: bool = True) -> None:
        self.peer = peer
        self.wire = bytearray()
        self.ended = False
        self.paused = False
        self._framing = Framing(mini_header=mini)

    async def listen(self) -> None:
        """Reads until the client ends its side, or cancelled."""
        while not self.ended:
            if self.paused:
                await anyio.sleep(0.001)
                continue
            try:
                piece = self.peer.sock.recv(1 << 16)
            except BlockingIOError:
                await anyio.wait_readable(self.peer.sock)
                continue
            except (ConnectionError, OSError):
                return
            self.wire += piece
            self.ended = not piece
            await anyio.lowlevel.checkpoint()

    @property
    def messages(self) -> list[Message]:
        """The whole messages that it has heard."""
        found, position, view = [], 0, memoryview(self.wire)
        while len(view) - position >= self._framing.size:
            number, size = self._framing.unpack_from(view, position, position)
            begin = position + self._framing.size
            if begin + size > len(view):
                break
            found.append((number, bytes(view[begin : begin + size])))
            position = begin + size
        return found

    @property
    def data(self) -> bytes:
        """The payload of all DATA that it has heard."""
        return b"".join(payload for number, payload in self.messages if number == Msg.DATA)

    async def hears(self, *wanted: Message) -> None:
        """Waits for messages, and compares them with all that it has heard."""
        await until(lambda: len(self.messages) >= len(wanted))
        assert self.messages == list(wanted)

    def says(self, data: bytes) -> None:
        """Sends bytes for which the kernel has room."""
        self.peer.says(data)

    async def pours(self, data: bytes) -> None:
        """Sends any number of bytes."""
        await self.peer.pours(data)

    def dies(self) -> None:
        """Closes."""
        self.peer.sock.close()


@dataclass
class Stage:
    """A channel, its link at the other server, and both servers.

    Attributes:
        told: whether MIGRATE was heard.
        done: set once the move has ended, `left` or `failure` tells how.
        left: the wire to the server that it has left.
        failure: why it could not.
        got: what `read` has received.
        refused: whether something could not be sent.
        ended: how that ended: None as long as it has not, an error or "end of file".
    """

    channel: Channel
    there: Channel
    old: Server
    new: Server
    tasks: TaskGroup
    told: bool = False
    done: anyio.Event = field(default_factory=anyio.Event)
    left: Wire | None = None
    failure: ChannelClosedError | None = None
    got: list[Item] = field(default_factory=list)
    refused: bool = False
    ended: object = None

    def begin(self) -> None:
        """Moves the channel, in a task."""
        self.channel.expect_move()
        self.tasks.start_soon(self._move)

    async def _move(self) -> None:
        def told() -> None:
            self.told = True

        try:
            self.left = await self.channel.move(self.there, told)
        except ChannelClosedError as error:
            self.failure = error
        self.done.set()

    def _take(self, items: Sequence[memoryview | Event]) -> bool:
        for item in items:
            append(self.got, bytes(item) if isinstance(item, memoryview) else item)
        return True

    async def read(self, how: str = "receive") -> None:
        """Receives all there is, by `receive` or by `receive_each`."""
        try:
            if how == "receive":
                while (items := await self.channel.receive()) is not None:
                    self._take(items)
            else:
                await self.channel.receive_each(self._take)
            self.ended = "end of file"
        except ChannelClosedError as error:
            self.ended = error

    def reads(self, how: str) -> None:
        """`read` in a task; "late" and "never" do not begin it."""
        if how in {"receive", "each"}:
            self.tasks.start_soon(self.read, how)
        elif how in {"late", "never"}:
            self.channel.hurry_move()

    @property
    def data(self) -> bytes:
        """The bytes that were received."""
        return b"".join(item for item in self.got if isinstance(item, bytes))

    async def finish(self, payload: bytes = b"state") -> None:
        """Plays the rest of a move whose MIGRATE has been said."""
        await until(lambda: FLUSH_MARK in self.old.messages)
        await self.old.pours(state(payload))
        await self.done.wait()
        assert self.failure is None
        await until(lambda: self.new.messages)
        assert self.new.messages[0] == (MsgC.MIGRATE_DATA, payload)


@asynccontextmanager
async def stage(
    kind: str = "unix",
    there: str = "unix",
    *,
    buffer: int = 0,
    mini: tuple[bool, bool] = (True, True),
    listening: bool = True,
    begin: bool = True,
) -> AsyncIterator[Stage]:
    """A channel that is about to move.

    Args:
        kind: of the socket to the server that it leaves: ``unix`` or ``tcp``.
        there: of that to the other one.
        buffer: of the sockets to the first, see `linked`.
        mini: the headers that both agree on.
        listening: whether the first one reads what it is told, from the start.
        begin: whether the move begins.
    """
    with (
        linked(kind=kind, buffer=buffer, mini=mini[0]) as (channel, here_peer),
        linked(kind=there, mini=mini[1]) as (other, there_peer),
    ):
        channel.port = PortInit("", opened=True)
        for peer in (here_peer, there_peer):
            peer.sock.setblocking(False)
        async with anyio.create_task_group() as tasks:
            on = Stage(
                channel,
                other,
                Server(here_peer, mini=mini[0]),
                Server(there_peer, mini=mini[1]),
                tasks,
            )
            if begin:
                on.begin()
            tasks.start_soon(on.new.listen)
            if listening:
                tasks.start_soon(on.old.listen)
            await settled()
            yield on
            tasks.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    make_hasty(monkeypatch)
    monkeypatch.setattr("spicebridge.channel.moving._LOOK_EVERY", 0.001)


READERS = pytest.mark.parametrize("how", ["receive", "each", "late"])


# From beginning to end


@READERS
@pytest.mark.parametrize("size", [0, 33, 5_000_000])
async def test_a_channel_goes_on_at_the_other_server(how: str, size: int) -> None:
    payload = state_of(size)
    async with stage() as on:
        on.new.says(GREETING)
        on.reads(how)
        await settled()
        on.old.says(message(Msg.DATA, b"before") + MIGRATE)
        await on.old.hears(FLUSH_MARK)
        assert on.told
        await settled()
        assert not on.new.wire, "it has spoken before the state"
        await on.old.pours(state(payload))
        await on.done.wait()
        assert on.failure is None
        await until(lambda: on.new.messages)
        on.new.says(message(Msg.PORT_EVENT, b"\0") + message(Msg.DATA, b"after"))
        if how == "late":
            on.reads("each")
        await until(lambda: on.data == b"beforeafter")
        assert on.got == [b"before", MOVED, OPENED, b"after"]
        await on.new.hears((MsgC.MIGRATE_DATA, payload), PONG, PONG)
        await on.channel.send(b"up")
        await on.new.hears((MsgC.MIGRATE_DATA, payload), PONG, PONG, (Msg.DATA, b"up"))
        assert on.old.messages == [FLUSH_MARK]
        assert on.channel.usable
        assert on.left is not None
        on.new.dies()
        await until(lambda: on.ended)
        assert on.ended == "end of file"


@pytest.mark.parametrize("mini", [(True, False), (False, True), (False, False)])
async def test_the_other_server_may_have_agreed_on_another_header(mini: tuple[bool, bool]) -> None:
    def say(where: int, *each: Message) -> bytes:
        return messages(mini[where], *each)

    async with stage(mini=mini) as on:
        on.reads("each")
        on.old.says(say(0, (Msg.DATA, b"before"), (Msg.MIGRATE, struct.pack("<I", 3))))
        await on.old.hears(FLUSH_MARK)
        on.old.says(say(0, (Msg.MIGRATE_DATA, b"state")))
        await on.done.wait()
        on.new.says(say(1, (Msg.DATA, b"after")))
        await on.channel.send(b"up")
        await on.new.hears((MsgC.MIGRATE_DATA, b"state"), (Msg.DATA, b"up"))
        await until(lambda: on.data == b"beforeafter")


async def test_the_other_server_may_know_no_lz4() -> None:
    async with stage() as on:
        knows = frozenset({SpicevmcCap.DATA_COMPRESS_LZ4})
        on.channel.linked = replace(on.channel.linked, channel_caps=knows)
        on.reads("each")
        await on.channel.send(b"here")
        stored = (Msg.COMPRESSED_DATA, stored_head(4) + b"here")
        await on.old.hears(stored)
        on.old.says(MIGRATE)
        await on.finish()
        await on.channel.send(b"there")
        await on.new.hears((MsgC.MIGRATE_DATA, b"state"), (Msg.DATA, b"there"))


@pytest.mark.parametrize("flags", [0, 1])
@READERS
async def test_a_channel_without_a_state_goes_on_at_once(how: str, flags: int) -> None:
    async with stage() as on:
        on.reads(how)
        on.old.says(message(Msg.DATA, b"before") + message(Msg.MIGRATE, struct.pack("<I", flags)))
        await on.done.wait()
        assert on.failure is None
        on.new.says(INIT_CLOSED + message(Msg.DATA, b"after"))
        if how == "late":
            on.reads("each")
        await until(lambda: on.data == b"beforeafter")
        await until(lambda: on.old.messages == ([FLUSH_MARK] if flags else []))
        assert not on.new.wire


@READERS
async def test_only_the_first_port_init_of_the_other_server_is_left_out(how: str) -> None:
    """It has not had the state of the port by then, and calls it closed."""
    async with stage() as on:
        on.reads(how)
        on.old.says(MIGRATE)
        await on.finish()
        on.new.says(PING)
        if how == "late":
            on.reads("each")
        await until(lambda: PONG in on.new.messages)
        on.new.says(INIT_CLOSED + PING)
        await until(lambda: on.new.messages.count(PONG) == 2)
        on.new.says(message(Msg.PORT_EVENT, b"\1") + INIT_CLOSED)
        await until(lambda: len(on.got) == 3)
        closed = PortEvent(PortEventType.CLOSED)
        assert on.got == [MOVED, closed, PortInit("", opened=False)]


async def test_what_the_other_server_has_said_of_the_port_is_heard_after_all_of_this_one() -> None:
    """Its PORT_EVENT may come before the MIGRATE of the server that the machine leaves."""
    async with stage() as on:
        on.new.says(GREETING + message(Msg.PORT_EVENT, b"\0"))
        on.reads("each")
        await settled()
        on.old.says(message(Msg.DATA, b"last words") + MIGRATE)
        await on.finish()
        await until(lambda: len(on.got) == 3)
        assert on.got == [b"last words", MOVED, OPENED]


# What goes to which server


async def test_answers_to_the_old_server_go_before_its_flush_mark_and_none_to_the_new_one() -> None:
    async with stage() as on:
        on.reads("each")
        on.old.says(PING + MIGRATE)
        await on.old.hears(PONG, FLUSH_MARK)
        on.old.says(PING + state(b"state"))
        await on.done.wait()
        await on.new.hears((MsgC.MIGRATE_DATA, b"state"))
        assert on.old.messages == [PONG, FLUSH_MARK]


async def test_data_is_held_back_between_the_two_and_goes_behind_the_state() -> None:
    data = bytes(range(256)) * 1000
    async with stage() as on:
        on.reads("each")
        on.old.says(MIGRATE)
        await on.old.hears(FLUSH_MARK)
        on.tasks.start_soon(on.channel.send, data)
        await settled()
        assert on.old.messages == [FLUSH_MARK]
        assert not on.new.wire
        await on.finish(b"state")
        await until(lambda: len(on.new.data) == len(data))
        assert on.new.data == data
        assert on.old.messages == [FLUSH_MARK]


async def test_data_that_has_begun_is_finished_at_the_old_server() -> None:
    data = bytes(range(256)) * (SEND_DATA // 256)
    async with stage(buffer=SMALL, listening=False) as on:
        on.reads("each")
        on.tasks.start_soon(on.channel.send, data + b"more")
        await settled()
        on.old.says(MIGRATE)
        await until(lambda: on.told)
        on.tasks.start_soon(on.old.listen)
        await on.old.hears((Msg.DATA, data), FLUSH_MARK)
        await on.finish(b"state")
        await on.new.hears((MsgC.MIGRATE_DATA, b"state"), (Msg.DATA, b"more"))


async def test_a_flush_that_was_cancelled_meanwhile_goes_on_at_the_new_server() -> None:
    async with stage() as on:
        on.reads("each")
        on.old.says(MIGRATE)
        await on.old.hears(FLUSH_MARK)
        on.channel.payload_buffer()[:4] = b"held"
        assert not on.channel.send_payload_nowait(4)
        with anyio.move_on_after(0.01):
            await on.channel.flush()
        await on.finish(b"state")
        await on.channel.flush()
        await on.new.hears((MsgC.MIGRATE_DATA, b"state"), (Msg.DATA, b"held"))


async def test_a_large_state_waits_for_a_new_server_that_is_slow() -> None:
    payload = state_of(3_000_000)
    async with stage() as on:
        on.reads("each")
        on.tasks.start_soon(on.old.pours, MIGRATE)
        await on.old.hears(FLUSH_MARK)
        on.new.peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        await on.finish(payload)
        assert on.new.wire[:6] == struct.pack("<HI", MsgC.MIGRATE_DATA, len(payload))


async def test_a_state_beyond_all_bounds_is_refused() -> None:
    async with stage() as on:
        on.reads("each")
        on.old.says(MIGRATE)
        await on.old.hears(FLUSH_MARK)
        on.old.says(struct.pack("<HI", Msg.MIGRATE_DATA, MAX_MIGRATE_DATA + 1))
        await on.done.wait()
        assert on.failure is not None
        await until(lambda: on.ended)
        assert not on.new.wire


async def test_data_behind_migrate_is_for_who_reads_and_data_behind_the_state_for_nobody() -> None:
    """libspice-server sends neither."""
    async with stage() as on:
        on.reads("each")
        on.old.says(MIGRATE + message(Msg.DATA, b"late"))
        await on.old.hears(FLUSH_MARK)
        on.old.says(state(b"state") + message(Msg.DATA, b"too late"))
        await on.done.wait()
        await on.channel.send(b"up")
        await on.new.hears((MsgC.MIGRATE_DATA, b"state"), (Msg.DATA, b"up"))
        assert on.data == b"late"


# Who reads


async def test_migrate_is_looked_for_though_nobody_reads_and_what_came_before_is_kept() -> None:
    data = bytes(range(256)) * 8000
    async with stage() as on:
        on.tasks.start_soon(on.old.pours, message(Msg.DATA, data) + MIGRATE)
        await settled()
        assert not on.told, "it reads ahead before anybody has said that the machine is gone"
        on.channel.hurry_move()
        await on.finish()
        on.new.says(message(Msg.DATA, b"after"))
        on.reads("receive")
        await until(lambda: len(on.data) == len(data) + 5)
        assert on.data == data + b"after"


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spicebridge.channel.moving._READ_AHEAD", 100_000)
    data = bytes(range(256)) * 8000
    async with stage() as on:
        on.tasks.start_soon(on.old.pours, message(Msg.DATA, data) + MIGRATE)
        on.channel.hurry_move()
        await anyio.sleep(0.05)
        held = sum(len(item) for item in on.channel._held if isinstance(item, memoryview))
        assert 100_000 < held <= 100_000 + RECEIVE_BUFFER
        assert not on.told
        on.reads("receive")
        await on.finish()
        await until(lambda: len(on.data) == len(data))
        assert on.data == data


@pytest.mark.parametrize("how", ["receive", "each"])
async def test_who_reads_at_last_is_given_what_was_read_ahead_first(how: str) -> None:
    async with stage() as on:
        on.channel.hurry_move()
        on.old.says(message(Msg.DATA, b"ahead"))
        await until(lambda: on.channel._held)
        on.reads(how)
        await until(lambda: on.data == b"ahead")
        on.old.says(message(Msg.DATA, b" and live") + MIGRATE)
        await on.finish()
        await until(lambda: on.data == b"ahead and live")


async def test_the_views_of_who_is_busy_stay_valid_while_all_of_it_happens() -> None:
    async with stage() as on:
        on.old.says(message(Msg.DATA, b"first"))
        items = await on.channel.receive()
        assert items is not None
        on.channel.hurry_move()
        on.old.says(message(Msg.DATA, b"x" * 1000) + MIGRATE)
        await on.finish(b"y" * 1_000_000)
        on.new.says(message(Msg.DATA, b"z" * 1000))
        assert [bytes(item) for item in items if isinstance(item, memoryview)] == [b"first"]


async def test_the_views_that_came_with_migrate_stay_valid_too() -> None:
    async with stage() as on:
        on.old.says(message(Msg.DATA, b"first") + MIGRATE)
        items = await on.channel.receive()
        assert items is not None
        await on.finish(b"y" * 1_000_000)
        assert [bytes(item) for item in items if isinstance(item, memoryview)] == [b"first"]


@pytest.mark.parametrize("first", ["reader", "mover"])
async def test_answers_that_wait_for_the_old_server_do_not_let_the_reader_take_the_state(
    first: str,
) -> None:
    """A reader that has had to wait before it reads finds that it may not."""
    async with stage(buffer=SMALL, listening=False) as on:
        number = 0
        while len(on.channel._conversation.control) <= 64 * 1024:
            on.old.says(PING * 50)
            await on.channel.receive()
            number += 50
        if first == "mover":
            on.channel.hurry_move()
        on.reads("receive")
        await settled()
        on.channel.hurry_move()
        await settled()
        on.old.says(message(Msg.DATA, b"before") + MIGRATE)
        await settled()
        on.tasks.start_soon(on.old.listen)
        await on.finish(b"state")
        on.new.says(message(Msg.DATA, b"after"))
        await until(lambda: on.data == b"beforeafter")
        assert on.old.messages == [PONG] * number + [FLUSH_MARK]


# Splices


@pytest.mark.parametrize(("there", "goes_on"), [("unix", True), ("tcp", False)])
@pytest.mark.parametrize("held", [True, False], ids=["held", "idle"])
async def test_a_splice_to_the_servers_goes_on_if_it_can(
    there: str, goes_on: bool, held: bool
) -> None:
    data = bytes(range(256)) * 200
    async with stage(there=there) as on:
        with connected() as (source, app):
            splice = on.channel.splice_from(source)
            assert splice is not None
            on.reads("each")
            app.send(data)
            count = splice.fill(len(data))
            assert count == len(data)
            assert on.channel.send_payload_nowait(count, splice)
            await until(lambda: on.old.data == data)
            on.old.says(MIGRATE)
            await until(lambda: on.told)
            if held:
                app.send(data)
                assert splice.fill(len(data)) == len(data)
                assert not on.channel.send_payload_nowait(len(data), splice)
            await until(lambda: on.old.messages[1:])
            on.old.says(state(b"state"))
            await on.done.wait()
            assert splice.usable is goes_on
            assert splice.held == (len(data) if held and goes_on else 0)
            await on.channel.flush()
            sent = [(Msg.DATA, data)] if held else []
            await on.new.hears((MsgC.MIGRATE_DATA, b"state"), *sent)
            if goes_on:
                app.send(b"more")
                assert splice.fill(100) == 4
                assert on.channel.send_payload_nowait(4, splice)
                await on.new.hears((MsgC.MIGRATE_DATA, b"state"), *sent, (Msg.DATA, b"more"))
            assert on.old.messages == [(Msg.DATA, data), FLUSH_MARK]
            splice.close()


async def test_spliced_data_that_has_begun_is_finished_at_the_old_server() -> None:
    data = bytes(range(256)) * 400
    async with stage(buffer=SMALL, listening=False) as on:
        with connected() as (source, app):
            splice = on.channel.splice_from(source)
            assert splice is not None
            on.old.peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            app.send(data)
            assert splice.fill(len(data)) == len(data)
            while on.channel.send_payload_nowait(len(data), splice):  # until the kernel is full
                app.send(data)
                assert splice.fill(len(data)) == len(data)
            on.reads("each")
            on.old.says(MIGRATE)
            await until(lambda: on.told)
            on.tasks.start_soon(on.old.listen)
            await until(lambda: FLUSH_MARK in on.old.messages)
            assert set(on.old.messages[:-1]) == {(int(Msg.DATA), data)}
            await on.finish(b"state")
            assert on.new.messages == [(MsgC.MIGRATE_DATA, b"state")]
            splice.close()


@pytest.mark.parametrize("there", ["unix", "tcp"])
@pytest.mark.parametrize("flags", [0, 3])
async def test_a_splice_to_an_application_goes_on(there: str, flags: int) -> None:
    before, after = bytes(range(256)) * 8000, bytes(range(255, -1, -1)) * 8000
    got = bytearray()
    async with stage(there=there) as on:
        with connected() as (sink, app):
            app.setblocking(False)
            assert sink.socket is not None
            sink.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            spliced: list[int] = []
            on.tasks.start_soon(_carry, on.channel, sink, spliced)
            on.tasks.start_soon(_take_all, app, got)
            migrate = message(Msg.MIGRATE, struct.pack("<I", flags))
            await on.old.pours(message(Msg.DATA, before) * 2 + migrate)
            if flags:
                await until(lambda: FLUSH_MARK in on.old.messages)
                on.old.says(state(b"state"))
            await on.done.wait()
            assert on.failure is None
            by_then = len(spliced)
            await on.new.pours(INIT_CLOSED + message(Msg.DATA, after) * 3)
            await until(lambda: len(got) == 5 * len(after))
            assert got == before * 2 + after * 3
            assert len(spliced) > by_then, "it goes through our buffers now"


async def _carry(channel: Channel, sink: Stream, spliced: list[int]) -> None:
    splice = channel.splice_to(sink)
    assert splice is not None
    rest: list[memoryview] = []

    def take(items: Sequence[memoryview | Event]) -> bool:
        nonlocal rest
        rest = [item for item in items if isinstance(item, memoryview)]
        return sink.write_some(rest)

    try:
        while await channel.receive_each(take, splice, spliced.append):
            await splice.drain_all()
            await sink.write_all(rest)
            rest = []
    finally:
        splice.close()


async def _take_all(app: socket.socket, got: bytearray) -> None:
    while True:
        await anyio.wait_readable(app)
        if not (piece := app.recv(1 << 16)):
            return
        got += piece


# When it fails


@READERS
@pytest.mark.parametrize("when", ["before MIGRATE", "before the state", "inside the state"])
async def test_an_old_server_that_dies_first_closes_the_channel_for_who_reads_and_who_writes(
    how: str, when: str
) -> None:
    async with stage() as on:
        on.reads(how)
        on.old.says(message(Msg.DATA, b"last words"))
        if when != "before MIGRATE":
            on.old.says(MIGRATE)
            await on.old.hears(FLUSH_MARK)
            on.tasks.start_soon(_send_in_vain, on)
            await settled()
        if when == "inside the state":
            on.old.says(state(bytes(100))[:50])
        on.old.dies()
        await on.done.wait()
        assert on.left is None
        assert "was lost in a live migration" in str(on.failure)
        if how == "late":
            await on.read("each")
        await until(lambda: on.ended)
        if when != "before MIGRATE":
            assert isinstance(on.ended, ChannelClosedError)
            await until(lambda: on.refused)
        assert on.data == b"last words"
        await on.channel.aclose()


async def _send_in_vain(on: Stage) -> None:
    with pytest.raises(ChannelClosedError):
        await on.channel.send(b"in vain")
    on.refused = True


@READERS
async def test_a_new_server_that_has_died_closes_the_channel(how: str) -> None:
    async with stage() as on:
        on.reads(how)
        on.new.dies()
        on.old.says(message(Msg.DATA, b"last words") + MIGRATE)
        await on.old.hears(FLUSH_MARK)
        on.tasks.start_soon(on.old.pours, state(bytes(1_000_000)))
        await on.done.wait()
        assert "was lost in a live migration" in str(on.failure)
        if how == "late":
            await on.read("receive")
        await until(lambda: on.ended)
        assert isinstance(on.ended, ChannelClosedError)
        assert on.data == b"last words"
        with pytest.raises(ChannelClosedError):
            await on.channel.send(b"x")


@READERS
async def test_a_move_that_is_cancelled_inside_the_state_gives_that_to_nobody(how: str) -> None:
    async with stage(begin=False) as on:
        on.channel.expect_move()
        on.reads(how)
        with anyio.CancelScope() as scope:
            on.tasks.start_soon(_cancel_inside_the_state, on, scope)
            await on.channel.move(on.there, lambda: None)
        assert scope.cancelled_caught
        if how == "late":
            await on.read("receive")
        await until(lambda: on.ended)
        assert isinstance(on.ended, ChannelClosedError)
        assert on.data == b"before"
        with pytest.raises(ChannelClosedError):
            await on.channel.send(b"to whom?")


async def _cancel_inside_the_state(on: Stage, scope: anyio.CancelScope) -> None:
    on.old.says(message(Msg.DATA, b"before") + MIGRATE)
    await on.old.hears(FLUSH_MARK)
    on.old.says(state(bytes(100))[:50])
    await until(lambda: on.new.wire)
    scope.cancel()
    on.old.says(bytes(56))


@pytest.mark.parametrize("when", ["before MIGRATE", "before the state", "inside the state"])
async def test_a_channel_that_we_close_meanwhile_does_not_move(when: str) -> None:
    async with stage() as on:
        on.channel.hurry_move()
        await settled()
        if when != "before MIGRATE":
            on.old.says(MIGRATE)
            await on.old.hears(FLUSH_MARK)
        if when == "inside the state":
            on.old.says(state(bytes(100))[:50])
            await until(lambda: on.new.wire)
        on.channel.abort()
        await on.done.wait()
        assert "we have closed it" in str(on.failure)
        assert on.channel.closed


async def test_a_channel_that_we_close_while_its_state_is_written_does_not_move() -> None:
    payload = state_of(200_000)
    async with stage() as on:
        assert isinstance(on.there._wire, Stream)
        sock = on.there._wire.socket
        assert sock is not None
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        on.channel.hurry_move()
        on.old.says(MIGRATE)
        await on.old.hears(FLUSH_MARK)
        on.new.paused = True
        on.old.says(state(payload))
        await anyio.sleep(0.01)
        on.channel.abort()
        on.new.paused = False
        await on.done.wait()
        assert "we have closed it" in str(on.failure)
        assert on.there._wire.writer >= 0, "whoever has linked it closes it"


async def test_who_does_not_expect_a_move_does_not_move() -> None:
    async with stage(begin=False) as on:
        with pytest.raises(ChannelClosedError, match="does not move"):
            await on.channel.move(on.there, lambda: None)


# A machine that stays


@READERS
async def test_a_machine_that_stays(how: str) -> None:
    async with stage(begin=False) as on:
        on.channel.expect_move()
        on.reads(how)
        with anyio.move_on_after(0.01):
            await on.channel.move(on.there, lambda: None)
        on.channel.forget_move()
        on.old.says(message(Msg.DATA, b"still here"))
        if how == "late":
            on.reads("each")
        await until(lambda: on.data == b"still here")
        for _ in range(100):
            await on.channel.send(b"x")
        await until(lambda: len(on.old.data) == 100)
        assert not on.new.wire


async def test_closing_waits_for_the_move() -> None:
    """The new server would wait for ever for the state of a channel that it has linked."""
    async with stage() as on:
        closed = anyio.Event()

        async def close() -> None:
            await on.channel.aclose()
            closed.set()

        on.tasks.start_soon(close)
        await anyio.sleep(0.02)
        assert not on.old.ended
        on.old.says(MIGRATE)
        await on.finish()
        await until(lambda: on.new.ended)
        on.new.dies()
        await closed.wait()
        assert not on.old.ended, "who has moved it closes that"


async def test_settling_waits_for_the_move() -> None:
    """Who settles is about to end the channel."""
    async with stage() as on:
        on.reads("each")
        settled_down = anyio.Event()

        async def settle() -> None:
            await on.channel.settle()
            settled_down.set()

        on.tasks.start_soon(settle)
        await anyio.sleep(0.02)
        assert not settled_down.is_set()
        on.channel.forget_move()
        await settled_down.wait()


async def test_closing_in_haste_does_not_wait() -> None:
    async with stage() as on:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await on.channel.aclose()
        assert on.channel.closed
        on.channel.hurry_move()
        await on.done.wait()
        assert on.failure is not None


# Slowly


async def test_while_a_machine_migrates_data_goes_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spicebridge.channel.move.BURST", 3.0)
    monkeypatch.setattr("spicebridge.channel.move.RATE", 1e-6)
    async with stage() as on:
        on.tasks.start_soon(on.channel.send, bytes(10 * SEND_DATA))
        await until(lambda: len(on.old.messages) == 3)
        await settled()
        assert len(on.old.messages) == 3
        on.channel.forget_move()
        await until(lambda: len(on.old.messages) == 10)


async def test_answers_are_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spicebridge.channel.move.BURST", 0.0)
    monkeypatch.setattr("spicebridge.channel.move.RATE", 1e-6)
    async with stage() as on:
        on.reads("each")
        on.tasks.start_soon(on.channel.send, b"held back")
        await settled()
        on.old.says(PING)
        await on.old.hears(PONG)


async def test_data_goes_on_at_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spicebridge.channel.move.BURST", 1.0)
    monkeypatch.setattr("spicebridge.channel.move.RATE", 1000.0)
    async with stage() as on:
        await on.channel.send(bytes(10 * SEND_DATA))
        await until(lambda: len(on.old.messages) == 10)


def test_a_burst_and_then_four_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(
        "spicebridge.channel.move.time", SimpleNamespace(monotonic=lambda: clock.now)
    )
    move = anyio.run(_made)

    def burst() -> int:
        count = 0
        while move.lets_begin():
            count += 1
        return count

    assert burst() == 16
    clock.now += 0.2
    assert burst() == 0
    clock.now += 0.05
    assert burst() == 1
    clock.now += 1
    assert burst() == 4
    clock.now += 1000
    assert burst() == 16
    assert move.pause == 0.25
    clock.now += 1000
    move.reading = True
    assert burst() == 0
    assert move.pause == float("inf")


async def _made() -> Move:
    return Move()


# The main channel at the new server


@pytest.mark.parametrize("agreed", [True, False])
async def test_the_new_server_is_asked_and_no_pong_goes_before_the_state(agreed: bool) -> None:
    answer = message(117 if agreed else 118)
    with linked(channel_type=1) as (channel, peer):
        peer.says(PING + answer + message(105, b"what follows") + PING)
        assert await channel.agrees_to_move() is agreed
        await settled()
        peer.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.sock.recv(1)
        assert len(await channel.receive() or ()) == 1  # what follows was not lost
        await channel.flush()
        assert peer.sock.recv(100) == message(*PONG) * 2


async def test_a_new_server_that_closes_instead_of_an_answer() -> None:
    with linked(channel_type=1) as (channel, peer):
        peer.sock.close()
        with pytest.raises(ChannelClosedError):
            await channel.agrees_to_move()


# All of it at random


@dataclass(frozen=True)
class Schedule:
    """What flows while a channel moves.

    Attributes:
        before: sizes of the DATA of the old server.
        after: of those of the new one.
        up: sizes of what is sent, each with the number of turns of the loop before it.
        pause: turns before MIGRATE.
        state: size of the state.
        how: who reads, see `Stage.reads`.
        pieces: bytes that the servers send at once.
        mini: headers of both.
    """

    before: list[int]
    after: list[int]
    up: list[tuple[int, int]]
    pause: int
    state: int
    how: str
    pieces: int
    mini: tuple[bool, bool]


sizes = st.one_of(st.integers(0, 300), st.sampled_from([4096, 65_536, 200_000]))
schedules = st.builds(
    Schedule,
    before=st.lists(sizes, max_size=6),
    after=st.lists(sizes, max_size=6),
    up=st.lists(st.tuples(st.sampled_from([1, 10, 1000, 100_000]), st.integers(0, 40)), max_size=8),
    pause=st.integers(0, 60),
    state=st.sampled_from([0, 1, 33, 300_000]),
    how=st.sampled_from(["receive", "each", "late"]),
    pieces=st.sampled_from([7, 1000, 1 << 16]),
    mini=st.tuples(st.booleans(), st.booleans()),
)


@given(schedule=schedules)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_both_streams_stay_whole_whatever_flows(backend: str, schedule: Schedule) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spicebridge.channel.moving._LOOK_EVERY", 0.001)
        patch.setattr("spicebridge.channel.move.RATE", 1000.0)
        anyio.run(_play, schedule, backend=backend)


def _numbered(start: int, size: int) -> bytes:
    """Bytes that tell where in a stream they are."""
    return bytes((start + at) * 7 % 251 for at in range(size))


async def _play(schedule: Schedule) -> None:
    down = bytearray()
    up = bytearray()

    def said(sizes: list[int], mini: bool) -> bytes:
        stream = b""
        for size in sizes:
            data = _numbered(len(down), size)
            down.extend(data)
            stream += messages(mini, (Msg.DATA, data))
        return stream

    first = said(schedule.before, schedule.mini[0])
    first += messages(schedule.mini[0], (Msg.MIGRATE, struct.pack("<I", 3)))
    init = (Msg.PORT_INIT, encode_port_init(PortInit("", opened=False)))
    second = messages(schedule.mini[1], init) + said(schedule.after, schedule.mini[1])

    async def send(on: Stage) -> None:
        for size, turns in schedule.up:
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            data = _numbered(len(up), size)
            up.extend(data)
            await on.channel.send(data)

    async def pour(server: Server, stream: bytes) -> None:
        step = max(schedule.pieces, len(stream) // 500)
        for at in range(0, len(stream), step):
            await server.pours(stream[at : at + step])
            await anyio.lowlevel.checkpoint()

    with anyio.fail_after(PATIENCE):
        async with stage(mini=schedule.mini) as on:
            on.reads(schedule.how)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send, on)
                tasks.start_soon(pour, on.new, second)
                for _ in range(schedule.pause):
                    await anyio.lowlevel.checkpoint()
                await pour(on.old, first)
                await until(lambda: FLUSH_MARK in on.old.messages)
                payload = state_of(schedule.state)
                await pour(on.old, messages(schedule.mini[0], (Msg.MIGRATE_DATA, payload)))
                await on.done.wait()
                assert on.failure is None
                if schedule.how == "late":
                    on.reads("receive")
            await until(lambda: len(on.data) == len(down))
            await until(lambda: len(on.old.data + on.new.data) == len(up))
            assert on.data == down
            assert on.old.data + on.new.data == up
            assert on.old.messages[-1] == FLUSH_MARK
            await until(lambda: on.new.messages)
            assert on.new.messages[0] == (MsgC.MIGRATE_DATA, payload)
            assert not any(isinstance(item, PortInit) for item in on.got)
