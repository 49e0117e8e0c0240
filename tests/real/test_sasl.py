"""SASL logins to a real QEMU: passwords in TLS, and tickets of a real KDC with and without it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from spicebridge.channel import Channel
from spicebridge.client.session import ChannelInfo, open_session
from spicebridge.errors import LoginError
from spicebridge.protocol.link import Linked
from spicebridge.transport.address import TcpAddress, UnixAddress
from spicebridge.transport.target import Target, Trust
from tests.conftest import Spicebridge
from tests.peers.certificates import Authority, CertificateFiles
from tests.peers.kerberos import Realm
from tests.peers.qemu import QMP_PORT, Qemu
from tests.real.reach import SIZE, Way, carry
from tests.real.tools import Start, events

pytestmark = pytest.mark.real_peer

USER, PASSWORD = "alice@realm", "open, sesame"
PRINCIPAL = "alice"
QMP = ChannelInfo(10, 1)
LARGE = 100_000
"""Bytes that go to a monitor and come back, which are many frames of a security layer. QEMU's
monitor is stuck when its answer is larger than two messages."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sasl")


@pytest.fixture(scope="module")
def certificate(folder: Path) -> CertificateFiles:
    return Authority(folder).issue()


def configured(folder: Path, mechanisms: str) -> dict[str, str]:
    """The environment of a QEMU that offers these mechanisms, and knows one user."""
    users = folder / "users"
    subprocess.run(
        ["/usr/sbin/saslpasswd2", "-f", users, "-c", "-p", "-u", "realm", "-a", "qemu", "alice"],
        input=PASSWORD.encode(),
        check=True,
    )
    (folder / "qemu.conf").write_text(
        f"mech_list: {mechanisms}\nkeytab: {folder}/keytab\n"
        f"pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {users}\n"
    )
    return {"SASL_CONF_PATH": str(folder)}


def secured(qemu: Qemu, certificate: CertificateFiles) -> Target:
    """QEMU in TLS, for the user."""
    return Target(
        secure=TcpAddress("localhost", qemu.tls_port),
        trust=Trust(ca_file=str(certificate.ca)),
        username=USER,
        password=PASSWORD,
    )


async def talk(target: Target) -> Linked:
    """Sends much through QEMU's monitor and gets it back; returns what was agreed on."""
    async with open_session(target) as session, await session.open_channel(QMP) as monitor:
        assert monitor.port is not None
        assert monitor.port.name == QMP_PORT
        assert "QMP" in await line(monitor)
        much = "".join(chr(ord("a") + at % 26) for at in range(LARGE))
        command = {"execute": "qmp_capabilities", "id": much}
        await monitor.send(json.dumps(command).encode() + b"\n")
        assert json.loads(await line(monitor)) == {"return": {}, "id": much}
        return monitor.linked


async def line(channel: Channel) -> str:
    """The next line that a monitor says."""
    said = b""
    while not said.endswith(b"\n"):
        more = await channel.read()
        assert more, f"it has ended after {said[-200:]!r}"
        said += more
    return said.decode()


# Passwords


@pytest.fixture(scope="module")
def qemu(folder: Path, certificate: CertificateFiles) -> Iterator[Qemu]:
    """One that offers what it has for passwords."""
    env = configured(folder, "scram-sha-512 scram-sha-256 scram-sha-1 plain digest-md5")
    with Qemu(folder, tls=certificate, extra=["-spice", "sasl=on"], env=env) as running:
        yield running


@pytest.fixture
def secure(qemu: Qemu, certificate: CertificateFiles) -> Target:
    return secured(qemu, certificate)


async def test_the_strongest_mechanism_lets_us_in(secure: Target) -> None:
    assert (await talk(secure)).login == "SASL SCRAM-SHA-512"


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"])
async def test_every_mechanism_with_a_password_lets_us_in(secure: Target, mechanism: str) -> None:
    target = replace(secure, sasl_mechanism=mechanism)
    async with open_session(target) as session, await session.open_channel(QMP) as monitor:
        assert monitor.linked.login == f"SASL {mechanism}"


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN"])
@pytest.mark.parametrize(("username", "password"), [(USER, "wrong"), ("bob", PASSWORD)])
async def test_a_wrong_name_or_password_is_told_as_that(
    secure: Target, mechanism: str, username: str, password: str
) -> None:
    """QEMU closes the connection without a word."""
    target = replace(secure, sasl_mechanism=mechanism, username=username, password=password)
    with pytest.raises(LoginError, match=f"SASL {mechanism}") as caught:
        async with open_session(target):
            pass
    assert "spice://USER@HOST:PORT, --password-file" in caught.value.hint


async def test_without_a_name_the_user_is_told_what_is_offered_and_needed(secure: Target) -> None:
    with pytest.raises(LoginError, match=r"SCRAM-SHA-256.*needs a username") as caught:
        async with open_session(replace(secure, username="")):
            pass
    assert "spice://USER@HOST" in caught.value.hint


async def test_without_tls_qemu_offers_nothing_for_passwords_that_we_take(
    qemu: Qemu, secure: Target
) -> None:
    target = replace(secure, plain=TcpAddress("127.0.0.1", qemu.port), secure=None)
    with pytest.raises(LoginError, match="DIGEST-MD5") as caught:
        async with open_session(target):
            pass
    assert "connect with TLS" in caught.value.hint


