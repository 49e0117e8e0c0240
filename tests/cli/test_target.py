"""Where the server's address and the way to it come from, and which of them comes first."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from spicebridge import ChannelType, TcpAddress, UnixAddress, UsageError
from spicebridge.cli.target import ReachOptions, server_target
from tests.cli.reaching import connection_file
from tests.peers.certificates import Authority

PIN = "sha256//" + "A" * 43 + "="
NOTHING = ReachOptions()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user who runs the tests has there is not ours."""
    for name in ("SPICEBRIDGE_URI", "SPICE_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an authority."""
    return Authority(tmp_path_factory.mktemp("ca")).ca


@pytest.fixture
def full(tmp_path: Path, ca: Path) -> str:
    """A connection file that says all that options may say, too."""
    return connection_file(
        tmp_path,
        "host=vm.example",
        "port=5900",
        "tls-port=5901",
        "ca=" + ca.read_text().replace("\n", "\\n"),
        "host-subject=CN=file",
        "tls-ciphers=HIGH",
        "secure-channels=main;",
        "proxy=http://file.example",
        "username=file",
        "password=of the file",
    )


# Which server


def test_without_anything_it_is_qemus_first_port() -> None:
    assert server_target(None, NOTHING).plain == TcpAddress("127.0.0.1", 5900)


def test_the_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPICEBRIDGE_URI", "spice://environment:1")
    assert server_target(None, NOTHING).plain == TcpAddress("environment", 1)
    assert server_target("spice://argument:2", NOTHING).plain == TcpAddress("argument", 2)


def test_an_empty_variable_is_as_none_but_an_empty_argument_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``spicebridge "$URI"`` is not to bridge another machine when it is not set."""
    monkeypatch.setenv("SPICEBRIDGE_URI", "")
    assert server_target(None, NOTHING).plain == TcpAddress("127.0.0.1", 5900)
    with pytest.raises(UsageError, match="is no SPICE URI"):
        server_target("", NOTHING)


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_a_connection_file_is_told_by_its_ending(
    where: str, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPICEBRIDGE_URI", full)
    target = server_target(full if where == "argument" else None, NOTHING)
    assert (target.plain, target.secure) == (
        TcpAddress("vm.example", 5900),
        TcpAddress("vm.example", 5901),
    )


def test_a_uri_may_end_as_a_connection_file_does() -> None:
    assert server_target("spice+unix:///run/vm.vv", NOTHING).plain == UnixAddress("/run/vm.vv")


def test_a_connection_file_by_another_name_is_told_what_it_is_called(full: str) -> None:
    other = Path(full).rename(Path(full).with_suffix(".txt"))
    with pytest.raises(UsageError, match=r"is no SPICE URI; .*FILE\.vv"):
        server_target(str(other), NOTHING)


def test_one_dash_is_standard_input(full: str) -> None:
    kept = os.dup(0)
    try:
        with open(full, "rb") as file:
            os.dup2(file.fileno(), 0)
            target = server_target("-", NOTHING)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert target.username == "file"


def test_standard_input_is_not_read_where_it_is_an_applications() -> None:
    with pytest.raises(UsageError, match=r"asked for twice.*FILE\.vv"):
        server_target("-", NOTHING, stdio=True)


def test_an_application_at_standard_input_minds_no_other_server(full: str) -> None:
    assert server_target(full, NOTHING, stdio=True).username == "file"
    assert server_target("spice://vm:1", NOTHING, stdio=True).plain == TcpAddress("vm", 1)


# What comes first


def test_the_file_is_believed_where_the_command_line_says_nothing(full: str, ca: Path) -> None:
    target = server_target(full, NOTHING)
    assert (target.trust.ca, target.trust.ca_file) == (ca.read_text(), "")
    assert (target.trust.host_subject, target.trust.ciphers) == ("CN=file", "HIGH")
    assert (target.trust.pinned_key, target.trust.insecure) == ("", False)
    assert target.secure_channels == {ChannelType.MAIN}
    assert str(target.proxy) == "http://file.example:3128"
    assert (target.username, target.password) == ("file", "of the file")


def test_the_command_line_comes_before_the_file(
    full: str, ca: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ReachOptions(
        ca_file=ca,
        host_subject="CN=option",
        pinned_key=PIN,
        tls_ciphers="ECDHE",
        insecure_tls=True,
        secure_channels="port,200",
        proxy="socks5://option.example",
        sasl_mechanism="PLAIN",
    )
    with caplog.at_level(logging.WARNING, "spicebridge"):
        target = server_target(full, options)
    assert (target.trust.ca, target.trust.ca_file) == ("", str(ca))
    assert (target.trust.host_subject, target.trust.ciphers) == ("CN=option", "ECDHE")
    assert (target.trust.pinned_key, target.trust.insecure) == (PIN, True)
    assert target.secure_channels == {ChannelType.PORT, 200}
    assert str(target.proxy) == "socks5://option.example:1080"
    assert target.sasl_mechanism == "PLAIN"
    assert [record.getMessage()[:14] for record in caplog.records] == ["--insecure-tls"]


def test_the_environments_proxy_comes_last(full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPICE_PROXY", "environment.example")
    uri = "spice://vm:1"
    assert str(server_target(uri, NOTHING).proxy) == "http://environment.example:3128"
    assert str(server_target(full, NOTHING).proxy) == "http://file.example:3128"
    option = ReachOptions(proxy="http://option.example")
    assert str(server_target(uri, option).proxy) == "http://option.example:3128"


def test_an_empty_proxy_is_none(full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("", "environment.example"):
        monkeypatch.setenv("SPICE_PROXY", variable)
        for named in ("spice://vm:1", full):
            assert server_target(named, ReachOptions(proxy="")).proxy is None
    monkeypatch.setenv("SPICE_PROXY", "")
    assert server_target("spice://vm:1", NOTHING).proxy is None


def test_all_channels_may_be_secure() -> None:
    uri = "spice://vm?port=1&tls-port=2"
    target = server_target(uri, ReachOptions(secure_channels="all"))
    assert all(target.needs_tls(number) for number in range(1, 256))
    target = server_target(uri, ReachOptions(secure_channels="main,port,128"))
    assert target.secure_channels == {ChannelType.MAIN, ChannelType.PORT, 128}


# Mistakes


WRONG = {
    "secure-channels": (ReachOptions(secure_channels="prot"), "'prot' is no channel type"),
    "secure-channels-none": (ReachOptions(secure_channels=""), "'' is no channel type"),
    "secure-channels-low": (ReachOptions(secure_channels="127"), "'127' is no channel type"),
    "secure-channels-high": (ReachOptions(secure_channels="256"), "'256' is no channel type"),
    "proxy": (ReachOptions(proxy="ftp://p"), "of no kind that we know"),
    "pin": (ReachOptions(pinned_key="abc"), "is no pinned key"),
    "subject": (ReachOptions(host_subject="node"), "subject 'node'"),
    "ciphers": (ReachOptions(tls_ciphers="ROT13"), "'ROT13'"),
    "ca-file": (ReachOptions(ca_file=Path("/nonexistent/ca")), "/nonexistent/ca: No such file"),
    "mechanism": (ReachOptions(sasl_mechanism="ROT13"), "'ROT13'"),
}


@pytest.mark.parametrize(("options", "says"), WRONG.values(), ids=[*WRONG])
def test_a_mistake_is_told_before_anybody_is_asked_and_the_file_stays(
    options: ReachOptions, says: str, full: str
) -> None:
    with open(full, "a") as file:
        file.write("delete-this-file=1\n")
    with pytest.raises(UsageError, match=says):
        server_target(full, options)
    assert Path(full).exists()
    assert server_target(full, NOTHING).username == "file"
    assert not Path(full).exists()


def test_a_password_too_long_is_told_before_the_file_is_deleted(tmp_path: Path) -> None:
    lines = ("host=vm", "port=1", f"password={'x' * 61}", "delete-this-file=1")
    path = connection_file(tmp_path, *lines)
    with pytest.raises(UsageError, match="61 bytes"):
        server_target(path, NOTHING)
    assert Path(path).exists()


def test_an_empty_file_of_authorities_does_not_mean_the_systems() -> None:
    options = ReachOptions(ca_file=Path(os.devnull))
    with pytest.raises(UsageError, match="holds no certificates"):
        server_target("spice+tls://vm:1", options)


def test_a_file_that_cannot_be_deleted_is_warned_of(
    full: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with open(full, "a") as file:
        file.write("delete-this-file=1\n")
    monkeypatch.setattr(Path, "unlink", fails)
    with caplog.at_level(logging.WARNING, "spicebridge"):
        assert server_target(full, NOTHING).username == "file"
    (record,) = caplog.records
    assert "asks to be deleted, which fails: Permission denied" in record.getMessage()
