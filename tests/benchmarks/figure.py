"""A figure of ours beside a peer's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What was measured in pairs, one run of ours and one of the peer's.

    Attributes:
        name: of the figure, with its unit.
        peer: whom it is measured against.
        pairs: ours and theirs, in the order of the runs.
        less_is_better: whether it is a time.
    """

    name: str
    peer: str
    pairs: Sequence[tuple[float, float]]
    less_is_better: bool = False

    def row(self) -> tuple[str, ...]:
        """Medians of both, and the ratios of the pairs, above 1 where we are the faster."""
        mine, theirs = zip(*self.pairs, strict=True)
        ratios = [b / a if self.less_is_better else a / b for a, b in self.pairs]
        return (
            self.name,
            f"{statistics.median(mine):.4g}",
            self.peer,
            f"{statistics.median(theirs):.4g}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
