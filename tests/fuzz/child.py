"""One target in libFuzzer: the only process that has atheris, and the parsers instrumented.

``python -m tests.fuzz.child TARGET [OPTION or FILE]…``, as ``__main__.py`` runs it; the options are
libFuzzer's. With a FILE it runs that input alone.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Final

import atheris

_LIBRARIES: Final = ("scramp", "h11", "wsproto", "socksio", "cheroot", "wsgidav")
"""What parses on our behalf: inputs that get further in them are worth keeping."""


def main() -> None:
    """Runs until libFuzzer ends the process."""
    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["spicebridge", *_LIBRARIES]):
        from tests.fuzz import targets
        from tests.fuzz.script import play

        parsers = targets.parsers(name)
    logging.disable()

    def run(data: bytes) -> None:
        try:
            play(parsers, data)
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding
            traceback.print_exc()
            os.abort()  # libFuzzer saves the input; leaving by atheris' own way, threads may hang

    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


main()
