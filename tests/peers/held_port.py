"""A TCP port that stays ours while nobody listens on it, as clients are to be refused meanwhile."""

import socket
from typing import Self

_BACKLOG = 1024


class HeldPort:
    """A TCP port of 127.0.0.1, kept by a socket that is bound to it and never listens.

    Attributes:
        number: the port.
    """

    def __init__(self) -> None:
        self._holder = _bound(0)
        self.number = int(self._holder.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the port back."""
        self._holder.close()

    def listen(self) -> socket.socket:
        """A listening socket on the port; once it is closed, clients are refused again."""
        listener = _bound(self.number)
        listener.listen(_BACKLOG)
        return listener


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    try:
        # SO_REUSEPORT lets two sockets of ours have the port, SO_REUSEADDR lets it be taken again
        # while connections from before are still in TIME_WAIT
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock
