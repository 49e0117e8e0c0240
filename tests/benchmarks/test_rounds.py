"""Who runs when."""

from __future__ import annotations

from functools import partial

from tests.benchmarks.rounds import rounds


def test_they_alternate_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def run(name: str) -> int:
        order.append(name)
        return len(order)

    done = rounds({name: partial(run, name) for name in ("ours", "theirs")}, 2)
    assert order == ["ours", "theirs"] * 3
    assert done == {"ours": [3, 5], "theirs": [4, 6]}
