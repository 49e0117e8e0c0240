"""On the way to a server everything can be wrong: each is one line, with its own exit code.

Those that need QEMU, nginx or a real proxy are in ``tests/real/test_reach_refusals.py``.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shlex
import socket
import ssl
import subprocess
import termios
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from spicebridge import (
    ConnectError,
    LoginError,
    ProtocolError,
    TlsError,
    UsageError,
)
from spicebridge.cli.app import main
from tests.cli.fake_server import link_client_of, until_gone
from tests.cli.reaching import (
    Converse,
    answers,
    check,
    connection_file,
    data,
    hangs_up,
    hangs_up_at_once,
    never,
    on_tls,
    read_data,
    receive_until,
    refused,
    sasl,
    served,
    tcp_server,
    tls_options,
)
from tests.cli.tools import Finished, Screen, run
from tests.conftest import EXECUTABLE, PATIENCE, Spicebridge
from tests.peers.certificates import Authority, CertificateFiles, self_signed
from tests.peers.processes import free_port

pytestmark = pytest.mark.usefixtures("nothing_of_the_users")

Start = Callable[..., Spicebridge]
Refused = Callable[..., str]

USAGE = UsageError.exit_code
CONNECT = ConnectError.exit_code
PROTOCOL = ProtocolError.exit_code
LOGIN = LoginError.exit_code
TLS = TlsError.exit_code

SECRET = "Tr0ub4dor3x"
SPEC = ("--custom-channel", "unixsocket={}/s,channelid=128")


@pytest.fixture
def refused_here(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """As `refused`, in this process: one for each row of a long table would take minutes."""

    def run_here(
        *args: str,
        code: int,
        says: Sequence[str] = (),
        warns: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> str:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main(list(args))
        out, err = capfd.readouterr()
        return check(Finished(cast("int", ended.value.code), out.encode(), err), code, says, warns)

    return run_here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reach")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def certificates(folder: Path, authority: Authority) -> dict[str, CertificateFiles]:
    """One that is good with its own authority, and those that are not."""
    return {
        "good": authority.issue(),
        "expired": authority.issue(expired=True),
        "host": authority.issue("other.example"),
        "authority": Authority(folder).issue(),
        "self-signed": self_signed(folder),
    }


@pytest.fixture(scope="module")
def good_port(folder: Path, certificates: dict[str, CertificateFiles]) -> Iterator[int]:
    """The port of a server on TLS with which nothing is wrong."""
    with served(folder, *tls_options(certificates["good"])) as server:
        yield server.port


def nowhere(folder: Path) -> str:
    """A server that would be asked only after a mistake was overlooked."""
    return f"spice+unix://{folder}/nobody"


# The password


@pytest.fixture(scope="module")
def longest(folder: Path) -> Iterator[int]:
    """The TCP port of a server whose password is as long as can be."""
    (folder / "longest").write_text(LONGEST)
    with served(folder, "--password-file", f"{folder}/longest") as server:
        yield server.port


LONGEST = (SECRET * 6)[:60]


def given(where: str, password: str, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment that give a password to a server."""
    uri, env = f"spice://127.0.0.1:{port}", {}
    args = ["list", uri]
    if where == "file":
        (folder / "password").write_text(f"{password}\n")
        args += ["--password-file", f"{folder}/password"]
    elif where == "command":
        args += ["--password-command", shlex.join(["echo", password])]
    elif where == "environment":
        env["SPICEBRIDGE_PASSWORD"] = password
    elif where == "connection-file":
        lines = ("host=127.0.0.1", f"port={port}", f"password={password}")
        args[1] = connection_file(folder, *lines)
    else:
        args[1] = f"spice://127.0.0.1:{port}?password={password}"
    return args, env


PLACES = ("file", "command", "environment", "connection-file", "uri")
WARNS = {"uri": ("the list of processes shows",)}


@pytest.mark.parametrize("where", PLACES)
def test_the_longest_password(where: str, longest: int, short_tmp: Path) -> None:
    args, env = given(where, LONGEST, longest, short_tmp)
    finished = run(*args, env=env)
    assert (finished.code, finished.errors()) == (0, [])
    assert b"128" in finished.stdout
    assert len(finished.stderr.splitlines()) == len(WARNS.get(where, ()))


@pytest.mark.parametrize("where", PLACES)
def test_a_longer_password(refused_here: Refused, where: str, short_tmp: Path) -> None:
    """Nobody is asked: the port is one where nobody answers."""
    args, env = given(where, f"{LONGEST}x", free_port(), short_tmp)
    says = ("the password has 61 bytes", "60 at most")
    line = refused_here(*args, code=USAGE, env=env, says=says, warns=WARNS.get(where, ()))
    assert SECRET not in line


@pytest.mark.parametrize("where", PLACES)
def test_a_wrong_password(refused_here: Refused, where: str, longest: int, short_tmp: Path) -> None:
    args, env = given(where, LONGEST[:-1], longest, short_tmp)
    says = (f"127.0.0.1:{longest}", "permission denied", "check the password")
    line = refused_here(*args, code=LOGIN, env=env, says=says, warns=WARNS.get(where, ()))
    assert SECRET not in line


@pytest.mark.parametrize("where", PLACES)
def test_an_empty_password(
    refused_here: Refused, where: str, longest: int, short_tmp: Path
) -> None:
    args, env = given(where, "", longest, short_tmp)
    if where == "file":
        refused_here(*args, code=USAGE, says=("first line is empty", "/password"))
    elif where == "command":
        refused_here(*args, code=LOGIN, says=("--password-command", "first line is empty"))
    else:  # it is as if none were given
        refused_here(*args, code=LOGIN, env=env, says=("permission denied", "give a password with"))


@pytest.mark.parametrize("given_too", [None, "environment"])
@pytest.mark.parametrize("where", PLACES)
def test_whose_password_comes_first(
    where: str, given_too: str | None, longest: int, short_tmp: Path
) -> None:
    """An option before what names the server, and that before the environment."""
    args, env = given(where, LONGEST, longest, short_tmp)
    wrong = ["--password-command", "echo wrong"]
    if where in {"connection-file", "uri"}:
        if given_too:
            env["SPICEBRIDGE_PASSWORD"] = "wrong"
            assert run(*args, env=env).code == 0
        else:
            assert run(*args, *wrong, env=env).code == LOGIN
    elif where == "environment":
        assert run(*args, *(wrong if given_too else []), env=env).code == (
            LOGIN if given_too else 0
        )
    else:
        lines = ("host=127.0.0.1", f"port={longest}", "password=wrong")
        args[1] = connection_file(short_tmp, *lines)
        assert run(*args, env={"SPICEBRIDGE_PASSWORD": "wrong"}).code == 0


