"""What a bridge tells of itself: log records with an event's name and fields, for whom scripts
wait, and its state for the live line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from spicebridge.bridge.join import Traffic
from spicebridge.errors import SpicebridgeError
from spicebridge.transport.address import Address

log = logging.getLogger("spicebridge")


@dataclass
class BridgeStatus:
    """One bridge as it is now.

    Attributes:
        name: what the log calls it.
        end: its local end, as far as that tells more than the specification once it is open.
        state: what it is doing, in a word or two.
        traffic: bytes moved since it began.
    """

    name: str
    end: str = ""
    state: str = "starting"
    traffic: Traffic = field(default_factory=Traffic)
    _before: Traffic = field(default_factory=Traffic)  # when the application came

    def event(self, event: str, text: str, level: int = logging.INFO, **fields: object) -> None:
        """Logs an event of this bridge.

        Args:
            event: its name for scripts; spicebridge(1) has them all.
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

    def error(self, error: SpicebridgeError) -> None:
        """Logs what went wrong here."""
        error.logged = True
        self.event("error", str(error), logging.ERROR, exit_code=error.exit_code)

    def application_came(self, name: str) -> None:
        """Logs that an application has the bridge now."""
        self._before = replace(self.traffic)
        self.event("app-connected", f"{name} connected", app=name)

    def application_refused(self, name: str, holder: str) -> None:
        """Logs that an application was turned away, and who has the bridge."""
        self.event(
            "app-refused",
            f"{name} refused: {holder} has the channel",
            logging.WARNING,
            app=name,
            holder=holder,
        )

    def application_went(self, name: str, undelivered: int, why: str = "") -> None:
        """Logs that the application has gone, and what it has moved.

        Args:
            name: who it was.
            undelivered: bytes of it that nobody was there to take.
            why: why it had to go, unless it went by itself.
        """
        up = self.traffic.up - self._before.up
        down = self.traffic.down - self._before.down
        text = f"{name} gone{f': {why}' if why else ''} ({up} bytes up, {down} down"
        lost = f", {undelivered} undelivered" if undelivered else ""
        self.event("app-gone", f"{text}{lost})", app=name, undelivered=undelivered)


Ready = Callable[[Address, Sequence[BridgeStatus]], None]
"""Called once when everything is there, with the server's address and the bridges."""
