"""A guest that pours, over Unix sockets."""

from __future__ import annotations

import socket

from tests.real.faults import Noise, Received
from tests.soak.actors.raw import SIZE, Raw


class Pouring(Raw):
    """Bytes go down."""

    name = "pouring"
    guest = "pour"
    unix = True

    def work(self, sock: socket.socket) -> Received:
        return Noise(sock).receive(SIZE)