def test_a_password_file_that_cannot_be_read(short_tmp: Path) -> None:
    (short_tmp / "loop").symlink_to("loop")
    args = ("list", nowhere(short_tmp), "--password-file", f"{short_tmp}/loop")
    refused(*args, code=USAGE, says=("--password-file", "/loop", "symbolic links"))
    if os.geteuid():  # root reads everything
        (short_tmp / "closed").touch(mode=0)
        args = (*args[:-1], f"{short_tmp}/closed")
        refused(*args, code=USAGE, says=("--password-file", "/closed", "Permission denied"))


def test_no_password_and_nobody_to_ask(longest: int) -> None:
    says = ("permission denied", "--password-file, --password-command or $SPICEBRIDGE_PASSWORD")
    refused("list", f"spice://127.0.0.1:{longest}", code=LOGIN, says=says)


# Certificates


BAD_CERTIFICATES = {
    "expired": ("certificate has expired", "renew the server's certificate, or check the clock"),
    "host": ("not valid for '127.0.0.1'", "--host-subject"),
    "authority": ("unable to get local issuer certificate", "--ca-file"),
    "self-signed": ("self-signed certificate", "--ca-file"),
}


@pytest.mark.parametrize("kind", BAD_CERTIFICATES)
def test_a_bad_certificate(
    kind: str, certificates: dict[str, CertificateFiles], authority: Authority, folder: Path
) -> None:
    with served(folder, *tls_options(certificates[kind])) as server:
        uri = f"spice+tls://127.0.0.1:{server.port}"
        says = (f"TLS with 127.0.0.1:{server.port}", *BAD_CERTIFICATES[kind])
        refused("list", uri, "--ca-file", str(authority.ca), code=TLS, says=says)

        # none but that danger is left, and it is told of at each start
        finished = run("list", uri, "--insecure-tls")
        assert (finished.code, finished.errors()) == (0, [])
        (warning,) = finished.stderr.splitlines()
        assert " WARNING " in warning
        assert "--insecure-tls: nobody checks who the server is" in warning


def test_checking_nothing_is_warned_of_in_json_and_not_when_quiet(good_port: int) -> None:
    uri = f"spice+tls://127.0.0.1:{good_port}"
    finished = run("list", uri, "--insecure-tls", "--log-format", "json")
    assert finished.code == 0
    told = map(json.loads, finished.stderr.splitlines())
    (event,) = (event for event in told if event["level"] not in {"debug", "info"})
    assert (event["level"], event["event"]) == ("warning", "log")
    assert "--insecure-tls" in event["message"]
    finished = run("list", uri, "--insecure-tls", "-q")
    assert (finished.code, finished.stderr) == (0, "")


def test_a_bridge_without_checks_warns_at_each_start(
    good_port: int, spicebridge: Start, short_tmp: Path
) -> None:
    uri, spec = f"spice+tls://127.0.0.1:{good_port}", f"unixsocket={short_tmp}/s,channelid=128"
    for number in (1, 2):
        bridge = spicebridge(uri, "--insecure-tls", "--custom-channel", spec)
        assert bridge.stderr().count("WARNING spicebridge: --insecure-tls") == 1, number
        assert bridge.stop() == 0


def test_without_ca_file_only_the_systems_authorities_are_believed(good_port: int) -> None:
    says = ("unable to get local issuer certificate", "--ca-file")
    refused("list", f"spice+tls://127.0.0.1:{good_port}", code=TLS, says=says)


def test_the_truststore_of_spice_gtk_is_believed(
    good_port: int, tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / ".spicec").mkdir()
    (tmp_path / ".spicec/spice_truststore.pem").write_bytes(authority.ca.read_bytes())
    assert run("list", f"spice+tls://127.0.0.1:{good_port}").code == 0


EXPECTED = {
    "wrong-subject": (
        ("--host-subject", "O=Example,CN=other"),
        ("its certificate is for ", "not for O=Example,CN=other", "--host-subject"),
    ),
    "wrong-pin": (
        ("--pinned-key", "sha256//" + "A" * 43 + "="),
        ("its key is sha256//", "not the pinned one"),
    ),
}


@pytest.mark.parametrize(("options", "says"), EXPECTED.values(), ids=[*EXPECTED])
def test_another_server_than_the_one_that_was_meant(
    options: tuple[str, ...],
    says: tuple[str, ...],
    certificates: dict[str, CertificateFiles],
    good_port: int,
) -> None:
    good = certificates["good"]
    uri = f"spice+tls://127.0.0.1:{good_port}"
    line = refused("list", uri, "--ca-file", str(good.ca), *options, code=TLS, says=says)
    assert f"TLS with 127.0.0.1:{good_port}" in line
    # what it says it is, is what it takes
    hint = {"--host-subject": good.subject, "--pinned-key": good.pin}[options[0]]
    assert hint in line
    assert run("list", uri, "--ca-file", str(good.ca), options[0], hint).code == 0


def test_a_pinned_key_is_checked_even_where_nothing_else_is(good_port: int) -> None:
    finished = run(
        *("list", f"spice+tls://127.0.0.1:{good_port}", "--insecure-tls"),
        *("--pinned-key", "sha256//" + "A" * 43 + "="),
    )
    assert finished.code == TLS
    assert "not the pinned one" in finished.errors()[0]


# TLS where there is none, and the reverse


def test_tls_on_a_plain_port(longest: int) -> None:
    says = (f"TLS with 127.0.0.1:{longest}", "is that its TLS port?")
    refused("list", f"spice+tls://127.0.0.1:{longest}", code=TLS, says=says)


def test_a_plain_connection_to_a_tls_port(good_port: int) -> None:
    says = (f"127.0.0.1:{good_port}", "write spice+tls://HOST:PORT if it is for TLS")
    refused("list", f"spice://127.0.0.1:{good_port}", code=PROTOCOL, says=says)


