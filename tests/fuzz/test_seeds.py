"""Every seed of the fuzzers is what its name says: good, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.script import play
from tests.fuzz.targets import SEEDS, TARGETS, parsers


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_what_their_names_say(target: str) -> None:
    family = parsers(target)
    chosen = set()
    for seed in sorted((SEEDS / target).iterdir()):
        data = seed.read_bytes()
        chosen.add(data[0])
        kind, _, _ = seed.name.partition("-")
        ended = play(family, data)
        assert kind == "any" or ended == (kind == "good"), seed.name
    assert chosen == set(range(len(family))), "each parser has something to begin with"


def test_seeds_are_small() -> None:
    sizes = {path: path.stat().st_size for path in SEEDS.rglob("*") if path.is_file()}
    assert max(sizes.values()) <= 16 * 1024
    assert {path.parent for path in sizes} == {Path(SEEDS, target) for target in TARGETS}
