"""Connection files, as Proxmox VE, oVirt and others write them."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import UsageError
from spicebridge.protocol.constants import ChannelType
from spicebridge.transport.address import TcpAddress, UnixAddress
from spicebridge.transport.connection_file import (
    MAX_SIZE,
    ConnectionFile,
    delete_connection_file,
    parse_connection_file,
    read_connection_file,
)
from spicebridge.transport.proxy_address import ProxyAddress
from spicebridge.transport.target import Target, Trust
from tests.transport.attempt import attempt

CA = "-----BEGIN CERTIFICATE-----\nMIIF\n-----END CERTIFICATE-----\n"
ESCAPED_CA = CA.replace("\n", "\\n")
TICKET = "pvespiceproxy:5f3a2b1c:100:node1::d5a8c2f0b1e94c7f8a6e3d2b1c0f9e8d7c6b5a49"

PROXMOX = f"""[virt-viewer]
ca={ESCAPED_CA}
delete-this-file=1
host={TICKET}
host-subject=OU=PVE Cluster Node,O=Proxmox Virtual Environment,CN=node1.example
password=2f6c1f2d9e
proxy=http://node1.example:3128
release-cursor=Ctrl+Alt+R
secure-attention=Ctrl+Alt+Ins
title=VM 100 - vm
tls-port=61000
toggle-fullscreen=Shift+F11
type=spice
"""

OVIRT = f"""[virt-viewer]
type=spice
host=10.0.0.7
port=5900
password=Ak9XhlMF/A3W
# Password is valid for 120 seconds.
delete-this-file=1
fullscreen=0
title=vm:%d
toggle-fullscreen=shift+f11
release-cursor=shift+f12
secure-attention=ctrl+alt+end
tls-port=5901
enable-smartcard=0
enable-usb-autoshare=1
usb-filter=null
tls-ciphers=DEFAULT
host-subject=O=example.org,CN=host7.example.org
ca={ESCAPED_CA}
secure-channels=main;inputs;cursor;playback;record;display;smartcard;usbredir
versions=rhev-win64:2.0-160;rhev-win32:2.0-160;rhel7:2.0-6;rhel6:99.0-1
newer-version-url=http://www.ovirt.org/documentation/admin-guide/virt/console-client-resources

[ovirt]
host=engine.example.org:443
vm-guid=1b5b1c0e-4a6e-4d3f-8e49-000000000000
sso-token=0123456789abcdef
admin=1
"""

RAVADA = """[virt-viewer]
type=spice
host=192.168.0.143
port=5901
password=%s
fullscreen=1
delete-this-file=1
;tls-ciphers=DEFAULT
;host-subject=O=192.168.0.143,CN=?
;secure-channels=main;inputs
"""

MINIMAL = "[virt-viewer]\ntype=spice\nhost=vm\nport=5900\n"


def parse(text: str) -> Target:
    """What a file says of the server."""
    return parse_connection_file(text, "'vm.vv'").target


@pytest.fixture
def vv(tmp_path: Path) -> Path:
    """A file that only its owner can read."""
    path = tmp_path / "vm.vv"
    path.touch(mode=0o600)
    path.write_text(PROXMOX)
    return path


@pytest.fixture(autouse=True)
def captured(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is logged is kept, however low its level."""
    caplog.set_level(logging.DEBUG)


def test_a_file_of_proxmox(caplog: pytest.LogCaptureFixture) -> None:
    subject = "OU=PVE Cluster Node,O=Proxmox Virtual Environment,CN=node1.example"
    assert parse_connection_file(PROXMOX, "vm.vv") == ConnectionFile(
        Target(
            secure=TcpAddress(TICKET, 61000),
            trust=Trust(ca=CA, host_subject=subject),
            proxy=ProxyAddress("http", "node1.example", 3128),
            password="2f6c1f2d9e",
        ),
        delete=True,
    )
    assert not caplog.records


def test_a_file_of_ovirt(caplog: pytest.LogCaptureFixture) -> None:
    types = set(ChannelType) - {ChannelType.TUNNEL, ChannelType.PORT, ChannelType.WEBDAV}
    assert parse_connection_file(OVIRT, "vm.vv") == ConnectionFile(
        Target(
            plain=TcpAddress("10.0.0.7", 5900),
            secure=TcpAddress("10.0.0.7", 5901),
            secure_channels=frozenset(types),
            trust=Trust(
                ca=CA, host_subject="O=example.org,CN=host7.example.org", ciphers="DEFAULT"
            ),
            password="Ak9XhlMF/A3W",
        ),
        delete=True,
    )
    assert not caplog.records