def test_tls_with_a_server_that_hangs_up(peers: ExitStack) -> None:
    port = peers.enter_context(tcp_server(hangs_up_at_once))
    says = (f"TLS with 127.0.0.1:{port}", "closed the connection", "is that its TLS port?")
    refused("list", f"spice+tls://127.0.0.1:{port}", code=TLS, says=says)


def test_a_server_that_speaks_only_tls_of_the_past(
    certificates: dict[str, CertificateFiles], peers: ExitStack
) -> None:
    good = certificates["good"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(good.cert, good.key)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():  # of Python's: it is to be of the past
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    port = peers.enter_context(tcp_server(on_tls(context, until_gone)))
    says = (f"TLS with 127.0.0.1:{port}", "protocol version")
    line = refused(
        "list", f"spice+tls://127.0.0.1:{port}", "--ca-file", str(good.ca), code=TLS, says=says
    )
    assert "is that its TLS port?" not in line


def test_no_cipher_in_common(certificates: dict[str, CertificateFiles], peers: ExitStack) -> None:
    good = certificates["good"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(good.cert, good.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES256-GCM-SHA384")
    port = peers.enter_context(tcp_server(on_tls(context, until_gone)))
    args = ("list", f"spice+tls://127.0.0.1:{port}", "--ca-file", str(good.ca))
    refused(*args, "--tls-ciphers", "ECDHE-RSA-AES128-GCM-SHA256", code=TLS, says=("TLS with",))


# Options that cannot be


TLS_URI = "spice+tls://127.0.0.1:1"

OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ca-file-missing": (
        (TLS_URI, "--ca-file", "/nonexistent/ca"),
        ("--ca-file /nonexistent/ca", "No such file"),
    ),
    "ca-file-folder": ((TLS_URI, "--ca-file", "/"), ("--ca-file /", "directory")),
    "ca-file-empty": ((TLS_URI, "--ca-file", os.devnull), ("no certificates in PEM",)),
    "ca-file-other": ((TLS_URI, "--ca-file", __file__), ("no certificates in PEM",)),
    "ciphers": ((TLS_URI, "--tls-ciphers", "ROT13"), ("'ROT13'", "openssl-ciphers(1)")),
    "pin-word": ((TLS_URI, "--pinned-key", "abc"), ("'abc' is no pinned key", "sha256//BASE64")),
    "pin-short": ((TLS_URI, "--pinned-key", "sha256//QUJD"), ("is no pinned key",)),
    "pin-hex": ((TLS_URI, "--pinned-key", "sha256//" + "ab" * 32), ("is no pinned key",)),
    "subject-word": ((TLS_URI, "--host-subject", "node"), ("'node'", "O=Example,CN=vm.example")),
    "subject-key": ((TLS_URI, "--host-subject", "XY=node"), ("'XY'", "O=Example,CN=vm.example")),
    "secure-channels-word": (
        (TLS_URI, "--secure-channels", "main,prot"),
        ("--secure-channels", "'prot' is no channel type", "main,port"),
    ),
    "secure-channels-number": (
        (TLS_URI, "--secure-channels", "12"),
        ("--secure-channels", "'12'"),
    ),
    "secure-channels-empty": ((TLS_URI, "--secure-channels", ""), ("--secure-channels",)),
    "secure-channels-plain": (
        ("spice://127.0.0.1:1", "--secure-channels", "all"),
        ("127.0.0.1:1", "has no port for it", "tls-port"),
    ),
    "sasl-unknown": (
        ("spice://a@127.0.0.1:1", "--sasl-mechanism", "ROT13"),
        ("'ROT13'", "SCRAM-SHA-256"),
    ),
    "sasl-refused": (
        ("spice://a@127.0.0.1:1", "--sasl-mechanism", "digest-md5"),
        ("'digest-md5'", "obsolete"),
    ),
    "proxy-scheme": (
        ("spice://a:1", "--proxy", f"ftp://u:{SECRET}@p:1"),
        ("proxy", "of no kind that we know", "socks5://HOST:PORT"),
    ),
    "tls-idle-pin": (
        ("spice://a:1", "--pinned-key", "sha256//" + "A" * 43 + "="),
        ("--pinned-key is for TLS, and a:1 is to be reached without it", "spice+tls://"),
    ),
    "tls-idle-subject": (("ws://a/", "--host-subject", "CN=a"), ("--host-subject is for TLS",)),
    "proxy-host": (("spice://a:1", "--proxy", "http://:3128"), ("names no host",)),
    "proxy-port": (("spice://a:1", "--proxy", f"http://u:{SECRET}@p:x"), ("no number", "write")),
    "proxy-path": (("spice://a:1", "--proxy", "http://p:1/x"), ("more than a host and a port",)),
}


@pytest.mark.parametrize(("args", "says"), OPTIONS.values(), ids=[*OPTIONS])
def test_an_option_that_cannot_be_taken(
    refused_here: Refused, args: tuple[str, ...], says: tuple[str, ...]
) -> None:
    assert SECRET not in refused_here("list", *args, code=USAGE, says=says)


# serve


SERVE = ("--custom-channel", "channelid=128,exec=cat")


def serve_refused(*args: str, says: tuple[str, ...], listen: str = "127.0.0.1:0") -> None:
    refused("serve", "--listen", listen, *SERVE, *args, code=USAGE, says=says)


def test_a_certificate_that_cannot_be_served(
    certificates: dict[str, CertificateFiles], folder: Path
) -> None:
    good, other = certificates["good"], certificates["expired"]
    cert, key = str(good.cert), str(good.key)
    serve_refused("--tls-cert", "/nonexistent/c", says=("/nonexistent/c", "No such file"))
    serve_refused("--tls-cert", cert, "--tls-key", "/nonexistent/k", says=("/nonexistent/k",))
    serve_refused("--tls-cert", "/", "--tls-key", key, says=("/: Is a directory",))
    serve_refused("--tls-cert", cert, says=(cert, "key"))  # none in the file
    serve_refused("--tls-cert", cert, "--tls-key", str(other.key), says=(cert, str(other.key)))
    serve_refused("--tls-cert", key, "--tls-key", key, says=(key, "no certificate"))
    serve_refused("--tls-cert", os.devnull, says=(os.devnull, "no certificate"))
    says = ("not go with a Unix socket",)
    serve_refused("--tls-cert", cert, "--tls-key", key, says=says, listen="unix:/nonexistent/s")
    serve_refused("--tls-key", key, says=("--tls-key", "without a certificate", "--tls-cert FILE"))


@pytest.mark.parametrize("asks", [True, False], ids=["terminal", "none"])
def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(
    certificates: dict[str, CertificateFiles], tmp_path: Path, asks: bool
) -> None:
    good = certificates["good"]
    key = load_pem_private_key(good.key.read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    )
    args = ("--tls-cert", str(good.cert), "--tls-key", str(encrypted))
    if not asks:
        serve_refused(*args, says=(str(encrypted), "without a passphrase"))
        return
    with Screen() as screen:
        process = subprocess.Popen(
            [EXECUTABLE, "serve", "--listen", "127.0.0.1:0", *SERVE, *args],
            stdin=screen.slave,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # for it to be /dev/tty
        )
        try:
            _, stderr = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        screen.look()
        assert screen.seen == b""
    (error,) = Finished(process.returncode, b"", stderr.decode()).errors()
    assert "without a passphrase" in error
    assert process.returncode == USAGE


def test_a_mode_that_cannot_be(short_tmp: Path) -> None:
    serve_refused("--perm", "600", says=("--perm is for a Unix socket", "--listen unix:PATH"))
    for perm in ("999", "0o600", "rw", "", "1777", "-1"):
        serve_refused("--perm", perm, listen=f"unix:{short_tmp}/spice", says=(f"perm={perm}",))
    assert not (short_tmp / "spice").exists()


# SASL


USER_HINT = "spice://USER@HOST"


def test_a_server_that_offers_only_mechanisms_that_we_refuse(peers: ExitStack) -> None:
    offered = ("DIGEST-MD5", "CRAM-MD5", "SCRAM-SHA-256-PLUS", "ROT13")
    port = peers.enter_context(tcp_server(sasl(offered, never)))
    says = (
        f"127.0.0.1:{port}",
        "no SASL mechanism can be used",
        "DIGEST-MD5 (obsolete, RFC 6331)",
        "CRAM-MD5 (obsolete",
        "SCRAM-SHA-256-PLUS (it binds to TLS",
        "ROT13 (unknown to spicebridge)",
    )
    line = refused(
        *("list", f"spice://me@127.0.0.1:{port}"),
        env={"SPICEBRIDGE_PASSWORD": SECRET},
        code=LOGIN,
        says=says,
    )
    assert SECRET not in line


def test_another_password_is_not_asked_for_where_it_would_not_help(peers: ExitStack) -> None:
    port = peers.enter_context(tcp_server(sasl(["DIGEST-MD5"], never)))
    line = refused("list", f"spice://me@127.0.0.1:{port}", code=LOGIN, says=("connect with TLS",))
    assert "--password-file" not in line


def test_plain_is_not_spoken_where_others_listen(peers: ExitStack) -> None:
    port = peers.enter_context(tcp_server(sasl(["PLAIN"], never)))
    says = ("PLAIN (it would send the password in the clear)", "connect with TLS")
    env = {"SPICEBRIDGE_PASSWORD": SECRET}
    for more in ((), ("--sasl-mechanism", "PLAIN")):
        refused("list", f"spice://me@127.0.0.1:{port}", *more, env=env, code=LOGIN, says=says)


@pytest.mark.parametrize("password", ["", SECRET], ids=["nor password", "but a password"])
def test_sasl_without_a_user_name(password: str, peers: ExitStack) -> None:
    port = peers.enter_context(tcp_server(sasl(["SCRAM-SHA-256"], never)))
    line = refused(
        *("list", f"spice://127.0.0.1:{port}"),
        env={"SPICEBRIDGE_PASSWORD": password},
        code=LOGIN,
        says=("SCRAM-SHA-256", USER_HINT),
    )
    assert SECRET not in line


def test_sasl_without_a_password(peers: ExitStack) -> None:
    port = peers.enter_context(tcp_server(sasl(["SCRAM-SHA-256"], never)))
    line = refused(
        *("list", f"spice://me@127.0.0.1:{port}"),
        code=LOGIN,
        says=("SCRAM-SHA-256 (it needs a password)", "--password-file"),
    )
    assert USER_HINT not in line


@pytest.mark.parametrize(
    ("uri", "asked"), [("spice://me@127.0.0.1:{}", True), ("spice://127.0.0.1:{}", False)]
)
def test_a_person_is_asked_only_where_a_password_would_help(
    uri: str, asked: bool, peers: ExitStack
) -> None:
    port = peers.enter_context(tcp_server(sasl(["SCRAM-SHA-256"], hangs_up)))
    with Screen() as screen:
        process = screen.run("list", uri.format(port), stdin=screen.slave)
        try:
            if asked:
                screen.until(b"Password for 127.0.0.1")
                screen.type(SECRET.encode() + b"\n")
            screen.until_ended(process)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == LOGIN
    assert (b"Password for" in screen.seen) is asked
    assert SECRET.encode() not in screen.seen


def test_a_mechanism_that_the_server_does_not_offer(peers: ExitStack) -> None:
    port = peers.enter_context(tcp_server(sasl(["SCRAM-SHA-1"], never)))
    refused(
        *("list", f"spice://me@127.0.0.1:{port}", "--sasl-mechanism", "SCRAM-SHA-256"),
        env={"SPICEBRIDGE_PASSWORD": SECRET},
        code=LOGIN,
        says=("does not offer SASL SCRAM-SHA-256, only SCRAM-SHA-1", "--sasl-mechanism"),
    )


def scram(*, proof: bytes | None, count: int = 4096, done: bool = True) -> Converse:
    """A SCRAM server that knows no password."""

    def converse(client: socket.socket, first: bytes | None) -> bool:
        nonce = (first or b"").rpartition(b",r=")[2]
        challenge = b"r=%sx,s=MTIzNDU2Nzg5MDEyMzQ1Ng==,i=%d" % (nonce, count)
        client.sendall(data(challenge, done=False))
        read_data(client)
        client.sendall(data(proof, done=done))
        if done:
            client.sendall(bytes(4))
        return True

    return converse


FAKES = {
    "another-proof": (b"v=" + b"A" * 43 + b"=", "could not prove"),
    "no-proof": (None, "could not prove"),
    "empty-proof": (b"v=", "could not prove"),
}


@pytest.mark.parametrize(("proof", "says"), FAKES.values(), ids=[*FAKES])
def test_a_server_that_fakes_its_proof(
    refused_here: Refused, proof: bytes | None, says: str, peers: ExitStack
) -> None:
    port = peers.enter_context(tcp_server(sasl(["SCRAM-SHA-256"], scram(proof=proof))))
    line = refused_here(
        *("list", f"spice://me@127.0.0.1:{port}"),
        env={"SPICEBRIDGE_PASSWORD": SECRET},
        code=LOGIN,
        says=(f"127.0.0.1:{port}", "SCRAM-SHA-256", says, "check the address"),
    )
    assert SECRET not in line


@pytest.mark.parametrize("count", [1, 10**9])
def test_a_server_that_has_us_hash_too_little_or_too_much(count: int, peers: ExitStack) -> None:
    script = sasl(["SCRAM-SHA-256"], scram(proof=None, count=count))
    port = peers.enter_context(tcp_server(script))
    refused(
        *("list", f"spice://me@127.0.0.1:{port}"),
        env={"SPICEBRIDGE_PASSWORD": SECRET},
        code=PROTOCOL,
        says=("SCRAM-SHA-256", "iterations of the hash", f"got {count}"),
    )


def test_a_server_that_refuses_a_name_or_password_of_sasl(peers: ExitStack) -> None:
    port = peers.enter_context(tcp_server(sasl(["SCRAM-SHA-256"], hangs_up)))
    line = refused(
        *("list", f"spice://me@127.0.0.1:{port}"),
        env={"SPICEBRIDGE_PASSWORD": SECRET},
        code=LOGIN,
        says=("closed the connection in the login with SASL SCRAM-SHA-256", "check the username"),
    )
    assert USER_HINT in line


# Proxies


def said(status: str, *headers: str) -> bytes:
    """The head of an answer."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


PROXIES: dict[str, tuple[str, bytes, int | bytes, tuple[str, ...]]] = {
    "401": ("http", said("401 Unauthorized"), b"\r\n\r\n", ("401 Unauthorized", "password")),
    "403": ("http", said("403 Filtered"), b"\r\n\r\n", ("403 Filtered", "rules do not allow")),
    "407": (
        "http",
        said("407 Proxy Authentication Required", 'Proxy-Authenticate: Basic realm="x"'),
        b"\r\n\r\n",
        ("407 Proxy Authentication Required", "check the user name and the password"),
    ),
    "407-ntlm": (
        "http",
        said("407 Go away", "Proxy-Authenticate: NTLM"),
        b"\r\n\r\n",
        ("407 Go away", "NTLM", "only by Basic"),
    ),
    "502": ("http", said("502 Bad Gateway"), b"\r\n\r\n", ("502 Bad Gateway", "does it run")),
    "404": ("http", said("404 Not Found"), b"\r\n\r\n", ("404 Not Found", "not take CONNECT")),
    "garbage": ("http", b"\0\xff\x1b[2Jgarbage\n", b"\r\n\r\n", ("garbage", "an HTTP proxy")),
    "broken": ("http", b"HTTP/1.1 two hundred\r\n\r\n", b"\r\n\r\n", ("broken HTTP",)),
    "endless": ("http", b"HTTP/1.1 200 " + b"x" * 20_000, b"\r\n\r\n", ("more than 16 KiB",)),
    "socks-instead": ("http", b"\5\xff", b"\r\n\r\n", ("socks5://",)),
    "repeats": ("http", b"HTTP/1.1 403 %s\r\n\r\n", b"\r\n\r\n", ("403 CONNECT",)),
    "socks-no-login": ("socks5", b"\5\xff", 4, ("wants another login", "ask its owner")),
    "socks-garbage": ("socks5", b"HTTP/1.1 400 Bad\r\n", 4, ("HTTP/1.1 400 Bad", "SOCKS5")),
}


_SEEN_IN_ARGV = ("the proxy's URI has a password, which the list of processes shows",)


@pytest.mark.parametrize(("scheme", "answer", "to", "says"), PROXIES.values(), ids=[*PROXIES])
def test_a_proxy_that_refuses(
    refused_here: Refused,
    scheme: str,
    answer: bytes,
    to: int | bytes,
    says: tuple[str, ...],
    peers: ExitStack,
) -> None:
    port = peers.enter_context(tcp_server(answers(answer, to=to)))
    line = refused_here(
        *("list", "spice://vm.example:5900"),
        *("--proxy", f"{scheme}://me:{SECRET}@127.0.0.1:{port}"),
        code=CONNECT,
        warns=_SEEN_IN_ARGV,
        says=(f"proxy {scheme}://127.0.0.1:{port}", *says),
    )
    assert "Basic bWU6" not in line
    assert SECRET not in line


SOCKS_LOGIN = {
    "wrong-login": (b"\1\1", "refused the login"),
    "not-allowed": (b"\1\0\5\2\0\1" + bytes(6), "connection not allowed by its rules"),
    "refused": (b"\1\0\5\5\0\1" + bytes(6), "connection refused"),
}


@pytest.mark.parametrize(("answer", "says"), SOCKS_LOGIN.values(), ids=[*SOCKS_LOGIN])
def test_a_socks_proxy_that_refuses(
    refused_here: Refused, answer: bytes, says: str, peers: ExitStack
) -> None:
    port = peers.enter_context(tcp_server(answers(b"\5\2" + answer, to=4)))
    line = refused_here(
        *("list", "spice://vm.example:5900"),
        *("--proxy", f"socks5://me:{SECRET}@127.0.0.1:{port}"),
        code=CONNECT,
        warns=_SEEN_IN_ARGV,
        says=(f"proxy socks5://127.0.0.1:{port}", says),
    )
    assert SECRET not in line


def test_a_proxy_that_wants_a_login(peers: ExitStack) -> None:
    answer = said("407 Login", 'Proxy-Authenticate: Basic realm="x"')
    port = peers.enter_context(tcp_server(answers(answer)))
    says = ("407 Login", "http://USER:PASSWORD@HOST:PORT")
    args = ("list", "spice://vm.example:5900")
    refused(*args, "--proxy", f"127.0.0.1:{port}", code=CONNECT, says=says)
    # as spice-gtk has it, whose variable it is
    refused(*args, env={"SPICE_PROXY": f"http://127.0.0.1:{port}"}, code=CONNECT, says=says)


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
def test_a_proxy_that_cannot_be_reached(scheme: str) -> None:
    proxy = f"{scheme}://127.0.0.1:{free_port()}"
    says = (f"proxy {proxy}", "Connection refused", "is the server running")
    refused("list", "spice://vm.example:5900", "--proxy", proxy, code=CONNECT, says=says)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_that_hangs_up(scheme: str, peers: ExitStack) -> None:
    port = peers.enter_context(tcp_server(hangs_up_at_once))
    proxy = f"{scheme}://127.0.0.1:{port}"
    says = (f"asking proxy {proxy} for vm.example:5900", "is that a")
    refused("list", "spice://vm.example:5900", "--proxy", proxy, code=CONNECT, says=says)


def test_an_https_proxy_that_is_not_to_be_trusted(
    certificates: dict[str, CertificateFiles], peers: ExitStack
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates["good"].cert, certificates["good"].key)
    port = peers.enter_context(tcp_server(on_tls(context, until_gone)))
    proxy = f"https://me:{SECRET}@127.0.0.1:{port}"
    says = (f"TLS with proxy https://127.0.0.1:{port}", "unable to get local issuer certificate")
    args = ("list", "spice://vm.example:5900", "--proxy", proxy)
    line = refused(*args, code=TLS, says=says, warns=_SEEN_IN_ARGV)
    assert SECRET not in line


def test_an_https_proxy_that_speaks_no_tls(peers: ExitStack) -> None:
    port = peers.enter_context(tcp_server(answers(said("400 Bad Request"), to=1)))
    proxy = f"https://127.0.0.1:{port}"
    says = (f"TLS with proxy {proxy}", "wrong version number")
    refused("list", "spice://vm.example:5900", "--proxy", proxy, code=TLS, says=says)


def test_a_server_behind_a_proxy_is_checked_by_its_own_name(
    certificates: dict[str, CertificateFiles], peers: ExitStack
) -> None:
    """The certificate is good for the proxy's name, and that does not count."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates["good"].cert, certificates["good"].key)

    def tunnel(client: socket.socket) -> None:
        receive_until(client, b"\r\n\r\n")
        client.sendall(said("200 OK"))
        on_tls(context, until_gone)(client)

    proxy = peers.enter_context(tcp_server(tunnel))
    says = ("TLS with vm.example:5900", "not valid for 'vm.example'", "--host-subject")
    refused(
        *("list", "spice+tls://vm.example:5900", "--proxy", f"127.0.0.1:{proxy}"),
        *("--ca-file", str(certificates["good"].ca)),
        code=TLS,
        says=says,
    )


# Bridging


def test_a_bridge_is_refused_as_a_listing_is(
    certificates: dict[str, CertificateFiles], good_port: int, longest: int, peers: ExitStack
) -> None:
    spec = ("--custom-channel", "channelid=128,exec=cat")
    proxy = peers.enter_context(tcp_server(answers(said("403 Filtered"))))
    uri = f"spice+tls://127.0.0.1:{good_port}"
    refused(uri, *spec, code=TLS, says=("unable to get local issuer certificate",))
    refused(uri, *spec, "--ca-file", os.devnull, code=USAGE, says=("no certificates",))
    args = ("--proxy", f"127.0.0.1:{proxy}", *spec)
    refused("spice://vm.example:1", *args, code=CONNECT, says=("403 Filtered",))
    refused(f"spice://127.0.0.1:{good_port}", *spec, code=PROTOCOL, says=("for TLS",))
    refused(f"spice://127.0.0.1:{longest}", *spec, code=LOGIN, says=("permission denied",))


# Time


STEPS = {
    "tls": ("spice+tls://127.0.0.1:{}", (), "starting TLS with 127.0.0.1:{}"),
    "link": ("spice://127.0.0.1:{}", (), "linking main:0 at 127.0.0.1:{}"),
    "websocket": ("ws://127.0.0.1:{}/x", (), "opening the WebSocket at 127.0.0.1:{}/x"),
    "proxy": (
        "spice://vm.example:5900",
        ("--proxy", "http://127.0.0.1:{}"),
        "asking proxy http://127.0.0.1:{} for vm.example:5900",
    ),
    "socks": (
        "spice://vm.example:5900",
        ("--proxy", "socks5://127.0.0.1:{}"),
        "asking proxy socks5://127.0.0.1:{} for vm.example:5900",
    ),
    "https": (
        "spice://vm.example:5900",
        ("--proxy", "https://127.0.0.1:{}"),
        "starting TLS with proxy https://127.0.0.1:{}",
    ),
}


@pytest.mark.parametrize(("uri", "more", "step"), STEPS.values(), ids=[*STEPS])
def test_the_step_that_ran_out_of_time_is_named(
    refused_here: Refused, uri: str, more: tuple[str, ...], step: str, peers: ExitStack
) -> None:
    port = peers.enter_context(tcp_server(until_gone))
    words = [word.format(port) for word in (uri, *more)]
    says = (f"{step.format(port)}: no answer within 0.2 seconds",)
    refused_here("list", *words, "--connect-timeout", "0.2", code=CONNECT, says=says)


def test_a_server_that_never_lists_its_channels(peers: ExitStack) -> None:
    def says_nothing(client: socket.socket) -> None:
        link_client_of(client)
        until_gone(client)

    port = peers.enter_context(tcp_server(says_nothing))
    args = ("list", f"spice://127.0.0.1:{port}", "--connect-timeout", "2")  # linking is a step, too
    says = (f"127.0.0.1:{port}", "waiting for the list of channels: no answer within 2 seconds")
    refused(*args, code=CONNECT, says=says)


def test_a_login_that_takes_too_long_is_named(peers: ExitStack) -> None:
    def sleeps(client: socket.socket, _first: bytes | None) -> bool:
        until_gone(client)
        return False

    port = peers.enter_context(tcp_server(sasl(["SCRAM-SHA-256"], sleeps)))
    refused(
        *("list", f"spice://me@127.0.0.1:{port}", "--connect-timeout", "0.2"),
        env={"SPICEBRIDGE_PASSWORD": SECRET},
        code=CONNECT,
        says=(f"linking main:0 at 127.0.0.1:{port}: no answer within 0.2 seconds",),
    )


def test_a_port_that_nobody_accepts_at(peers: ExitStack) -> None:
    """Its backlog is full, so that the kernel lets further clients wait."""
    listener = peers.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    address = listener.getsockname()
    for _ in range(4):
        filler = peers.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(address)
    says = (f"connecting to 127.0.0.1:{address[1]}: no answer within 0.2 seconds",)
    args = ("list", f"spice://127.0.0.1:{address[1]}", "--connect-timeout", "0.2")
    refused(*args, code=CONNECT, says=says)


# Connection files


GOOD = ("host=127.0.0.1", "port=1")

FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("no group [virt-viewer]", "remote-viewer(1)")),
    "html": (b"<html><body>Login</body></html>\n", ("line 1", "remote-viewer(1)")),
    "binary": (b"\x7fELF\2\1\1\0\xff\xfe", ("binary",)),
    "nul": (b"[virt-viewer]\n\0", ("binary",)),
    "other-group": (b"[remote-viewer]\ntype=spice\nhost=x\n", ("no group [virt-viewer]",)),
    "no-type": (b"[virt-viewer]\nhost=x\nport=1\n", ("type", "type=spice")),
    "vnc": (b"[virt-viewer]\ntype=vnc\nhost=x\nport=1\n", ("'vnc', not spice", "remote-viewer")),
    "no-host": (b"[virt-viewer]\ntype=spice\nport=1\n", ("names no host", "host=HOST")),
    "no-port": (b"[virt-viewer]\ntype=spice\nhost=x\n", ("names no port", "tls-port=PORT")),
    "two-ports": (
        b"[virt-viewer]\ntype=spice\nhost=x\nport=1\nport=2\n",
        ("lines 4 and 5 have different values of port", "keep one"),
    ),
    "two-places": (
        b"[virt-viewer]\ntype=spice\nhost=x\nport=1\nunix-path=/s\n",
        ("unix-path and a host", "keep one"),
    ),
    "port-word": (b"[virt-viewer]\ntype=spice\nhost=x\nport=spice\n", ("line 4: port",)),
    "port-high": (b"[virt-viewer]\ntype=spice\nhost=x\nport=65536\n", ("line 4: port", "65535")),
    "secure-without": (
        b"[virt-viewer]\ntype=spice\nhost=x\nport=1\nsecure-channels=main;\n",
        ("secure-channels need TLS", "no tls-port"),
    ),
    "subject": (
        b"[virt-viewer]\ntype=spice\nhost=x\ntls-port=1\nhost-subject=node\n",
        ("line 5", "'node'"),
    ),
    "proxy": (
        b"[virt-viewer]\ntype=spice\nhost=x\nport=1\nproxy=ftp://u:Tr0ub4dor3x@p\n",
        ("line 5", "no kind that we know"),
    ),
    "large": (b"[virt-viewer]\n" + b"#" * 1024 * 1024, ("too large",)),
}


@pytest.mark.parametrize(("content", "says"), FILES.values(), ids=[*FILES])
def test_a_connection_file_that_is_none(
    refused_here: Refused, content: bytes, says: tuple[str, ...], short_tmp: Path
) -> None:
    path = short_tmp / "console.vv"
    path.write_bytes(content + (b"\ndelete-this-file=1\n" if content else b""))
    says = (str(path), *says)
    assert SECRET not in refused_here("list", str(path), code=USAGE, says=says)
    assert path.exists()


@pytest.mark.parametrize("kind", ["empty", "binary", "vnc", "two-ports", "large"])
def test_a_connection_file_on_standard_input_that_is_none(kind: str) -> None:
    content, says = FILES[kind]
    refused("list", "-", stdin=content, code=USAGE, says=("standard input", *says))


def test_a_connection_file_that_cannot_be_read(short_tmp: Path) -> None:
    (short_tmp / "loop.vv").symlink_to("loop.vv")
    (short_tmp / "folder.vv").mkdir()
    for name, reason in {
        "loop.vv": "symbolic links",
        "folder.vv": "Is a directory",
        "none.vv": "No such file",
    }.items():
        says = (name, reason, "check the connection file")
        refused("list", f"{short_tmp}/{name}", code=USAGE, says=says)
    if os.geteuid():  # root reads everything
        (short_tmp / "closed.vv").touch(mode=0)
        refused("list", f"{short_tmp}/closed.vv", code=USAGE, says=("Permission denied",))


