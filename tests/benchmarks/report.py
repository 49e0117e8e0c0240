"""What was measured, where, and with which versions: for people, for scripts, for the README."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.figure import Figure, Peer
from tests.benchmarks.programs import versions

GROSS = 0.5
"""A ratio that is worse than this part of the committed one is a regression; what is less wrong
may be a busy machine."""

_ROW = "{:<40} {:>16}  {:<24} {:<46} {:<22} {}"


@dataclass(frozen=True)
class Report:
    """All figures of one run.

    Attributes:
        date: when it began, in UTC.
        cores: of the machine.
        versions: of all that took part, and of the machine.
        figures: in the order in which they were measured; more may come.
    """

    date: str
    cores: int
    versions: Mapping[str, str]
    figures: list[Figure]

    def write(self, path: Path) -> None:
        """Writes it as JSON, with each figure on a line of its own."""
        head = {"date": self.date, "cores": self.cores, "versions": self.versions}
        lines = ",\n".join(
            json.dumps(figure.as_json(), ensure_ascii=False) for figure in self.figures
        )
        whole = json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}")
        path.write_text(f'{whole},\n "figures": [\n{lines}\n]}}\n', encoding="utf-8")


def here() -> Report:
    """An empty report of this machine and this moment."""
    date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return Report(date, os.cpu_count() or 1, versions(), [])


def read(path: Path) -> Report:
    """The report that `Report.write` wrote."""
    whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    figures = [Figure.from_json(each) for each in whole["figures"]]
    return Report(whole["date"], whole["cores"], whole["versions"], figures)


def machine(report: Report) -> str:
    """The machine, the date and the versions, in one line."""
    rest = dict(report.versions)
    cpu, kernel = rest.pop("cpu"), rest.pop("kernel")
    parts = [report.date, f"{cpu}, {report.cores} cores", f"Linux {kernel}"]
    return "; ".join([*parts, ", ".join(f"{name} {version}" for name, version in rest.items())])


def header() -> str:
    """The heading of the table."""
    return _ROW.format("figure", "unit", "ours", "against", "ratio", "target")


def lines(figure: Figure) -> Iterator[str]:
    """The lines of a figure in the table: medians, with the extremes in brackets."""
    for row in _rows(figure):
        yield _ROW.format(*row).rstrip()


def markdown(report: Report) -> Iterator[str]:
    """The lines of the README's table."""
    yield "| figure | unit | ours | against | ratio | target |"
    yield "|---|---|---|---|---|---|"
    for figure in report.figures:
        for row in _rows(figure):
            yield f"| {' | '.join(row)} |"


def regressions(now: Sequence[Figure], committed: Sequence[Figure]) -> Iterator[str]:
    """Every ratio that is much worse than the committed one, in words."""
    before = {(each.name, peer.name): each.ratio(peer) for each in committed for peer in each.peers}
    for figure in now:
        for peer in figure.peers:
            ratio, usual = figure.ratio(peer), before.get((figure.name, peer.name))
            if usual is None:
                continue
            gain = usual / ratio if figure.less_is_better else ratio / usual
            if gain < GROSS:
                yield f"{figure.name}: {ratio:.2f} of {peer.name}, and {usual:.2f} is committed"


def _rows(figure: Figure) -> Iterator[Sequence[str]]:
    """One row for each target and each peer; what is said once is not said again."""
    about = (figure.name, figure.unit, _spread(figure.runs))
    if figure.limit is not None or not figure.peers:
        yield (*about, "", "", _verdict(figure))
        about = ("", "", "")
    for peer in figure.peers:
        detail = f", {peer.detail}" if peer.detail else ""
        against = f"{peer.name} {_spread(peer.runs)}{detail}"
        yield (*about, against, _spread(figure.ratios(peer)), _verdict(figure, peer))
        about = ("", "", "")


def _spread(runs: Sequence[float]) -> str:
    """The median, and the extremes where they are others."""
    middle = _number(statistics.median(runs))
    if len(runs) == 1:
        return middle
    return f"{middle} ({_number(min(runs))} to {_number(max(runs))})"


def _number(value: float) -> str:
    """With three digits that count, and never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _verdict(figure: Figure, peer: Peer | None = None) -> str:
    met = figure.met(peer)
    if met is None:
        return ""
    return f"{figure.target(peer)}: {'met' if met else 'MISSED'}"
