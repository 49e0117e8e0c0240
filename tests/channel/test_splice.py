"""Large DATA that goes around our buffers: every byte, in order, with all else in its place."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from spicebridge.channel import Channel, ChannelClosedError
from spicebridge.protocol.constants import SEND_DATA, Msg, PortEventType
from spicebridge.protocol.events import Event, PortEvent
from spicebridge.transport import splice as splice_module
from spicebridge.transport.splice import SPLICE_MIN
from spicebridge.transport.stream import Stream
from tests.bridge.tools import bridging, offering, read_exactly, spec
from tests.conftest import PATIENCE
from tests.protocol.wire import message, say, say_data
from tests.transport.pairs import connected
from tests.transport.peer import Peer, linked

SIZES = (1, 100, SPLICE_MIN - 1, SPLICE_MIN, SPLICE_MIN + 1, 65_568, SEND_DATA)
LARGE = random.Random(1).randbytes(SEND_DATA)


class Carried:
    """What a channel has brought to a stream.

    Attributes:
        events: the port events, each with the bytes that came before it.
        ended: whether the peer has ended the channel.
    """

    def __init__(self, channel: Channel, sink: Stream) -> None:
        self.events: list[tuple[int, Event]] = []
        self.ended = False
        self._channel = channel
        self._sink = sink
        self._rest: Sequence[memoryview | Event] = ()
        self._count = 0

    def _take(self, items: Sequence[memoryview | Event]) -> bool:
        self._rest = items
        return not items

    def _spliced(self, count: int) -> None:
        self._count += count

    async def run(self) -> None:
        splice = self._channel.splice_to(self._sink)
        assert splice is not None
        try:
            while await self._channel.receive_each(self._take, splice, self._spliced):
                await splice.drain_all()
                for item in self._rest:
                    if isinstance(item, memoryview):
                        self._count += len(item)
                        await self._sink.write_all([item])
                    else:
                        self.events.append((self._count, item))
                self._rest = ()
            self.ended = True
        finally:
            splice.close()
            self._sink.close()


async def taken(app: socket.socket) -> bytes:
    """What an application gets, to the end."""
    data = bytearray()
    app.setblocking(False)
    while True:
        await anyio.wait_readable(app)
        piece = app.recv(100_000)
        if not piece:
            return bytes(data)
        data += piece


async def pour(peer: Peer, wire: bytes, dice: random.Random) -> None:
    """Sends bytes in pieces that have nothing to do with messages, then ends its sending."""
    while wire:
        size = dice.choice(SIZES)
        await peer.pours(wire[:size])
        wire = wire[size:]
        if dice.random() < 0.2:
            await anyio.lowlevel.checkpoint()
    peer.sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("mini", [True, False], ids=["mini", "full"])
@pytest.mark.parametrize("seed", range(3))
async def test_data_of_all_sizes_and_events_come_in_order(kind: str, mini: bool, seed: int) -> None:
    dice = random.Random(seed)
    wire, expected = bytearray(), bytearray()
    events: list[tuple[int, Event]] = []
    with linked(kind=kind, mini=mini) as (channel, peer), connected() as (sink, app):
        for _ in range(60):
            if dice.random() < 0.2:
                wire += say(peer.conversation, Msg.PORT_EVENT, b"\0")
                events.append((len(expected), PortEvent(PortEventType.OPENED)))
            data = dice.randbytes(dice.choice(SIZES))
            wire += say_data(peer.conversation, data)
            expected += data
        carried = Carried(channel, sink)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(carried.run)
            tasks.start_soon(pour, peer, bytes(wire), dice)
            assert await taken(app) == expected
        assert carried.events == events
        assert carried.ended


async def test_an_end_inside_large_data_is_an_error_and_what_came_before_is_given() -> None:
    with linked() as (channel, peer), connected() as (sink, app):
        carried = Carried(channel, sink)

        async def carry() -> None:
            with pytest.raises(ChannelClosedError, match="end of the stream"):
                await carried.run()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(carry)
            tasks.start_soon(pour, peer, message(Msg.DATA, LARGE)[:-1], random.Random(1))
            assert await taken(app) == LARGE[:-1]
        assert not carried.ended


async def test_a_way_that_was_closed_inside_a_message_ends_the_sending_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its rest is lost: the channel is of no more use, and says so."""
    monkeypatch.setattr(splice_module, "_SEND_BUFFER", 4096)
    with linked(buffer=4096) as (channel, _peer), connected() as (source, app):
        splice = channel.splice_from(source)
        assert splice is not None
        app.send(LARGE[:100_000])
        count = splice.fill(100_000)
        assert count
        assert not channel.send_payload_nowait(count, splice)
        splice.close()
        assert not channel.usable
        with pytest.raises(ChannelClosedError):
            await channel.flush()
        with pytest.raises(ChannelClosedError):
            await channel.send(b"more")


async def test_an_application_that_takes_nothing_more_may_still_speak(short_tmp: Path) -> None:
    heard = anyio.Event()

    async def guest(channel: Channel) -> None:
        async with anyio.create_task_group() as tasks:

            async def flood() -> None:
                while True:
                    await channel.send(LARGE)

            tasks.start_soon(flood)
            assert await channel.read() == b"still here"
            heard.set()
            tasks.cancel_scope.cancel()

    path = short_tmp / "s"
    async with (
        offering(short_tmp, guest) as address,
        bridging(address, spec(path)),
        await anyio.connect_unix(path) as app,
    ):
        assert await read_exactly(app, len(LARGE)) == LARGE
        app._raw_socket.shutdown(socket.SHUT_RD)
        await app.send(b"still here")
        with anyio.fail_after(PATIENCE):
            await heard.wait()
