"""Counts what a server sends, between it and its client."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Self

_BLOCK = 256 * 1024


class Counter:
    """A relay to a SPICE server on TCP, for any number of connections.

    Args:
        uri: of the server.

    Attributes:
        uri: of the relay.
        received: bytes that the server has sent so far.
    """

    def __init__(self, uri: str) -> None:
        self._target = int(uri.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"spice://127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = 0
        self._lock = threading.Lock()
        _start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # ends `accept`
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            _start(self._relay, server, client)
            _start(self._relay, client, server)

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        from_server = source.getpeername()[1] == self._target
        try:
            while block := source.recv(_BLOCK):
                if from_server:
                    with self._lock:
                        self.received += len(block)
                sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side has gone


def _start(work: Callable[..., None], *args: socket.socket) -> None:
    threading.Thread(target=work, args=args, daemon=True).start()
