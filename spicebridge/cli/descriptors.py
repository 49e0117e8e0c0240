"""Our descriptors: those that the service manager gave us, and room for those of many streams."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from typing import Final

from spicebridge import BridgeSpec, UsageError

_FIRST: Final = 3
"""The number of the first that is given, SD_LISTEN_FDS_START (sd_listen_fds(3))."""

_EACH: Final = 2
"""Descriptors of a stream: a socket, or the two pipes of a program."""

_OTHERS: Final = 256


def given() -> Mapping[int, str]:
    """The descriptors that the service manager gave us, with their names; none is inherited on."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[int, str] = {}
    for fd in range(_FIRST, _FIRST + int(count)):
        try:
            os.set_inheritable(fd, False)
        except OSError:  # there are not that many
            break
        found[fd] = names[fd - _FIRST] if fd - _FIRST < len(names) else ""
    return found


def find_given(name: str) -> int:
    """The descriptor that has a name.

    Raises:
        UsageError: none has, or several have.
    """
    found = [fd for fd, each in given().items() if each == name]
    if len(found) == 1:
        return found[0]
    if found:
        numbers = " and ".join(f"fd={fd}" for fd in found)
        raise UsageError(f"fd={name}: {len(found)} descriptors have this name", f"use {numbers}")
    names = ", ".join(dict.fromkeys(filter(None, given().values())))
    raise UsageError(
        f"fd={name} is no number, and we were given no descriptor of this name",
        f"there are {names}" if names else "FileDescriptorName= of a systemd.socket(5) names it",
    )


def make_room_for(specs: Sequence[BridgeSpec]) -> None:
    """Raises our limit on open descriptors to what the streams may need, as far as we may."""
    streams = sum(spec.demux.max_streams for spec in specs if spec.demux is not None)
    if not streams:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _EACH * streams + _OTHERS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
