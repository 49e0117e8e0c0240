"""Bridges and a SPICE endpoint in the process of the test, and what happens there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
from anyio.abc import ByteStream

from spicebridge import (
    Address,
    BridgeSpec,
    BridgeStatus,
    Channel,
    ChannelWanted,
    Endpoint,
    ListeningEndpoint,
    PortInit,
    SpicebridgeError,
    UnixAddress,
    run_bridges,
    serve_bridges,
)
from spicebridge.protocol.constants import Msg
from spicebridge.protocol.messages import encode_port_init
from spicebridge.server.endpoint import Offer, SpiceEndpoint
from spicebridge.transport.listen import listen
from spicebridge.transport.target import Target
from tests.conftest import PATIENCE

USER = 128


class EventLog(logging.Handler):
    """The events that bridges have logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def find(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """The events of one kind that have all of `fields`; `bridge` is among them."""
        found = []
        for record in self.records:
            if getattr(record, "event", None) == event:
                told = {"bridge": getattr(record, "bridge", None), "level": record.levelname}
                told |= {"message": record.getMessage(), **getattr(record, "fields", {})}
                if all(told.get(key) == fields[key] for key in fields):
                    found.append(told)
        return found

    async def wait(self, event: str, *, count: int = 1, **fields: object) -> dict[str, Any]:
        """Waits until an event has been logged `count` times; returns the last of them."""
        await until(
            lambda: len(self.find(event, **fields)) >= count, f"{count} times {event} {fields}"
        )
        return self.find(event, **fields)[count - 1]

    def messages(self, level: int) -> list[str]:
        """What was logged at a level, or above it."""
        return [each.getMessage() for each in self.records if each.levelno >= level]


async def until(true: Callable[[], object], what: str) -> None:
    """Waits for something that no descriptor tells."""
    with anyio.move_on_after(PATIENCE):
        while not true():
            await anyio.sleep(0.005)
        return
    raise AssertionError(f"waited in vain for {what}")


def spec(
    end: Endpoint | Path,
    *,
    kind: int = USER,
    instance: int | None = None,
    port: str | None = None,
    attach: Literal["demand", "always"] = "demand",
    on_close: Literal["eof", "keep"] = "eof",
    name: str = "",
) -> BridgeSpec:
    """What is asked for; a path is a Unix socket that we listen on."""
    if isinstance(end, Path):
        name = name or end.name
        end = ListeningEndpoint(f"unixsocket={end}", UnixAddress(str(end)))
    wanted = ChannelWanted(10, port=port) if port is not None else ChannelWanted(kind, instance)
    return BridgeSpec(name or end.name, wanted, end, attach, on_close)


class Running:
    """Bridges that run in a task.

    Attributes:
        sessions: each time that they were ready, whether there was a session.
        stopping: set it to drain and end them.
        ended: set once they have.
        error: what went wrong, if anything did.
    """

    def __init__(self) -> None:
        self.stopping = anyio.Event()
        self.ended = anyio.Event()
        self.error: SpicebridgeError | None = None
        self.bridges: list[BridgeStatus] = []
        self.sessions: list[bool] = []
        self.cancel_scope = anyio.CancelScope()

    async def wait(self) -> None:
        """Waits until they have ended."""
        with anyio.fail_after(PATIENCE):
            await self.ended.wait()

    async def stop(self) -> None:
        """Drains them and waits until they have ended."""
        self.stopping.set()
        await self.wait()

    async def run(self, action: Callable[..., Awaitable[None]], ready: anyio.Event) -> None:
        """Runs them; `ready` is set once they are up, or have failed."""

        def tell(_target: Target, bridges: object, session: object) -> None:
            assert isinstance(bridges, list)
            self.sessions.append(session is not None)
            self.bridges = bridges
            ready.set()

        with self.cancel_scope:
            try:
                await action(stop=self.stopping, ready=tell)
            except SpicebridgeError as error:
                self.error = error
        ready.set()
        self.ended.set()


@asynccontextmanager
async def _running(action: Callable[..., Awaitable[None]]) -> AsyncIterator[Running]:
    running = Running()
    ready = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run, action, ready)
        with anyio.fail_after(PATIENCE):
            await ready.wait()
        try:
            yield running
        finally:
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def bridging(
    address: Address | Target, *specs: BridgeSpec, **options: Any
) -> AsyncIterator[Running]:
    """Bridges that are up; cancelled at the end, if they are still there.

    Args:
        address: of the server.
        specs: what is asked for.
        options: see `run_bridges`.
    """
    target = address if isinstance(address, Target) else Target(address)

    async def action(**more: Any) -> None:
        await run_bridges(target, specs, **options, **more)

    async with _running(action) as running:
        yield running


