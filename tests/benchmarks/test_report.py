"""The guard against regressions, and what is written of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import report
from tests.benchmarks.figure import Figure, Peer
from tests.benchmarks.report import Report


def figure(ratio: float, *, less_is_better: bool = False, name: str = "bulk") -> Figure:
    return Figure(name, "u", [ratio * 100], [Peer("P", [100.0], 1.0)], less_is_better)


@pytest.mark.parametrize(
    ("now", "less_is_better", "worse"),
    [
        (0.61, False, False),
        (0.59, False, True),
        (9.0, False, False),
        (2.39, True, False),
        (2.41, True, True),
        (0.1, True, False),
    ],
)
def test_regression_is_worse_than_half_of_the_committed_ratio(
    now: float, less_is_better: bool, worse: bool
) -> None:
    measured = figure(now, less_is_better=less_is_better)
    committed = figure(1.2, less_is_better=less_is_better)
    assert bool(list(report.regressions([measured], [committed]))) is worse


def test_regression_says_what_is_worse() -> None:
    said = list(report.regressions([figure(0.5)], [figure(1.2)]))
    assert said == ["bulk: 0.50 of P, and 1.20 is committed"]


def test_absolute_figures_are_no_regressions() -> None:
    slow = Figure("bulk", "MB/s", [1.0], [Peer("P", [1.0])], limit=100.0)
    fast = Figure("bulk", "MB/s", [900.0], [Peer("P", [900.0])], limit=100.0)
    assert not list(report.regressions([slow], [fast]))


def test_every_peer_counts_and_what_is_not_committed_does_not() -> None:
    now = Figure("bulk", "u", [1.0], [Peer("P", [1.0]), Peer("L", [9.0])])
    before = Figure("bulk", "u", [1.0], [Peer("P", [1.0]), Peer("L", [1.0])])
    assert len(list(report.regressions([now], [before]))) == 1
    assert not list(report.regressions([now], [figure(9.0, name="another")]))


def test_written_and_read(tmp_path: Path) -> None:
    whole = Report("today", 2, {"cpu": "x", "kernel": "6"}, [figure(1.0), figure(2.0, name="b")])
    path = tmp_path / "report.json"
    whole.write(path)
    assert report.read(path) == whole
    assert sum('"name": "b"' in line for line in path.read_text().splitlines()) == 1


def test_what_is_committed_can_be_read() -> None:
    committed = report.read(Path(__file__).with_name("committed.json"))
    assert committed.figures
    assert all(line.count("|") == 7 for line in report.markdown(committed))


def test_markdown_has_a_row_for_each_peer() -> None:
    peers = [Peer("P", [4.0, 2.0, 2.0], 1.1), Peer("L", [4.0, 4.0, 4.0], detail="socat")]
    whole = Report("today", 2, {}, [Figure("bulk", "MB/s", [2.0, 3.0, 1.0], peers)])
    assert list(report.markdown(whole))[2:] == [
        "| bulk | MB/s | 2 (1 to 3) | P 2 (2 to 4) | 0.5 (0.5 to 1.5) | ≥ 1.1: MISSED |",
        "|  |  |  | L 4 (4 to 4), socat | 0.5 (0.25 to 0.75) |  |",
    ]


def test_machine_is_one_line() -> None:
    whole = Report("today", 2, {"cpu": "Z80", "kernel": "6.1", "gcc": "12", "socat": "1.7"}, [])
    assert report.machine(whole) == "today; Z80, 2 cores; Linux 6.1; gcc 12, socat 1.7"