def test_a_connection_file_by_another_name_is_told_what_it_is_called(short_tmp: Path) -> None:
    path = short_tmp / "console"
    path.write_text("[virt-viewer]\n")
    refused("list", str(path), code=USAGE, says=("is no SPICE URI", ".vv"))


def test_stdin_is_not_asked_for_twice() -> None:
    """Neither for a connection file and an application, nor is anything of it read before."""
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe, open(writer, "wb") as other:
        other.write(b"for the guest")
        other.flush()
        finished = run("-", "--custom-channel", "stdio,channelid=128", stdin=pipe.fileno())
        assert finished.code == USAGE
        (error,) = finished.errors()
        assert "stdin" in error or "standard input" in error
        assert "stdio" in error
        assert len(finished.stderr.splitlines()) == 1
        assert os.read(reader, 100) == b"for the guest"


def test_a_connection_file_that_others_can_read_is_warned_of(
    refused_here: Refused, short_tmp: Path
) -> None:
    for mode in (0o640, 0o604, 0o660):
        path = connection_file(short_tmp, *GOOD, f"password={SECRET}", mode=mode)
        line = refused_here("list", path, code=CONNECT, warns=("chmod 600",), says=("127.0.0.1:1",))
        assert SECRET not in line
    path = connection_file(short_tmp, *GOOD, f"password={SECRET}", mode=0o600)
    refused_here("list", path, code=CONNECT)
    path = connection_file(short_tmp, *GOOD, mode=0o644)
    refused_here("list", path, code=CONNECT)


