"""Runs that take turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

_Name = TypeVar("_Name")
_Result = TypeVar("_Result")


def rounds(runs: Mapping[_Name, Callable[[], _Result]], count: int) -> dict[_Name, list[_Result]]:
    """Lets everybody run once in each round, in the order given, and returns what each returned.

    There is one round more, the first, which only warms up.
    """
    done = [{name: run() for name, run in runs.items()} for _ in range(count + 1)][1:]
    return {name: [each[name] for each in done] for name in runs}
