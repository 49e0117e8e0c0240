"""``make bench``: what we do, always beside a peer that does the same in the same rounds.

P is a bridge in C on spice-client-glib, L is socat relaying as many bytes unframed, with the better
of two sizes of its buffer. Medians are printed, with the extremes in brackets, and ratios of pairs:
absolute figures mean nothing beyond this machine and this minute.

``--quick`` compares ratios with those in committed.json, which is what ``--json`` wrote in a full
run; ``--table`` makes the README's table of the same file.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.benchmarks import (
    both,
    bulk,
    compressible,
    demux,
    latency,
    memory,
    messages,
    report,
    sessions,
    start,
    streams,
    tls,
    webdav,
)
from tests.benchmarks.effort import FULL, QUICK, Effort
from tests.benchmarks.figure import Figure
from tests.peers.processes import PeerError

_ALL: Final[dict[str, Callable[[Effort], Iterator[Figure]]]] = {
    "bulk": bulk.measure,
    "latency": latency.measure,
    "messages": messages.measure,
    "both": both.measure,
    "compressible": compressible.measure,
    "tls": tls.measure,
    "start": start.measure,
    "memory": memory.measure,
    "demux": demux.measure,
    "streams": streams.measure,
    "sessions": sessions.measure,
    "webdav": webdav.measure,
}

_QUICK: Final = ("bulk", "latency", "messages", "both", "start", "demux")

_COMMITTED: Final = Path(__file__).with_name("committed.json")


def main() -> int:
    """Measures what is named, or all, and prints the table as it grows."""
    args = _arguments()
    if args.table:
        whole = report.read(args.table)
        print(report.machine(whole), "", *report.markdown(whole), sep="\n")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # ends all children
    committed = report.read(_COMMITTED).figures if args.quick else []
    effort = QUICK if args.quick else FULL
    if args.pairs:
        count = args.pairs
        effort = replace(effort, pairs=count, session_pairs=count, guest_pairs=count)
    whole = report.here()
    print(report.machine(whole))
    print(report.header())
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder  # `spicebridge list` of the user's does not see ours
        for name in args.figures or (_QUICK if args.quick else _ALL):
            try:
                for figure in _ALL[name](effort):
                    whole.figures.append(figure)
                    print(*report.lines(figure), sep="\n", flush=True)
            except PeerError as error:  # the others are worth their time all the same
                failures.append(f"{name}: {error}")
            if args.json:
                whole.write(args.json)
    failures += report.regressions(whole.figures, committed)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(_ALL)}")
    parser.add_argument(
        "--pairs", type=int, help=f"how many rounds count, mostly {FULL.pairs} by default"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="do less, and fail if a ratio is worse than half of the committed one",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it to FILE, too")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print FILE in Markdown")
    args = parser.parse_args()
    if unknown := set(args.figures) - set(_ALL):
        parser.error(f"there is no figure {', '.join(sorted(unknown))}")
    return args


if __name__ == "__main__":
    sys.exit(main())