def test_a_connection_file_is_deleted_if_it_says_so_once_it_was_read(short_tmp: Path) -> None:
    path = Path(connection_file(short_tmp, *GOOD, "delete-this-file=1"))
    refused("list", str(path), code=CONNECT)
    assert not path.exists()
    for value in ("delete-this-file=0", "delete-this-file=", "x=1"):
        path = Path(connection_file(short_tmp, *GOOD, value))
        run("list", str(path))
        assert path.exists()


def test_a_connection_file_stays_where_the_command_line_has_a_mistake(
    refused_here: Refused, short_tmp: Path
) -> None:
    """Its ticket works once: who has mistyped an option does not want to download another."""
    for mistake in (
        ("--secure-channels", "prot"),
        ("--proxy", "ftp://x"),
        ("--password-file", "/nonexistent/password"),
        ("--password-file", "/nonexistent/password", "--password-command", "pass"),
        ("--connect-timeout", "soon"),
        ("--sasl-mechanism", "ROT13"),
        ("--host-subject", "node"),
        ("--ca-file", "/nonexistent/ca"),
    ):
        path = Path(
            connection_file(
                short_tmp, *GOOD, "tls-port=1", "secure-channels=main", "delete-this-file=1"
            )
        )
        refused_here("list", str(path), *mistake, code=USAGE)
        assert path.exists(), mistake


