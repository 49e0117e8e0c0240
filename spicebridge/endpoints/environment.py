"""The variables of the environment that we read, and what of it the programs that we start get."""

from __future__ import annotations

import os
from typing import Final

from spicebridge.transport.authority import without_secrets

PASSWORD_VARIABLE: Final = "SPICEBRIDGE_PASSWORD"  # noqa: S105 - its name, not its value
"""The password."""
URI_VARIABLE: Final = "SPICEBRIDGE_URI"
"""The server, perhaps with a password in its URI."""
PROXY_VARIABLE: Final = "SPICE_PROXY"
"""As spice-gtk has it: the proxy, perhaps with the password of a login."""


_SERVICE_MANAGER: Final = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_")
"""Beginnings of what a service manager says to us alone (sd_notify(3), sd_watchdog_enabled(3),
sd_listen_fds(3)): no program of ours is to speak for us, or to look for descriptors."""


def environment() -> dict[str, str]:
    """Ours, for a program that we start: less what is or may have a secret, and what is for us."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_SERVICE_MANAGER) and not _may_be_secret(name, value)
    }


def _may_be_secret(name: str, value: str) -> bool:
    if name in {URI_VARIABLE, PROXY_VARIABLE}:
        return without_secrets(value) != value
    return name == PASSWORD_VARIABLE
