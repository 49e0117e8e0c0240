"""What the tests of ``share=`` share: a blocking client on a connected socket."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass

from tests.conftest import PATIENCE


@dataclass
class Answer:
    """What a server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Client(http.client.HTTPConnection):
    """An HTTP client on a connected socket; the socket is its own."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__("localhost")
        self.auto_open = 0
        sock.settimeout(PATIENCE)
        self.sock: socket.socket = sock

    def ask(
        self, method: str, path: str, body: object = None, chunked: bool = False, **headers: str
    ) -> Answer:
        """One request; ``_`` in the name of a header is ``-``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if chunked:
            named["Transfer-Encoding"] = "chunked"
        self.request(method, path, body, named, encode_chunked=chunked)  # type: ignore[arg-type]
        response = self.getresponse()
        return Answer(response.status, response.headers, response.read())

    def raw(self, data: bytes) -> Answer:
        """A request as it is on the wire."""
        self.sock.sendall(data)
        response = http.client.HTTPResponse(self.sock)
        response.begin()
        answer = Answer(response.status, response.headers, response.read())
        response.close()
        return answer
