"""No secret is told: not in any output, however much is asked for, nor to any program of ours.

Each way to give one is taken here, and meets success and refusals. What is looked for is the secret
itself and what it becomes on the wire where that is as good as itself, such as Basic's base64.
"""

from __future__ import annotations

import base64
import json
import select
import shlex
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.fake_server import Script, until_gone
from tests.cli.reaching import (
    answers,
    connection_file,
    data,
    hangs_up,
    on_tls,
    read_data,
    receive,
    receive_until,
    sasl,
    served,
    tcp_server,
    tls_options,
)
from tests.cli.tools import Finished, Screen, run, until
from tests.conftest import PATIENCE, Spicebridge
from tests.peers.certificates import Authority, CertificateFiles
from tests.peers.processes import free_port
from tests.protocol.sasl_tools import USER, ScramServer

pytestmark = pytest.mark.usefixtures("nothing_of_the_users")

Start = Callable[..., Spicebridge]

SECRET = "Tr0ub4dor+3/x"
ESCAPED = "Tr0ub4dor%2B3%2Fx"

FORMS = [
    SECRET,
    ESCAPED,
    "Tr0ub4dor",  # e.g. before what is not escaped
    *(
        base64.b64encode(before + SECRET.encode()).decode()
        for before in (b"", f"{USER}:".encode(), f"\0{USER}\0".encode())
    ),
]

LOUD = {"text": ("-v", "-v"), "json": ("-v", "-v", "--log-format", "json")}

loud = pytest.mark.parametrize("options", LOUD.values(), ids=[*LOUD])


def assert_silent(*told: bytes | str) -> None:
    """Sees to it that the secret is in none of these."""
    for each in told:
        text = each.decode(errors="replace") if isinstance(each, bytes) else each
        for form in FORMS:
            assert form not in text


def told(finished: Finished) -> tuple[bytes, str]:
    return finished.stdout, finished.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """The TCP port of a server whose ticket is the secret."""
    with locked(folder, "ticket", SECRET) as server:
        yield server


@pytest.fixture(scope="module")
def other_port(folder: Path) -> Iterator[int]:
    """The TCP port of a server with another ticket."""
    with locked(folder, "other", "something else") as server:
        yield server


@contextmanager
def locked(folder: Path, name: str, password: str) -> Iterator[int]:
    file = folder / name
    file.write_text(password)
    with served(folder, "-v", "-v", "--password-file", str(file)) as server:
        yield server.port
    assert_silent(server.log.read_text())


@pytest.fixture(scope="module")
def certificate(folder: Path) -> CertificateFiles:
    return Authority(folder).issue()


# Tickets


@dataclass
class Given:
    """How a secret is given.

    Attributes:
        args: of the command line, the server among them.
        env: of the environment.
    """

    args: list[str]
    env: dict[str, str] = field(default_factory=dict)


def given(where: str, port: int, folder: Path) -> Given:
    """The secret as a ticket for the server at a TCP port."""
    uri = f"spice://127.0.0.1:{port}"
    if where == "file":
        (folder / "password").write_text(f"{SECRET}\n")
        return Given([uri, "--password-file", f"{folder}/password"])
    if where == "command":
        (folder / "password").write_text(f"{SECRET}\n")
        return Given([uri, "--password-command", shlex.join(["cat", f"{folder}/password"])])
    if where == "environment":
        return Given([uri], {"SPICEBRIDGE_PASSWORD": SECRET})
    if where == "connection-file":
        lines = ("host=127.0.0.1", f"port={port}", f"password={SECRET}")
        return Given([connection_file(folder, *lines, mode=0o644)])
    if where == "uri-query":
        return Given([f"{uri}?password={ESCAPED}"])
    if where == "uri-login":
        return Given([f"spice://{USER}:{ESCAPED}@127.0.0.1:{port}"])
    return Given([], {"SPICEBRIDGE_URI": f"{uri}?password={ESCAPED}"})


PLACES = (
    "file",
    "command",
    "environment",
    "connection-file",
    "uri-query",
    "uri-login",
    "uri-environment",
)


@loud
@pytest.mark.parametrize("where", PLACES)
def test_a_ticket_is_not_told(
    where: str, options: tuple[str, ...], port: int, other_port: int, short_tmp: Path
) -> None:
    nobody = free_port()
    for server, code in ((port, 0), (other_port, 5), (nobody, 3)):
        ticket = given(where, server, short_tmp)
        finished = run("list", *ticket.args, *options, env=ticket.env)
        assert finished.code == code, finished
        assert_silent(*told(finished))


@pytest.mark.parametrize("where", PLACES)
def test_a_bridge_tells_no_ticket_nor_do_its_children_know_it(
    where: str, port: int, spicebridge: Start, short_tmp: Path
) -> None:
    ticket = given(where, port, short_tmp)
    bridge = spicebridge(
        *ticket.args,
        *LOUD["json"],
        *("--custom-channel", "channelid=128,exec=cat"),
        env=ticket.env,
    )
    children = children_of(bridge, 1)
    assert_silent(*(look(child, "cmdline") for child in children))
    assert_silent(*(look(child, "environ") for child in children))
    if not where.startswith("uri-") or where == "uri-environment":  # put there by the user
        assert_silent(look(bridge.process.pid, "cmdline"))
    env = {"SPICEBRIDGE_PASSWORD": SECRET}
    listed = run("list", "--json", f"spice://127.0.0.1:{port}", env=env)
    assert json.loads(listed.stdout)[0]["bridge"]["pid"] == bridge.process.pid
    assert_silent(*told(listed))
    bridge.stop()
    assert_silent(bridge.stderr())


def children_of(bridge: Spicebridge, count: int) -> list[int]:
    """The processes that it has started, once there are as many and they run their program."""
    pid = bridge.process.pid
    ours = look(pid, "cmdline")

    def found() -> list[int]:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(each) for task in tasks for each in (task / "children").read_text().split()]

    def there() -> bool:
        assert bridge.process.poll() is None, bridge.stderr()
        return len(found()) >= count and all(look(each, "cmdline") != ours for each in found())

    until(f"it has {count} children", there)
    return found()


def look(pid: int, what: str) -> bytes:
    return Path(f"/proc/{pid}/{what}").read_bytes()


def test_no_child_sees_a_variable_that_may_hold_a_secret(
    port: int, spicebridge: Start, short_tmp: Path, peers: ExitStack
) -> None:
    """The server of a shared folder, and programs: with all that the environment can say."""
    socket_path = short_tmp / "guest"
    server = peers.enter_context(
        served(short_tmp, spec=f"channelid=webdav,unixsocket={socket_path}")
    )
    (short_tmp / "shared").mkdir()
    proxy = peers.enter_context(tcp_server(relay))
    env = {
        "SPICEBRIDGE_PASSWORD": SECRET,
        "SPICEBRIDGE_URI": f"spice://127.0.0.1:{server.port}?password={ESCAPED}",
        "SPICE_PROXY": f"http://{USER}:{ESCAPED}@127.0.0.1:{proxy}",
        "UNTOUCHED": "by us",
    }
    share = spicebridge("--share", f"{short_tmp}/shared", *LOUD["json"], env=env)
    env["SPICEBRIDGE_URI"] = f"spice://127.0.0.1:{port}?password={ESCAPED}"
    program = spicebridge("--custom-channel", "channelid=128,exec=cat", *LOUD["json"], env=env)
    for bridge in (share, program):
        for child in children_of(bridge, 1):
            environ = look(child, "environ")
            assert b"UNTOUCHED=by us" in environ.split(b"\0")
            assert_silent(environ, look(child, "cmdline"))
        assert_silent(look(bridge.process.pid, "cmdline"))
        bridge.stop()
        assert_silent(bridge.stderr())


def relay(client: socket.socket) -> None:
    """An HTTP proxy that lets everybody in."""
    head = receive_until(client, b"\r\n\r\n")
    host, _, port = head.split()[1].decode().partition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as server:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        other = {client: server, server: client}
        while True:
            for sock in select.select([client, server], [], [], PATIENCE)[0]:
                piece = sock.recv(65536)
                if not piece:
                    return
                other[sock].sendall(piece)


def test_a_program_that_gives_the_password_is_named_without_its_arguments(short_tmp: Path) -> None:
    uri = f"spice+unix://{short_tmp}/nobody"
    for command in (f"/nonexistent/pass --token {SECRET}", f"pass '{SECRET}"):
        finished = run("list", uri, "--password-command", command, "-v", "-v")
        assert finished.code == 2
        assert_silent(*told(finished))


def test_a_password_that_is_typed_is_not_shown(port: int) -> None:
    """Neither as it is typed nor later."""
    with Screen() as screen:
        process = screen.run(
            *("list", f"spice://127.0.0.1:{port}", "-v", "-v"),
            stdin=screen.slave,
        )
        try:
            screen.until(b"Password for")
            screen.type(SECRET.encode() + b"\n")
            screen.until_ended(process)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0
        assert_silent(screen.seen)


# SASL


def scram(client: socket.socket, first: bytes | None) -> bool:
    """A SCRAM server that knows the password."""
    server = ScramServer("SCRAM-SHA-256", SECRET)
    client.sendall(data(server.first(first), done=False))
    client.sendall(data(server.final(read_data(client)), done=True) + bytes(4))
    return True


def plain(client: socket.socket, first: bytes | None) -> bool:
    """Takes PLAIN's password, if it is the one."""
    assert first == f"\0{USER}\0{SECRET}".encode()
    client.sendall(data(None, done=True) + bytes(4))
    return True


