"""Every way to a real QEMU: it is listed, a monitor answers, and 32 MiB come back unharmed.

spice-client-glib goes the same way wherever it can, and has to find the same channels.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from spicebridge.errors import LinkRefusedError
from tests.conftest import EXECUTABLE, PATIENCE
from tests.peers.certificates import Authority, CertificateFiles
from tests.peers.nginx import WebSocketProxy
from tests.peers.proxies import Login, Microsocks, Stunnel, Tinyproxy
from tests.peers.qemu import Qemu
from tests.real.reach import SIZE, Way, carry, channels, channels_of_glib, linked_at, steps
from tests.real.tools import MIB, Start, list_rows

pytestmark = pytest.mark.real_peer

PASSWORD = "correct horse, battery staple"
LOGIN = Login("me", "hunter2")
SMALL = MIB
"""For a way that another test has moved `SIZE` bytes, put in other words."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> CertificateFiles:
    return authority.issue()


@pytest.fixture
def qemu(short_tmp: Path, certificate: CertificateFiles) -> Iterator[Qemu]:
    """One that takes plain connections and TLS, and does not mind which."""
    with Qemu(short_tmp, tls=certificate) as running:
        yield running


def trusting(certificate: CertificateFiles) -> tuple[str, str]:
    return "--ca-file", str(certificate.ca)


def trusted(certificate: CertificateFiles) -> dict[str, str]:
    """The same for spice-client-glib."""
    return {"ca-file": str(certificate.ca)}


def both(qemu: Qemu) -> str:
    return f"spice://127.0.0.1?port={qemu.port}&tls-port={qemu.tls_port}"


# A ticket


@contextmanager
def locked(folder: Path) -> Iterator[tuple[Qemu, Path]]:
    """A QEMU that wants a ticket, and a file with it."""
    file = folder / "password"
    file.touch(mode=0o600)
    file.write_text(f"{PASSWORD}\n")
    with Qemu(folder, password=PASSWORD) as qemu:
        yield qemu, file


def test_a_ticket_from_a_file(spicebridge: Start, short_tmp: Path) -> None:
    with locked(short_tmp) as (qemu, file):
        options = "--password-file", str(file)
        found = channels(list_rows(qemu.uri, *options))
        assert found == channels_of_glib(qemu.uri, password_file=file)
        carry(spicebridge, short_tmp, Way(qemu.uri, options))


def test_a_ticket_from_the_environment(spicebridge: Start, short_tmp: Path) -> None:
    env = {"SPICEBRIDGE_PASSWORD": PASSWORD}
    with locked(short_tmp) as (qemu, file):
        assert channels(list_rows(qemu.uri, env=env)) == channels_of_glib(
            qemu.uri, password_file=file
        )
        carry(spicebridge, short_tmp, Way(qemu.uri, env=env), SMALL)


# Unix sockets


def test_a_unix_socket(spicebridge: Start, short_tmp: Path) -> None:
    with Qemu(short_tmp, unix=True) as qemu:
        assert channels(list_rows(qemu.uri)) == channels_of_glib(qemu.uri)
        carry(spicebridge, short_tmp, Way(qemu.uri))


# TLS


@pytest.mark.parametrize(
    ("uri", "size"),
    [("spice+tls://127.0.0.1:{}", SIZE), ("spice://localhost?tls-port={}", SMALL)],
    ids=["tls", "tls-port"],
)
def test_a_server_that_has_only_a_tls_port(
    spicebridge: Start, short_tmp: Path, certificate: CertificateFiles, uri: str, size: int
) -> None:
    with Qemu(short_tmp, tls=certificate, plain=False) as qemu:
        uri = uri.format(qemu.tls_port)
        found = channels(list_rows(uri, *trusting(certificate)))
        assert found == channels_of_glib(uri, trusted(certificate))
        running = carry(spicebridge, short_tmp, Way(uri, trusting(certificate)), size)
        assert len(steps(running, "starting TLS with ")) == len(steps(running, "linking "))


