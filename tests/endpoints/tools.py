"""What the tests of local ends share."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from spicebridge.endpoints.base import Application, Endpoint
from tests.conftest import PATIENCE


def open_fds() -> set[int]:
    """The descriptors of this process."""
    fds = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:  # that of the listing itself
            continue
        fds.add(int(name))
    return fds


@asynccontextmanager
async def accepted(endpoint: Endpoint) -> AsyncIterator[Application]:
    """An endpoint that is open, and its application."""
    with anyio.fail_after(PATIENCE):
        async with endpoint:
            application = await endpoint.accept()
            try:
                yield application
            finally:
                await application.aclose()


async def read_exactly(application: Application, size: int) -> bytes:
    """The next `size` bytes from an application."""
    data = b""
    with anyio.fail_after(PATIENCE):
        while len(data) < size:
            data += await read_some(application, size - len(data)) or _ended(data)
    return data


async def read_some(application: Application, size: int = 65536) -> bytes:
    """The next bytes from an application; empty at its end."""
    buffer = bytearray(size)
    with anyio.fail_after(PATIENCE):
        count = await application.stream.read_into(memoryview(buffer))
    return bytes(buffer[:count])


def _ended(data: bytes) -> bytes:
    raise AssertionError(f"end of file behind {data!r}")


async def write(application: Application, data: bytes) -> None:
    """Gives an application bytes."""
    with anyio.fail_after(PATIENCE):
        await application.stream.write_all([memoryview(data)])


async def sleep_until(true: object, what: str) -> None:
    """Waits for something that no descriptor tells."""
    assert callable(true)
    with anyio.move_on_after(PATIENCE):
        while not true():
            await anyio.sleep(0.01)
        return
    raise AssertionError(f"waited in vain until {what}")


def connect(path: Path) -> socket.socket:
    """Somebody who connects to a Unix socket."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return sock