def refuses(client: socket.socket, _first: bytes | None) -> bool:
    """Says why in SASL's result."""
    reason = b"authentication failed\0"
    client.sendall(data(None, done=True) + b"\1\0\0\0" + len(reason).to_bytes(4, "little") + reason)
    until_gone(client)
    return False


def refuses_scram(client: socket.socket, _first: bytes | None) -> bool:
    """Says why as SCRAM does."""
    client.sendall(data(b"e=unknown-user", done=False))
    until_gone(client)
    return False


SASL = {
    "scram": (False, sasl(["SCRAM-SHA-256"], scram), 0),
    "scram-refused": (False, sasl(["SCRAM-SHA-256"], refuses_scram), 5),
    "scram-hung-up": (False, sasl(["SCRAM-SHA-256"], hangs_up), 5),
    "plain": (True, sasl(["PLAIN"], plain), 0),
    "plain-refused": (True, sasl(["PLAIN"], refuses), 5),
    "plain-hung-up": (True, sasl(["PLAIN"], hangs_up), 5),
    "plain-open": (False, sasl(["PLAIN"], hangs_up), 5),
    "none": (True, sasl(["DIGEST-MD5"], hangs_up), 5),
}


@loud
@pytest.mark.parametrize(("tls", "script", "code"), SASL.values(), ids=[*SASL])
def test_a_password_of_sasl_is_not_told(
    tls: bool,
    script: Script,
    code: int,
    options: tuple[str, ...],
    certificate: CertificateFiles,
    peers: ExitStack,
) -> None:
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate.cert, certificate.key)
        script = on_tls(context, script)
    server = peers.enter_context(tcp_server(script))
    scheme = "spice+tls" if tls else "spice"
    finished = run(
        *("list", f"{scheme}://{USER}@127.0.0.1:{server}", "--ca-file", str(certificate.ca)),
        *options,
        env={"SPICEBRIDGE_PASSWORD": SECRET},
    )
    assert finished.code == code, finished
    assert_silent(*told(finished))


# Proxies


def socks(answer: bytes) -> Script:
    """A SOCKS proxy that asks for a login, and answers that."""

    def talk(client: socket.socket) -> None:
        receive(client, 4)
        client.sendall(b"\5\2")
        receive(client, 3 + len(USER) + len(SECRET))
        client.sendall(answer)
        until_gone(client)

    return talk


BASIC = base64.b64encode(f"{USER}:{SECRET}".encode())
END = b"\r\n\r\n"

PROXIES: dict[str, tuple[str, Script, int]] = {
    "http": ("http", relay, 0),
    "http-401": ("http", answers(b"HTTP/1.1 401 Unauthorized" + END), 3),
    "http-407": ("http", answers(b"HTTP/1.1 407 Go\r\nProxy-Authenticate: Basic" + END), 3),
    "http-repeats": ("http", answers(b"HTTP/1.1 403 " + BASIC + END), 3),
    "http-repeats-all": ("http", answers(b"HTTP/1.1 403 %s" + END), 3),
    "http-repeats-decoded": ("http", answers(f"HTTP/1.1 403 {USER}:{SECRET}".encode() + END), 3),
    "http-garbage": ("http", answers(b"%s" + END), 3),
    "socks5-refused": ("socks5", socks(b"\1\1"), 3),
    "socks5-not-allowed": ("socks5", socks(b"\1\0\5\2\0\1" + bytes(6)), 3),
    "socks5-repeats": ("socks5", socks(f"{USER} {SECRET}".encode()), 3),
}


@loud
@pytest.mark.parametrize("where", ["option", "environment", "connection-file"])
@pytest.mark.parametrize(("scheme", "script", "code"), PROXIES.values(), ids=[*PROXIES])
def test_a_password_for_a_proxy_is_not_told(
    scheme: str,
    script: Script,
    code: int,
    where: str,
    options: tuple[str, ...],
    port: int,
    peers: ExitStack,
    short_tmp: Path,
) -> None:
    proxy = peers.enter_context(tcp_server(script))
    proxy_uri = f"{scheme}://{USER}:{ESCAPED}@127.0.0.1:{proxy}"
    env = {"SPICEBRIDGE_PASSWORD": SECRET}
    args = [f"spice://127.0.0.1:{port}"]
    if where == "option":
        args += ["--proxy", proxy_uri]
    elif where == "environment":
        env["SPICE_PROXY"] = proxy_uri
    else:
        lines = ("host=127.0.0.1", f"port={port}", f"proxy={proxy_uri}", f"password={SECRET}")
        args = [connection_file(short_tmp, *lines)]
    finished = run("list", *args, *options, env=env)
    assert finished.code == code, finished
    assert_silent(*told(finished))


# Web servers, and mistakes


