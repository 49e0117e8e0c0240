"""Asks the running spicebridges of this user what `status` has them tell."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from spicebridge import ChannelInfo, ConnectError, PortInfo, PortInit, StreamCount, Target
from spicebridge.cli.status import (
    ASKING,
    CHANNELS,
    PATIENCE,
    VERSION,
    Offered,
    folders,
    is_private,
)

log = logging.getLogger("spicebridge")


@dataclass(frozen=True)
class Bridged:
    """A bridge of a running spicebridge.

    Attributes:
        pid: of the process.
        end: its local end.
        up: bytes from the application to the channel.
        down: bytes from the channel to the application.
        streams: how many there are and were; None where the bytes are raw.
    """

    pid: int
    end: str
    up: int
    down: int
    streams: StreamCount | None


@dataclass(frozen=True)
class Running:
    """A spicebridge that runs, as it was when it told.

    Attributes:
        path: of its socket.
        pid: of the process.
        session: whether it has a session with the server; otherwise it is the server.
        bridges: by what they have of the server's channels; those alone that have found theirs.
    """

    path: Path
    pid: int
    session: bool
    bridges: dict[ChannelInfo, Bridged]

    async def offered(self) -> Offered | None:
        """Asks what the server offers; None if it has ended, or has lost its session.

        Raises:
            ConnectError: it could not tell.
        """
        document = await _ask(self.path, CHANNELS, ASKING + PATIENCE)
        if document is None:
            return None
        if error := document.get("error"):
            raise ConnectError(f"pid {self.pid}, which bridges this server: {error}")
        if "channels" not in document:
            return None
        return dict(map(_understand_channel, document["channels"]))


async def running_at(server: Target) -> list[Running]:
    """The processes of this user that are a server or bridge its channels, in this order."""
    found: list[Running] = []

    async def look(path: Path) -> None:
        try:
            document = await _ask(path, b"", PATIENCE)
        except ConnectError as error:
            log.warning("%s", error)
            return
        if document is not None and not server.identities.isdisjoint(document["servers"]):
            found.append(_understand(path, document))

    async with anyio.create_task_group() as tasks:
        for path in _sockets():
            tasks.start_soon(look, path)
    return sorted(found, key=lambda each: (each.session, each.pid))


async def _ask(path: Path, line: bytes, patience: float) -> dict[str, Any] | None:
    """The document of a process; None if that has ended, or speaks another version.

    Raises:
        ConnectError: it does not answer.
    """
    try:
        with anyio.fail_after(patience):
            async with await anyio.connect_unix(path) as stream:
                await stream.send(line + b"\n")
                data = b"".join([piece async for piece in stream])
        document = json.loads(data)
    except TimeoutError as error:
        raise ConnectError(
            f"pid {path.name} does not tell what it bridges", "is it stopped?"
        ) from error
    except ConnectionRefusedError:
        _remove_stale(path)
        return None
    except (OSError, anyio.BrokenResourceError, ValueError):  # it ended before it had told all
        return None
    return document if document["version"] == VERSION else None


def _understand(path: Path, document: dict[str, Any]) -> Running:
    pid = document["pid"]
    bridges = {
        ChannelInfo(**each["channel"]): Bridged(
            pid,
            each["end"],
            each["up"],
            each["down"],
            each["streams"] and StreamCount(**each["streams"]),
        )
        for each in document["bridges"]
        if each["channel"] is not None
    }
    return Running(path, pid, document["role"] == "bridge", bridges)


def _understand_channel(each: dict[str, Any]) -> tuple[ChannelInfo, PortInfo | None]:
    channel = ChannelInfo(each["type"], each["id"])
    if each["info"] is None:
        return channel, None
    port = each["info"]["port"]
    return channel, PortInfo(channel, port and PortInit(**port))


def _sockets() -> Iterator[Path]:
    for folder in filter(is_private, folders()):
        for path in folder.iterdir():
            if path.name.isdecimal():
                yield path


def _remove_stale(path: Path) -> None:
    """Removes what a killed process has left; one that is just starting refuses, too."""
    try:
        os.kill(int(path.name), 0)
    except ProcessLookupError:
        path.unlink(missing_ok=True)
    except (OSError, OverflowError):  # it is not ours to remove, or was no pid
        pass
