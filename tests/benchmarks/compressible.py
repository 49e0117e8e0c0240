"""Bulk that libspice-server compresses with LZ4, as it does over TCP.

How much of it is on the wire is counted between server and bridge, in a run of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from tests.benchmarks.bridges import PORT, Bridge, glib_bridge, pairs, spicebridge
from tests.benchmarks.bulk import speed
from tests.benchmarks.effort import MIB, Effort
from tests.benchmarks.figure import Figure, Peer
from tests.benchmarks.programs import application
from tests.benchmarks.wire import Counter
from tests.peers.libspice import SpiceEndpoint

_TEXT: Final = "".join(
    f"2026-11-22T05:{line // 60 % 60:02}:{line % 60:02} host kernel: virtio-ports vport{line % 7}: "
    f"{line * 7919 % 100_000} bytes in {line % 113} buffers, {line} in all\n"
    for line in range(20_000)
).encode()
"""A log of 20,000 lines."""

_CONTENTS: Final = {"zeros": bytes(MIB), "text": _TEXT}

_COUNTED: Final = 64 * MIB
"""Bytes of the run whose bytes on the wire are counted."""


def measure(effort: Effort) -> Iterator[Figure]:
    """Ours and P, zeros and a text.

    The target is for a P that takes LZ4, which spice-client-glib 0.42 does for usbredir alone.
    """
    for name, content in _CONTENTS.items():
        mine, theirs = (_on_the_wire(each, content) for each in (spicebridge, glib_bridge))
        yield Figure(f"{name} on the wire", "%", [mine], [Peer("P", [theirs])], less_is_better=True)
        run = partial(speed, over="TCP", direction="down", size=effort.bulk, content=content)
        ours, glib = pairs(run, effort.pairs)
        peer = Peer("P", glib, 1.0) if theirs < 100 else Peer("P", glib, detail="without LZ4")
        yield Figure(f"{name} down, TCP", "MB/s", ours, [peer])


def _on_the_wire(bridge: Bridge, content: bytes) -> float:
    with (
        tempfile.TemporaryDirectory(prefix="sb-") as name,
        SpiceEndpoint(f"pour:{PORT}", pour=_COUNTED, content=content, digest=False) as server,
        Counter(server.uri) as counter,
        bridge(counter.uri, Path(name) / "application"),
    ):
        application(f"unix:{name}/application", "take", _COUNTED)
        return counter.received * 100 / _COUNTED
