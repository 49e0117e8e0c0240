"""The connections that have not logged in yet: a bounded number, whoever opens them.

A new one is never refused: who holds all places and says nothing would keep everybody out with
hardly a packet. Instead one that is there has to go, the oldest of the origin that has the most. So
who opens many pushes out their own, and a good client, which is done in a moment, is let in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

log = logging.getLogger(__name__)

_TELL_EVERY: Final = 1.0
"""Seconds between two warnings of connections that had to go."""


class Lobby:
    """Where connections wait until they have logged in.

    Args:
        places: how many there are.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken = 0
        self._waiting: dict[str, dict[anyio.CancelScope, None]] = {}  # the oldest of each first
        self._dropped = 0  # not told of yet
        self._told = float("-inf")

    @contextmanager
    def waiting(self, origin: str) -> Iterator[anyio.CancelScope]:
        """A place, for as long as the block takes.

        Args:
            origin: whose connection it is, see `origin_of`.

        Returns:
            A scope around the block, which is cancelled if the place goes to somebody else.
        """
        if self._taken >= self._places:
            self._drop_one()
        with anyio.CancelScope() as scope:
            self._waiting.setdefault(origin, {})[scope] = None
            self._taken += 1
            try:
                yield scope
            finally:
                self._leave(origin, scope)

    def _leave(self, origin: str, scope: anyio.CancelScope) -> None:
        theirs = self._waiting.get(origin, {})
        if scope in theirs:  # otherwise it had to go
            del theirs[scope]
            self._taken -= 1
            if not theirs:
                del self._waiting[origin]

    def _drop_one(self) -> None:
        origin, theirs = max(self._waiting.items(), key=lambda item: len(item[1]))
        oldest = next(iter(theirs))
        self._leave(origin, oldest)
        oldest.cancel()
        self._dropped += 1
        now = time.monotonic()
        if now >= self._told + _TELL_EVERY:
            log.warning(
                "%d connections have not logged in: the oldest of %s had to go (%d in all)",
                self._places,
                origin,
                self._dropped,
            )
            self._told = now
