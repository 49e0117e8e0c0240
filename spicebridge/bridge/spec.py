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
class BridgeSpec:
    """One ``--custom-channel``.

    Attributes:
        name: what the log calls it.
        channel: the channel.
        endpoint: the local end.
        attach: ``demand`` links the channel while an application is there, ``always`` at once.
        on_close: what the application sees when the guest closes the port: ``eof``, or ``keep``.
    """

    name: str
    channel: ChannelWanted
    endpoint: Endpoint
    attach: Literal["demand", "always"] = "demand"
    on_close: Literal["eof", "keep"] = "eof"
