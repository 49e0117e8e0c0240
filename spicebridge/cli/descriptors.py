"""Room for the descriptors of many streams: the usual limit of 1024 is for programs with select."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Final

from spicebridge import BridgeSpec

_EACH: Final = 2
"""Descriptors of a stream: a socket, or the two pipes of a program."""

_OTHERS: Final = 256


def make_room_for(specs: Sequence[BridgeSpec]) -> None:
    """Raises our limit on open descriptors to what the streams may need, as far as we may."""
    streams = sum(spec.demux.max_streams for spec in specs if spec.demux is not None)
    if not streams:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _EACH * streams + _OTHERS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
