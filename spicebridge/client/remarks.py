"""What a server has to say to people, in the log: as much of it as they can read.

A server may send NOTIFY without end, and a log that is kept for months must not grow by it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Final

log = logging.getLogger(__name__)

_MOST: Final = 10
_WITHIN: Final = 10.0
"""Seconds in which no more than `_MOST` remarks are logged."""


class Remarks:
    """Those of one server."""

    def __init__(self) -> None:
        self._told: deque[float] = deque(maxlen=_MOST)  # when
        self._kept = 0  # not told since the last that was

    def tell(self, level: int, text: str, *args: object) -> None:
        """Logs one, unless there were many just now; how many were not is told with the next.

        Args:
            level: as `logging` has them.
            text: with places for `args`, as `logging` has it.
        """
        now = time.monotonic()
        if len(self._told) == _MOST and now - self._told[0] < _WITHIN:
            self._kept += 1
            return
        self._told.append(now)
        if self._kept:
            log.warning("the server has said %d things more, too fast to be read", self._kept)
            self._kept = 0
        log.log(level, text, *args)
