"""Proxmox VE's spiceproxy: an HTTP proxy that takes a ticket for a host.

As it is in PVE::APIServer::AnyEvent (CONNECT, which goes by the header Host, and is answered in
HTTP 1.0) and PVE::Ticket (the ticket's parts). Ours has one ticket and one machine; the real one
checks the signature, for 40 seconds.
"""

import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Self

TICKET = "pvespiceproxy:65f1c5a1:100:node::2d1f8e5b7a90c3d4e6f1029384756abcdef01234"
"""What stands for the host in a connection file."""

_BLOCK = 256 * 1024


class SpiceProxy:
    """A running spiceproxy.

    Args:
        target: the TCP port of 127.0.0.1 that the ticket leads to.

    Attributes:
        port: of 127.0.0.1, where it listens.
        refused: the hosts that it was asked for and does not know.
    """

    def __init__(self, target: int) -> None:
        self.refused: list[str] = []
        self._target = target
        self._tunnels: list[str] = []
        self._server = _Server(self._tunnel)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def connections(self) -> int:
        """How often the ticket was taken."""
        return len(self._tunnels)

    def _tunnel(self, client: socket.socket) -> None:
        with client, client.makefile("rb", 0) as lines:
            assert lines.readline().startswith(b"CONNECT ")
            headers: dict[str, str] = {}
            while line := lines.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            host = headers["host"].rpartition(":")[0]
            if host != TICKET:
                self.refused.append(host)
                client.sendall(b"HTTP/1.1 401 invalid ticket\r\nConnection: close\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                self._tunnels.append(host)
                client.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                back = threading.Thread(target=_relay, args=(server, client), daemon=True)
                back.start()
                _relay(client, server)
                back.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True  # a test that has failed may leave its connections open

    def __init__(self, tunnel: Callable[[socket.socket], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tunnel = tunnel


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        self.server.tunnel(self.request)


def _relay(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(_BLOCK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:  # one of them has gone: the other hears of it
        for sock in (source, sink):
            _end(sock)


def _end(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended already
