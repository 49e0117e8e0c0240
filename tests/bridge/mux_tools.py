"""A demultiplexed channel between a guest that is played by hand, frame by frame, and applications
at real sockets; and a look at what is left behind."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import ByteStream, SocketStream

from spicebridge import (
    Address,
    BridgeSpec,
    BridgeStatus,
    Channel,
    ChannelWanted,
    ConnectingEndpoint,
    Endpoint,
    Limits,
    UnixAddress,
)
from spicebridge.protocol.constants import Msg, PortEventType
from spicebridge.protocol.events import PortEvent
from spicebridge.protocol.messages import encode_port_event
from tests.bridge.tools import (
    Running,
    bridging,
    offering,
    open_fds,
    read_exactly,
    until,
)
from tests.conftest import PATIENCE
from tests.protocol.frames import HEADER, frame
from tests.protocol.wire import pieces

WEBDAV: Final = 11

Frame = tuple[int, bytes]
"""A client id and the data of one frame; none where it ends the stream."""


class MuxGuest:
    """Plays the guest of one demultiplexed channel, for one client after another.

    Attributes:
        links: how many clients have linked the channel by now.
        frames: what the client has sent, since it linked the channel; whole frames.
        sizes: bytes of each DATA that brought them, as far as DATA come apart.
    """

    def __init__(self) -> None:
        self.links = 0
        self.frames: list[Frame] = []
        self._channel: Channel | None = None
        self._rest = b""
        self._leave = anyio.CancelScope()
        self._reading = anyio.Event()
        self._reading.set()
        self._sending = anyio.Lock()

    async def play(self, channel: Channel) -> None:
        """Takes frames until the client goes, or `leave`."""
        self.links += 1
        self.frames = []
        self._rest = b""
        self._channel = channel
        with anyio.CancelScope() as self._leave:
            try:
                while data := await self._read(channel):
                    self._take(data)
            finally:
                self._channel = None

    async def _read(self, channel: Channel) -> bytes:
        await self._reading.wait()
        return await channel.read()

    def _take(self, data: bytes) -> None:
        data = self._rest + data
        offset = 0
        while len(data) - offset >= HEADER:
            size = int.from_bytes(data[offset + 8 : offset + HEADER], "little")
            end = offset + HEADER + size
            if end > len(data):
                break
            client_id = int.from_bytes(data[offset : offset + 8], "little", signed=True)
            self.frames.append((client_id, data[offset + HEADER : end]))
            offset = end
        self._rest = data[offset:]

    @property
    def linked(self) -> bool:
        """Whether a client has the channel linked."""
        return self._channel is not None

    @property
    def channel(self) -> Channel:
        """The channel, while it is linked."""
        assert self._channel is not None
        return self._channel

    @property
    def rest(self) -> bytes:
        """What has come of a frame that is not whole."""
        return self._rest

    async def until_linked(self, count: int = 1) -> None:
        """Waits for a client, the `count`th one."""
        await until(lambda: self.linked and self.links >= count, f"link {count}")

    async def send(self, data: bytes, cuts: Iterable[int] = ()) -> None:
        """Sends bytes, cut into DATA at these places; several tasks may, and none amid another."""
        async with self._sending:  # a channel has one buffer for what is sent
            for piece in pieces(data, cuts):
                await self.channel.send(piece)

    async def tell(self, event: PortEventType) -> None:
        """Opens or closes the port."""
        await self.channel.send_message(Msg.PORT_EVENT, encode_port_event(PortEvent(event)))

    async def tell_closed(self) -> None:
        """Closes the port."""
        await self.tell(PortEventType.CLOSED)

    def pause(self) -> None:
        """Takes nothing more."""
        self._reading = anyio.Event()

    def resume(self) -> None:
        """Takes what the client sends."""
        self._reading.set()

    def leave(self) -> None:
        """Closes the channel."""
        self._leave.cancel()

    def data(self, client_id: int) -> bytes:
        """All that a stream has brought."""
        return b"".join(data for number, data in self.frames if number == client_id)

    def ends(self, client_id: int) -> int:
        """How often a stream has been ended."""
        return self.frames.count((client_id, b""))

    async def until_data(self, client_id: int, size: int) -> bytes:
        """Waits for at least `size` bytes of a stream; returns all that has come."""

        def come() -> bool:
            return sum(len(data) for number, data in self.frames if number == client_id) >= size

        await until(come, f"{size} bytes of {client_id}; it has {len(self.data(client_id))}")
        return self.data(client_id)

    async def until_end(self, client_id: int, count: int = 1) -> bytes:
        """Waits for size 0 of a stream; returns all data that has come."""
        await until(lambda: self.ends(client_id) >= count, f"{count} times size 0 for {client_id}")
        return self.data(client_id)


class Applications:
    """A Unix socket at which each connection is an application that the test plays.

    Attributes:
        count: connections by now.
    """

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._path = path
        self._came: list[SocketStream] = []
        self._stack = AsyncExitStack()
        self._listening = anyio.CancelScope()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Takes connections until `stop`."""
        with anyio.CancelScope() as self._listening:
            async with await anyio.create_unix_listener(self._path) as listener:
                task_status.started()
                while True:
                    app = await listener.accept()
                    self.count += 1
                    await self._stack.enter_async_context(app)
                    self._came.append(app)

    def stop(self) -> None:
        """Listens no more; who has connected stays."""
        self._listening.cancel()
        self._path.unlink()

    async def next(self) -> SocketStream:
        """The next connection that nobody has asked for."""
        await until(lambda: self._came, "an application is connected to")
        return self._came.pop(0)

    async def aclose(self) -> None:
        """Closes all connections."""
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()


