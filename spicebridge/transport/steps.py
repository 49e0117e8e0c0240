"""The steps of reaching a server: each is bounded in time, and told with how long it took.

``spicebridge list -v`` shows them; other commands log them for debugging.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio

from spicebridge.errors import ConnectError

log = logging.getLogger("spicebridge.steps")

CONNECT_TIMEOUT: Final = 10.0
"""Seconds that one step of reaching a server may take (curl and ssh wait for minutes)."""


@asynccontextmanager
async def step(
    what: str, seconds: float | None = None, hint: str = "check the address and the network"
) -> AsyncIterator[list[str]]:
    """Bounds one step of reaching a server, and tells of it.

    Args:
        what: the step, as in ``connecting to 127.0.0.1:5900``.
        seconds: that it may take; None for `CONNECT_TIMEOUT`.
        hint: what to do if it takes longer.

    Returns:
        A list for what was found out on the way.

    Raises:
        ConnectError: naming the step, when its time is over.
    """
    if seconds is None:
        seconds = CONNECT_TIMEOUT
    found: list[str] = []
    start = time.perf_counter()
    try:
        with anyio.fail_after(seconds):
            yield found
    except TimeoutError:
        raise ConnectError(f"{what}: no answer within {seconds:g} seconds", hint) from None
    tell(what, found, 1000 * (time.perf_counter() - start))


def tell(what: str, found: Sequence[str], ms: float | None = None) -> None:
    """Tells of a step.

    Args:
        what: the step.
        found: what was found out on the way.
        ms: how long it took; None where that is told of the steps in it.
    """
    took = [] if ms is None else [f"{ms:.1f} ms"]
    log.debug(
        "%s: %s",
        what,
        "; ".join([*took, *found]),
        extra={
            "event": "step",
            "fields": {"step": what, "ms": None if ms is None else round(ms, 1), "found": found},
        },
    )
