"""The keys of a connection file's group ``[virt-viewer]``, and their values.

The keys are those of virt-viewer's virt-viewer-file.c, and are read as there:

- ``port`` or ``tls-port`` of 0, -1 or nothing is as if it were not there: spice-gtk cannot connect
  to it, and goes on to the other one.
- Keys that begin with ``x-`` are extensions. ``;key=`` is meant as a comment by some who write
  these files, though it is none for GLib.

Unlike there, a key that we use cannot be given twice with different values.
"""

from __future__ import annotations

import logging
import re
from typing import Final

from spicebridge.errors import UsageError
from spicebridge.transport.address import MAX_PORT
from spicebridge.transport.keyfile import Entry

_USED: Final = frozenset(
    {
        "ca",
        "delete-this-file",
        "host",
        "host-subject",
        "password",
        "port",
        "proxy",
        "secure-channels",
        "tls-ciphers",
        "tls-port",
        "type",
        "unix-path",
        "username",
    }
)

_IGNORED: Final = frozenset(
    {
        "color-depth",
        "disable-channels",
        "disable-effects",
        "enable-smartcard",
        "enable-usb-autoshare",
        "enable-usbredir",
        "fullscreen",
        "newer-version-url",
        "release-cursor",
        "secure-attention",
        "smartcard-insert",
        "smartcard-remove",
        "title",
        "toggle-fullscreen",
        "usb-device-reset",
        "usb-filter",
        "version",
        "versions",
        "zoom-in",
        "zoom-out",
        "zoom-reset",
    }
)
"""About windows, devices and the version of virt-viewer.

disable-channels is ignored by virt-viewer too, and here nothing is linked but what is asked for.
"""

log = logging.getLogger(__name__)


class ConnectionValues:
    """The values of the keys that we use; what is not known at all is warned of.

    Args:
        entries: of the group.
        name: of the file, for messages.

    Raises:
        UsageError: a key has two values. So do the methods, for a value that cannot be read.
    """

    def __init__(self, entries: list[Entry], name: str) -> None:
        self.name = name
        self._entries: dict[str, Entry] = {}
        unknown: dict[str, None] = {}  # a set that keeps its order
        for entry in entries:
            if entry.key in _USED and not entry.translation:
                first = self._entries.setdefault(entry.key, entry)
                if first.raw != entry.raw:
                    lines = f"lines {first.line} and {entry.line}"
                    raise UsageError(f"{lines} have different values of {entry.key}", "keep one")
            elif entry.key not in _USED | _IGNORED and not entry.key.startswith((";", "x-")):
                unknown[entry.key] = None
        for key in unknown:
            log.warning("%s: %r is unknown, and cannot be honoured", name, key)

    def where(self, key: str) -> str:
        """The line of a key that is there, for messages."""
        return f"line {self._entries[key].line}"

    def text(self, key: str) -> str:
        """The value of a string; empty for none."""
        return self._entries[key].text() if key in self._entries else ""

    def items(self, key: str) -> list[str]:
        """The value of a list; empty for none."""
        return self._entries[key].items() if key in self._entries else []

    def number(self, key: str) -> int:
        """The value of an integer; 0 for none."""
        raw = self._entries[key].raw.strip() if key in self._entries else ""
        if not re.fullmatch("[+-]?[0-9]{1,9}|", raw):
            raise UsageError(f"{self.where(key)}: {key} is no number")
        return int(raw or "0")

    def port(self, key: str) -> int | None:
        """The value of a port; None for none."""
        number = self.number(key)
        if not -1 <= number <= MAX_PORT:
            raise UsageError(f"{self.where(key)}: {key} is not from 1 to {MAX_PORT}")
        return number if number > 0 else None
