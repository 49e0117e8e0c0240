"""``make soak``: everything that may befall bridges, mixed, and nothing may be lost or left.

Actors run at the same time, each a process with servers, bridges and applications of its own. What
befalls them is thrown with dice, whose seed is printed. Once a minute there is a line, and in the
end a table; SIGINT and SIGTERM bring that about early, once every actor has come to the end of what
it does. Bytes are lost when they are missing, doubled, reordered or stuck, and the application saw
neither end of file nor an error. A process leaks when it has more descriptors, children or memory
in the end than it had when it was warm. What went wrong is in .cache/soak, and makes the status 1;
servers that are not ours and crash are only told of.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile

from tests.soak import tally
from tests.soak.actor import FINDINGS
from tests.soak.actors import ACTORS
from tests.soak.run import run


def main() -> int:
    """Runs the actors that are named, or all; returns 1 if anything was lost or leaked."""
    args = _arguments()
    print(f"seed {args.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder  # `spicebridge list` of the user's does not see ours
        tallies = run(args.actors or list(ACTORS), args.seed, args.minutes)
    print("", *tally.table(tallies), "", sep="\n")
    total = tally.whole(tallies)
    for told, times in total.crashes.items():
        print(f"not ours, {times} times: {told}", file=sys.stderr)
    for told in (*total.lost, *total.failed):
        print(f"{told.splitlines()[0]}; see {FINDINGS}", file=sys.stderr)
    print(tally.line(total))
    return 1 if total.lost or total.failed or total.leaks else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.soak", description=__doc__)
    parser.add_argument("actors", nargs="*", metavar="ACTOR", help=f"of {', '.join(ACTORS)}")
    parser.add_argument("--minutes", type=float, default=10.0, help="10 by default")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of the dice")
    args = parser.parse_args()
    if unknown := set(args.actors) - set(ACTORS):
        parser.error(f"there is no actor {', '.join(sorted(unknown))}")
    return args


if __name__ == "__main__":
    sys.exit(main())
