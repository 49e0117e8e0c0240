"""``make fuzz``: lets libFuzzer, through atheris, look for inputs that a parser does not expect.

Each target runs in a process, some at once, from the seeds in the tree on. An input must lead to a
result or to one of our own errors, in one line; in bounded time and memory; and to the same one
however it is cut. What is found is saved in .cache/fuzz, and told with the command that shows it
again.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import anyio

from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS

_MEMORY: Final = Path("/dev/shm")
"""A file system without a disk, where there is one: the target `share` makes many small files."""


def main() -> int:
    """Fuzzes what is named, or all; returns 1 if anything was found."""
    args = _arguments()
    if find_spec("atheris") is None:
        print(
            "fuzzing needs atheris, which is made for CPython 3.11 to 3.14 on Linux with glibc on "
            f"x86_64; this is {platform.python_implementation()} {platform.python_version()} "
            f"on {platform.system()} on {platform.machine()}: nothing was fuzzed",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory(
        prefix="sb-", dir=_MEMORY if _MEMORY.is_dir() else None
    ) as place:
        targets = args.targets or list(TARGETS)
        return anyio.run(_fuzz_all, targets, args.seconds, args.jobs, Path(place))


async def _fuzz_all(targets: Sequence[str], seconds: int, jobs: int, place: Path) -> int:
    slots = anyio.CapacityLimiter(jobs)
    result = 0

    async def one(target: str) -> None:
        nonlocal result
        async with slots:
            outcome = await fuzz(target, seconds, place)
        print(outcome, flush=True)
        result = result or bool(outcome.found)

    async def watch_signals() -> None:
        nonlocal result
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                result = 128 + number
                running.cancel_scope.cancel()

    async with anyio.create_task_group() as watching:
        async with anyio.create_task_group() as running:
            watching.start_soon(watch_signals)
            for target in targets:
                running.start_soon(one, target)
        watching.cancel_scope.cancel()  # not before: a second signal must not end us half done
    return result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="; ".join(f"{name}: {what}" for name, what in TARGETS.items()),
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each target; 60 by default")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=cores, help=f"at once; {cores} by default")
    args = parser.parse_args()
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    return args


if __name__ == "__main__":
    sys.exit(main())
