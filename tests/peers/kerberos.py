"""A Kerberos realm of its own: a KDC, a keytab for servers and tickets for users.

Everything lies in one folder, and nothing of the system's Kerberos is read: programs find the
realm by the environment alone (`Realm.env`). Any host name that a client asks for will do, for
there is one key for all of them, and servers take any ticket that is made with it.
"""

import os
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from .processes import PATIENCE, PeerError, Process, free_port, wait_until

REALM = "SPICE.TEST"

_PORT_ATTEMPTS = 5


class Realm:
    """A running KDC.

    Args:
        folder: where its files go; the caller removes it.
        services: names of services, such as `spice/localhost`, whose keys are in the keytab.

    Attributes:
        env: what programs need in their environment to be in the realm; the tickets of `login`
            are there as well.
        keytab: the keys of the services.
    """

    def __init__(self, folder: Path, services: Iterable[str]) -> None:
        self._folder = folder
        self.keytab = folder / "keytab"
        self.env = {
            "KRB5_CONFIG": str(folder / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(folder / "kdc.conf"),
            "KRB5_KTNAME": f"FILE:{self.keytab}",
            "KRB5CCNAME": f"FILE:{folder}/tickets",
        }
        self._configure(free_port())
        self._run("kdb5_util", "create", "-s", "-P", "master")
        for service in services:
            self._run("kadmin.local", "addprinc", "-randkey", service)
            self._run("kadmin.local", "ktadd", "-k", self.keytab, service)
        self._start()

    def _configure(self, port: int) -> None:
        self._port = port
        (self._folder / "krb5.conf").write_text(_CLIENT.format(realm=REALM, port=port))
        profile = _KDC.format(realm=REALM, port=port, folder=self._folder)
        (self._folder / "kdc.conf").write_text(profile)

    def _start(self) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            self.process = Process(["/usr/sbin/krb5kdc", "-n"], env=self.env)
            try:
                wait_until(self._answers, what="the KDC does not answer", timeout=PATIENCE)
            except PeerError as error:
                failure = self.process.error(str(error))
                self.process.stop()
                if attempt == _PORT_ATTEMPTS - 1:
                    raise failure from error
                self._configure(free_port())
            else:
                return

    def _answers(self) -> bool:
        if self.process.popen.poll() is not None:
            raise PeerError("the KDC has ended")
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE).close()
        except ConnectionRefusedError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()

    def add_user(self, name: str, password: str) -> None:
        """Add a user."""
        self._run("kadmin.local", "addprinc", "-pw", password, name)

    def login(self, name: str, password: str) -> None:
        """Get a user's tickets, as the user would with kinit."""
        self._run("kinit", name, stdin=f"{password}\n")

    def _run(self, program: str, *args: str | Path, stdin: str = "") -> None:
        path = f"{os.environ['PATH']}:/usr/sbin"
        ran = subprocess.run(
            [program, *args],
            env={**os.environ, **self.env, "PATH": path},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if ran.returncode:
            raise PeerError(f"{program} ended with {ran.returncode}: {ran.stderr}")


_CLIENT = """\
[libdefaults]
    default_realm = {realm}
    dns_lookup_realm = false
    dns_lookup_kdc = false
    dns_canonicalize_hostname = false
    rdns = false
    udp_preference_limit = 1
    ignore_acceptor_hostname = true
[realms]
    {realm} = {{
        kdc = 127.0.0.1:{port}
    }}
"""

_KDC = """\
[kdcdefaults]
    kdc_listen = 127.0.0.1:{port}
    kdc_tcp_listen = 127.0.0.1:{port}
[realms]
    {realm} = {{
        database_name = {folder}/principals
        key_stash_file = {folder}/stash
        acl_file = {folder}/acl
        master_key_type = aes256-cts
        supported_enctypes = aes256-cts:normal
    }}
[logging]
    kdc = STDERR
"""
