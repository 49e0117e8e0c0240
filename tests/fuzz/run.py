"""One target, for a while: starts libFuzzer in a process of its own, and reads what that tells."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from tests.fuzz.targets import SEEDS

CHECKOUT: Final = Path(__file__).resolve().parents[2]
FINDINGS: Final = CHECKOUT / ".cache" / "fuzz"
"""Where inputs that something was found with, and the logs, are kept; a folder for each target."""

_MAX_INPUT: Final = 4096
"""Bytes; longer messages are made of less, see `conversation` and `wire`."""

_LIMITS: Final = ("-timeout=10", "-rss_limit_mb=256")
"""Seconds that an input may take on a busy machine; MiB of memory, of which some 70 are Python's,
its modules and libFuzzer's own. Nothing that a peer sends may make us need more."""

_PATIENCE: Final = 120.0
"""Seconds that a process may take beside those that it is to fuzz."""

_FIRST_COVERAGE: Final = re.compile(r"INITED cov: (\d+)")
_COVERAGE: Final = re.compile(r"^#\d+\s.* cov: (\d+)", re.MULTILINE)
_STATISTIC: Final = re.compile(r"^stat::(\w+): +(\d+)", re.MULTILINE)
_SAVED: Final = re.compile(r"Test unit written to (.+)")


@dataclass(frozen=True)
class Outcome:
    """What a run of a target has shown.

    Attributes:
        target: its name.
        executions: inputs that were tried.
        speed: of them a second.
        coverage: edges of the program that the seeds reach, and that all inputs have reached.
        memory: MiB, at most.
        found: what is wrong; empty for nothing.
    """

    target: str
    executions: int
    speed: int
    coverage: tuple[int, int]
    memory: int
    found: str

    def __str__(self) -> str:
        before, after = self.coverage
        return (
            f"{self.target:14}{self.executions:>9} inputs {self.speed:>6}/s  "
            f"coverage {before:>4} + {after - before:<3} {self.memory:>4} MiB  "
            f"{self.found or 'nothing found'}"
        )


def outcome(target: str, log: str, code: int) -> Outcome:
    """Reads what libFuzzer has told.

    Args:
        target: its name.
        log: the text.
        code: how the process has ended.
    """
    statistics = {name: int(number) for name, number in _STATISTIC.findall(log)}
    first = _FIRST_COVERAGE.search(log)
    before = int(first[1]) if first else 0
    after = max([before, *map(int, _COVERAGE.findall(log))])
    saved = _SAVED.findall(log)
    found = ""
    if saved:
        found = f"FOUND something: {_again(target, saved[-1])}"
    elif code:
        found = f"FAILED with status {code}: see {FINDINGS / target / 'log'}"
    return Outcome(
        target,
        statistics.get("number_of_executed_units", 0),
        statistics.get("average_exec_per_sec", 0),
        (before, after),
        statistics.get("peak_rss_mb", 0),
        found,
    )


def _again(target: str, path: str) -> str:
    """How to see again what was found."""
    return " ".join([sys.executable, *_command(target), path])


def _command(target: str) -> Sequence[str]:
    return "-m", "tests.fuzz.child", target, *_LIMITS


async def fuzz(target: str, seconds: int, place: Path) -> Outcome:
    """Fuzzes a target; when cancelled, its process is killed.

    Args:
        target: its name.
        seconds: how long.
        place: a folder for new inputs and all that the target leaves behind.
    """
    findings = FINDINGS / target
    findings.mkdir(parents=True, exist_ok=True)
    new, temporary = place / f"{target}-corpus", place / target
    new.mkdir()
    temporary.mkdir()
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={_MAX_INPUT}",
        f"-artifact_prefix={findings}/",
        "-print_final_stats=1",
    ]
    with (findings / "log").open("w+b") as log, anyio.fail_after(seconds + _PATIENCE):
        done = await anyio.run_process(
            [sys.executable, *_command(target), *options, str(new), str(SEEDS / target)],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=CHECKOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        log.seek(0)
        text = log.read().decode(errors="replace")
    return outcome(target, text, done.returncode)
