"""What every local end has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from spicebridge.transport.stream import Stream


class Application:
    """One application at a local end; its owner awaits `aclose`.

    Args:
        stream: bytes to and from it.
        name: who it is, for the log: ``pid 4242 (socat)``.
        linger: seconds of silence from the guest after which an application that has ended its
            sending is done; None to wait until it takes nothing more.
        ends_with_output: whether it is done as soon as it takes nothing more, even while it still
            could send (stdout of a shell pipeline).
        send_break: gives it a break, as on a serial line, behind all that was written before;
            None where there is no such thing.
    """

    def __init__(
        self,
        stream: Stream,
        name: str,
        *,
        linger: float | None = None,
        ends_with_output: bool = False,
        send_break: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.stream = stream
        self.name = name
        self.linger = linger
        self.ends_with_output = ends_with_output
        self.send_break = send_break

    @property
    def gone(self) -> bool:
        """Whether it has gone and left nothing that could still be sent for it."""
        return self.stream.hung_up() and not self.stream.unread()

    async def aclose(self) -> None:
        """Lets it go.

        Raises:
            ApplicationError: it was a program of ours and ended with a status other than 0.
        """
        self.stream.close()


class Endpoint(ABC):
    """A local end. As a context manager it creates what applications meet us at, and removes it.

    Attributes:
        name: as in the specification: ``unixsocket=/tmp/s``.
        waits: whether applications come by themselves, so that `accept` is called again and again;
            otherwise one call brings the one that there is.
        repeats: whether another application can come after one has gone.
    """

    name: str
    waits: bool
    repeats: bool

    async def open(self) -> None:  # noqa: B027 - many have nothing to create
        """Creates it, or finds out that it cannot work.

        Raises:
            EndpointError: saying what is in the way.
        """

    @abstractmethod
    async def accept(self) -> Application:
        """Waits for the next application. When cancelled, none has been taken.

        Raises:
            EndpointError: there will be none.
        """

    def close(self) -> None:  # noqa: B027 - as above
        """Removes what `open` created."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
