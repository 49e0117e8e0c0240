"""A proxy's answer, read to the byte and quoted in one line.

What comes behind the answer belongs to the tunnel. Nothing here reads ahead, so nothing has to be
given back.
"""

from __future__ import annotations

from typing import Final

from spicebridge.errors import printable
from spicebridge.transport.proxy_address import ProxyAddress
from spicebridge.transport.wire import Wire

_QUOTED: Final = 100
"""Characters of an answer that an error may repeat."""

NOT_ALLOWED: Final = "its rules do not allow this server or this port"
UNREACHED: Final = "the proxy could not reach the server: does it run, and can the proxy see it?"
"""Hints for what proxies of either kind refuse."""

_REST: Final = 4096
"""Bytes that are read of what is no answer: more than are quoted, so that no secret is cut."""


def is_it(proxy: ProxyAddress) -> str:
    """What to ask oneself about a proxy that does not answer as one."""
    if proxy.scheme == "socks5":
        return "is that a SOCKS5 proxy?"
    if proxy.scheme == "https":
        return "is that an HTTP proxy?"
    return "is that an HTTP proxy, and does it want TLS (https://)?"


async def read_exactly(wire: Wire, count: int) -> bytes:
    """Reads `count` bytes and none behind them.

    Raises:
        EOFError: the proxy has closed the connection before.
        OSError: the connection broke.
    """
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = await wire.read_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return bytes(data)


def with_rest(wire: Wire, said: bytes | bytearray) -> bytes:
    """Bytes that are no answer, with those that stand behind them already, to be quoted."""
    rest = bytearray(_REST)
    try:
        count = wire.read_nowait(memoryview(rest))
    except OSError:  # the connection has broken, but not what came before
        count = None
    return bytes(said + rest[: count or 0])


def quote(said: bytes | bytearray, *secrets: bytes) -> str:
    """The first line of what a proxy said, printable and short.

    Args:
        said: its bytes.
        secrets: what is not repeated, though the proxy did; those that are empty do not count.
    """
    line = said.lstrip(b"\r\n").partition(b"\n")[0].strip()
    for secret in filter(None, secrets):
        line = line.replace(secret, b"***")
    text = line.decode("utf-8", "backslashreplace")
    text = printable(text)
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 1]}…"