WEB = {
    "404": answers(b"HTTP/1.1 404 Not Found" + END),
    "repeats": answers(b"HTTP/1.1 404 %s" + END),
    "moved": answers(b"HTTP/1.1 301 Moved\r\nLocation: /x?token=" + SECRET.encode() + END),
    "garbage": answers(b"%s" + END),
    "hangs-up": until_gone,
}


@loud
@pytest.mark.parametrize("script", WEB.values(), ids=[*WEB])
def test_the_query_of_a_websocket_is_not_told(
    script: Script, options: tuple[str, ...], peers: ExitStack
) -> None:
    server = peers.enter_context(tcp_server(script))
    uri = f"ws://127.0.0.1:{server}/x?token={SECRET}"
    finished = run("list", uri, "--connect-timeout", "0.5", *options)
    assert finished.code == 3, finished
    assert_silent(*told(finished))


MISTAKES = {
    "scheme": (f"http://{USER}:{SECRET}@vm:1",),
    "port": (f"spice://{USER}:{SECRET}@vm:x",),
    "two": (f"spice://{USER}:{SECRET}@vm:1?password={ESCAPED}",),
    "escape": (f"spice://vm:1?password=%zz{SECRET}",),
    "no-utf-8": (f"spice://vm:1?password=%ff{ESCAPED}",),
    "ampersand": (f"spice://vm:1?password=a&{ESCAPED}",),
    "unknown-key": (f"spice://vm:1?passwort={ESCAPED}",),
    "no-scheme": (f"{USER}:{ESCAPED}@vm:1",),
    "proxy": ("spice://vm:1", "--proxy", f"ftp://{USER}:{ESCAPED}@p"),
    "proxy-port": ("spice://vm:1", "--proxy", f"http://{USER}:{ESCAPED}@p:x"),
    "proxy-escape": ("spice://vm:1", "--proxy", f"http://{USER}:%zz{ESCAPED}@p"),
    "proxy-slash": ("spice://vm:1", "--proxy", f"http://{USER}:{SECRET}@p"),
}


@pytest.mark.parametrize("args", MISTAKES.values(), ids=[*MISTAKES])
def test_a_mistake_is_told_without_the_secret(args: tuple[str, ...]) -> None:
    finished = run("list", *args, "-v", "-v", "--connect-timeout", "1")
    assert finished.code in {2, 3}, finished
    assert_silent(*told(finished))


FILES = {
    "no-group": f"password={SECRET}\n",
    "no-key": f"[virt-viewer]\n{SECRET}\n",
    "escape": f"[virt-viewer]\ntype=spice\nhost=x\nport=1\npassword={SECRET}\\q\n",
    "twice": f"[virt-viewer]\npassword={SECRET}\npassword=x\n",
    "proxy": f"[virt-viewer]\ntype=spice\nhost=x\nport=1\nproxy=ftp://u:{ESCAPED}@p\n",
    "misspelt": f"[virt-viewer]\ntype=spice\nhost=127.0.0.1\nport=1\npasswort={SECRET}\n",
}


@pytest.mark.parametrize("content", FILES.values(), ids=[*FILES])
def test_a_mistake_in_a_file_is_told_without_the_secret(content: str, short_tmp: Path) -> None:
    (short_tmp / "console.vv").write_text(content)
    finished = run("list", f"{short_tmp}/console.vv", "-v", "-v")
    assert finished.code in {2, 3}, finished
    assert_silent(*told(finished))


@loud
def test_serving_tells_no_ticket(
    options: tuple[str, ...], certificate: CertificateFiles, short_tmp: Path, peers: ExitStack
) -> None:
    """Neither that of its clients, right or wrong, nor its own; nor do its programs know it."""
    (short_tmp / "ticket").write_text(SECRET)
    environ = short_tmp / "environ"
    spec = f"channelid=128,exec=sh -c 'cp /proc/$$/environ {environ}; cat'"
    with served(
        short_tmp,
        *("-v", "-v", *tls_options(certificate)),
        spec=spec,
        env={"SPICEBRIDGE_PASSWORD": SECRET},
    ) as server:
        uri = f"spice+tls://127.0.0.1:{server.port}"
        args = ("list", uri, "--ca-file", str(certificate.ca))
        assert run(*args, env={"SPICEBRIDGE_PASSWORD": SECRET}).code == 0
        assert run(*args, env={"SPICEBRIDGE_PASSWORD": f"{SECRET}x"}).code == 5
        stdio = ("--custom-channel", "stdio,channelid=128")
        env = {"SPICEBRIDGE_PASSWORD": SECRET}
        finished = run(*args[1:], *stdio, *options, env=env, stdin=b"x")
        assert (finished.code, finished.stdout) == (0, b"x")
        assert_silent(*told(finished))
        until("its program has told what it sees", environ.exists)
    assert_silent(server.log.read_text(), environ.read_bytes())