def test_main_goes_to_the_tls_port_when_the_plain_one_refuses_it(
    spicebridge: Start, short_tmp: Path, certificate: CertificateFiles
) -> None:
    with Qemu(short_tmp, tls=certificate, tls_channels=["main"]) as qemu:
        found = channels(list_rows(both(qemu), *trusting(certificate)))
        assert found == channels_of_glib(both(qemu), trusted(certificate))
        running = carry(spicebridge, short_tmp, Way(both(qemu), trusting(certificate)))
        plain, secure = f"127.0.0.1:{qemu.port}", f"127.0.0.1:{qemu.tls_port}"
        assert linked_at(running) == {"main:0": {secure}, "port:0": {plain}, "port:1": {plain}}
        assert linked_at(running, refused=True) == {"main:0": {plain}}
        assert steps(running, "starting TLS with ") == [secure]


def test_a_port_goes_to_the_tls_port_when_the_plain_one_refuses_it(
    spicebridge: Start, short_tmp: Path, certificate: CertificateFiles
) -> None:
    with Qemu(short_tmp, tls=certificate, tls_channels=["port"]) as qemu:
        found = channels(list_rows(both(qemu), *trusting(certificate)))
        assert found == channels_of_glib(both(qemu), trusted(certificate))
        running = carry(spicebridge, short_tmp, Way(both(qemu), trusting(certificate)))
        plain, secure = f"127.0.0.1:{qemu.port}", f"127.0.0.1:{qemu.tls_port}"
        assert linked_at(running) == {"main:0": {plain}, "port:0": {secure}, "port:1": {secure}}
        assert linked_at(running, refused=True) == {"port:0": {plain}, "port:1": {plain}}


def test_a_channel_that_is_for_the_plain_port_only_goes_there(
    spicebridge: Start, short_tmp: Path, certificate: CertificateFiles
) -> None:
    """All else is for the TLS port only."""
    security = {"tls_channels": ["default"], "plaintext_channels": ["port"]}
    with Qemu(short_tmp, tls=certificate, **security) as qemu:  # type: ignore[arg-type]
        found = channels(list_rows(both(qemu), *trusting(certificate)))
        assert found == channels_of_glib(both(qemu), trusted(certificate))
        running = carry(spicebridge, short_tmp, Way(both(qemu), trusting(certificate)))
        plain, secure = f"127.0.0.1:{qemu.port}", f"127.0.0.1:{qemu.tls_port}"
        assert linked_at(running) == {"main:0": {secure}, "port:0": {plain}, "port:1": {plain}}


