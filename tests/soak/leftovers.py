"""What a process of ours holds, before and after: descriptors, children and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.peers.processes import PeerError, rss_kib, wait_until

GROWTH: Final = 8192
"""KiB by which the memory of a process may have grown. A `serve` whose sessions are cut goes up and
down by 5 MiB: errors and frames hold each other, and the sessions' buffers, until Python looks for
such cycles. Were sessions left behind, of 350 KiB each, it would be that in seconds."""

_SETTLING: Final = 2.0
"""Seconds in which what is on its way out has gone."""

_PATIENCE: Final = 20.0
_LOOK_EVERY: Final = 0.05


@dataclass(frozen=True)
class Held:
    """What a process has.

    Attributes:
        descriptors: how many.
        children: how many, zombies among them.
        memory: resident, in KiB.
    """

    descriptors: int
    children: int
    memory: int

    def within(self, before: Held, growth: int = GROWTH) -> bool:
        """Whether that is no more than it was, memory but for `growth` KiB."""
        return (
            self.descriptors <= before.descriptors
            and self.children <= before.children
            and self.memory <= before.memory + growth
        )


def held(pid: int) -> Held:
    """What a process has now."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return Held(len(os.listdir(f"/proc/{pid}/fd")), len(children), rss_kib(pid))


def settled(pids: Sequence[int]) -> list[Held]:
    """The least that each of some processes has while nothing happens for some seconds."""
    looks: list[list[Held]] = []
    end = time.monotonic() + _SETTLING
    while time.monotonic() < end:
        looks.append([held(pid) for pid in pids])
        time.sleep(_LOOK_EVERY)
    return [_least(each) for each in zip(*looks, strict=True)]


def _least(looks: Sequence[Held]) -> Held:
    return Held(
        min(look.descriptors for look in looks),
        min(look.children for look in looks),
        min(look.memory for look in looks),
    )


def back(pid: int, before: Held, growth: int = GROWTH) -> Held:
    """Waits until a process has no more than it had; returns what it has in the end."""
    try:
        wait_until(lambda: held(pid).within(before, growth), what="", timeout=_PATIENCE)
    except PeerError:  # whoever asks compares
        pass
    return held(pid)