# WebSockets


def upgrade(*headers: str) -> bytes:
    return said("101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", *headers)


WEB = {
    "401": (said("401 Unauthorized"), ("401 Unauthorized", "wants a login")),
    "403": (said("403 Forbidden"), ("403 Forbidden", "check the path")),
    "404": (said("404 Not Found"), ("404 Not Found", "check the path")),
    "200": (said("200 OK", "Content-Length: 0"), ("200 OK", "check the path")),
    "301": (said("301 Moved", "Location: /vm"), ("301 Moved", "it moved to '/vm'")),
    "502": (said("502 Bad Gateway"), ("502 Bad Gateway", "could not reach the SPICE server")),
    "no-accept": (upgrade(), ("the server's answer is wrong",)),
    "subprotocol": (
        upgrade("Sec-WebSocket-Accept: x", "Sec-WebSocket-Protocol: chat"),
        ("the server's answer is wrong",),
    ),
    "spice": (b"REDQ\2\0\0\0", ("REDQ", "spice://")),
    "ssh": (b"SSH-2.0-OpenSSH_9.2\r\n", ("SSH-2.0-OpenSSH_9.2", "is that a web server")),
    "garbage": (b"\x1b[2J\0\xff\r\n\r\n", ("is that a web server",)),
    "repeats": (b"HTTP/1.1 404 %s\r\n\r\n", ("404 GET /x?***",)),
}


