"""What is counted while it runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.peers.processes import Process
from tests.soak.leftovers import Held

MIB: Final = 1 << 20
_KIB: Final = 1024
_ASSERTION: Final = re.compile(r"\S+\.c\S*:\d+:\w+: assertion")


class LostError(AssertionError):
    """Bytes are missing, doubled, reordered or stuck, and no end of file has told of it."""


@dataclass(frozen=True)
class Leftover:
    """A process of ours, and what it had when it was warm and in the end."""

    process: str
    before: Held
    after: Held

    @property
    def leaks(self) -> bool:
        """Whether it has more now."""
        return not self.after.within(self.before)


@dataclass
class Tally:
    """What one actor has seen.

    Attributes:
        name: of the actor.
        rounds: how often its application's bytes have been checked.
        bytes: that were checked.
        faults: what befell it.
        told: rounds whose application was told, by end of file or an error, that it was cut short.
        crashes: how servers that are not ours have ended by themselves.
        lost: what was lost.
        failed: what else went wrong.
        leftovers: of its processes.
    """

    name: str
    rounds: int = 0
    bytes: int = 0
    faults: int = 0
    told: int = 0
    crashes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)

    def crashed(self, server: Process) -> None:
        """Counts a server that has ended by itself."""
        where = _ASSERTION.findall(server.stderr())
        ended = str(server.error(where[-1] if where else "no last words")).splitlines()[0]
        self.crashes[ended] += 1

    @property
    def leaks(self) -> int:
        """How many of its processes have more in the end."""
        return sum(each.leaks for each in self.leftovers)


def whole(tallies: Iterable[Tally]) -> Tally:
    """All together."""
    total = Tally("all")
    for each in tallies:
        total.rounds += each.rounds
        total.bytes += each.bytes
        total.faults += each.faults
        total.told += each.told
        total.crashes += each.crashes
        total.lost += each.lost
        total.failed += each.failed
        total.leftovers += each.leftovers
    return total


def line(tally: Tally) -> str:
    """All in a line."""
    return (
        f"{tally.bytes / MIB:.0f} MiB, {tally.rounds} rounds, {tally.faults} faults, "
        f"told {tally.told}, lost {len(tally.lost)}, leaks {tally.leaks}, "
        f"failed {len(tally.failed)}"
    )


def table(tallies: Sequence[Tally]) -> list[str]:
    """Each in a line, and behind them what the processes have."""
    columns = ("rounds", 8), ("MiB", 9), ("faults", 8), ("told", 7), ("crashes", 9)
    verdicts = ("lost", 6), ("leaks", 7), ("failed", 8)
    lines = [" " * 16 + "".join(f"{name:>{width}}" for name, width in (*columns, *verdicts))]
    lines += [
        f"{each.name:16}{each.rounds:>8}{each.bytes / MIB:>9.1f}{each.faults:>8}{each.told:>7}"
        f"{each.crashes.total():>9}{len(each.lost):>6}{each.leaks:>7}{len(each.failed):>8}"
        for each in (*tallies, whole(tallies))
    ]
    lines += ["", f"{'process':24}{'descriptors':>16}{'children':>12}{'MiB':>18}"]
    for left in whole(tallies).leftovers:
        then, now = left.before, left.after
        lines.append(
            f"{left.process:24}{f'{then.descriptors} to {now.descriptors}':>16}"
            f"{f'{then.children} to {now.children}':>12}"
            f"{f'{then.memory / _KIB:.1f} to {now.memory / _KIB:.1f}':>18}"
            f"{'  LEAKS' if left.leaks else ''}"
        )
    return lines
