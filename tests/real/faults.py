"""What the tests of faults share: streams of noise whose every prefix has a known digest."""

from __future__ import annotations

import hashlib
import socket
from dataclasses import dataclass

from tests.peers.libspice import NOISE
from tests.real.tools import CHUNK


@dataclass
class Received:
    """What has come of a stream of noise.

    Attributes:
        size: bytes of it.
        digest: their SHA-256.
    """

    size: int
    digest: str


class Noise:
    """Reads noise from a socket, hashing it; `send_noise` and pouring guests send it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._whole = hashlib.sha256()
        self._size = 0

    def receive(self, size: int) -> Received:
        """Reads until so many bytes have come, or the end of the stream; an error is an end."""
        buffer = memoryview(bytearray(CHUNK))
        while self._size < size:
            try:
                count = self._sock.recv_into(buffer[: size - self._size])
            except ConnectionResetError:
                break
            if not count:
                break
            self._whole.update(buffer[:count])
            self._size += count
        return Received(self._size, self._whole.hexdigest())


def send_noise(sock: socket.socket, size: int) -> None:
    """Sends so many bytes of noise."""
    view = memoryview(NOISE)
    sent = 0
    while sent < size:
        at = sent % len(view)
        sent += sock.send(view[at : at + min(size - sent, CHUNK)])


def send_and_stay(sock: socket.socket, size: int) -> None:
    """Sends so many bytes of noise, and comes back once it has been told that the other side has
    gone: that all of them were taken says nothing of where they are."""
    try:
        send_noise(sock, size)
        assert not sock.recv(1)
    except (BrokenPipeError, ConnectionResetError):
        pass
