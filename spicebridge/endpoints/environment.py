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


def environment() -> dict[str, str]:
    """Ours, less what is or may have a secret, for a program that we start."""
    return {name: value for name, value in os.environ.items() if not _may_be_secret(name, value)}


def _may_be_secret(name: str, value: str) -> bool:
    if name in {URI_VARIABLE, PROXY_VARIABLE}:
        return without_secrets(value) != value
    return name == PASSWORD_VARIABLE
