"""How much is done for a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Transport = Literal["TCP", "Unix"]
Direction = Literal["down", "up"]
"""Down is from the guest to the application."""

DIRECTIONS: Final[tuple[Direction, ...]] = ("down", "up")

MIB: Final = 1 << 20


@dataclass(frozen=True)
class Effort:
    """Sizes and counts of all figures.

    Attributes:
        pairs: runs of each side that count.
        transports: between server and bridge.
        bulk: bytes of a bulk run.
        both: bytes each way of a run both ways at once.
        echoes: sizes of what is sent to and fro, in bytes.
        pings: how often it is.
        latencies: what is told of their times.
        messages: sizes of small messages, in bytes.
        message_count: of a run.
        directions: of the small messages.
        streams: of the mux, how many at once.
        mux: bytes that go over them in all.
        stall: seconds without the application taking anything.
        sessions: servers, with a bridge each.
        session_pairs: runs of those that count, as a hundred starts take long.
        guest_pairs: runs with a guest under emulation that count, which take long, too.
    """

    pairs: int = 7
    transports: tuple[Transport, ...] = ("TCP", "Unix")
    bulk: int = 1024 * MIB
    both: int = 512 * MIB
    echoes: tuple[int, ...] = (1, 65536)
    pings: int = 5000
    latencies: tuple[Literal["median", "p99"], ...] = ("median", "p99")
    messages: tuple[int, ...] = (64, 1024)
    message_count: int = 300_000
    directions: tuple[Direction, ...] = DIRECTIONS
    streams: tuple[int, ...] = (1, 10, 100, 1000)
    mux: int = 512 * MIB
    stall: float = 30.0
    sessions: tuple[int, ...] = (10, 50, 100)
    session_pairs: int = 3
    guest_pairs: int = 4


FULL: Final = Effort()

QUICK: Final = Effort(
    pairs=5,
    transports=("TCP",),
    bulk=128 * MIB,
    both=64 * MIB,
    echoes=(1,),
    pings=2000,
    latencies=("median",),  # the others are a matter of what else the machine does
    messages=(64,),
    message_count=100_000,
    directions=("down",),
    streams=(1, 1000),
)
