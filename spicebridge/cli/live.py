"""The live line: one row for each bridge at the foot of a terminal, gone when we end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import anyio
from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table

from spicebridge import BridgeStatus, StreamCount

_EVERY: Final = 0.5  # seconds between two drawings


class LiveLine:
    """Draws the state of bridges until it is cancelled.

    Args:
        console: on stderr; nothing is drawn unless that is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._moved: dict[str, int] = {}

    async def run(self, bridges: Sequence[BridgeStatus]) -> None:
        """Draws them, twice a second."""
        if not self._console.is_terminal:
            return
        with Live(console=self._console, transient=True, auto_refresh=False) as live:
            while True:
                live.update(self._table(bridges), refresh=True)
                await anyio.sleep(_EVERY)

    def _table(self, bridges: Sequence[BridgeStatus]) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column()  # the name: the one to be broken where all of it is too wide
        for _ in range(5):
            table.add_column(no_wrap=True)
        for bridge in bridges:
            moved = bridge.traffic.up + bridge.traffic.down
            rate = (moved - self._moved.get(bridge.name, moved)) / _EVERY
            self._moved[bridge.name] = moved
            table.add_row(
                bridge.name,
                bridge.state,
                f"down {decimal(bridge.traffic.down)}",
                f"up {decimal(bridge.traffic.up)}",
                f"{decimal(int(rate))}/s",
                _streams(bridge.streams),
                style="dim",
            )
        return table


def _streams(count: StreamCount | None) -> str:
    if count is None:
        return ""
    return f"{count.open} {'stream' if count.open == 1 else 'streams'} open, {count.total} in all"