@dataclass
class Stage:
    """A guest, a bridge and applications, all in this process.

    Attributes:
        guest: who has the channel.
        apps: who listens at `path`.
        running: the bridges.
        path: of the Unix socket.
        address: of the SPICE server.
    """

    guest: MuxGuest
    apps: Applications
    running: Running
    path: Path
    address: Address
    tasks: anyio.abc.TaskGroup
    server: anyio.CancelScope

    @property
    def status(self) -> BridgeStatus:
        """What the bridge tells."""
        return self.running.bridges[0]

    async def open(self, client_id: int) -> SocketStream:
        """Opens a stream; returns its application."""
        await self.guest.send(frame(client_id, b"!"))
        app = await self.apps.next()
        assert await read_exactly(app, 1) == b"!"
        return app

    async def end(self) -> None:
        """Ends the bridges at once."""
        self.running.cancel_scope.cancel()
        await self.running.wait()

    async def listen(self) -> None:
        """Lets applications listen again."""
        await self.tasks.start(self.apps.run)


def demux(
    end: Endpoint | Path,
    *,
    kind: int = WEBDAV,
    instance: int | None = None,
    name: str = "",
    **limits: Any,
) -> BridgeSpec:
    """What is asked for; a path is a Unix socket at which applications listen."""
    if isinstance(end, Path):
        name = name or end.name
        end = ConnectingEndpoint(f"unixsocket={end}", UnixAddress(str(end)))
    wanted = ChannelWanted(kind, instance)
    return BridgeSpec(name or end.name, wanted, end, demux=Limits(**limits))


@asynccontextmanager
async def stage(
    folder: Path,
    *,
    kind: int = WEBDAV,
    end: Endpoint | None = None,
    application: Callable[[SocketStream], Awaitable[object]] | None = None,
    **limits: Any,
) -> AsyncIterator[Stage]:
    """A guest that is linked, and applications at `folder`/app unless there is another end.

    At the end nothing of it may be left.

    Args:
        folder: where sockets are.
        kind: of the channel.
        end: instead of a Unix socket at which applications listen.
        application: all that come there, in tasks of their own, unless the test plays them.
        limits: of the streams.
    """
    path = folder / "app"
    guest = MuxGuest()
    async with nothing_left(), anyio.create_task_group() as tasks:
        apps = Applications(path)
        server = anyio.CancelScope()
        try:
            if application is not None:
                await tasks.start(serve, path, application)
            elif end is None:
                await tasks.start(apps.run)
            address = await tasks.start(_offer, folder, guest, kind, server)
            wanted = demux(end or path, kind=kind, **limits)
            async with bridging(address, wanted) as running:
                await guest.until_linked()
                yield Stage(guest, apps, running, path, address, tasks, server)
        finally:
            await apps.aclose()
            tasks.cancel_scope.cancel()


async def _offer(
    folder: Path,
    guest: MuxGuest,
    kind: int,
    scope: anyio.CancelScope,
    *,
    task_status: anyio.abc.TaskStatus[Address],
) -> None:
    with scope:
        async with offering(folder, guest.play, kind=kind) as address:
            task_status.started(address)
            await anyio.sleep_forever()


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Descriptors and tasks are afterwards what they were before."""
    fds, tasks = open_fds(), len(anyio.get_running_tasks())
    yield
    await until(lambda: open_fds() <= fds, f"{open_fds() - fds} are closed")
    await until(lambda: len(anyio.get_running_tasks()) == tasks, "every task has ended")


async def serve(
    path: Path,
    application: Callable[[SocketStream], Awaitable[object]],
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    """Serves all who connect to a Unix socket, until cancelled."""

    async def run(app: SocketStream) -> None:
        async with app:
            await application(app)

    async with await anyio.create_unix_listener(path) as listener:
        task_status.started()
        await listener.serve(run)


async def echo(app: ByteStream) -> None:
    """An application that gives back what it gets, and ends when the guest does."""
    async for piece in app:
        await app.send(piece)
    await app.send_eof()


async def flood(app: ByteStream) -> None:
    """An application that sends zeros until its stream is ended."""
    try:
        while True:
            await app.send(bytes(262_144))
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass


async def receive_some(app: ByteStream, size: int = 65536) -> bytes:
    """The next bytes; none at the end of file."""
    with anyio.fail_after(PATIENCE):
        try:
            return await app.receive(size)
        except anyio.EndOfStream:
            return b""


def alive(pids: Iterable[int]) -> Iterator[int]:
    """Those processes that are there, zombies too."""
    return (pid for pid in pids if os.path.exists(f"/proc/{pid}"))
