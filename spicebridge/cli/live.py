"""The live line: one row for each bridge at the foot of a terminal, gone when we end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import anyio
from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from spicebridge import BridgeStatus, StreamCount
from spicebridge.cli.lines import StderrLines

_EVERY: Final = 0.5  # seconds between two drawings


class _StderrConsole(Console):
    """Goes quiet when nobody reads it any more."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class LiveLine:
    """Draws the state of bridges on stderr until it is cancelled.

    Args:
        lines: those of the log, which are written above it meanwhile.
    """

    def __init__(self, lines: StderrLines) -> None:
        self._lines = lines
        self._console = _StderrConsole()
        self._moved: dict[str, int] = {}

    async def run(self, bridges: Sequence[BridgeStatus]) -> None:
        """Draws them, twice a second, as long as there is a terminal."""
        if not self._console.is_terminal:  # the environment can tell Rich so
            return
        drawn = Live(console=self._console, transient=True, auto_refresh=False)
        try:
            with drawn as live, self._lines.through(self._write_above):
                while True:
                    live.update(self._table(bridges), refresh=True)
                    await anyio.sleep(_EVERY)
        except OSError:  # the terminal has gone, and SIGHUP may be ignored
            pass

    def _write_above(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

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
