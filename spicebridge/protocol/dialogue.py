"""A conversation in fixed steps (link, login) as a generator, without I/O.

A dialogue yields an ``int`` when it wants exactly that many bytes from the peer and ``bytes`` when
it has something to say, so that a handshake reads top to bottom like its specification. `Exchange`
drives one and takes the peer's bytes however they are cut.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")

Dialogue = Generator[int | bytes, bytes, T]


class Exchange(Generic[T]):
    """Drives one dialogue.

    Attributes:
        needed: bytes still wanted before the dialogue can go on; 0 once it is done. A driver that
            never reads more than this leaves the bytes that follow the dialogue unread.
        result: what the dialogue returned; only there once `done` is true.
    """

    def __init__(self, dialogue: Dialogue[T]) -> None:
        self._dialogue = dialogue
        self._received = bytearray()
        self._to_send = bytearray()
        self._wanted = 0
        self._results: list[T] = []
        self._advance(None)

    @property
    def done(self) -> bool:
        """Whether the dialogue has come to its end."""
        return bool(self._results)

    @property
    def result(self) -> T:
        """What the dialogue returned."""
        return self._results[0]

    @property
    def needed(self) -> int:
        """Bytes still wanted; 0 once done, or refused."""
        return max(0, self._wanted - len(self._received))

    def data_to_send(self) -> bytes:
        """What has to go to the peer now; each byte is handed out once."""
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    def receive_data(self, data: bytes) -> None:
        """Takes bytes from the peer, cut anywhere.

        Raises:
            ProtocolError, LoginError, LinkRefusedError: as the dialogue says. What `data_to_send`
                returns then is the refusal that the peer should still get.
        """
        self._received += data
        while self._wanted and len(self._received) >= self._wanted:
            step = bytes(self._received[: self._wanted])
            del self._received[: self._wanted]
            self._wanted = 0  # until the dialogue wants more; for ever if it raises
            self._advance(step)

    def _advance(self, step: bytes | None) -> None:
        try:
            # PEP 342: the first step into a generator is a send of None
            wish = self._dialogue.send(step) if step is not None else next(self._dialogue)
            while isinstance(wish, bytes):
                self._to_send += wish
                wish = next(self._dialogue)
            self._wanted = wish
        except StopIteration as stop:
            self._results.append(stop.value)
