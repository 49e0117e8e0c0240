"""Tells the service manager how we are, as sd_notify(3) has it: datagrams of ``NAME=value`` lines.

A manager that is missing, or slow, is none of the bridges' business: nothing here waits or fails.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Mapping
from typing import Final

import anyio

from spicebridge import printable

log = logging.getLogger("spicebridge")

_LONGEST: Final = 2048
"""Bytes of a status; systemd drops datagrams of more than 4096 (NOTIFY_BUFFER_MAX)."""

_AGAIN: Final = 0.1  # seconds until a manager that had no room is told again


class Notifier:
    """Speaks to the service manager; where there is none, nobody hears it.

    Args:
        said: the variables of sd_notify(3) and sd_watchdog_enabled(3); by default those of
            our environment, which `environment` keeps from the programs that we start.
    """

    def __init__(self, said: Mapping[str, str] | None = None) -> None:
        said = os.environ if said is None else said
        path = said.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._half = _half_interval(said) if path else math.inf
        self._untold: dict[str, str] = {}
        self._at_ready = ""
        self._full: anyio.Event | None = None  # set when the manager has no room; while we run

    def ready(self, status: str) -> None:
        """The start is over: everything that was asked for is there.

        Args:
            status: what we do from now on, one line.
        """
        self._at_ready = status
        self._tell(READY="1", STATUS=status)

    def status(self, text: str) -> None:
        """What we do now.

        Args:
            text: one line; an empty one says again what `ready` said.
        """
        self._tell(STATUS=text or self._at_ready)

    def stopping(self, status: str) -> None:
        """The end has begun.

        Args:
            status: as in `ready`.
        """
        self._tell(STOPPING="1", STATUS=status)

    async def run(self) -> None:
        """Tells twice in each interval of the watchdog that the event loop turns, and again what
        the manager had no room for. Until cancelled; ends at once where there is no manager."""
        while self._address:
            self._full = anyio.Event()
            if self._untold:
                self._full.set()
            alive = {"WATCHDOG": "1"}
            with anyio.move_on_after(self._half):
                await self._full.wait()
                await anyio.sleep(_AGAIN)
                alive = {}
            self._tell(**alive)

    def _tell(self, **lines: str) -> None:
        self._untold |= lines
        if not self._address or not self._untold:
            return
        data = "\n".join(f"{name}={_one_line(value)}" for name, value in self._untold.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(data.encode(), os.fsencode(self._address))
            except BlockingIOError:
                if self._full is not None:
                    self._full.set()
                return
            except OSError as error:
                log.debug("the service manager cannot be told: %s", error)
        self._untold.clear()


def _one_line(text: str) -> str:
    """What may have names from peers in it, for people to see."""
    return printable(text).encode()[:_LONGEST].decode(errors="ignore")


def _half_interval(said: Mapping[str, str]) -> float:
    """Seconds; infinite where nobody watches, or watches another process."""
    try:
        microseconds = int(said.get("WATCHDOG_USEC", "0"))
        pid = int(said.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return math.inf
    return microseconds / 2e6 if microseconds > 0 and pid == os.getpid() else math.inf
