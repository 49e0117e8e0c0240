"""A guest that swallows, over TCP."""

from __future__ import annotations

import socket

from tests.peers.libspice import poured
from tests.real.faults import Received
from tests.real.tools import Task
from tests.soak.actors.raw import NAME, Raw, ended, send_until_told

NOTHING = Received(0, poured(0))


class Swallowing(Raw):
    """Bytes go up; the guest says one byte when it has all, and afterwards what it has got."""

    name = "swallowing"
    guest = "count"

    def work(self, sock: socket.socket) -> Received:
        server = self.server
        sending = Task(lambda: send_until_told(sock))
        try:
            said = sock.recv(1)
        except ConnectionResetError:
            said = b""
        if not said:
            ended(sock)
        sending.result()
        with self.serving:
            if server is not self.server or server.popen.poll() is not None:
                return NOTHING  # it was killed, and can tell no more
            stats = server.stats(NAME)
        return Received(int(stats["received"]), str(stats["sha256"]))
