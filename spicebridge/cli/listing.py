"""``spicebridge list``: what a server offers, and what running bridges have of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from spicebridge import (
    ChannelInfo,
    PortInfo,
    Target,
    channel_type_name,
    open_session,
    printable,
)
from spicebridge.cli.answer import print_answer, write_answer
from spicebridge.cli.asking import Bridged, Running, running_at
from spicebridge.cli.json_text import json_text
from spicebridge.cli.status import Offered, ask_session

log = logging.getLogger("spicebridge")


@dataclass(frozen=True)
class Row:
    """One channel.

    Attributes:
        type: its name, or its number where it has none.
        type_number: channel type.
        id: instance within the type.
        port: the port's name, where it has one and could be asked.
        open: whether the guest has the port open, as far as is known.
        busy: whether another client holds it, so that it could not be asked.
        bridge: which running spicebridge of this user has it, if one has.
    """

    type: str
    type_number: int
    id: int
    port: str | None = None
    open: bool | None = None
    busy: bool = False
    bridge: Bridged | None = None


async def list_channels(target: Target, *, as_json: bool, timeout: float | None = None) -> None:
    """Prints the channels of a server on stdout.

    QEMU serves one client. So where a spicebridge of this user has a session with the server, that
    one is asked; otherwise we open one.
    """
    running = await running_at(target)
    offered = await _ask_bridges(running)
    if offered is None:
        async with open_session(target, timeout=timeout) as session:
            offered = await ask_session(session)
    # of a server and a client on this machine the client, which comes last, has the local end
    bridged = {channel: end for each in running for channel, end in each.bridges.items()}
    rows = [_row(channel, info, bridged.get(channel)) for channel, info in offered.items()]
    if as_json:
        write_answer(json_text([asdict(row) for row in rows], indent=2) + "\n")
    else:
        print_answer(_table(rows))


async def _ask_bridges(running: Sequence[Running]) -> Offered | None:
    for each in running:
        if each.session and (offered := await each.offered()) is not None:
            log.info("asked pid %d, which bridges this server, instead of the server", each.pid)
            return offered
    return None


def _row(channel: ChannelInfo, info: PortInfo | None, bridge: Bridged | None) -> Row:
    name = channel_type_name(channel.type)
    if info is None:
        return Row(name, channel.type, channel.id, bridge=bridge)
    if info.port is None:
        return Row(name, channel.type, channel.id, busy=True, bridge=bridge)
    port = info.port
    return Row(name, channel.type, channel.id, port.name or None, port.opened, bridge=bridge)


def _table(rows: list[Row]) -> Table:
    bridged = any(row.bridge for row in rows)
    streams = any(row.bridge and row.bridge.streams for row in rows)
    titles = ["TYPE", "ID", "PORT", "OPEN"]
    titles += ["STREAMS"] if streams else []
    titles += ["BYTES"] if bridged else []
    table = Table(box=None, pad_edge=False)
    for title in titles:
        number = title in {"ID", "BYTES"}
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        state = "in use" if row.busy else {None: "", True: "yes", False: "no"}[row.open]
        cells: list[str | Text] = [row.type, str(row.id), Text(printable(row.port or "")), state]
        cells += [_streams(row.bridge)] if streams else []
        cells += [_bytes(row.bridge)] if bridged else []
        table.add_row(*cells)
    return table


def _streams(bridge: Bridged | None) -> str:
    count = bridge and bridge.streams
    return f"{count.open} open, {count.total} in all" if count else ""


def _bytes(bridge: Bridged | None) -> str:
    return decimal(bridge.up + bridge.down) if bridge else ""
