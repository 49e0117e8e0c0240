"""SPICE servers played by the test, one of which a machine leaves, the other to which it moves."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel

from spicebridge.protocol.constants import Msg, MsgC
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.events import (
    ChannelsList,
    MainInit,
    MigrateBegin,
    MigrationTarget,
    PortInit,
)
from spicebridge.protocol.framing import Framing
from spicebridge.protocol.link import Linked, LinkRequest
from spicebridge.protocol.messages import (
    encode_channels_list,
    encode_main_init,
    encode_port_init,
)
from spicebridge.transport.address import Address, TcpAddress
from spicebridge.transport.listen import listen
from spicebridge.transport.stream import Stream
from tests.conftest import PATIENCE
from tests.protocol.wire import encode_begin, encode_target, message, serve
from tests.server.serving import somewhere
from tests.transport.pairs import read_exactly, until

SESSION = 7
MAIN_KEY = (1, 0)

Message = tuple[int, bytes]


class Link:
    """One channel that a client has linked.

    Attributes:
        request: what the client asked for.
        heard: the messages that it has sent.
        ended: whether it has ended its side.
    """

    def __init__(self, stream: Stream, linked: Linked) -> None:
        self.request: LinkRequest = linked.request
        self.heard: list[Message] = []
        self.ended = False
        self._stream = stream
        self._framing = Framing(mini_header=linked.mini_header)
        self._rest = bytearray()

    async def says(self, *each: Message) -> None:
        """Sends messages, all at once."""
        data = b"".join(message(number, payload) for number, payload in each)
        await self._stream.write_all([memoryview(data)])

    def dies(self) -> None:
        """Closes the connection."""
        self._stream.close()

    async def next(self) -> Message | None:
        """The next message of the client; None at its end."""
        while True:
            if len(self._rest) >= self._framing.size:
                number, size = self._framing.unpack_from(memoryview(self._rest), 0, 0)
                end = self._framing.size + size
                if len(self._rest) >= end:
                    said = number, bytes(self._rest[self._framing.size : end])
                    del self._rest[:end]
                    self.heard.append(said)
                    return said
            buffer = bytearray(1 << 16)
            try:
                count = await self._stream.read_into(memoryview(buffer))
            except ConnectionError:  # it has closed, and left something unread
                count = 0
            if not count:
                self.ended = True
                return None
            self._rest += buffer[:count]

    async def hears(self, number: int, payload: bytes = b"") -> None:
        """Waits for a message."""
        await until(lambda: (number, payload) in self.heard)

    @property
    def numbers(self) -> list[int]:
        """The types of what was heard."""
        return [number for number, _ in self.heard]


class FakeServer:
    """A server that links whatever is asked for, and lets the test say all the rest.

    Attributes:
        address: where it is.
        links: the last link of each channel, by type and id.
        count: links by now.
        open: connections at the moment.
        answer: to DO_SEAMLESS: SEAMLESS_ACK (117), _NACK (118), or None for silence.
        mode: "serves" sessions of its own, "seamless" or "semi" is there for a machine to come,
            "silent" answers no link, "refuses" closes each connection.
    """

    def __init__(self, address: Address, mode: str) -> None:
        self.address = address
        self.links: dict[tuple[int, int], Link] = {}
        self.count = 0
        self.open = 0
        self.answer: int | None = 117
        self.mode = mode

    @property
    def main(self) -> Link:
        """Its main channel."""
        return self.links[MAIN_KEY]

    @property
    def port(self) -> Link:
        """That of port 0."""
        return self.links[10, 0]

    async def linked(self, *key: int) -> Link:
        """Waits until a channel is linked."""
        kind, number = key or MAIN_KEY
        await until(lambda: (kind, number) in self.links)
        return self.links[kind, number]

    def as_target(self) -> MigrationTarget:
        """How another server names it."""
        assert isinstance(self.address, TcpAddress)
        return MigrationTarget(self.address.host, self.address.port, None, "")

    def begin(self, version: int | None = 1) -> Message:
        """MAIN_MIGRATE_BEGIN, or _SEAMLESS, with it as the target."""
        begin = MigrateBegin(self.as_target(), version)
        return (101 if version is None else 116), encode_begin(begin)

    def switch(self) -> Message:
        """MAIN_MIGRATE_SWITCH_HOST to it."""
        return 111, encode_target(self.as_target())

    async def serve(self, stream: Stream) -> None:
        """Serves one connection."""
        self.open += 1
        try:
            if self.mode == "refuses":
                return
            if self.mode == "silent":
                await read_exactly(stream, 1 << 20)
                return
            exchange = Exchange(serve())
            while not exchange.done:
                piece = await read_exactly(stream, exchange.needed)
                if not piece:
                    return
                exchange.receive_data(piece)
                await stream.write_all([memoryview(exchange.data_to_send())])
            await self._talk(Link(stream, exchange.result))
        except (OSError, anyio.ClosedResourceError):
            pass
        finally:
            self.open -= 1
            stream.close()

    async def _talk(self, link: Link) -> None:
        key = link.request.channel_type, link.request.channel_id
        self.links[key] = link
        self.count += 1
        if key == MAIN_KEY:
            if link.request.connection_id == 0:
                await link.says((Msg.MAIN_INIT, encode_main_init(MainInit(SESSION))))
        elif self.mode != "semi":
            init = PortInit("org.x", opened=self.mode == "serves")
            await link.says((Msg.PORT_INIT, encode_port_init(init)))
        while (said := await link.next()) is not None:
            if said[0] == MsgC.MAIN_ATTACH_CHANNELS and key == MAIN_KEY:
                offered = ChannelsList(((10, 0), (10, 1)))
                await link.says((Msg.MAIN_CHANNELS_LIST, encode_channels_list(offered)))
            elif said[0] == 110 and key == MAIN_KEY and self.answer is not None:
                await link.says((self.answer, b""))


@asynccontextmanager
async def fake_server(
    mode: str = "serves", folder: Path | None = None
) -> AsyncIterator[FakeServer]:
    """A server on a TCP port, or on a Unix socket in a folder."""
    where = somewhere("unix", folder) if folder else TcpAddress("127.0.0.1", 0)
    with anyio.fail_after(PATIENCE), await listen(where) as listener:
        server = FakeServer(listener.address, mode)

        async def accept() -> None:
            while True:
                stream, _ = await listener.accept()
                tasks.start_soon(server.serve, stream)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept)
            yield server
            tasks.cancel_scope.cancel()


async def hand_over_all(here: FakeServer, there: FakeServer, *keys: tuple[int, int]) -> None:
    """Plays both servers of a machine that has moved; main, port 0, and more channels."""
    async with anyio.create_task_group() as tasks:
        for key in (MAIN_KEY, (10, 0), *keys):
            state = b"state of %d:%d" % key
            tasks.start_soon(hand_over, here.links[key], there.links[key], state)


async def hand_over(source: Link, target: Link, state: bytes) -> None:
    """The same for one channel."""
    await source.says((Msg.MIGRATE, struct.pack("<I", 3)))
    await source.hears(MsgC.MIGRATE_FLUSH_MARK)
    assert not [number for number in target.numbers if number != 110]  # but DO_SEAMLESS
    await source.says((Msg.MIGRATE_DATA, state))
    await target.hears(MsgC.MIGRATE_DATA, state)
