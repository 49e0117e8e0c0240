"""Proxies on the way to a SPICE server: HTTP (tinyproxy), SOCKS 5 (microsocks), TLS (stunnel).

Each runs in the foreground on a free port of 127.0.0.1, as whoever runs the tests, and tells from
its own log what it has connected to: that is how a test sees that nothing went past it. The log
has a connection before the client hears of it; IPv6 addresses have no brackets there.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .certificates import CertificateFiles
from .listening import ListeningProcess


@dataclass(frozen=True)
class Login:
    """What a proxy asks for; neither part may hold a space."""

    username: str
    password: str


class Tinyproxy(ListeningProcess):
    """tinyproxy, an HTTP proxy for CONNECT.

    A client that does not log in gets 407, but one with a wrong password 401; one that asks for a
    port other than `allow` gets 403, and one whose port cannot be reached 500.

    Args:
        folder: where its configuration and its log go; the caller removes it.
        login: what it asks for (Basic), if anything.
        allow: the ports that it connects to; all of them if there are none.
    """

    def __init__(
        self, folder: Path, *, login: Login | None = None, allow: Sequence[int] = ()
    ) -> None:
        self.log = folder / "tinyproxy.log"
        config = folder / "tinyproxy.conf"
        lines = [
            "Listen 127.0.0.1",
            f'LogFile "{self.log}"',
            "LogLevel Info",
            "Timeout 3600",  # of silence; by default it is not that patient
            *(f"ConnectPort {port}" for port in allow),
        ]
        if login:
            lines.append(f"BasicAuth {login.username} {login.password}")

        def command(port: int) -> list[str | Path]:
            config.write_text("\n".join([*lines, f"Port {port}", ""]))
            return ["tinyproxy", "-d", "-c", config]

        super().__init__(command)

    def connections(self) -> list[str]:
        """What it has connected to, `HOST:PORT` as clients named it, in the order of asking.

        What it is still trying is among them.
        """
        targets = []
        for line in self.log.read_text().splitlines():
            if asked := re.search(r"opensock: opening connection to (.*)", line):
                targets.append(asked[1])
            elif failed := re.search(r"opensock: Could not .*? (\S+:\d+)", line):
                targets.remove(failed[1])
        return targets


class Microsocks(ListeningProcess):
    """microsocks, a SOCKS 5 proxy that resolves names itself.

    Args:
        login: what it asks for, if anything.
    """

    def __init__(self, *, login: Login | None = None) -> None:
        options = ["-u", login.username, "-P", login.password] if login else []
        super().__init__(lambda port: ["microsocks", "-i", "127.0.0.1", "-p", str(port), *options])

    def connections(self) -> list[str]:
        """What it has connected to, `HOST:PORT` as clients named it, in order."""
        file = self._stderr.fileno()
        log = os.pread(file, os.fstat(file).st_size, 0).decode()
        return re.findall(r": connected to (.*)", log)


class Stunnel(ListeningProcess):
    """stunnel between TLS and plain TCP, in front of a TCP port or with TLS behind it.

    Args:
        folder: where its configuration and its log go; the caller removes it.
        target: the `HOST:PORT` that it connects to.
        certificate: take TLS with it and speak plainly to `target`; before a proxy this makes the
            proxy that clients call https.
        trust: else, take plain connections and speak TLS to `target`, whose certificate one of
            the authorities in this file has to have signed.
    """

    def __init__(
        self,
        folder: Path,
        target: str,
        *,
        certificate: CertificateFiles | None = None,
        trust: Path | None = None,
    ) -> None:
        self.log = folder / "stunnel.log"
        config = folder / "stunnel.conf"
        lines = ["foreground = yes", "pid =", "syslog = no", f"output = {self.log}", "[proxy]"]
        lines += [f"connect = {target}"]
        if certificate:
            lines += [f"cert = {certificate.cert}", f"key = {certificate.key}"]
        else:
            lines += ["client = yes", f"CAfile = {trust}", "verifyChain = yes"]

        def command(port: int) -> list[str | Path]:
            config.write_text("\n".join([*lines, f"accept = 127.0.0.1:{port}", ""]))
            return ["stunnel", config]

        super().__init__(command)

    def connections(self) -> list[str]:
        """What it has connected to: `target`, as often as it has."""
        return re.findall(r"s_connect: connected (.*)", self.log.read_text())
