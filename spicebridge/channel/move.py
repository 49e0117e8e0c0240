"""How far a channel is on its way to another server, in a live migration."""

from __future__ import annotations

import time
from typing import Final

import anyio

BURST: Final = 16.0
RATE: Final = 4.0
"""DATA that go at once, and in a second, while a machine migrates; see `Channel.expect_move`."""


class Move:
    """How far a channel is on its way to another server.

    Attributes:
        reading: whether nobody may read but who moves the channel.
        urgent: whether MIGRATE is on its way.
    """

    def __init__(self) -> None:
        self.reading = False
        self.urgent = False
        self._tokens = BURST
        self._counted = time.monotonic()
        self._changed = anyio.Event()

    def note_change(self) -> None:
        """Wakes who waits for `change`."""
        self._changed.set()
        self._changed = anyio.Event()

    async def change(self) -> None:
        """Waits until something of this is not what it was."""
        await self._changed.wait()

    def lets_begin(self) -> bool:
        """Whether one more DATA may go to the server that the channel leaves."""
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._counted) * RATE)
        self._counted = now
        if self.reading or self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    @property
    def pause(self) -> float:
        """Seconds until there may be another token."""
        return float("inf") if self.reading else 1 / RATE
