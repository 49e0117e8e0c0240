"""What can go wrong, as one tree: each class has the exit code of the command line.

Every message is one line that says what was tried and what the peer answered; ``hint`` says what
to try next. The table of exit codes in spicebridge(1) is held against this file by a test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Final, Self


class SpicebridgeError(Exception):
    """Anything that spicebridge refuses or cannot do.

    Args:
        problem: one line: what was tried and what was answered.
        hint: what to try next, or nothing where there is nothing to say.

    Attributes:
        logged: whether the log has told of it already, so that nobody tells it twice.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.logged = False

    def __str__(self) -> str:
        return f"{self.problem}; {self.hint}" if self.hint else self.problem

    def at(self, place: object) -> Self:
        """This error, saying where it happened: a server's address, a bridge's name."""
        self.problem = f"{place}: {self.problem}"
        return self


class UsageError(SpicebridgeError):
    """An option, a URI or a --custom-channel specification that cannot be taken."""

    exit_code = 2


class ConnectError(SpicebridgeError):
    """The server cannot be reached, or did not answer in time."""

    exit_code = 3


class ProtocolError(SpicebridgeError):
    """The peer broke the SPICE protocol, or does not speak it.

    Args:
        message: the message in which it happened, by its name in spice-protocol.
        offset: where, in bytes from the start of what the peer sent on this channel.
        expected: what the protocol asks for.
        got: what was there.
    """

    exit_code = 4

    def __init__(self, message: str, offset: int, expected: str, got: str, hint: str = "") -> None:
        super().__init__(f"{message} at byte {offset}: expected {expected}, got {got}", hint)
        self.message = message
        self.offset = offset
        self.expected = expected
        self.got = got


class LoginError(SpicebridgeError):
    """The server refused the ticket, or offers no login that we know.

    Args:
        problem, hint: see `SpicebridgeError`.
        by_password: whether another password, or one at all, might let us in.
    """

    exit_code = 5

    def __init__(self, problem: str, hint: str = "", *, by_password: bool = False) -> None:
        super().__init__(problem, hint)
        self.by_password = by_password


class ChannelNotFoundError(SpicebridgeError):
    """The server does not offer the channel or port that was asked for."""

    exit_code = 6


class ChannelBusyError(SpicebridgeError):
    """Another client holds the channel."""

    exit_code = 7


class SessionLostError(SpicebridgeError):
    """The server ended the session, or the link to it died."""

    exit_code = 8


class EndpointError(SpicebridgeError):
    """The local end (socket, FIFO, terminal, program) cannot be set up."""

    exit_code = 9


class ApplicationError(SpicebridgeError):
    """A program started by ``exec=`` ended with a status other than 0."""

    exit_code = 10


class LinkRefusedError(SpicebridgeError):
    """The server refused the link for a reason of its own, e.g. that it must be encrypted.

    Args:
        problem, hint: see `SpicebridgeError`.
        error: the number that the server gave (SPICE_LINK_ERR_...); 0 where it gave none.
    """

    exit_code = 11

    def __init__(self, problem: str, hint: str = "", error: int = 0) -> None:
        super().__init__(problem, hint)
        self.error = error


class TakeoverError(SpicebridgeError):
    """Another client takes the session over, again and again."""

    exit_code = 13


class TlsError(SpicebridgeError):
    """TLS could not be set up, or the server's certificate is not to be trusted."""

    exit_code = 12


def printable(text: str) -> str:
    """A text as a terminal can be shown it, on one line: what is not printable is escaped.

    All that a peer has said goes through this before people see it: else it could move the cursor,
    rename the window, forge lines, or turn the order of letters (ESC, BEL, newlines, the C1
    controls, bidirectional overrides).
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


MOST_NAMES: Final = 20
"""Names that one message lists; a server may have thousands, and a name 1023 bytes."""

_LONGEST_NAME: Final = 64


def listing(names: Iterable[str]) -> str:
    """Names that a peer has given, for a message: printable, and of many or long ones the start."""
    every = list(names)
    short = [
        name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        for name in map(printable, every[:MOST_NAMES])
    ]
    more = len(every) - len(short)
    return ", ".join(short) + (f" and {more} more" if more else "")


@contextmanager
def one_error() -> Iterator[None]:
    """Lets the errors of a task group out as what they are: the first of ours, if all are ours.

    A task group wraps even a single error into a group; who asked for something wants the error.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        ours, rest = group.split(SpicebridgeError)
        if ours is None or rest is not None:
            raise
        error: BaseException = ours
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__
