"""What QEMU, proxies and a web server answer to who may not come in, as the executable tells it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from spicebridge import (
    ConnectError,
    LinkRefusedError,
    LoginError,
    TlsError,
    UsageError,
)
from tests.cli.reaching import refused
from tests.cli.tools import run
from tests.peers.certificates import Authority, CertificateFiles
from tests.peers.nginx import WebSocketProxy
from tests.peers.processes import free_port
from tests.peers.proxies import Login, Microsocks, Tinyproxy
from tests.peers.qemu import QMP_PORT, Qemu
from tests.peers.qmp_client import QmpClient
from tests.real.tools import JSON_LOG, Start, connection, events, receive_to_end, wait_event

pytestmark = [pytest.mark.real_peer, pytest.mark.usefixtures("nothing_of_the_users")]

SECRET = "Tr0ub4dor3x"
LOGIN = Login("me", SECRET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refusals")


@pytest.fixture(scope="module")
def certificate(folder: Path) -> CertificateFiles:
    return Authority(folder).issue()


@pytest.fixture(scope="module")
def qemu(folder: Path, certificate: CertificateFiles) -> Iterator[Qemu]:
    """One with a ticket, a plain port and one with TLS, where alone the main channel is."""
    with Qemu(folder, tls=certificate, tls_channels=["main"], password=SECRET) as running:
        yield running


def secret_file(folder: Path, secret: str) -> str:
    """A file with a secret."""
    path = folder / "secret"
    path.write_text(f"{secret}\n")
    return str(path)


# Tickets


def test_a_wrong_ticket(qemu: Qemu, certificate: CertificateFiles, short_tmp: Path) -> None:
    line = refused(
        *("list", qemu.tls_uri, "--ca-file", str(certificate.ca)),
        *("--password-file", secret_file(short_tmp, f"{SECRET}y")),
        code=LoginError.exit_code,
        says=(f"127.0.0.1:{qemu.tls_port}", "permission denied", "--password-file"),
    )
    assert SECRET not in line


def test_the_longest_ticket(short_tmp: Path) -> None:
    """Of 60 bytes, libspice-server 0.15 keeps 59 (spice_server_set_ticket); more nobody takes."""
    ticket = (SECRET * 6)[:60]
    with Qemu(short_tmp, password=ticket) as running:
        args = ("list", running.uri, "--password-file", f"{short_tmp}/secret")
        secret_file(short_tmp, ticket[:59])
        assert run(*args).code == 0
        secret_file(short_tmp, ticket)
        refused(*args, code=LoginError.exit_code, says=("permission denied",))
        secret_file(short_tmp, f"{ticket}x")
        refused(*args, code=UsageError.exit_code, says=("61 bytes", "60 at most"))


@pytest.mark.parametrize("how", ["expired", "changed"])
def test_a_ticket_that_was_good_when_the_session_began(
    how: str, spicebridge: Start, short_tmp: Path
) -> None:
    with Qemu(short_tmp, password=SECRET) as running:
        bridge = spicebridge(
            running.uri,
            *JSON_LOG,
            *("--password-file", secret_file(short_tmp, SECRET)),
            *("--custom-channel", f"port={QMP_PORT},unixsocket={short_tmp}/s"),
        )
        with connection(short_tmp / "s") as sock, QmpClient(sock) as monitor:
            monitor.execute("query-status")
        wait_event(bridge, "unlinked")
        if how == "expired":
            running.qmp("expire_password", protocol="spice", time="now")
        else:
            running.qmp("set_password", protocol="spice", password="another")
        with connection(short_tmp / "s") as sock:
            assert receive_to_end(sock) == b""
        told = str(wait_event(bridge, "error")["message"])
        assert "permission denied" in told
        assert "was taken when the session began: it has expired or been changed" in told
        assert "attach=always" in told
        assert len(events(bridge, "error")) == 1
        assert SECRET not in bridge.stderr()


def test_a_channel_that_was_linked_at_once_minds_no_expiry(
    spicebridge: Start, short_tmp: Path
) -> None:
    """What the message names helps."""
    with Qemu(short_tmp, password=SECRET) as running:
        bridge = spicebridge(
            running.uri,
            *JSON_LOG,
            *("--password-file", secret_file(short_tmp, SECRET)),
            *("--custom-channel", f"port={QMP_PORT},unixsocket={short_tmp}/s,attach=always"),
        )
        wait_event(bridge, "linked")
        running.qmp("expire_password", protocol="spice", time="now")
        with connection(short_tmp / "s") as sock, QmpClient(sock) as monitor:
            assert monitor.execute("query-status")["status"] == "prelaunch"
        assert bridge.stop() == 0


def test_a_password_command_is_asked_again(spicebridge: Start, short_tmp: Path) -> None:
    with Qemu(short_tmp, password=SECRET) as running:
        command = shlex.join(["cat", secret_file(short_tmp, SECRET)])
        bridge = spicebridge(
            running.uri,
            *JSON_LOG,
            *("--password-command", command),
            *("--custom-channel", f"port={QMP_PORT},unixsocket={short_tmp}/s"),
        )
        for ticket in ("second", "third"):
            (short_tmp / "secret").write_text(ticket)
            running.qmp("set_password", protocol="spice", password=ticket)
            with connection(short_tmp / "s") as sock, QmpClient(sock) as monitor:
                assert monitor.execute("query-status")["status"] == "prelaunch"
        # when it does not know better, either, that is said, and the bridge goes on
        running.qmp("set_password", protocol="spice", password="fourth")
        with connection(short_tmp / "s") as sock:
            assert receive_to_end(sock) == b""
        assert "permission denied" in wait_event(bridge, "error")["message"]
        (short_tmp / "secret").write_text("fourth")
        with connection(short_tmp / "s") as sock, QmpClient(sock) as monitor:
            assert monitor.execute("query-status")["status"] == "prelaunch"
        assert bridge.stop() == 0
        assert SECRET not in bridge.stderr()


# Ports of another kind


def test_a_server_that_wants_tls_and_we_know_no_port_for_it(qemu: Qemu, short_tmp: Path) -> None:
    says = (f"127.0.0.1:{qemu.port}", "need secured", "spice://HOST?tls-port=PORT")
    args = ("--password-file", secret_file(short_tmp, SECRET))
    refused("list", qemu.uri, *args, code=LinkRefusedError.exit_code, says=says)


def test_tls_on_a_plain_port(qemu: Qemu, certificate: CertificateFiles) -> None:
    uri = f"spice+tls://127.0.0.1:{qemu.port}"
    says = (f"TLS with 127.0.0.1:{qemu.port}", "is that its TLS port?")
    refused("list", uri, "--ca-file", str(certificate.ca), code=TlsError.exit_code, says=says)


def test_a_plain_connection_to_a_tls_port(qemu: Qemu) -> None:
    """QEMU hangs up with what we have sent unread, so that it is a reset."""
    says = (f"127.0.0.1:{qemu.tls_port}", "spice+tls://HOST:PORT if it is for TLS")
    uri = f"spice://127.0.0.1:{qemu.tls_port}"
    refused("list", uri, code=ConnectError.exit_code, says=says)


def test_an_authority_that_nobody_knows(qemu: Qemu, short_tmp: Path) -> None:
    args = ("list", qemu.tls_uri, "--ca-file", str(Authority(short_tmp).ca))
    refused(*args, code=TlsError.exit_code, says=("certificate", "--ca-file"))


def test_websockets_of_the_wrong_kind(qemu: Qemu, certificate: CertificateFiles) -> None:
    args = ("list", f"ws://127.0.0.1:{qemu.tls_port}/", "--ca-file", str(certificate.ca))
    refused(*args, code=ConnectError.exit_code, says=("opening the WebSocket", "wss://"))
    args = ("list", f"wss://127.0.0.1:{qemu.port}/", "--ca-file", str(certificate.ca))
    refused(*args, code=TlsError.exit_code, says=(f"TLS with 127.0.0.1:{qemu.port}",))


# SASL


def sasl_env(folder: Path, mechanisms: str) -> dict[str, str]:
    """The environment of a QEMU that offers these mechanisms, and knows one user."""
    users = folder / "users"
    command = ["saslpasswd2", "-f", str(users), "-c", "-p", "-u", "realm", "-a", "qemu", "alice"]
    subprocess.run(command, input=SECRET.encode(), check=True)
    (folder / "qemu.conf").write_text(
        f"mech_list: {mechanisms}\npwcheck_method: auxprop\n"
        f"auxprop_plugin: sasldb\nsasldb_path: {users}\n"
    )
    return {"SASL_CONF_PATH": str(folder)}


def test_a_server_that_offers_only_mechanisms_that_we_refuse(
    short_tmp: Path, certificate: CertificateFiles
) -> None:
    env = sasl_env(short_tmp, "digest-md5 cram-md5")
    with Qemu(short_tmp, tls=certificate, extra=["-spice", "sasl=on"], env=env) as running:
        args = ("--ca-file", str(certificate.ca))
        line = refused(
            *("list", f"spice+tls://alice%40realm@127.0.0.1:{running.tls_port}", *args),
            env={"SPICEBRIDGE_PASSWORD": SECRET},
            code=LoginError.exit_code,
            says=("DIGEST-MD5 (obsolete, RFC 6331)", "mech_list"),
        )
        assert SECRET not in line
        refused(
            *("list", f"spice://alice%40realm@127.0.0.1:{running.port}"),
            env={"SPICEBRIDGE_PASSWORD": SECRET},
            code=LoginError.exit_code,
            says=("DIGEST-MD5 (obsolete, RFC 6331)", "connect with TLS"),
        )


def test_sasl_without_a_name_or_with_a_wrong_password(
    short_tmp: Path, certificate: CertificateFiles
) -> None:
    env = sasl_env(short_tmp, "scram-sha-256 plain")
    with Qemu(short_tmp, tls=certificate, extra=["-spice", "sasl=on"], env=env) as running:
        place = f"127.0.0.1:{running.tls_port}"
        trust = ("--ca-file", str(certificate.ca))
        for password in ("", SECRET):
            refused(
                *("list", f"spice+tls://{place}", *trust),
                env={"SPICEBRIDGE_PASSWORD": password},
                code=LoginError.exit_code,
                says=("SCRAM-SHA-256, PLAIN (it needs a username", "spice://USER@HOST"),
            )
        refused(
            *("list", f"spice+tls://alice%40realm@{place}", *trust),
            code=LoginError.exit_code,
            says=("it needs a password", "--password-file"),
        )
        for mechanism in ("SCRAM-SHA-256", "PLAIN"):
            args = (f"spice+tls://alice%40realm@{place}", "--sasl-mechanism", mechanism, *trust)
            line = refused(
                *("list", *args),
                env={"SPICEBRIDGE_PASSWORD": f"{SECRET}y"},
                code=LoginError.exit_code,
                says=(f"in the login with SASL {mechanism}", "check the username"),
            )
            assert SECRET not in line
            assert run("list", *args, env={"SPICEBRIDGE_PASSWORD": SECRET}).code == 0


# Proxies


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Qemu]:
    """A QEMU that lets everybody in."""
    with Qemu(folder) as running:
        yield running


def test_tinyproxy_refuses(plain: Qemu, peers: ExitStack, short_tmp: Path) -> None:
    proxy = peers.enter_context(Tinyproxy(short_tmp, login=LOGIN, allow=[plain.port]))
    at = f"127.0.0.1:{proxy.port}"
    good, nobody = f"http://me:{SECRET}@{at}", free_port()
    tries = {
        f"http://{at}": (plain.port, "407 Proxy Authentication Required", "USER:PASSWORD@"),
        f"http://me:{SECRET}y@{at}": (plain.port, "401 Unauthorized", "user name and the password"),
        good: (nobody, "403 ", "its rules do not allow"),
    }
    for uri, (port, *says) in tries.items():
        line = refused(
            *("list", f"spice://127.0.0.1:{port}"),
            env={"SPICE_PROXY": uri},
            code=ConnectError.exit_code,
            says=(f"proxy http://{at} refused CONNECT to 127.0.0.1:{port}", *says),
        )
        assert SECRET not in line
    assert run("list", plain.uri, env={"SPICE_PROXY": good}).code == 0


def test_tinyproxy_cannot_reach_the_server(peers: ExitStack, short_tmp: Path) -> None:
    proxy = peers.enter_context(Tinyproxy(short_tmp))
    says = ("500 Unable to connect", "the proxy could not reach the server")
    args = ("list", f"spice://127.0.0.1:{free_port()}", "--proxy", f"127.0.0.1:{proxy.port}")
    refused(*args, code=ConnectError.exit_code, says=says)


def test_microsocks_refuses(plain: Qemu, peers: ExitStack) -> None:
    at = f"127.0.0.1:{peers.enter_context(Microsocks(login=LOGIN)).port}"
    for uri, port, says in (
        (f"socks5://{at}", plain.port, "wants another login"),
        (f"socks5://me:{SECRET}y@{at}", plain.port, "refused the login"),
        (f"socks5://me:{SECRET}@{at}", free_port(), "refused"),
    ):
        line = refused(
            *("list", f"spice://127.0.0.1:{port}"),
            env={"SPICE_PROXY": uri},
            code=ConnectError.exit_code,
            says=(f"proxy socks5://{at}", says),
        )
        assert SECRET not in line
    assert run("list", plain.uri, env={"SPICE_PROXY": f"socks5://me:{SECRET}@{at}"}).code == 0


def test_each_kind_of_proxy_is_told_from_the_other(
    plain: Qemu, peers: ExitStack, short_tmp: Path
) -> None:
    http = peers.enter_context(Tinyproxy(short_tmp)).port
    socks = peers.enter_context(Microsocks()).port
    uri = f"http://127.0.0.1:{socks}"
    refused("list", plain.uri, "--proxy", uri, code=ConnectError.exit_code, says=(uri, "SOCKS5"))
    uri = f"socks5://127.0.0.1:{http}"  # which waits for the end of a line
    says = (f"asking proxy {uri} for", "no answer within 0.5 seconds")
    args = ("list", plain.uri, "--proxy", uri, "--connect-timeout", "0.5")
    refused(*args, code=ConnectError.exit_code, says=says)


# Web servers


def test_a_web_server_refuses(peers: ExitStack, short_tmp: Path) -> None:
    web = peers.enter_context(WebSocketProxy(short_tmp, {"/vm1": free_port()}))
    for path, says in (
        ("/vm2", ("404 Not Found", "check the path")),
        ("/vm1", ("502 Bad Gateway", "could not reach the SPICE server")),
    ):
        args = ("list", f"ws://127.0.0.1:{web.port}{path}")
        refused(*args, code=ConnectError.exit_code, says=(f"127.0.0.1:{web.port}{path}", *says))
