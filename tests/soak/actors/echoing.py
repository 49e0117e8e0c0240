"""Guests that give back what they get."""

from __future__ import annotations

import socket

from tests.real.faults import Noise, Received
from tests.real.tools import Task
from tests.soak.actors.raw import SIZE, Raw, ended, send_until_told


class Echoing(Raw):
    """Bytes go both ways, over TCP; the channel is linked while an application is there."""

    name = "echoing"
    guest = "echo"

    def work(self, sock: socket.socket) -> Received:
        sending = Task(lambda: send_until_told(sock))
        got = Noise(sock).receive(SIZE)
        if got.size < SIZE:
            ended(sock)
        sending.result()
        return got


class EchoingAlways(Echoing):
    """The same over Unix sockets; the channel is always linked."""

    name = "echoing-always"
    unix = True
    attach = "always"
