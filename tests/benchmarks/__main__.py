"""``make bench``: what we do, always beside a peer that does the same in the same run.

Medians and the ratios of pairs are printed. Absolute figures mean nothing beyond this machine and
this minute. ``python -m tests.benchmarks webdav`` measures that alone.
"""

from __future__ import annotations

import os
import platform
import sys

from tests.benchmarks import bulk, tls, webdav

_ALL = {"bulk": bulk.measure, "tls": tls.measure, "webdav": webdav.measure}
_ROW = "{:<24} {:>11} {:>18} {:>8}  {}"


def main() -> None:
    """Measures what is named, or all, and prints the table as it grows."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(_ROW.format("figure", "spicebridge", "against", "", "ratio, median (min to max)"))
    for name in sys.argv[1:] or _ALL:
        for figure in _ALL[name]():
            print(_ROW.format(*figure.row()), flush=True)


if __name__ == "__main__":
    main()