def test_a_file_with_keys_behind_semicolons(caplog: pytest.LogCaptureFixture) -> None:
    expected = Target(plain=TcpAddress("192.168.0.143", 5901), password="%s")
    assert parse(RAVADA) == expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("lines", "target"),
    [
        ("host=vm\nport=5900", Target(TcpAddress("vm", 5900))),
        ("host=vm\nport= 5900 \ntls-port=0", Target(TcpAddress("vm", 5900))),
        ("host=vm\nport=-1\ntls-port=5901", Target(None, TcpAddress("vm", 5901))),
        ("host=vm\nport=\ntls-port=+5901", Target(None, TcpAddress("vm", 5901))),
        ("host=[::1]\nport=1", Target(TcpAddress("::1", 1))),
        ("host=::1\nport=1", Target(TcpAddress("::1", 1))),
        ("unix-path=/run/vm\\ssock", Target(UnixAddress("/run/vm sock"))),
        ("unix-path=/run/vm\nhost=\nport=-1", Target(UnixAddress("/run/vm"))),
        ("unix-path=\nhost=vm\nport=1", Target(TcpAddress("vm", 1))),
        ("host=vm\nport=1\nhost=vm", Target(TcpAddress("vm", 1))),
        ("host=vm\nport=1\nhost[de]=other", Target(TcpAddress("vm", 1))),
        (
            "host=vm\nport=1\nusername=me\npassword=a\\sb\\\\ ",
            Target(TcpAddress("vm", 1), username="me", password="a b\\ "),
        ),
        (
            "host=vm\nport=1\nproxy=\nhost-subject=\nca=\nusername=\nsecure-channels=\n",
            Target(TcpAddress("vm", 1)),
        ),
        (
            "host=vm\ntls-port=1\nsecure-channels= all ;",
            Target(None, TcpAddress("vm", 1), frozenset(range(1, 256))),
        ),
    ],
)
def test_what_says_where_the_server_is(lines: str, target: Target) -> None:
    assert parse(f"[virt-viewer]\ntype=Spice\n{lines}") == target


@pytest.mark.parametrize(("value", "delete"), [("1", True), ("0", False), ("", False), ("2", True)])
def test_whether_the_file_is_to_be_deleted(value: str, *, delete: bool) -> None:
    text = f"{MINIMAL}delete-this-file={value}"
    assert parse_connection_file(text, "vm.vv").delete is delete


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        ("kiosk=1\nkiosk=2\nkiosk[de]=3", "'vm.vv': 'kiosk' is unknown, and cannot be honoured"),
        (
            "tls-port=1\nsecure-channels=main;smain",
            "'vm.vv': secure-channels names 'smain', which is no channel",
        ),
    ],
)
def test_what_cannot_be_honoured_is_warned_of_once(
    lines: str, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    parse(MINIMAL + lines)
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.WARNING, warning)]


@pytest.mark.parametrize(
    "lines", ["disable-channels=display", "version=99.0", "x-ours=1", "title[de]=VM", "[x-g]\na=1"]
)
def test_what_is_for_others_is_ignored(lines: str, caplog: pytest.LogCaptureFixture) -> None:
    assert parse(MINIMAL + lines) == parse(MINIMAL)
    assert not caplog.records


REFUSED = {
    "": "it has no group [virt-viewer]",
    "[ovirt]\nhost=vm": "it has no group [virt-viewer]",
    "<html>\n": "line 1 is neither",
    "[virt-viewer]\ntype=spice\0": "it is no connection file, but binary",
    "[virt-viewer]\nhost=vm\nport=1": "it does not say of what type it is",
    "[virt-viewer]\ntype=vnc\nhost=vm\nport=1": "its type is 'vnc', not spice",
    "[virt-viewer]\ntype=ovirt": "its type is 'ovirt', not spice",
    "[virt-viewer]\ntype=spice\nport=1": "it names no host",
    "[virt-viewer]\ntype=spice\nhost=\nport=1": "it names no host",
    "[virt-viewer]\ntype=spice\nhost=vm": "it names no port",
    "[virt-viewer]\ntype=spice\nhost=vm\nport=0\ntls-port=-1": "it names no port",
    "[virt-viewer]\ntype=spice\nunix-path=vm": "line 3: unix-path is not absolute",
    f"{MINIMAL}port=5901": "lines 4 and 5 have different values of port",
    f"{MINIMAL}password=secret\npassword=secret2": "lines 5 and 6 have different values of passwor",
    f"{MINIMAL}unix-path=/run/vm": "it has a unix-path and a host or port",
    "[virt-viewer]\ntype=spice\nunix-path=/vm\ntls-port=1": "it has a unix-path and a host or port",
    f"{MINIMAL}tls-port=x": "line 5: tls-port is no number",
    f"{MINIMAL}tls-port=1.5": "line 5: tls-port is no number",
    f"{MINIMAL}tls-port=9999999999": "line 5: tls-port is no number",
    f"{MINIMAL}tls-port=65536": "line 5: tls-port is not from 1 to 65535",
    f"{MINIMAL}tls-port=-2": "line 5: tls-port is not from 1 to 65535",
    f"{MINIMAL}delete-this-file=yes": "line 5: delete-this-file is no number",
    f"{MINIMAL}password=\\xsecret": "line 5: password has a backslash",
    f"{MINIMAL}proxy=http://me:secret@proxy:x": "line 5: proxy 'http://proxy:x' has a port",
    f"{MINIMAL}host-subject=vm": "line 5: subject 'vm' ends at 'vm'",
    f"{MINIMAL}secure-channels=main": "its secure-channels need TLS, and it has no tls-port",
    "[virt-viewer]\ntype=spice\nunix-path=/vm\nsecure-channels=all": "its secure-channels need TLS",
    "[virt-viewer]\ntype=spice\nhost=a\\nb\nport=1": "line 3: host has spaces or control",
    "[virt-viewer]\ntype=spice\nhost=a b\nport=1": "line 3: host has spaces or control",
}


