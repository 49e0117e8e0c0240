"""What a user asks for: which channel, which local end, and how they are joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spicebridge.endpoints.base import Endpoint


@dataclass(frozen=True)
class ChannelWanted:
    """A channel by its type and instance, or a port by its name.

    Attributes:
        type: channel type; 10 where `port` is given.
        instance: id within the type; None for the lowest that the server offers.
        port: name of a port, with shell-style wildcards; None to choose by type and instance.
    """

    type: int
    instance: int | None = None
    port: str | None = None


@dataclass(frozen=True)
class Limits:
    """What the streams of a demultiplexed channel may cost.

    Attributes:
        buffer: bytes held for each stream whose application is slow; then the channel waits.
        stall: seconds that it waits for an application that takes nothing, before it ends that
            stream alone.
        max_streams: streams at once; more are refused.
    """

    buffer: int = 1024 * 1024
    stall: float = 30.0
    max_streams: int = 1024


@dataclass(frozen=True)
class BridgeSpec:
    """One ``--custom-channel``.

    Attributes:
        name: what the log calls it.
        channel: the channel.
        endpoint: the local end.
        attach: ``demand`` links the channel while an application is there, ``always`` at once.
        on_close: what the application sees when the guest closes the port: ``eof``, or ``keep``.
        demux: one application for each stream of the mux, within these limits; None for raw bytes.
    """

    name: str
    channel: ChannelWanted
    endpoint: Endpoint
    attach: Literal["demand", "always"] = "demand"
    on_close: Literal["eof", "keep"] = "eof"
    demux: Limits | None = None
