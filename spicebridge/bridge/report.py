"""What a bridge tells of itself: log records with an event's name and fields, for whom scripts
wait, and its state for the live line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spicebridge.bridge.join import Traffic
from spicebridge.transport.address import Address

log = logging.getLogger("spicebridge")


@dataclass
class BridgeStatus:
    """One bridge as it is now.

    Attributes:
        name: what the log calls it.
        state: what it is doing, in a word or two.
        traffic: bytes moved since it began.
    """

    name: str
    state: str = "starting"
    traffic: Traffic = field(default_factory=Traffic)

    def event(self, event: str, text: str, level: int = logging.INFO, **fields: object) -> None:
        """Logs an event of this bridge.

        Args:
            event: its name for scripts: ready, app-connected, app-gone, linked, unlinked, error.
            text: the same for people.
            level: as `logging` has them.
            fields: more of it, for scripts; the byte counts are always among them.
        """
        extra = {
            "event": event,
            "bridge": self.name,
            "fields": {"up": self.traffic.up, "down": self.traffic.down, **fields},
        }
        log.log(level, "%s", text, extra=extra)


Ready = Callable[[Address, Sequence[BridgeStatus]], None]
"""Called once when everything is there, with the server's address and the bridges."""
