"""What a bridge tells of itself: log records with an event's name and fields, for whom scripts
wait, and its state for the live line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from spicebridge.bridge.join import Traffic
from spicebridge.client.session import ChannelInfo, Session
from spicebridge.errors import SpicebridgeError
from spicebridge.transport.target import Target

if TYPE_CHECKING:
    from spicebridge.bridge.stream import BridgedStream

log = logging.getLogger("spicebridge")


@dataclass
class StreamCount:
    """The streams of a demultiplexed bridge.

    Attributes:
        open: streams at the moment.
        total: streams since it began.
    """

    open: int = 0
    total: int = 0


@dataclass
class BridgeStatus:
    """One bridge as it is now.

    Attributes:
        name: what the log calls it.
        end: its local end, as far as that tells more than the specification once it is open.
        channel: what it has of the server's channels; None until that was found.
        state: what it is doing, in a word or two.
        traffic: bytes moved since it began.
        streams: how many there are and were; None where the bytes are raw.
    """

    name: str
    end: str = ""
    channel: ChannelInfo | None = None
    state: str = "starting"
    traffic: Traffic = field(default_factory=Traffic)
    streams: StreamCount | None = None
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

    def stream_began(self, stream: BridgedStream) -> None:
        """Counts a stream, and logs it for those who ask for details."""
        if self.streams is not None:
            self.streams.open += 1
            self.streams.total += 1
        self.event(
            "stream-open", f"stream {stream.id} opened", logging.DEBUG, id=stream.id, up=0, down=0
        )

    def stream_ended(self, stream: BridgedStream) -> None:
        """The same at its end, with what it has moved."""
        if self.streams is not None:
            self.streams.open -= 1
        text = f"stream {stream.id} ended{f': {stream.why}' if stream.why else ''}"
        lost = f", {stream.undelivered} undelivered" if stream.undelivered else ""
        self.event(
            "stream-end",
            f"{text} ({stream.up} bytes up, {stream.down} down{lost})",
            logging.DEBUG,
            id=stream.id,
            up=stream.up,
            down=stream.down,
            undelivered=stream.undelivered,
            reason=stream.why,
        )


Ready = Callable[[Target, Sequence[BridgeStatus], Session | None], None]
"""Called when everything is there, and again with each new session: the server, the bridges, and
the session that they share; None where we are the server, or it is away."""
