"""How a target reads a fuzzer's input: some choices, then what the peer says, cut anywhere.

Every target is a family of parsers, of which the first byte chooses one. A parser is a function
that returns whether what the peer said came to its good end. A `SpicebridgeError` is as good an
answer, as long as it is one line that can be shown; any other exception is a finding.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from spicebridge.errors import SpicebridgeError

T = TypeVar("T")

Parser = Callable[["Script"], bool]

_SIZES: Final = [
    random.Random(seed).choices((1, 1, 2, 3, 5, 7, 17, 300), k=32) for seed in range(256)
]
"""Of the first pieces that something is cut into, for each byte."""


class Script:
    """An input; where it ends, zeros follow."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether there is anything left."""
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """The next `count` bytes, or what there is of them."""
        data = self._data[self._at : self._at + count]
        self._at += len(data)
        return data

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def number(self, size: int = 1) -> int:
        """The next number of so many bytes, little-endian."""
        return int.from_bytes(self.take(size), "little")

    def choice(self, options: Sequence[T]) -> T:
        """One of some."""
        return options[self.number() % len(options)]

    def flags(self, count: int) -> list[bool]:
        """The lowest bits of the next byte."""
        bits = self.number()
        return [bool(bits >> at & 1) for at in range(count)]


def cut(data: bytes, seed: int) -> Iterator[bytes]:
    """`data` in pieces that depend on `seed`, a byte; they grow, so that there are never many."""
    at = 0
    for round_ in itertools.count():
        for size in _SIZES[seed]:
            if at >= len(data):
                return
            yield data[at : at + (size << round_)]
            at += size << round_


def play(parsers: Sequence[Parser], data: bytes) -> bool:
    """Runs one input; returns whether it came to its good end, and not to an error."""
    script = Script(data)
    parser = script.choice(parsers)
    try:
        return parser(script)
    except SpicebridgeError as error:
        told(error)
        return False


def told(error: SpicebridgeError | str) -> str:
    """The text of an error, which must be one line without control characters."""
    text = str(error)
    assert text.isprintable(), f"not to be shown: {text!r}"
    return text