@pytest.mark.parametrize(("text", "complaint"), REFUSED.items(), ids=lambda text: repr(text)[-40:])
def test_a_file_that_cannot_be_taken_says_where_and_why(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.problem.startswith(f"'vm.vv': {complaint}")
    assert caught.value.hint
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value).replace("secure", "")


def test_a_file_is_read(vv: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_connection_file(str(vv)) == parse_connection_file(PROXMOX, "")
    vv.write_bytes(b"\xef\xbb\xbf" + PROXMOX.replace("\n", "\r\n").encode())
    assert read_connection_file(str(vv)) == parse_connection_file(PROXMOX, "")
    assert not caplog.records


def test_standard_input_is_read() -> None:
    script = (
        "from spicebridge.transport.connection_file import read_connection_file;"
        "print(read_connection_file('-').target.plain)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=MINIMAL, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("vm:5900\n", "")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_with_a_password_that_is_open_to_others_is_warned_of(
    vv: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    vv.chmod(mode)
    read_connection_file(str(vv))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "is open to other users" in record.getMessage()
    assert str(vv) in record.getMessage()


def test_a_file_without_a_password_may_be_open(vv: Path, caplog: pytest.LogCaptureFixture) -> None:
    vv.write_text(MINIMAL)
    vv.chmod(0o644)
    read_connection_file(str(vv))
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\x89PNG\r\n\x1a\n", "it is no connection file, but binary"),
        (b"#" * (MAX_SIZE + 1), "it is too large for a connection file"),
        (b"\xff" * (MAX_SIZE + 1), "it is too large for a connection file"),
        (b"#" * MAX_SIZE, "it has no group [virt-viewer]"),
        (b"", "it has no group [virt-viewer]"),
    ],
    ids=["binary", "too-large", "too-large-binary", "largest", "empty"],
)
def test_what_is_no_connection_file_is_named(vv: Path, content: bytes, complaint: str) -> None:
    vv.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_connection_file(str(vv))
    assert caught.value.problem == f"{str(vv)!r}: {complaint}"
    assert caught.value.hint


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "a\nb.vv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError) as caught:
            read_connection_file(str(path))
        assert caught.value.problem.startswith(f"{str(path)!r}: {reason}")


def test_a_file_is_deleted(vv: Path, caplog: pytest.LogCaptureFixture) -> None:
    delete_connection_file(str(vv))
    assert not vv.exists()
    assert not caplog.records


def test_a_file_that_cannot_be_deleted_is_warned_of(
    vv: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vv.unlink()
    delete_connection_file(str(vv))
    (record,) = caplog.records
    assert "which fails: No such file" in record.getMessage()


WORDS = "type host port tls-port unix-path proxy password secure-channels title kiosk host[de] #"
KEYS = st.sampled_from([*WORDS.split(), "host-subject", "delete-this-file", ""])
VALUES = st.sampled_from(["spice", "vm", "5900", "0", "/vm", "all", "O=a,CN=b", "\\", "[::1]"])
LINES = st.builds("{}={}".format, KEYS, VALUES | st.text(max_size=8))


@given(st.lists(LINES, max_size=8).map("\n".join) | st.text(max_size=30))
def test_any_text_is_a_connection_file_or_refused(text: str) -> None:
    for whole in (text, f"[virt-viewer]\n{text}", f"[virt-viewer]\ntype=spice\n{text}"):
        target = attempt(parse, whole)
        if isinstance(target, UsageError):
            assert str(target).startswith("'vm.vv': ")
            assert str(target).isprintable()
        else:
            assert target.plain or target.secure


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\v\f\0")))
def test_every_password_can_be_written_and_is_not_shown(password: str) -> None:
    escaped = password.replace("\\", "\\\\").replace(" ", "\\s").replace("\t", "\\t")
    target = parse(f"{MINIMAL}password={escaped}")
    assert target.password == password
    assert len(repr(password)) < 8 or repr(password) not in repr(target)
