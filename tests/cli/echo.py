"""A process that gives back what it gets at a Unix socket, on as many connections as there come."""

from __future__ import annotations

import resource
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def raise_limit() -> None:
    """Allows this process as many descriptors as it may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def echo_server(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, once it listens."""
    with subprocess.Popen([sys.executable, __file__, str(path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"listening\n"
            yield process
        finally:
            process.kill()


def _main(path: str) -> None:
    raise_limit()
    with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(4096)
        selector.register(listener, selectors.EVENT_READ)
        print("listening", flush=True)
        while True:
            for key, _ in selector.select():
                app = key.fileobj
                assert isinstance(app, socket.socket)
                if app is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                    continue
                try:
                    data = app.recv(65536)
                    app.sendall(data)
                except OSError:  # it has gone
                    data = b""
                if not data:
                    selector.unregister(app)
                    app.close()


if __name__ == "__main__":
    _main(sys.argv[1])
