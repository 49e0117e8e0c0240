"""A relay that fails as dice say, at a byte of the next connection or at any moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from tests.peers.faults import BLOCK
from tests.peers.faulty_relay import Connection, Fault, FaultyRelay, Flow, Plan
from tests.soak.tally import Tally

ENDING: Final = (Fault.CLOSE, Fault.RESET, Fault.HALF_CLOSE)
_SLOW: Final = ("latency", "trickle")
_FEW: Final = 16_384
"""Bytes that may go one by one."""

_HANDSHAKE: Final = 700
"""Bytes each way until a channel is linked, roughly."""

_KEPT: Final = 16
"""Connections that have been there and are remembered."""


class Network:
    """What befalls the connections of a relay.

    Args:
        relay: it.
        dice: what says so.
        tally: where faults are counted.
        size: bytes of a round: faults come before so many.
    """

    def __init__(self, relay: FaultyRelay, dice: random.Random, tally: Tally, size: int) -> None:
        self.relay = relay
        self._dice = dice
        self._tally = tally
        self._size = size
        self._plans: list[Plan] = []
        relay.plan = lambda number: self._plans.pop() if self._plans else Plan()

    def foresee(self) -> bool:
        """Has something befall the next connection; returns whether that is its end."""
        dice = self._dice
        fault = dice.choice((*ENDING, *_SLOW))
        self._tally.faults += 1
        if fault == "latency":
            late = Flow(delay=dice.uniform(0.001, 0.05))
            self._plans = [Plan(up=late, down=late)]
            return False
        if fault == "trickle":  # it ends, as whole rounds of single bytes would take minutes
            piece = dice.choice((1, 2, 7))
            up, down = (Flow(Fault.CLOSE, dice.randrange(1, _FEW), piece=piece) for _ in "ud")
            self._plans = [Plan(up=up, down=down, spare=True)]
            return True
        assert isinstance(fault, Fault)
        after = dice.randrange(dice.choice((_HANDSHAKE, self._size)))
        piece = dice.choice((1, 100)) if after < _FEW else BLOCK
        up, down = Flow(fault, after, piece), Flow()
        if dice.random() < 0.5:
            up, down = down, up
        self._plans = [Plan(up, down, spare=True)]
        return True

    def forget(self) -> None:
        """Nothing befalls the next connection, and of those that have been few are remembered."""
        self._plans = []

        def prune() -> None:
            gone = [each for each in self.relay.connections if each.closed]
            for each in gone[:-_KEPT]:
                self.relay.connections.remove(each)

        self.relay.call(prune)

    def stall(self) -> None:
        """Stops everything for a moment."""
        self._tally.faults += 1
        live = self._live()
        for each in live:
            each.fail(Fault.STALL, up=self._dice.random() < 0.7)
        time.sleep(self._dice.uniform(0, 0.3))
        for each in live:
            each.resume()

    def strike(self) -> None:
        """Ends one connection, or all."""
        self._tally.faults += 1
        fault = self._dice.choice(ENDING)
        live = self._live()
        for each in live if self._dice.random() < 0.5 else live[-1:]:
            each.fail(fault)

    def vanish(self) -> None:
        """Is away for a moment."""
        self._tally.faults += 1
        with self.relay.away():
            time.sleep(self._dice.uniform(0, 0.3))

    def any_moment(self) -> tuple[Callable[[], None], bool]:
        """Something that may befall it while bytes are on their way, and whether it is an end."""
        happening = self._dice.choice((self.stall, self.strike, self.vanish))
        return happening, happening != self.stall

    def _live(self) -> list[Connection]:
        return [each for each in self.relay.connections if not each.closed]
