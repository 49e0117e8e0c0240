"""The asked-for answer, on stdout."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from spicebridge import SpicebridgeError

if TYPE_CHECKING:
    from rich.console import RenderableType


class OutputClosedError(SpicebridgeError):
    """Nobody reads our answer any more, as in ``spicebridge list | head -1``."""

    exit_code = 141  # 128 + SIGPIPE, what a shell sees of a program that the signal ended


def print_answer(answer: RenderableType) -> None:
    """Prints it.

    Raises:
        OutputClosedError: stdout has been closed.
    """
    from rich.console import Console  # here, as most commands print nothing

    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(answer, soft_wrap=True)
    write_answer(captured.get())


def write_answer(text: str) -> None:
    """Writes plain text.

    Raises:
        OutputClosedError: stdout has been closed.
    """
    if sys.stdout is None:  # as Python has it when started with it closed
        raise OutputClosedError("stdout is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        # what is still buffered must not fail once more when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputClosedError("nobody reads stdout") from error
    except OSError as error:
        raise SpicebridgeError(f"writing to stdout: {error.strerror}") from error
