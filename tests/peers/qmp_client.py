"""A minimal QMP client (docs/interop/qmp-spec.txt of QEMU) on a connected socket.

Used on QEMU's private control monitor and, just the same, through a bridge on a monitor port.
"""

import base64
import hashlib
import json
import os
import socket
from typing import Any, Self

from .processes import PATIENCE

_TEXT = 32 * 1024
_ON_THEIR_WAY = 8


class QmpError(RuntimeError):
    """QEMU refused a command, or the monitor went away."""


class QmpClient:
    """Reads the greeting, negotiates no capabilities, then executes one command at a time.

    It owns the socket from here on; `events` holds what QEMU told unasked.
    """

    def __init__(self, sock: socket.socket, *, timeout: float = PATIENCE) -> None:
        sock.settimeout(timeout)
        self._sock = sock
        self._lines = sock.makefile("rb")
        self.events: list[dict[str, Any]] = []
        try:
            self.greeting: dict[str, Any] = self._read()["QMP"]
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._lines.close()
        self._sock.close()

    def execute(self, command: str, /, **arguments: Any) -> Any:
        """Run `command` and give back what it returns; underscores in argument names are dashes."""
        renamed = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = {"execute": command, "arguments": renamed}
        self._sock.sendall(json.dumps(request).encode() + b"\n")
        answer = self._answer()
        if "error" in answer:
            raise QmpError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def hmp(self, line: str) -> str:
        """Run a line of the human monitor and give back what it prints."""
        return str(self.execute("human-monitor-command", command_line=line))

    def echo(self, size: int) -> tuple[str, str]:
        """Have random text come back as the ids of commands; a guest is not needed for that.

        Some commands are on their way at a time, and no more than libspice-server holds for a
        client: it asks QEMU for 64 KiB of answers whenever QEMU has taken a command, and where it
        could not then, nobody would ask for the last of them.

        Args:
            size: how much, in bytes.

        Returns:
            The SHA-256 of what was sent and of what came back, in hex.
        """
        sent, received = hashlib.sha256(), hashlib.sha256()
        count = size // _TEXT
        for number in range(count + _ON_THEIR_WAY):
            if number < count:
                text = base64.b64encode(os.urandom(_TEXT // 4 * 3))
                self._sock.sendall(b'{"execute": "query-name", "id": "%s"}\n' % text)
                sent.update(text)
            if number >= _ON_THEIR_WAY:
                received.update(self._answer()["id"].encode())
        return sent.hexdigest(), received.hexdigest()

    def _answer(self) -> dict[str, Any]:
        while "event" in (answer := self._read()):
            self.events.append(answer)
        return answer

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise QmpError("the monitor closed the connection")
        message: dict[str, Any] = json.loads(line)
        return message
