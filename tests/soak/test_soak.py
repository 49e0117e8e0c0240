"""A few seconds of it, so that it cannot rot; and what it says of a loss and of a leak."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import PATIENCE
from tests.soak.leftovers import Held
from tests.soak.tally import Leftover, Tally, line, table, whole

ACTORS = "pouring", "streams", "lying-servers"


@pytest.mark.real_peer
def test_some_actors_for_some_seconds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--minutes", "0.05", "--seed", "6", *ACTORS],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = done.stdout.splitlines()
    assert "lost 0, leaks 0, failed 0" in last
    assert "0 MiB, 0 rounds" not in last


def test_a_loss_and_a_leak_are_told() -> None:
    before, after = Held(12, 0, 30_000), Held(13, 0, 30_000)
    good = Leftover("good", before, before)
    tallies = [
        Tally("one", rounds=3, bytes=1 << 20, lost=["one: it hangs"], leftovers=[good]),
        Tally("two", rounds=4, faults=2, leftovers=[Leftover("bad", before, after)]),
    ]
    total = whole(tallies)
    assert line(total) == "1 MiB, 7 rounds, 2 faults, told 0, lost 1, leaks 1, failed 0"
    (told,) = [row for row in table(tallies) if "LEAKS" in row]
    assert told.split()[:4] == ["bad", "12", "to", "13"]


@pytest.mark.parametrize(
    ("after", "leaks"),
    [
        (Held(12, 1, 38_192), False),
        (Held(11, 0, 20_000), False),
        (Held(12, 1, 38_193), True),
        (Held(13, 1, 30_000), True),
        (Held(12, 2, 30_000), True),
    ],
)
def test_what_is_a_leak(after: Held, leaks: bool) -> None:
    assert Leftover("p", Held(12, 1, 30_000), after).leaks is leaks
