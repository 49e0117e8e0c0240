"""Key files, the INI dialect of GLib (GKeyFile): groups of ``key=value``, one a line.

Rules are those of GLib's gkeyfile.c and the Desktop Entry Specification that it quotes:

- A comment begins with ``#``; ``;`` does not begin one. Empty lines do not count.
- ``[group]`` stands before the keys of the group. The same group may come again.
- Spaces around the ``=`` do not count. What is behind a value does, spaces too.
- ``key[de]=`` is a translation of ``key=``.
- In a value, ``\\s``, ``\\n``, ``\\t``, ``\\r`` and ``\\\\`` are a space, a newline, a tab, a
  carriage return and a backslash. Items of a list are separated by ``;``, and have ``\\;`` for it.

Python's configparser is for another dialect: it knows other comments, ``:`` and continued lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from spicebridge.errors import UsageError

_GROUP: Final = re.compile(r"\[([^\[\]\0-\x1f]+)\][ \t]*")
_KEY: Final = re.compile(r"([^=\[\]]*[^=\[\]\s])(\[[\w.@-]+\])?\s*=\s*(.*)", re.ASCII)
_ESCAPES: Final = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclass(frozen=True)
class Entry:
    """A key and its value.

    Attributes:
        key: without the mark of a translation.
        raw: the value, its escapes untouched.
        line: where it stands, from 1.
        translation: whether it is for one language only.
    """

    key: str
    raw: str = field(repr=False)
    line: int
    translation: bool = False

    def text(self) -> str:
        """The value as a string.

        Raises:
            UsageError: it has an escape that does not exist.
        """
        return self._unescape(self.raw, _ESCAPES)

    def items(self) -> list[str]:
        """The value as a list of strings, without empty ones and spaces around them.

        Raises:
            UsageError: see `text`.
        """
        items = re.findall(r"(?:[^\\;]|\\.?)+", self.raw)
        escapes = _ESCAPES | {";": ";"}
        return [text for item in items if (text := self._unescape(item, escapes).strip())]

    def _unescape(self, raw: str, escapes: dict[str, str]) -> str:
        def plain(match: re.Match[str]) -> str:
            if (character := escapes.get(match[1])) is None:
                raise UsageError(
                    f"line {self.line}: {self.key} has a backslash that begins no escape",
                    r"write \\ for a backslash",
                )
            return character

        return re.sub(r"\\(.?)", plain, raw)


def read_group(text: str, group: str) -> list[Entry]:
    """Finds the entries of a group in a key file, in their order.

    Raises:
        UsageError: it is no key file, or has no such group. What its lines hold is not repeated.
    """
    entries = []
    current = None
    found = False
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.removesuffix("\r").lstrip()
        if not stripped or stripped.startswith("#"):
            continue
        if match := _GROUP.fullmatch(stripped):
            current = match[1]
            found = found or current == group
        elif (match := _KEY.fullmatch(stripped)) is None:
            raise UsageError(f"line {number} is neither [GROUP] nor KEY=VALUE nor a # comment")
        elif current is None:
            raise UsageError(f"line {number} stands before the first [GROUP]")
        elif current == group:
            entries.append(Entry(match[1], match[3], number, match[2] is not None))
    if not found:
        raise UsageError(f"it has no group [{group}]")
    return entries
