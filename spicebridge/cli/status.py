"""What a running spicebridge tells ``spicebridge list``, which is another process.

QEMU serves one client: a session of its own would throw out the very bridge that `list` is to show.
So every spicebridge listens on a Unix socket that is named by its pid, in a folder of its user
alone. Who connects and sends a line gets one JSON document with its state, and end of file; where
that line says ``channels``, a bridge adds what the server offers, asked through its own session.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import TaskStatus

from spicebridge import (
    Application,
    BridgeStatus,
    ChannelInfo,
    EndpointError,
    ListeningEndpoint,
    PortInfo,
    Session,
    SpicebridgeError,
    Target,
    UnixAddress,
)

log = logging.getLogger("spicebridge")

VARIABLE: Final = "XDG_RUNTIME_DIR"

VERSION: Final = 2
"""Of the document; raised when what is there changes its meaning."""

CHANNELS: Final = b"channels"
_AT_ONCE: Final = 8  # who ask one process; the others wait
_LONGEST_LINE: Final = 64

PATIENCE: Final = 5.0
"""Seconds that a process has to tell its state, and who asked for it to take it."""

ASKING: Final = 30.0
"""Seconds that asking a server through a bridge may take: a port held by another client takes 2."""

_SILENCE: Final = 1.0
"""Seconds after which who has connected and says nothing is told the state."""

Offered = dict[ChannelInfo, PortInfo | None]
"""The channels of a server, in its order; a port with what it tells."""


async def ask_session(session: Session, bridges: Sequence[BridgeStatus] = ()) -> Offered:
    """What a server offers.

    Args:
        session: with it.
        bridges: what has channels of this session; those are not disturbed, but told as they were
            last seen.
    """
    others = set(session.channels) - {bridge.channel for bridge in bridges}
    ports = {info.channel: info async for info in session.ports(anew=others)}
    return {channel: ports.get(channel) for channel in session.channels}


class StatusPage:
    """What this process tells of itself to its own user."""

    def __init__(self) -> None:
        self._role = "starting"
        self._server: Target | None = None
        self._bridges: Sequence[BridgeStatus] = ()
        self._session: Session | None = None
        self._asking = anyio.Lock()

    def show(
        self, server: Target, bridges: Sequence[BridgeStatus], session: Session | None
    ) -> None:
        """Has more to tell from now on; see `Ready`."""
        if session is not None:
            self._role = "bridge"
        elif all(bridge.channel is not None for bridge in bridges):  # else the server is away
            self._role = "serve"
        self._server, self._bridges, self._session = server, bridges, session

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Answers until cancelled. Where there is no place for a socket, nobody can ask."""
        try:
            path = _make_folder() / str(os.getpid())
            endpoint = ListeningEndpoint("status", UnixAddress(str(path)))
            await endpoint.open()
        except (OSError, EndpointError) as error:
            log.debug("spicebridge list cannot ask this process: %s", error)
            task_status.started()
            return
        try:
            async with anyio.create_task_group() as tasks:
                task_status.started()
                slots = anyio.Semaphore(_AT_ONCE)
                while True:
                    await slots.acquire()
                    tasks.start_soon(self._answer, await endpoint.accept(), slots)
        finally:
            endpoint.close()

    async def _answer(self, asker: Application, slots: anyio.Semaphore) -> None:
        try:
            more = await self._channels() if await _line(asker) == CHANNELS else {}
            from spicebridge.cli.json_text import json_text  # nobody waits for it at the start

            data = json_text(self._document() | more).encode() + b"\n"
            with anyio.move_on_after(PATIENCE):
                await asker.stream.write_all([memoryview(data)])
        except OSError as error:  # it has gone
            log.debug("%s: %s", asker.name, error)
        finally:
            asker.stream.close()
            slots.release()

    def _document(self) -> dict[str, Any]:
        server = self._session.target if self._session is not None else self._server
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "role": self._role,
            "servers": [] if server is None else sorted(server.identities),
            "bridges": [
                {
                    "name": bridge.name,
                    "end": bridge.end,
                    "channel": bridge.channel and asdict(bridge.channel),
                    "state": bridge.state,
                    **asdict(bridge.traffic),
                    "streams": bridge.streams and asdict(bridge.streams),
                }
                for bridge in self._bridges
            ],
        }

    async def _channels(self) -> dict[str, Any]:
        """What the server offers; nothing where it is us, or there is no session any more."""
        if self._session is None or self._session.lost.is_set():
            return {}
        try:
            with anyio.fail_after(ASKING):
                async with self._asking:
                    offered = await ask_session(self._session, self._bridges)
        except (SpicebridgeError, TimeoutError) as error:
            return {"error": str(error) or f"the server did not answer within {ASKING:g} seconds"}
        return {
            "channels": [
                {**asdict(channel), "info": info and asdict(info)}
                for channel, info in offered.items()
            ]
        }


async def _line(asker: Application) -> bytes:
    """What it asks for; nothing if it goes on for too long, or says nothing."""
    buffer = memoryview(bytearray(_LONGEST_LINE))
    size = 0
    with anyio.move_on_after(_SILENCE):
        while size < len(buffer) and (count := await asker.stream.read_into(buffer[size:])):
            size += count
            line, end, _ = bytes(buffer[:size]).partition(b"\n")
            if end:
                return line
    return b""


# Where


def folders() -> Iterator[Path]:
    """Where sockets may be; the best place first."""
    runtime = os.environ.get(VARIABLE, "")
    if os.path.isabs(runtime):  # others are to be ignored, says the XDG Base Directory spec
        yield Path(runtime, "spicebridge")
    yield Path(f"/tmp/spicebridge-{os.geteuid()}")  # noqa: S108 - see is_private


def _make_folder() -> Path:
    """The first folder that we can have for us alone.

    Raises:
        OSError: there is none.
    """
    for folder in folders():
        try:
            folder.mkdir(0o700)
        except OSError:  # it is there already, or there will be no private one
            pass
        if is_private(folder):
            return folder
    raise OSError(errno.EACCES, "no private folder for its socket")


def is_private(folder: Path) -> bool:
    """Whether this is a folder, no link to one, and nobody else can put sockets there."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return ours and not stat.S_IMODE(status.st_mode) & 0o077
