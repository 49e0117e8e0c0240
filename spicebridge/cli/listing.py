"""``spicebridge list``: what a server offers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from spicebridge import Address, ChannelInfo, PortInfo, channel_type_name, open_session
from spicebridge.cli.answer import print_answer, write_answer


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
    """

    type: str
    type_number: int
    id: int
    port: str | None = None
    open: bool | None = None
    busy: bool = False


async def list_channels(address: Address, password: str, *, as_json: bool) -> None:
    """Prints the channels of a server on stdout."""
    async with open_session(address, password) as session:
        ports = {info.channel: info async for info in session.ports()}
        rows = [_row(channel, ports.get(channel)) for channel in session.channels]
    if as_json:
        write_answer(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    else:
        print_answer(_table(rows))


def _row(channel: ChannelInfo, info: PortInfo | None) -> Row:
    name = channel_type_name(channel.type)
    if info is None:
        return Row(name, channel.type, channel.id)
    if info.port is None:
        return Row(name, channel.type, channel.id, busy=True)
    return Row(name, channel.type, channel.id, info.port.name or None, info.port.opened)


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("TYPE", "ID", "PORT", "OPEN"):
        table.add_column(title, justify="right" if title == "ID" else "left", no_wrap=True)
    for row in rows:
        state = "in use" if row.busy else {None: "", True: "yes", False: "no"}[row.open]
        port = "".join(char if char.isprintable() else "?" for char in row.port or "")
        table.add_row(row.type, str(row.id), Text(port), state)
    return table
