"""What users and files say: URIs, connection files, command lines.

The words of a user may be repeated as they are, as the log makes them printable; what is somebody
else's, a connection file, is repeated in a printable way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from spicebridge.cli.plain import read_plain
from spicebridge.cli.spec import parse_custom_channel
from spicebridge.cli.target import _secure_channels
from spicebridge.errors import UsageError
from spicebridge.transport.address import parse_host_port
from spicebridge.transport.connection_file import parse_connection_file
from spicebridge.transport.proxy_address import parse_proxy
from spicebridge.transport.subject import format_subject, matches, parse_subject
from spicebridge.transport.target import Trust
from spicebridge.transport.trust import _pin
from spicebridge.transport.uri import parse_uri
from tests.fuzz.script import Parser, Script, told


def _argument(script: Script) -> str:
    """An argument or a variable: no NUL, and bytes that are no UTF-8 stay what they are."""
    return script.rest().replace(b"\0", b"?").decode(errors="surrogateescape")


def _reads(read: Callable[[str], object], text: str) -> bool:
    """What a user writes is read, or refused."""
    try:
        read(text)
    except UsageError:
        return False
    return True


def uri(script: Script) -> bool:
    """A server's URI."""
    target = parse_uri(_argument(script))
    assert target.identities
    return True


def connection_file(script: Script) -> bool:
    """A connection file."""
    try:
        text = script.rest().decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return bool(str(parse_connection_file(text, "vm.vv").target))


def proxy(script: Script) -> bool:
    """A proxy's URI."""
    told(str(parse_proxy(_argument(script))))
    return True


def subject(script: Script) -> bool:
    """A subject, which is read again from what is shown of it, if all of that can be."""
    parsed = parse_subject(_argument(script))
    shown = told(format_subject(parsed))
    if "\N{REPLACEMENT CHARACTER}" not in shown:
        assert matches(parse_subject(shown), parsed)
    return True


def pinned_key(script: Script) -> bool:
    """A pinned key."""
    return len(_pin(Trust(pinned_key=_argument(script)))) == 32


def custom_channel(script: Script) -> bool:
    """A --custom-channel, of a bridge or of `serve`."""
    (serving,) = script.flags(1)
    return _reads(partial(parse_custom_channel, serving=serving), _argument(script))


def host_port(script: Script) -> bool:
    """Where to listen."""
    return _reads(parse_host_port, _argument(script))


def secure_channels(script: Script) -> bool:
    """Channels that are to be linked with TLS only."""
    return _reads(_secure_channels, _argument(script))


def command_line(script: Script) -> bool:
    """A whole command line, a word a line; what is not plain is left to Typer."""
    options = read_plain(_argument(script).split("\n"))
    return options is not None and _reads(parse_custom_channel, options.custom_channel[0])


PARSERS: Final[Sequence[Parser]] = (
    uri,
    connection_file,
    proxy,
    subject,
    pinned_key,
    custom_channel,
    host_port,
    secure_channels,
    command_line,
)