def test_a_channel_that_the_server_wants_plain_and_we_secure_is_not_linked(
    short_tmp: Path, certificate: CertificateFiles
) -> None:
    """spice-client-glib does not link it either."""
    with Qemu(short_tmp, tls=certificate, plaintext_channels=["port"]) as qemu:
        done = subprocess.run(
            [EXECUTABLE, "list", both(qemu), *trusting(certificate), "--secure-channels", "port"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stdout) == (LinkRefusedError.exit_code, "")
        assert len(done.stderr.splitlines()) == 1
        assert "need unsecured" in done.stderr.lower()


@pytest.mark.parametrize(
    ("types", "secured"), [("all", {"main:0", "port:0", "port:1"}), ("port", {"port:0", "port:1"})]
)
def test_secure_channels_are_linked_with_tls_though_the_server_does_not_mind(
    spicebridge: Start,
    short_tmp: Path,
    qemu: Qemu,
    certificate: CertificateFiles,
    types: str,
    secured: set[str],
) -> None:
    options = *trusting(certificate), "--secure-channels", types
    found = channels(list_rows(both(qemu), *options))
    assert found == channels_of_glib(both(qemu), trusted(certificate) | {"secure-channels": types})
    running = carry(spicebridge, short_tmp, Way(both(qemu), options))
    plain, secure = f"127.0.0.1:{qemu.port}", f"127.0.0.1:{qemu.tls_port}"
    assert linked_at(running) == {
        name: {secure if name in secured else plain} for name in ("main:0", "port:0", "port:1")
    }
    assert not linked_at(running, refused=True)


def test_where_plain_is_allowed_no_tls_is_spoken(
    spicebridge: Start, short_tmp: Path, qemu: Qemu
) -> None:
    running = carry(spicebridge, short_tmp, Way(both(qemu)), SMALL)
    assert not steps(running, "starting TLS")


def test_a_pinned_key_stands_for_an_authority(
    spicebridge: Start, short_tmp: Path, qemu: Qemu, certificate: CertificateFiles
) -> None:
    options = "--pinned-key", certificate.pin
    found = channels(list_rows(qemu.tls_uri, *options))
    assert found == channels_of_glib(qemu.tls_uri, trusted(certificate))
    carry(spicebridge, short_tmp, Way(qemu.tls_uri, options))


def test_a_subject_stands_for_the_name_of_the_host(
    spicebridge: Start, short_tmp: Path, authority: Authority
) -> None:
    elsewhere = authority.issue("elsewhere.test")
    with Qemu(short_tmp, tls=elsewhere, plain=False) as qemu:
        options = *trusting(elsewhere), "--host-subject", elsewhere.subject
        found = channels(list_rows(qemu.tls_uri, *options))
        assert found == channels_of_glib(
            qemu.tls_uri, trusted(elsewhere) | {"cert-subject": elsewhere.subject}
        )
        carry(spicebridge, short_tmp, Way(qemu.tls_uri, options))


# WebSockets, which spice-client-glib does not speak


def test_a_websocket(spicebridge: Start, short_tmp: Path, qemu: Qemu) -> None:
    uri = f"ws://127.0.0.1:{qemu.port}/"
    assert channels(list_rows(uri)) == channels_of_glib(qemu.uri)
    running = carry(spicebridge, short_tmp, Way(uri))
    assert not steps(running, "starting TLS")


def test_a_websocket_in_tls(
    spicebridge: Start, short_tmp: Path, qemu: Qemu, certificate: CertificateFiles
) -> None:
    way = Way(f"wss://localhost:{qemu.tls_port}", trusting(certificate))
    assert channels(list_rows(way.uri, *way.options)) == channels_of_glib(qemu.uri)
    carry(spicebridge, short_tmp, way)


def test_a_websocket_behind_a_web_server(
    spicebridge: Start,
    short_tmp: Path,
    qemu: Qemu,
    certificate: CertificateFiles,
    peers: ExitStack,
) -> None:
    path = "/vm1/spice"
    nginx = peers.enter_context(
        WebSocketProxy(short_tmp, {path: qemu.port}, certificate=certificate)
    )
    way = Way(f"wss://localhost:{nginx.port}{path}", trusting(certificate))
    assert channels(list_rows(way.uri, *way.options)) == channels_of_glib(qemu.uri)
    running = carry(spicebridge, short_tmp, way)
    assert set(steps(running, "connecting to ")) == {f"localhost:{nginx.port}"}
    nginx.stop()
    assert set(nginx.connections()) == {f"{path} 101"}


# Proxies


def via(scheme: str, port: int, login: Login | None = None) -> str:
    user = f"{login.username}:{login.password}@" if login else ""
    return f"{scheme}://{user}127.0.0.1:{port}"


def test_a_plain_port_through_a_proxy(
    spicebridge: Start, short_tmp: Path, qemu: Qemu, peers: ExitStack
) -> None:
    proxy = peers.enter_context(Tinyproxy(short_tmp))
    uri = via("http", proxy.port)
    way = Way(qemu.uri, ("--proxy", uri))
    assert channels(list_rows(way.uri, *way.options)) == channels_of_glib(qemu.uri, {"proxy": uri})
    running = carry(spicebridge, short_tmp, way)
    assert set(steps(running, "connecting to ")) == {f"127.0.0.1:{proxy.port}"}
    assert set(proxy.connections()) == {f"127.0.0.1:{qemu.port}"}


@pytest.mark.parametrize("login", [None, LOGIN], ids=["open", "login"])
@pytest.mark.parametrize("kind", ["tinyproxy", "microsocks"])
def test_tls_goes_through_a_proxy_end_to_end(
    spicebridge: Start,
    short_tmp: Path,
    qemu: Qemu,
    certificate: CertificateFiles,
    peers: ExitStack,
    kind: str,
    login: Login | None,
) -> None:
    """A name is left to the proxy. It knows no certificate, so nobody but QEMU has answered."""
    proxy: Tinyproxy | Microsocks
    if kind == "tinyproxy":
        proxy = peers.enter_context(Tinyproxy(short_tmp, login=login))
        uri = via("http", proxy.port, login)
        server = f"localhost:{qemu.tls_port}"
    else:
        proxy = peers.enter_context(Microsocks(login=login))
        uri = via("socks5", proxy.port, login)
        server = f"127.0.0.1:{qemu.tls_port}"  # it would try but the first address of localhost
    # a login stands in the variable, as in the command line others would see it
    options, env = ((), {"SPICE_PROXY": uri}) if login else (("--proxy", uri), {})
    way = Way(f"spice+tls://{server}", (*trusting(certificate), *options), env)
    found = channels(list_rows(way.uri, *way.options, env=env))
    properties = {"proxy": uri} if kind == "tinyproxy" else {}  # it knows no other kind
    assert found == channels_of_glib(way.uri, trusted(certificate) | properties)
    running = carry(spicebridge, short_tmp, way)
    assert set(steps(running, "connecting to ")) == {f"127.0.0.1:{proxy.port}"}
    assert set(steps(running, "starting TLS with ")) == {server}
    assert set(proxy.connections()) == {server}


def test_the_variable_of_spice_client_glib_names_a_proxy(
    spicebridge: Start,
    short_tmp: Path,
    qemu: Qemu,
    certificate: CertificateFiles,
    peers: ExitStack,
) -> None:
    proxy = peers.enter_context(Tinyproxy(short_tmp, login=LOGIN))
    env = {"SPICE_PROXY": via("http", proxy.port, LOGIN)}
    way = Way(qemu.tls_uri, trusting(certificate), env)
    rows = list_rows(way.uri, *way.options, env=env)
    found = channels_of_glib(way.uri, trusted(certificate) | {"proxy": env["SPICE_PROXY"]})
    assert channels(rows) == found
    running = carry(spicebridge, short_tmp, way, SMALL)
    assert set(steps(running, "connecting to ")) == {f"127.0.0.1:{proxy.port}"}
    assert set(proxy.connections()) == {f"127.0.0.1:{qemu.tls_port}"}


def test_tls_inside_the_tls_of_a_proxy(
    spicebridge: Start,
    short_tmp: Path,
    qemu: Qemu,
    certificate: CertificateFiles,
    peers: ExitStack,
) -> None:
    """spice-client-glib cannot go there: the system would have to trust the proxy."""
    inside = peers.enter_context(Tinyproxy(short_tmp, login=LOGIN))
    outside = peers.enter_context(
        Stunnel(short_tmp, f"127.0.0.1:{inside.port}", certificate=certificate)
    )
    env = {"SPICE_PROXY": via("https", outside.port, LOGIN)}
    way = Way(qemu.tls_uri, trusting(certificate), env)
    assert channels(list_rows(way.uri, *way.options, env=env)) == channels_of_glib(qemu.uri)
    running = carry(spicebridge, short_tmp, way)
    assert set(steps(running, "connecting to ")) == {f"127.0.0.1:{outside.port}"}
    assert set(steps(running, "starting TLS with ")) == {
        f"proxy https://127.0.0.1:{outside.port}",
        f"127.0.0.1:{qemu.tls_port}",
    }
    assert set(inside.connections()) == {f"127.0.0.1:{qemu.tls_port}"}


# What `list -v` tells


def test_list_is_the_doctor(short_tmp: Path, certificate: CertificateFiles) -> None:
    with Qemu(short_tmp, tls=certificate, plain=False, password=PASSWORD) as qemu:
        options = [qemu.tls_uri, *trusting(certificate)]
        done = subprocess.run(
            [EXECUTABLE, "list", "-v", "--json", *options],
            stdin=subprocess.DEVNULL,
            env={"SPICEBRIDGE_PASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
    assert len(channels(json.loads(done.stdout))) > 2
    told = done.stderr.splitlines()
    place = re.escape(f"127.0.0.1:{qemu.tls_port}")
    ms = r"\d+\.\d ms"
    caps = r"[-\w]+(, [-\w]+)*"
    tls = rf"TLSv1\.3, TLS_\w+, \d+ bits; certificate of {re.escape(certificate.subject)}"
    link = rf"SPICE 2\.2; login: ticket; our capabilities: {caps}; the server's: {caps}"
    expected = [
        rf"connecting to {place}: {ms}",
        rf"starting TLS with {place}: {ms}; {tls}, \d+ days left",
        rf"linking main:0 at {place}: {ms}; {link}",
        rf"waiting for the list of channels: {ms}",
    ]
    for line, pattern in zip(told, expected, strict=False):
        assert re.fullmatch(rf"\S+ DEBUG spicebridge: {pattern}", line), line
    for port in (0, 1):
        assert any(f" linking port:{port} at 127.0.0.1:{qemu.tls_port}: " in line for line in told)
    assert PASSWORD not in done.stderr
