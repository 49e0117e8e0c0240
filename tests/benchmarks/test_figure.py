"""The arithmetic of figures: ratios, targets, and which peer is the best."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.figure import Figure, Peer, best

PEER = Peer("P", [100.0, 50.0, 80.0], 1.1)


def test_ratios_are_of_the_runs_of_one_round() -> None:
    figure = Figure("bulk", "MB/s", [110.0, 60.0, 80.0], [PEER])
    assert figure.ratios(PEER) == pytest.approx([1.1, 1.2, 1.0])
    assert figure.ratio(PEER) == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("runs", "less_is_better", "met"),
    [
        ([120.0, 120.0, 80.0], False, True),
        ([90.0, 45.0, 72.0], False, False),
        ([90.0, 45.0, 72.0], True, True),
        ([120.0, 60.0, 96.0], True, False),
    ],
)
def test_target_is_a_floor_or_a_ceiling(runs: list[float], less_is_better: bool, met: bool) -> None:
    figure = Figure("f", "u", runs, [PEER], less_is_better)
    assert figure.met(PEER) is met
    assert figure.target(PEER) == ("≤ 1.1" if less_is_better else "≥ 1.1")


def test_limit_is_of_our_own_median() -> None:
    figure = Figure("idle stream", "KiB", [15.0, 16.0, 30.0], less_is_better=True, limit=16)
    assert figure.met() is True
    assert figure.target() == "≤ 16"


def test_without_a_target_there_is_nothing_to_meet() -> None:
    peer = Peer("python3 -c pass", [1.0])
    figure = Figure("start", "ms", [5.0], [peer], less_is_better=True)
    assert (figure.met(), figure.met(peer)) == (None, None)
    assert (figure.target(), figure.target(peer)) == ("", "")


def test_best_of_several_has_the_highest_median() -> None:
    peer = best("L", {"64 KiB": [1.0, 2.0, 9.0], "1 MiB": [3.0, 3.0, 1.0]}, 0.8)
    assert peer == Peer("L", [3.0, 3.0, 1.0], 0.8, "1 MiB")


def test_json_and_back() -> None:
    peers = [Peer("P", [2.0, 4.0], 3.0), Peer("L", [1.0, 2.0], detail="socat")]
    figure = Figure("start", "ms", [3.0, 5.0], peers, less_is_better=True, limit=7.0)
    whole = json.loads(json.dumps(figure.as_json()))
    assert Figure.from_json(whole) == figure
    assert (whole["median"], whole["met"]) == (4.0, True)
    assert [each["ratio"] for each in whole["peers"]] == [1.375, 2.75]
    assert [each["met"] for each in whole["peers"]] == [True, None]


def test_runs_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Figure("f", "u", [1.0, 2.0], [Peer("P", [1.0])]).as_json()
