"""Actors at the same time: a process each, which tells what it has seen."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Final

from tests.real.tools import Task
from tests.soak import tally
from tests.soak.actor import Stop
from tests.soak.actors import ACTORS

_MINUTE: Final = 60.0


def run(names: Sequence[str], seed: int, minutes: float) -> list[tally.Tally]:
    """Runs actors, and prints a line a minute; SIGINT is the end of it, and stays blocked.

    Args:
        names: of the actors.
        seed: of their dice.
        minutes: how long.
    """
    processes = multiprocessing.get_context("spawn")  # what one starts, no other has in its hands
    stop = processes.Event()
    seconds = minutes * _MINUTE
    tallies = {name: tally.Tally(name) for name in names}
    start = time.monotonic()
    players = []
    for name in names:
        ours, theirs = processes.Pipe(duplex=False)
        player = processes.Process(
            target=_play, args=(name, seed, stop, seconds, theirs), name=name
        )
        player.start()
        theirs.close()
        players.append((player, Task(partial(_follow, ours, tallies))))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # multiprocessing has unblocked it
    while (left := start + seconds - time.monotonic()) > 0:
        if signal.sigtimedwait({signal.SIGINT}, min(left, _MINUTE)):
            break
        told = tally.line(tally.whole(tallies.values()))
        print(f"{(time.monotonic() - start) / _MINUTE:5.1f} min: {told}", flush=True)
    stop.set()
    for player, following in players:
        player.join()
        following.result()
        if player.exitcode:
            tallies[player.name].failed.append(f"an actor has ended with {player.exitcode}")
    return list(tallies.values())


def _play(name: str, seed: int, stop: Stop, seconds: float, told: Connection) -> None:
    """The process of one actor."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # and so it is for its children
    actor = ACTORS[name](random.Random(f"{seed} {name}"), tally.Tally(name))
    actor.play(stop, seconds, told.send)
    told.send(actor.tally)


def _follow(told: Connection, tallies: dict[str, tally.Tally]) -> None:
    """Keeps the last that an actor has told."""
    try:
        while True:
            last: tally.Tally = told.recv()
            tallies[last.name] = last
    except EOFError:
        told.close()
