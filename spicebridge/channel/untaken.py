"""What the guest may not have taken yet of what a client has sent, as far as that can be told.

libspice-server tells nobody what the guest has taken. It only stops reading from a client with
`TOKENS` DATA that it has not; so all that was sent before the last of them, and before what the
two kernels hold, has been taken, and how fast that went tells how long the rest will take.
"""

from __future__ import annotations

import time
from typing import Final

from spicebridge.protocol.constants import SEND_DATA

TOKENS: Final = 128
"""DATA that libspice-server takes for a guest that takes none (RedCharDeviceSpiceVmc)."""

PACE: Final = 4 * 1024 * 1024
"""Bytes a second that a guest is supposed to take as long as nothing is known of it."""

_FIRST_DATA: Final = 64 * 1024
"""Bytes of a DATA, at most, until the guest is known to be fast."""

_FAST: Final = 4 * TOKENS * SEND_DATA
"""Bytes a second of a guest that takes all that may wait for it in a quarter of one."""

_IN_KERNELS: Final = 4 * 1024 * 1024
"""Bytes that may be on their way, beyond our reach and the server's: Linux lets a sender have that
much, and the buffer of a receiver that does not read stays small."""


class Untaken:
    """A stretch of sending, which ends once even a slow guest has taken all of it.

    Attributes:
        room: bytes that the next DATA should have at most.
        active: when the last DATA went, or the peer last spoke after it, by the clock of
            `time.monotonic`; minus infinity before the first.
    """

    def __init__(self) -> None:
        self.active = float("-inf")
        self._last = float("-inf")  # when the last DATA went
        self._since = 0.0  # when the first one of this stretch went
        self._sent = 0  # bytes since
        self._known = 0.0  # what the pace was when there was less room
        self._give(_FIRST_DATA)

    def sent(self, count: int) -> None:
        """Notes that `count` bytes of DATA have gone."""
        now = time.monotonic()
        taken = (now - self._last) * PACE
        if taken >= self._sent or taken >= self._unknown:
            self._since, self._sent, self._known = now, 0, 0.0
            if self.room > _FIRST_DATA:
                self._give(_FIRST_DATA)
        self._sent += count
        self._last = self.active = now
        if self._sent > self._unknown and self.room < SEND_DATA and self._pace >= _FAST:
            self._known = self._pace
            self._give(SEND_DATA)

    def heard(self) -> None:
        """Notes that the peer has spoken."""
        if self._sent:
            self.active = time.monotonic()

    @property
    def taken(self) -> float:
        """When the guest will have taken all, if it is no slower than is known, or supposed."""
        if not self._sent:
            return self._last
        return self._last + min(self._sent, self._unknown) / max(PACE, self._pace)

    def _give(self, room: int) -> None:
        self.room = room
        self._unknown = _IN_KERNELS + TOKENS * room

    @property
    def _pace(self) -> float:
        """Bytes a second that the guest has taken at least."""
        since = (self._sent - self._unknown) / max(self._last - self._since, 1e-6)
        return max(self._known, since)
