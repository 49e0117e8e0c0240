"""Which server is meant: a URI or a connection file, and the options that say how to reach it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from spicebridge import (
    DEFAULT_URI,
    PROXY_VARIABLE,
    URI_VARIABLE,
    USER_DEFINED_START,
    Target,
    UsageError,
    channel_types,
    check_target,
    parse_uri,
)

log = logging.getLogger("spicebridge")

_STDIN: Final = "-"
_FILE: Final = ".vv"


@dataclass(frozen=True)
class ReachOptions:
    """What the command line says of the way to a server; None or empty where it says nothing."""

    ca_file: Path | None = None
    host_subject: str | None = None
    pinned_key: str | None = None
    tls_ciphers: str | None = None
    insecure_tls: bool = False
    secure_channels: str | None = None
    proxy: str | None = None
    sasl_mechanism: str | None = None


def server_target(uri: str | None, options: ReachOptions, *, stdio: bool = False) -> Target:
    """The server that an argument, the environment or the default names.

    What the command line says of it comes before what a connection file says, and that before the
    environment. A connection file that asks for it is deleted, once nothing is wrong with it nor
    with the options: its ticket works once.

    Args:
        uri: the argument; None where there is none.
        options: what else the command line says of the way to it.
        stdio: whether standard input is an application's already.

    Raises:
        UsageError: it cannot be understood, or asks for what cannot be.
    """
    named = uri if uri is not None else os.environ.get(URI_VARIABLE) or DEFAULT_URI
    if not _is_file(named):
        return _with_options(_parse(named), options)
    if named == _STDIN and stdio:
        raise UsageError(
            "standard input is asked for twice, for a connection file and for stdio",
            f"name the file: FILE{_FILE}",
        )
    from spicebridge import delete_connection_file, read_connection_file

    file = read_connection_file(named)
    target = _with_options(file.target, options)
    if file.delete and named != _STDIN:
        delete_connection_file(named)
    return target


def _is_file(named: str) -> bool:
    return named == _STDIN or ("://" not in named and named.endswith(_FILE))


def _parse(uri: str) -> Target:
    if "://" not in uri and Path(uri).is_file():
        raise UsageError(f"{uri!r} is no SPICE URI", f"name a connection file as FILE{_FILE}")
    return parse_uri(uri)


def _with_options(target: Target, options: ReachOptions) -> Target:
    trust = target.trust
    if options.ca_file is not None:
        trust = replace(trust, ca="", ca_file=str(options.ca_file))
    if options.host_subject is not None:
        trust = replace(trust, host_subject=options.host_subject)
    if options.pinned_key is not None:
        trust = replace(trust, pinned_key=options.pinned_key)
    if options.tls_ciphers is not None:
        trust = replace(trust, ciphers=options.tls_ciphers)
    if options.insecure_tls:
        trust = replace(trust, insecure=True)
    target = replace(target, trust=trust)
    if options.secure_channels is not None:
        target = replace(target, secure_channels=_secure_channels(options.secure_channels))
    if options.sasl_mechanism is not None:
        target = replace(target, sasl_mechanism=options.sasl_mechanism)
    proxy = options.proxy
    if proxy is None and target.proxy is None:
        proxy = os.environ.get(PROXY_VARIABLE)
    if proxy is not None:
        from spicebridge import parse_proxy

        target = replace(target, proxy=parse_proxy(proxy) if proxy else None)
    _refuse_unchecked(options, target)
    check_target(target)
    if options.proxy is not None and target.proxy is not None and target.proxy.password:
        log.warning(
            "the proxy's URI has a password, which the list of processes shows to other users; "
            "$%s keeps it from them",
            PROXY_VARIABLE,
        )
    if options.insecure_tls:
        log.warning(
            "--insecure-tls: nobody checks who the server is; whoever is on the way to it can read "
            "and change everything, the password included"
        )
    return target


def _refuse_unchecked(options: ReachOptions, target: Target) -> None:
    """Refuses to be told who the server has to be, where nothing would check it."""
    if target.secure is not None:
        return
    for name, value in {
        "--host-subject": options.host_subject,
        "--pinned-key": options.pinned_key,
    }.items():
        if value:
            raise UsageError(
                f"{name} is for TLS, and {target} is to be reached without it",
                "write spice+tls://HOST:PORT or spice://HOST?tls-port=PORT, or leave it out",
            )


def _secure_channels(text: str) -> frozenset[int]:
    """Reads ``main,port,200`` or ``all``."""
    types: set[int] = set()
    for name in text.split(","):
        try:
            types |= channel_types(name)
        except ValueError:
            raise UsageError(
                f"--secure-channels: {name!r} is no channel type",
                f"write names such as main,port, numbers from {USER_DEFINED_START} on, or all",
            ) from None
    return frozenset(types)