@asynccontextmanager
async def served(address: UnixAddress, *specs: BridgeSpec) -> AsyncIterator[Running]:
    """Our SPICE endpoint with local ends as guests; cancelled at the end."""

    async def action(**more: Any) -> None:
        await serve_bridges(address, specs, **more)

    async with _running(action) as running:
        yield running


Guest = Callable[[Channel], Awaitable[None]]
"""Plays the guest of a channel while a client has it linked."""


def opened(guest: Guest) -> Guest:
    """A guest that has its port open from the start, and closes the channel when it is done."""

    async def play(channel: Channel) -> None:
        await channel.send_message(Msg.PORT_INIT, encode_port_init(PortInit("", True)))
        await guest(channel)

    return play


async def echo(channel: Channel) -> None:
    """A guest that gives back what it gets."""
    while data := await channel.read():
        await channel.send(data)


async def silent(channel: Channel) -> None:
    """A guest that takes everything and says nothing."""
    while await channel.read():
        pass


async def deaf(channel: Channel) -> None:
    """A guest that takes nothing and says nothing."""
    del channel
    await anyio.sleep_forever()


@asynccontextmanager
async def offering(folder: Path, *guests: Guest, kind: int = USER) -> AsyncIterator[Address]:
    """Our SPICE endpoint with coroutines as guests of instance 0, 1 …"""
    address = UnixAddress(str(folder / "spice"))
    offers = [Offer(kind, number, opened(guest)) for number, guest in enumerate(guests)]
    with await listen(address) as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(SpiceEndpoint(offers).serve, listener)
            yield address
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def connected(path: Path | str) -> AsyncIterator[ByteStream]:
    """An application at a Unix socket."""
    with anyio.fail_after(PATIENCE):
        async with await anyio.connect_unix(str(path)) as app:
            yield app


async def read_exactly(app: ByteStream, size: int) -> bytes:
    """The next `size` bytes."""
    pieces = []
    with anyio.fail_after(PATIENCE):
        while size:
            try:
                piece = await app.receive(min(size, 65536))
            except anyio.EndOfStream:
                raise AssertionError(f"end of file, {size} bytes early") from None
            pieces.append(piece)
            size -= len(piece)
    return b"".join(pieces)


async def read_all(app: ByteStream) -> bytes:
    """Everything up to the end of file."""
    pieces = []
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                pieces.append(await app.receive(65536))
            except anyio.EndOfStream:
                return b"".join(pieces)


async def send_until_stalled(app: ByteStream, piece: bytes, limit: int) -> int:
    """Sends until nothing is taken for a while; returns how many bytes were, less than `limit`."""
    sock: socket.socket = app.extra(anyio.abc.SocketAttribute.raw_socket)
    taken = 0
    while taken < limit:
        try:
            taken += sock.send(piece)
        except BlockingIOError:
            with anyio.move_on_after(0.4) as scope:
                await anyio.wait_writable(sock)
            if scope.cancelled_caught:
                return taken
        await anyio.lowlevel.checkpoint()
    raise AssertionError(f"{taken} bytes were taken, and nobody reads them")


def open_fds() -> set[int]:
    """The descriptors of this process."""
    fds = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:  # that of the listing itself
            continue
        fds.add(int(name))
    return fds