async def test_qemu_has_no_sasl_on_a_unix_socket(short_tmp: Path) -> None:
    """libspice-server 0.15 hands Cyrus SASL an address that it refuses, and closes."""
    env = configured(short_tmp, "scram-sha-256")
    with Qemu(short_tmp, unix=True, extra=["-spice", "sasl=on"], env=env) as running:
        path = running.uri.removeprefix("spice+unix://")
        with pytest.raises(LoginError, match="instead of naming") as caught:
            async with open_session(Target(UnixAddress(path), username=USER, password=PASSWORD)):
                pass
    assert "Unix socket" in caught.value.hint


async def test_a_server_with_a_ticket_gets_the_ticket_from_who_knows_sasl(short_tmp: Path) -> None:
    with Qemu(short_tmp, password=PASSWORD) as running:
        target = Target(TcpAddress("127.0.0.1", running.port), username=USER, password=PASSWORD)
        assert (await talk(target)).login == "ticket"


# Tickets of Kerberos


@pytest.fixture(scope="module")
def realm(folder: Path) -> Iterator[Realm]:
    pytest.importorskip("gssapi")
    with Realm(folder, ["spice/localhost"]) as running:
        running.add_user(PRINCIPAL, PASSWORD)
        running.login(PRINCIPAL, PASSWORD)
        yield running


@pytest.fixture(scope="module")
def kerberized(
    tmp_path_factory: pytest.TempPathFactory, realm: Realm, certificate: CertificateFiles
) -> Iterator[Qemu]:
    """One that offers Kerberos, and what it has for passwords."""
    folder = tmp_path_factory.mktemp("kerberized")
    env = configured(folder, "gssapi scram-sha-256") | realm.env
    (folder / "keytab").symlink_to(realm.keytab)
    with Qemu(folder, tls=certificate, extra=["-spice", "sasl=on"], env=env) as running:
        yield running


@pytest.fixture
def in_realm(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    """We have the user's tickets."""
    for name, value in realm.env.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("in_realm")
@pytest.mark.parametrize("username", ["", PRINCIPAL])
async def test_a_ticket_lets_us_in_and_everything_is_encrypted(
    kerberized: Qemu, username: str
) -> None:
    linked = await talk(Target(TcpAddress("localhost", kerberized.port), username=username))
    assert linked.login == "SASL GSSAPI"
    assert linked.layer is not None


@pytest.mark.usefixtures("in_realm")
async def test_in_tls_a_ticket_lets_us_in_without_another_layer(
    kerberized: Qemu, certificate: CertificateFiles
) -> None:
    target = replace(secured(kerberized, certificate), username="", password="")
    linked = await talk(target)
    assert linked.login == "SASL GSSAPI"
    assert linked.layer is None


@pytest.mark.usefixtures("in_realm")
async def test_somebody_elses_ticket_is_not_used_where_there_is_a_password(
    kerberized: Qemu, certificate: CertificateFiles
) -> None:
    linked = await talk(secured(kerberized, certificate))
    assert linked.login == "SASL SCRAM-SHA-256"


async def test_without_a_ticket_the_user_is_told_to_get_one(
    kerberized: Qemu, realm: Realm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KRB5_CONFIG", realm.env["KRB5_CONFIG"])
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{tmp_path}/none")
    with pytest.raises(LoginError, match="No Kerberos credentials") as caught:
        async with open_session(Target(TcpAddress("localhost", kerberized.port))):
            pass
    assert caught.value.hint == "run kinit"


@pytest.mark.usefixtures("in_realm")
async def test_a_server_that_the_realm_does_not_know_is_not_talked_to(kerberized: Qemu) -> None:
    with pytest.raises(LoginError, match=r"spice/127\.0\.0\.1@.* not found"):
        async with open_session(Target(TcpAddress("127.0.0.1", kerberized.port))):
            pass


# The whole way: the executable, QEMU's monitor, many bytes


def login_of(running: Spicebridge) -> set[str]:
    """The logins that its log tells of, one for each channel that was linked."""
    found = (record["found"] for record in events(running, "step"))
    return {each for told in found for each in told if each.startswith("login: ")}


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"])
def test_bytes_move_after_each_login_with_a_password(
    spicebridge: Start, short_tmp: Path, qemu: Qemu, certificate: CertificateFiles, mechanism: str
) -> None:
    uri = f"spice+tls://{quote(USER, safe='')}@localhost:{qemu.tls_port}"
    options = ("--ca-file", str(certificate.ca), "--sasl-mechanism", mechanism)
    running = carry(
        spicebridge, short_tmp, Way(uri, options, {"SPICEBRIDGE_PASSWORD": PASSWORD}), SIZE
    )
    assert login_of(running) == {f"login: SASL {mechanism}"}
    assert PASSWORD not in running.stderr()


@pytest.mark.parametrize("tls", [False, True], ids=["layer", "tls"])
def test_bytes_move_after_a_login_with_a_ticket(
    spicebridge: Start,
    short_tmp: Path,
    kerberized: Qemu,
    realm: Realm,
    certificate: CertificateFiles,
    tls: bool,
) -> None:
    uri = f"spice://localhost:{kerberized.port}"
    options: tuple[str, ...] = ()
    if tls:
        uri = f"spice+tls://localhost:{kerberized.tls_port}"
        options = ("--ca-file", str(certificate.ca))
    running = carry(spicebridge, short_tmp, Way(uri, options, realm.env), SIZE)
    assert login_of(running) == {"login: SASL GSSAPI"}