@pytest.mark.parametrize(("answer", "says"), WEB.values(), ids=[*WEB])
def test_a_web_server_that_refuses(
    refused_here: Refused, answer: bytes, says: tuple[str, ...], peers: ExitStack
) -> None:
    port = peers.enter_context(tcp_server(answers(answer)))
    line = refused_here(
        *("list", f"ws://127.0.0.1:{port}/x?token={SECRET}"),
        code=CONNECT,
        says=(f"opening the WebSocket at 127.0.0.1:{port}/x", *says),
    )
    assert SECRET not in line
    assert "\x1b" not in line


def test_a_wrong_subprotocol(peers: ExitStack) -> None:
    """With an answer that is right in all else."""

    def talk(client: socket.socket) -> None:
        heard = receive_until(client, b"\r\n\r\n")
        (key,) = (
            line.partition(b":")[2].strip()
            for line in heard.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key:")
        )
        guid = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
        accept = base64.b64encode(hashlib.sha1(key + guid).digest()).decode()
        headers = (f"Sec-WebSocket-Accept: {accept}", "Sec-WebSocket-Protocol: chat")
        client.sendall(upgrade(*headers))
        until_gone(client)

    port = peers.enter_context(tcp_server(talk))
    says = ("opening the WebSocket at", "subprotocol")
    refused("list", f"ws://127.0.0.1:{port}/x", code=CONNECT, says=says)


def test_a_web_server_that_hangs_up(peers: ExitStack) -> None:
    port = peers.enter_context(tcp_server(hangs_up_at_once))
    says = (f"127.0.0.1:{port}/x", "does it want TLS (wss://)?")
    refused("list", f"ws://127.0.0.1:{port}/x", code=CONNECT, says=says)


def test_wss_on_a_plain_port(peers: ExitStack) -> None:
    port = peers.enter_context(tcp_server(answers(said("400 Bad Request"), to=1)))
    says = (f"127.0.0.1:{port}", "wrong version number", "is that its TLS port?")
    refused("list", f"wss://127.0.0.1:{port}/x", code=TLS, says=says)


def test_ws_to_a_tls_port(good_port: int) -> None:
    says = (f"127.0.0.1:{good_port}/x", "wss://")
    refused("list", f"ws://127.0.0.1:{good_port}/x", code=CONNECT, says=says)


# URIs


URIS = {
    "doubled": ("spice://h?port=1&port=2", "names its port twice"),
    "twice": ("spice://h:1?port=2", "names its port twice"),
    "unknown": ("spice://h:1?prot=2", "did you mean port?"),
    "no-port": ("spice://h", "names no port"),
    "unclosed": ("spice://[::1:5900", "without its ']'"),
    "range": ("spice://h?tls-port=65536", "above 65535"),
    "path": ("spice://h:1/vm", "has a path"),
    "two-passwords": (f"spice://u:{SECRET}@h:1?password={SECRET}", "password"),
    "tls-query": ("spice+tls://h:1?tls-port=2", "tls-port="),
    "ws-user": (f"ws://u:{SECRET}@h/x", "user name"),
    "fragment": ("spice://h:1#x", "'#'"),
    "secret-behind": (f"spice://h:x?password={SECRET}", "no number"),
}


@pytest.mark.parametrize(("uri", "says"), URIS.values(), ids=[*URIS])
def test_a_uri_that_cannot_be_taken(refused_here: Refused, uri: str, says: str) -> None:
    assert "Tr0ub" not in refused_here("list", uri, code=USAGE, says=(says, "; "))
    assert "Tr0ub" not in refused_here(
        "list", env={"SPICEBRIDGE_URI": uri}, code=USAGE, says=(says,)
    )
