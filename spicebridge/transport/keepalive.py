"""Finds out that a TCP peer has gone without a word, because its machine or a network died.

Two minutes after the last sign of life the connection fails with ETIMEDOUT, also where nobody has
anything to say. While bytes of ours are unacknowledged the kernel sends those again instead of
probes, for some 15 minutes (net.ipv4.tcp_retries2).

TCP_USER_TIMEOUT would shorten that, but it also ends a connection whose peer is alive and reads
nothing for so long: it counts bytes "untransmitted (due to zero window size)" (tcp(7)), and since
Linux 5.11 whether the peer answers the probes of its window or not. Here that is nobody's fault: a
server does not read while its guest takes nothing, and an application may sleep.
"""

from __future__ import annotations

import socket
from typing import Final

IDLE: Final = 60
"""Seconds of silence before the first probe."""

INTERVAL: Final = 15
"""Seconds between two probes."""

PROBES: Final = 4
"""Probes without an answer, after which the peer has gone."""


def keep_alive(sock: socket.socket) -> None:
    """Has the kernel ask the peer of a TCP socket now and then whether it is still there."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
