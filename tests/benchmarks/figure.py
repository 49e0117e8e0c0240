"""A figure of ours, beside the peers that did the same in the same rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peer:
    """What a figure is measured against.

    Attributes:
        name: P, L, or whatever else it is.
        runs: its figures, one for each round.
        target: what our ratio to it is to reach, or to stay below where less is better; None where
            the ratio is only stated.
        detail: which of several this was.
    """

    name: str
    runs: Sequence[float]
    target: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Figure:
    """What was measured.

    Attributes:
        name: of the figure; it stays the same from run to run, and is found by it.
        unit: of every run, ours and the peers'.
        runs: our figures, one for each round.
        peers: what did the same in the same rounds.
        less_is_better: whether it is a cost.
        limit: what our median itself is to reach, or to stay below; None for no such target.
    """

    name: str
    unit: str
    runs: Sequence[float]
    peers: Sequence[Peer] = ()
    less_is_better: bool = False
    limit: float | None = None

    def ratios(self, peer: Peer) -> list[float]:
        """Ours by theirs, round by round."""
        return [mine / theirs for mine, theirs in zip(self.runs, peer.runs, strict=True)]

    def ratio(self, peer: Peer) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios(peer))

    def met(self, peer: Peer | None = None) -> bool | None:
        """Whether the target against `peer`, or else our own, was met; None if there is none."""
        target, reached = self._aim(peer)
        if target is None:
            return None
        return reached <= target if self.less_is_better else reached >= target

    def target(self, peer: Peer | None = None) -> str:
        """The same target in words, such as ``≥ 1.1``; empty if there is none."""
        target, _ = self._aim(peer)
        if target is None:
            return ""
        return f"{'≤' if self.less_is_better else '≥'} {target:g}"

    def _aim(self, peer: Peer | None) -> tuple[float | None, float]:
        if peer is None:
            return self.limit, statistics.median(self.runs)
        return peer.target, self.ratio(peer)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` takes, with what a script would otherwise have to work out."""
        return {
            "name": self.name,
            "unit": self.unit,
            "less_is_better": self.less_is_better,
            "median": _short(statistics.median(self.runs)),
            "limit": self.limit,
            "met": self.met(),
            "peers": [
                {
                    "name": peer.name,
                    "detail": peer.detail,
                    "median": _short(statistics.median(peer.runs)),
                    "ratio": _short(self.ratio(peer)),
                    "target": peer.target,
                    "met": self.met(peer),
                    "runs": list(map(_short, peer.runs)),
                }
                for peer in self.peers
            ],
            "runs": list(map(_short, self.runs)),
        }

    @classmethod
    def from_json(cls, whole: Mapping[str, Any]) -> Figure:
        """The figure that `as_json` wrote."""
        return cls(
            name=whole["name"],
            unit=whole["unit"],
            runs=whole["runs"],
            peers=[
                Peer(each["name"], each["runs"], each["target"], each["detail"])
                for each in whole["peers"]
            ],
            less_is_better=whole["less_is_better"],
            limit=whole["limit"],
        )


def best(name: str, runs: Mapping[str, Sequence[float]], target: float | None) -> Peer:
    """Of several peers, by their `detail`, the one with the highest median."""
    detail = max(runs, key=lambda each: statistics.median(runs[each]))
    return Peer(name, runs[detail], target, detail)


def _short(value: float) -> float:
    """With as many digits as anybody would read."""
    return float(f"{value:.4g}")
