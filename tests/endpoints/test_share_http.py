"""What the WebDAV server of ``share=`` answers, and that it never leaves its folder."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import IncompleteRead
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spicebridge.endpoints.share_server.http import Server
from spicebridge.endpoints.share_server.requests import MAX_XML, Application
from spicebridge.endpoints.share_server.tree import Upload
from tests.conftest import PATIENCE
from tests.endpoints.share_client import Client
from tests.endpoints.tools import open_fds

WRITING = ["PUT", "DELETE", "MOVE", "COPY", "MKCOL", "PROPPATCH", "LOCK", "UNLOCK", "POST"]


@dataclass
class Served:
    """A folder that is served in this process."""

    folder: Path
    server: Server
    clients: list[Client] = field(default_factory=list)

    def connect(self) -> Client:
        ours, theirs = socket.socketpair()
        self.server.serve_connection(theirs)
        self.clients.append(Client(ours))
        return self.clients[-1]

    def tree(self) -> dict[str, bytes | None]:
        """All that there is: the content of files, None for anything else."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            if path.is_file() and not path.is_symlink()
            else None
            for path in self.folder.rglob("*")
        }


@contextmanager
def serving(folder: Path, *, readonly: bool = False) -> Iterator[Served]:
    before = open_fds()
    served = Served(folder, Server(Application(str(folder), readonly=readonly)))
    try:
        yield served
    finally:
        for client in served.clients:
            client.close()
        served.server.end(PATIENCE)
    assert open_fds() == before


@pytest.fixture
def served(short_tmp: Path) -> Iterator[Served]:
    folder = short_tmp / "shared"
    folder.mkdir()
    with serving(folder) as it:
        yield it


@pytest.fixture
def client(served: Served) -> Client:
    return served.connect()


@pytest.fixture
def outside(served: Served) -> Path:
    """A folder that is not shared."""
    folder = served.folder.with_name("outside")
    folder.mkdir()
    (folder / "secret").write_bytes(b"classified")
    return folder


# Reading


def test_options_tell_windows_and_macos_that_this_is_webdav(client: Client) -> None:
    for path in ("/", "*"):
        answer = client.ask("OPTIONS", path)
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["DAV"] == "1,2"
        assert answer.headers["MS-Author-Via"] == "DAV"
        assert {"PROPFIND", "LOCK", "MOVE"} <= set(answer.headers["Allow"].split(", "))


def test_a_file_is_got_whole(served: Served, client: Client) -> None:
    (served.folder / "a.txt").write_bytes(b"hello")
    answer = client.ask("GET", "/a.txt")
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["Content-Type"] == "text/plain"
    head = client.ask("HEAD", "/a.txt")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "5", b"")
    assert head.headers["ETag"] == answer.headers["ETag"]


def test_an_empty_file_is_got(served: Served, client: Client) -> None:
    (served.folder / "empty").touch()
    assert client.ask("GET", "/empty").body == b""
    assert client.ask("GET", "/empty", Range="bytes=0-").status == 200


def test_what_is_not_there_is_404_and_the_connection_goes_on(client: Client) -> None:
    assert client.ask("GET", "/nothing").status == 404
    head = client.ask("HEAD", "/nothing")
    assert (head.status, head.body) == (404, b"")
    assert client.ask("PROPFIND", "/nothing", Depth="0").status == 404


def test_a_folder_gives_a_listing(served: Served, client: Client) -> None:
    (served.folder / "<b> & ü.txt").touch()
    (served.folder / "sub").mkdir()
    answer = client.ask("GET", "/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    text = answer.body.decode()
    assert "&lt;b&gt; &amp; ü.txt" in text
    assert '"/sub/"' in text
    link = re.findall('href="([^"]*)"', text)[0]
    assert client.ask("GET", link).status == 200
    head = client.ask("HEAD", "/sub")
    assert (head.status, head.body) == (200, b"")


RANGES = {
    "bytes=0-0": (206, b"0", "bytes 0-0/10"),
    "bytes=2-4": (206, b"234", "bytes 2-4/10"),
    "bytes=7-": (206, b"789", "bytes 7-9/10"),
    "bytes=7-99": (206, b"789", "bytes 7-9/10"),
    "bytes=-3": (206, b"789", "bytes 7-9/10"),
    "bytes=-99": (206, b"0123456789", "bytes 0-9/10"),
    "bytes=10-": (416, None, "bytes */10"),
    "bytes=4-2": (200, b"0123456789", None),
    "bytes=0-1,4-5": (200, b"0123456789", None),
    "bytes=-0": (200, b"0123456789", None),
    "lines=1-2": (200, b"0123456789", None),
    "bytes=x": (200, b"0123456789", None),
}


@pytest.mark.parametrize(("asked", "wanted"), RANGES.items(), ids=[*RANGES])
def test_ranges(
    served: Served, client: Client, asked: str, wanted: tuple[int, bytes | None, str | None]
) -> None:
    (served.folder / "ten").write_bytes(b"0123456789")
    answer = client.ask("GET", "/ten", Range=asked)
    status, body, told = wanted
    assert (answer.status, answer.headers["Content-Range"]) == (status, told)
    if body is not None:
        assert answer.body == body
    assert client.ask("GET", "/ten").body == b"0123456789"


def test_a_range_of_what_has_changed_since_is_all_of_it(served: Served, client: Client) -> None:
    (served.folder / "f").write_bytes(b"0123456789")
    etag = client.ask("GET", "/f").headers["ETag"]
    assert client.ask("GET", "/f", Range="bytes=0-1", If_Range=etag).status == 206
    assert client.ask("GET", "/f", Range="bytes=0-1", If_Range='"other"').status == 200


def test_conditions(served: Served, client: Client) -> None:
    (served.folder / "f").write_bytes(b"1")
    etag = client.ask("GET", "/f").headers["ETag"]
    unchanged = client.ask("GET", "/f", If_None_Match=etag)
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert client.ask("PUT", "/f", b"2", If_Match='"other"').status == 412
    assert client.ask("PUT", "/f", b"2", If_None_Match="*").status == 412
    assert client.ask("PUT", "/f", b"2", If_Match=etag).status == 204
    assert client.ask("PUT", "/f", b"3", If_Match=etag).status == 412
    assert client.ask("PUT", "/new", b"3", If_Match="*").status == 412
    assert client.ask("PUT", "/new", b"3", If_None_Match="*").status == 201
    assert served.tree() == {"f": b"2", "new": b"3"}


def test_a_file_that_shrinks_while_it_is_read_ends_the_connection(
    served: Served, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its size was announced: anything else would be taken for its content."""
    path = served.folder / "big"
    path.touch()
    os.truncate(path, 16 * 1024 * 1024)
    client.request("GET", "/big")
    response = client.getresponse()
    os.truncate(path, 10)
    with pytest.raises(IncompleteRead):
        response.read()
    response.close()
    served.server.end(PATIENCE)
    assert capfd.readouterr().err == (
        "spicebridge: share: [Errno 5] the file has become shorter while it was read\n"
    )


# Properties


def responses(body: bytes) -> dict[str, ElementTree.Element]:
    return {
        each.findtext("{DAV:}href", ""): each
        for each in ElementTree.fromstring(body).iter("{DAV:}response")
    }


def test_propfind_goes_as_deep_as_asked(served: Served, client: Client) -> None:
    (served.folder / "a b.txt").write_bytes(b"12345")
    (served.folder / "sub").mkdir()
    (served.folder / "sub" / "deep").touch()
    zero = client.ask("PROPFIND", "/", Depth="0")
    assert zero.status == 207
    assert [*responses(zero.body)] == ["/"]
    found = responses(client.ask("PROPFIND", "/", Depth="1").body)
    assert found.keys() == {"/", "/a%20b.txt", "/sub/"}
    prop = found["/a%20b.txt"].find("{DAV:}propstat/{DAV:}prop")
    assert prop is not None
    assert prop.findtext("{DAV:}getcontentlength") == "5"
    etag = client.ask("HEAD", "/a%20b.txt").headers["ETag"]
    assert prop.findtext("{DAV:}getetag") == etag
    assert found["/sub/"].find(".//{DAV:}collection") is not None


def test_propfind_of_everything_is_refused_as_rfc_4918_allows(client: Client) -> None:
    for answer in (client.ask("PROPFIND", "/", Depth="infinity"), client.ask("PROPFIND", "/")):
        assert answer.status == 403
        assert b"propfind-finite-depth" in answer.body


def test_propfind_of_some_properties_says_which_there_are_not(
    served: Served, client: Client
) -> None:
    (served.folder / "f").touch()
    body = b'<propfind xmlns="DAV:"><prop><getcontentlength/><x xmlns="u:"/></prop></propfind>'
    for chunked in (False, True):
        found = responses(
            client.ask(
                "PROPFIND", "/f", iter([body]) if chunked else body, chunked=chunked, Depth="0"
            ).body
        )["/f"]
        statuses = [each.text for each in found.iter("{DAV:}status")]
        assert statuses == ["HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found"]


def test_windows_may_set_its_times_and_attributes(served: Served, client: Client) -> None:
    (served.folder / "f").touch()
    names = {
        "Win32CreationTime": "Sun, 06 Nov 1994 08:49:37 GMT",
        "Win32LastAccessTime": "Sun, 06 Nov 1994 08:49:37 GMT",
        "Win32LastModifiedTime": "Sun, 06 Nov 1994 08:49:37 GMT",
        "Win32FileAttributes": "00000020",
    }
    props = "".join(f"<Z:{name}>{value}</Z:{name}>" for name, value in names.items())
    body = (
        '<D:propertyupdate xmlns:D="DAV:" xmlns:Z="urn:schemas-microsoft-com:">'
        f"<D:set><D:prop>{props}</D:prop></D:set></D:propertyupdate>"
    )
    for agent in ("Microsoft-WebDAV-MiniRedir/10.0.19045", "Microsoft-WebDAV-MiniRedir/6.1.7601"):
        answer = client.ask("PROPPATCH", "/f", body.encode(), User_Agent=agent)
        assert answer.status == 207
        assert re.findall(rb"HTTP/1.1 (\d+)", answer.body) == [b"200"]
    assert (served.folder / "f").stat().st_mtime == 784111777
    answer = client.ask("PROPPATCH", "/f", body.replace("Sun, 06 Nov 1994", "never").encode())
    assert b"409" in answer.body


def test_properties_of_ones_own_are_not_kept_and_no_file_appears(
    served: Served, client: Client
) -> None:
    (served.folder / "f").touch()
    body = (
        b'<propertyupdate xmlns="DAV:"><set><prop><x xmlns="u:">1</x></prop></set></propertyupdate>'
    )
    answer = client.ask("PROPPATCH", "/f", body)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer.body) == [b"403"]
    assert served.tree() == {"f": b""}


XML_ATTACKS = {
    "entities": '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><propfind xmlns="DAV:"><prop>'
    "<x>&b;</x></prop></propfind>",
    "file": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><propfind xmlns="DAV:"><prop>'
    "<x>&a;</x></prop></propfind>",
    "no-xml": "<propfind",
    "other-xml": "<x/>",
    "deep": "<x>" * 5000 + "</x>" * 5000,
}


@pytest.mark.parametrize("body", XML_ATTACKS.values(), ids=[*XML_ATTACKS])
@pytest.mark.parametrize("method", ["PROPFIND", "PROPPATCH", "LOCK"])
def test_xml_that_is_none_or_has_entities_is_refused(
    client: Client, method: str, body: str
) -> None:
    assert client.ask(method, "/", body.encode(), Depth="0").status == 400
    assert client.ask("OPTIONS", "/").status == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_refused_and_the_connection_goes_on(client: Client, chunked: bool) -> None:
    body = b"<" * (MAX_XML + 100_000)
    answer = client.ask("PROPFIND", "/", iter([body]) if chunked else body, chunked=chunked)
    assert answer.status == 413
    client.close()


# Writing


def test_a_file_is_put_and_put_again(served: Served, client: Client) -> None:
    assert client.ask("PUT", "/f", b"one").status == 201
    (served.folder / "f").chmod(0o640)
    answer = client.ask("PUT", "/f", b"two")
    assert answer.status == 204
    assert answer.headers["ETag"] == client.ask("HEAD", "/f").headers["ETag"]
    assert stat.S_IMODE((served.folder / "f").stat().st_mode) == 0o640
    assert client.ask("PUT", "/empty", b"").status == 201
    assert served.tree() == {"f": b"two", "empty": b""}


def test_macos_puts_in_chunks(served: Served, client: Client) -> None:
    pieces = [os.urandom(size) for size in (1, 70_000, 300_000, 5)]
    assert client.ask("PUT", "/f", iter(pieces), chunked=True).status == 201
    assert client.ask("PUT", "/._f", iter([]), chunked=True).status == 201
    assert client.ask("PUT", "/.DS_Store", iter([b"x"]), chunked=True).status == 201
    assert served.tree() == {"f": b"".join(pieces), "._f": b"", ".DS_Store": b"x"}


def test_chunks_may_have_extensions_and_trailers(served: Served, client: Client) -> None:
    head = b"PUT /f HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b'3;name="x"\r\nabc\r\n0A\r\n0123456789\r\n0\r\nChecksum: 1\r\n\r\n'
    assert client.raw(head + chunks).status == 201
    assert client.ask("GET", "/f").body == b"abc0123456789"


def test_who_waits_for_100_continue_gets_it(served: Served, client: Client) -> None:
    head = b"PUT /f HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    client.sock.sendall(head)
    assert client.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert client.raw(b"abc").status == 201
    assert served.tree() == {"f": b"abc"}


BROKEN_OFF = {
    "length": b"Content-Length: 10\r\n\r\n12345",
    "nothing": b"Content-Length: 10\r\n\r\n",
    "chunk": b"Transfer-Encoding: chunked\r\n\r\nA\r\n12345",
    "between": b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
    "last": b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n",
    "no-size": b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n12345\r\n0\r\n\r\n",
    "minus": b"Transfer-Encoding: chunked\r\n\r\n-5\r\n12345\r\n0\r\n\r\n",
    "too-long": b"Transfer-Encoding: chunked\r\n\r\n4\r\n12345\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("rest", BROKEN_OFF.values(), ids=[*BROKEN_OFF])
@pytest.mark.parametrize("nameless", [True, False], ids=["O_TMPFILE", "none"])
def test_a_put_that_breaks_off_changes_nothing(
    served: Served,
    client: Client,
    rest: bytes,
    nameless: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if not nameless:
        without_nameless_files(monkeypatch)
    (served.folder / "old").write_bytes(b"old")
    for name in (b"old", b"new"):
        client = served.connect()
        client.sock.sendall(b"PUT /" + name + b" HTTP/1.1\r\nHost: h\r\n" + rest)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.sock.recv(12) == b"HTTP/1.1 400"
        while client.sock.recv(4096):  # to its end
            pass
    assert served.tree() == {"old": b"old"}
    assert capfd.readouterr().err == ""


def without_nameless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS."""
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)


def test_a_file_on_its_way_is_not_seen(
    served: Served, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_nameless_files(monkeypatch)
    client.sock.sendall(b"PUT /f HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n")
    client.sock.sendall(b"x" * 150_000)
    name = ""
    while not name:  # until the server has begun
        name = next(iter(os.listdir(served.folder)), "")
    other = served.connect()
    assert [*responses(other.ask("PROPFIND", "/", Depth="1").body)] == ["/"]
    assert other.ask("GET", f"/{name}").status == 403
    assert other.ask("DELETE", f"/{name}").status == 403
    assert client.raw(b"x" * 50_000).status == 201
    assert served.tree() == {"f": b"x" * 200_000}


def test_a_full_disk_is_507_and_nothing_is_left(
    served: Served, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(upload: Upload, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Upload, "write", full)
    for _ in range(2):  # the second on the same connection
        assert client.ask("PUT", "/f", b"x" * 1_000_000).status == 507
    assert served.tree() == {}


def test_folders_are_made_as_rfc_4918_says(served: Served, client: Client) -> None:
    assert client.ask("MKCOL", "/a").status == 201
    assert client.ask("MKCOL", "/a").status == 405
    assert client.ask("MKCOL", "/").status == 405
    assert client.ask("MKCOL", "/x/y").status == 409
    assert client.ask("MKCOL", "/b", b"body").status == 415
    assert client.ask("PUT", "/x/y", b"1").status == 409
    assert client.ask("PUT", "/a", b"1").status == 405
    assert client.ask("PUT", "/a/", b"1").status == 405
    (served.folder / "f").touch()
    assert client.ask("MKCOL", "/f").status == 405
    assert client.ask("MKCOL", "/f/g").status == 409
    assert client.ask("PUT", "/f/g", b"1").status == 409
    assert served.tree() == {"a": None, "f": b""}


def test_delete(served: Served, client: Client) -> None:
    (served.folder / "a" / "b").mkdir(parents=True)
    (served.folder / "a" / "b" / "f").write_bytes(b"1")
    assert client.ask("DELETE", "/a/b/f").status == 204
    assert client.ask("DELETE", "/a/b/f").status == 404
    assert client.ask("DELETE", "/a").status == 204
    assert served.tree() == {}


def test_the_shared_folder_itself_stays(served: Served, client: Client) -> None:
    (served.folder / "f").write_bytes(b"1")
    (served.folder / "d").mkdir()
    assert client.ask("DELETE", "/").status == 403
    assert client.ask("MOVE", "/", Destination="/d/x").status == 403
    assert client.ask("COPY", "/", Destination="/d/x").status == 403
    assert client.ask("MOVE", "/d", Destination="/").status in {403, 409}
    assert client.ask("COPY", "/f", Destination="/").status in {403, 409}
    assert client.ask("PUT", "/", b"x").status == 405
    assert served.tree() == {"f": b"1", "d": None}


@pytest.mark.parametrize("method", ["MOVE", "COPY"])
def test_move_and_copy(served: Served, client: Client, method: str) -> None:
    (served.folder / "f").write_bytes(b"f")
    (served.folder / "g").write_bytes(b"g")
    (served.folder / "d" / "sub").mkdir(parents=True)
    (served.folder / "d" / "sub" / "x").write_bytes(b"x")

    def ask(source: str, target: str, overwrite: str = "T") -> int:
        return client.ask(method, source, Destination=target, Overwrite=overwrite).status

    left = served.tree()
    assert ask("/f", "/g", "F") == 412
    assert ask("/f", "/none/g") == 409
    assert ask("/none", "/g") == 404
    assert ask("/f", "/f") == 403
    assert ask("/d", "/d/sub/d") == 403
    assert ask("/f", "http://elsewhere/g") == 502
    assert ask("/f", "https://localhost/g") == 502
    assert client.ask(method, "/f").status == 400
    assert client.ask(method, "/f", Destination="/g", Overwrite="X").status == 400
    assert served.tree() == left
    assert ask("/f", "http://localhost/g") == 204
    assert ask("/d", "/e") == 201
    after = {"g": b"f", "e": None, "e/sub": None, "e/sub/x": b"x"}
    kept = {} if method == "MOVE" else {"f": b"f", "d": None, "d/sub": None, "d/sub/x": b"x"}
    assert served.tree() == after | kept
    (served.folder / "e" / "more").write_bytes(b"more")
    assert client.ask("MKCOL", "/new").status == 201
    assert client.ask("PUT", "/new/n", b"n").status == 201
    assert ask("/new", "/e") == 204  # replaced, not merged (RFC 4918, 9.8.4)
    assert {name for name in served.tree() if name.startswith("e")} == {"e", "e/n"}
    assert ask("/e/n", "/e2") == 201


def test_a_copy_of_a_folder_alone(served: Served, client: Client) -> None:
    (served.folder / "d").mkdir()
    (served.folder / "d" / "f").touch()
    assert client.ask("COPY", "/d/", Destination="/e/", Depth="0").status == 201
    assert served.tree() == {"d": None, "d/f": b"", "e": None}


NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\0\ufffe\uffff"),
    min_size=1,
    max_size=40,
).filter(lambda name: name.strip() not in {"", ".", ".."})  # WsgiDAV takes "/ " for "/"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(NAMES, NAMES)
@example("why?.txt", "100%.txt")
@example("a#b;c", "a%2Fb")
@example("%2e%2e", "..%2f..")
@example("back\\slash", "~ :*<>|\"'&")
@example("ü ö", " x ")
def test_any_name_is_a_name(served: Served, client: Client, one: str, two: str) -> None:
    first, second = (f"/{quote(name, safe='')}" for name in (one, two))
    assert client.ask("PUT", first, b"1").status == 201
    assert served.tree() == {one: b"1"}
    (listed,) = responses(client.ask("PROPFIND", "/", Depth="1").body).keys() - {"/"}
    assert client.ask("GET", listed).body == b"1"
    if one != two:
        assert client.ask("MOVE", listed, Destination=f"http://localhost{second}").status == 201
        assert served.tree() == {two: b"1"}
        assert client.ask("GET", second).body == b"1"
    assert client.ask("DELETE", second if one != two else first).status == 204


def test_names_that_no_answer_can_carry_are_not_listed(served: Served, client: Client) -> None:
    for name in (b"bad\xff", b"bell\x07"):
        Path(os.fsdecode(bytes(served.folder) + b"/" + name)).touch()
    (served.folder / "good").touch()
    found = responses(client.ask("PROPFIND", "/", Depth="1").body)
    assert found.keys() == {"/", "/good"}
    assert b"good" in client.ask("GET", "/").body


# Locks


LOCK = (
    b'<?xml version="1.0"?><D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope>'
    b"<D:locktype><D:write/></D:locktype><D:owner><D:href>me</D:href></D:owner></D:lockinfo>"
)


def test_a_lock_is_taken_refreshed_held_and_given_back(served: Served, client: Client) -> None:
    taken = client.ask("LOCK", "/f", LOCK, Depth="0", Timeout="Second-3600")
    assert taken.status == 201  # of nothing: an empty file (RFC 4918, 9.10.4)
    assert served.tree() == {"f": b""}
    token = taken.headers["Lock-Token"]
    assert token.encode()[1:-1] in taken.body
    other = served.connect()
    assert other.ask("PUT", "/f", b"no").status == 423
    assert other.ask("DELETE", "/f").status == 423
    assert other.ask("MOVE", "/f", Destination="/g").status == 423
    assert other.ask("LOCK", "/f", LOCK, Depth="0").status == 423
    assert other.ask("PUT", "/f", b"1" * 300_000).status == 423  # and its body is taken off
    assert other.ask("GET", "/f").body == b""
    assert client.ask("PUT", "/f", b"yes", If=f"({token})").status == 204
    assert client.ask("LOCK", "/f", If=f"({token})", Timeout="Second-60").status == 200
    assert token.encode()[1:-1] in client.ask("PROPFIND", "/f", Depth="0").body
    assert client.ask("UNLOCK", "/f", Lock_Token="<opaquelocktoken:other>").status == 409
    assert client.ask("UNLOCK", "/f", Lock_Token=token).status == 204
    assert other.ask("PUT", "/f", b"now").status == 204
    assert served.tree() == {"f": b"now"}


def test_a_locked_folder_is_locked_all_through(served: Served, client: Client) -> None:
    (served.folder / "d").mkdir()
    token = client.ask("LOCK", "/d", LOCK, Depth="infinity").headers["Lock-Token"]
    assert client.ask("PUT", "/d/f", b"no").status == 423
    assert client.ask("PUT", "/d/f", b"yes", If=f"</d> ({token})").status == 201
    assert client.ask("DELETE", "/d", If=f"</d> ({token})").status == 204
    assert client.ask("MKCOL", "/d").status == 201  # its lock has gone with it
    assert client.ask("PUT", "/d/f", b"1").status == 201


def test_a_lock_does_not_stay_where_a_file_has_moved_from(served: Served, client: Client) -> None:
    token = client.ask("LOCK", "/f", LOCK, Depth="0").headers["Lock-Token"]
    assert client.ask("MOVE", "/f", Destination="/g", If=f"({token})").status == 201
    assert client.ask("PUT", "/f", b"1").status == 201


def test_there_are_only_so_many_locks(
    served: Served, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spicebridge.endpoints.share_server.locks._MAX_LOCKS", 2)
    shared = LOCK.replace(b"exclusive", b"shared")
    assert [client.ask("LOCK", "/f", shared).status for _ in range(3)] == [201, 200, 503]


# Read-only


@pytest.mark.parametrize("method", WRITING)
def test_read_only_refuses_all_that_writes(short_tmp: Path, method: str) -> None:
    folder = short_tmp / "shared"
    folder.mkdir()
    (folder / "f").write_bytes(b"f")
    with serving(folder, readonly=True) as served:
        client = served.connect()
        for path in ("/f", "/new"):
            answer = client.ask(method, path, b"x" * 500_000, Destination="/g", Depth="0")
            assert answer.status == 403
        assert client.ask("GET", "/f").body == b"f"
        options = client.ask("OPTIONS", "/f").headers
        assert options["DAV"] == "1"
        assert method not in options["Allow"]
        assert served.tree() == {"f": b"f"}


# The folder is never left


@pytest.fixture
def links(served: Served, outside: Path) -> None:
    (served.folder / "out").symlink_to(outside)
    (served.folder / "relative").symlink_to("../outside")
    (served.folder / "file").symlink_to(outside / "secret")
    (served.folder / "dangling").symlink_to(outside / "new")
    (served.folder / "loop").symlink_to("loop")
    (served.folder / "self").symlink_to(".")
    (served.folder / "real").write_bytes(b"real")


LINKS = ["/file", "/out", "/out/", "/out/secret", "/out/new", "/relative/secret", "/dangling"]
LINKS += ["/loop", "/self", "/self/real", "/self/out/secret"]


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("path", LINKS)
def test_symbolic_links_lead_nowhere(
    served: Served, client: Client, outside: Path, path: str
) -> None:
    left, beyond = served.tree(), sorted(outside.iterdir())
    for method in ("GET", "HEAD", "PROPFIND", "PUT", "DELETE", "MKCOL", "LOCK"):
        answer = client.ask(method, path, LOCK if method == "LOCK" else None, Depth="0")
        assert answer.status in {403, 404, 405, 409}, method
        assert b"classified" not in answer.body
    for method in ("MOVE", "COPY"):
        assert client.ask(method, path, Destination="/taken").status in {403, 404}
        assert client.ask(method, "/real", Destination=path).status in {403, 409}
    assert served.tree() == left
    assert sorted(outside.iterdir()) == beyond
    assert (outside / "secret").read_bytes() == b"classified"


@pytest.mark.usefixtures("links")
def test_symbolic_links_are_not_listed_and_go_with_their_folder(
    served: Served, client: Client, outside: Path
) -> None:
    assert responses(client.ask("PROPFIND", "/", Depth="1").body).keys() == {"/", "/real"}
    (served.folder / "d").mkdir()
    (served.folder / "d" / "out").symlink_to(outside)
    assert client.ask("COPY", "/d", Destination="/copy").status == 201
    assert client.ask("MOVE", "/d", Destination="/e").status == 201
    assert client.ask("GET", "/e/out/secret").status == 404
    assert client.ask("DELETE", "/e").status == 204
    assert (outside / "secret").read_bytes() == b"classified"
    assert "copy/out" not in served.tree()


TRICKS = [
    "/../outside/secret",
    "/%2e%2e/outside/secret",
    "/..%2foutside%2fsecret",
    "/%2e%2e%2foutside/secret",
    "/%252e%252e/outside/secret",
    "/x/../../outside/secret",
    "/./../outside/secret",
    "/..\\outside\\secret",
    "/..%5coutside%5csecret",
    "//../outside/secret",
    "/..;/outside/secret",
    "/secret%00.txt",
    "/%c0%ae%c0%ae/outside/secret",
    "/%ff",
    "http://localhost/../outside/secret",
    "../outside/secret",
]


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("path", TRICKS)
@pytest.mark.parametrize("method", ["GET", "PROPFIND", "DELETE", "OPTIONS", "MKCOL", "PUT"])
def test_tricks_with_paths_lead_nowhere(
    served: Served, path: str, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    above = served.folder.parent
    before = sorted(above.rglob("*"))
    request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nDepth: 0\r\n\r\n"
    answer = served.connect().raw(request.encode())
    assert b"classified" not in answer.body
    assert answer.status < 500
    assert [
        path for path in sorted(above.rglob("*")) if served.folder not in path.parents
    ] == before
    assert capfd.readouterr().err == ""


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.sampled_from(
            [
                "..",
                ".",
                "%2e",
                "%2E.",
                "%2f",
                "/",
                "\\",
                "%5c",
                "%00",
                "a",
                "out",
                "outside",
                "secret",
                "%25",
                "2e",
                "%ff",
            ]
        ),
        max_size=12,
    )
)
@pytest.mark.usefixtures("links")
def test_no_destination_leads_out(served: Served, outside: Path, parts: list[str]) -> None:
    (served.folder / "real").write_bytes(b"real")
    answer = served.connect().ask("COPY", "/real", Destination="/" + "".join(parts))
    assert answer.status < 500 or answer.status == 502  # another host
    assert sorted(path.name for path in served.folder.parent.iterdir()) == ["outside", "shared"]
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"classified"


def test_what_is_neither_file_nor_folder_is_refused(served: Served, client: Client) -> None:
    os.mkfifo(served.folder / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(served.folder / "socket"))
    (served.folder / "f").write_bytes(b"f")
    assert responses(client.ask("PROPFIND", "/", Depth="1").body).keys() == {"/", "/f"}
    for path in ("/fifo", "/socket"):
        for method in ("GET", "PUT", "DELETE", "PROPFIND", "LOCK", "MKCOL"):
            assert client.ask(method, path, LOCK if method == "LOCK" else None).status == 403
        assert client.ask("COPY", path, Destination="/new").status == 403
        assert client.ask("MOVE", "/f", Destination=path).status == 403
    assert served.tree() == {"f": b"f", "fifo": None, "socket": None}


# What happens to the folder


def test_a_folder_that_goes_and_comes_back(
    served: Served, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    away = served.folder.with_name("away")
    served.folder.rename(away)
    for method in ("GET", "PROPFIND", "PUT", "MKCOL", "DELETE", "LOCK"):
        for path in ("/", "/f"):
            answer = client.ask(method, path, LOCK if method == "LOCK" else None, Depth="0")
            assert answer.status in {404, 405, 409}, (method, path)
    away.rename(served.folder)
    assert client.ask("PUT", "/f", b"1").status == 201
    assert capfd.readouterr().err == ""


@contextmanager
def nobody() -> Iterator[None]:
    """Not root, for whom permissions mean nothing."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_the_user_may_not_do_is_403(served: Served, client: Client) -> None:
    served.folder.parent.chmod(0o755)
    closed = served.folder / "closed"
    closed.mkdir()
    (closed / "f").touch()
    (served.folder / "unreadable").write_bytes(b"1")
    (served.folder / "unreadable").chmod(0)
    fixed = served.folder / "fixed"
    fixed.write_bytes(b"fixed")
    fixed.chmod(0o444)
    try:
        served.folder.chmod(0o777)
        closed.chmod(0)
        with nobody():
            assert client.ask("GET", "/unreadable").status == 403
            assert client.ask("GET", "/closed/f").status == 403
            assert client.ask("GET", "/closed").status == 403
            assert client.ask("PROPFIND", "/closed", Depth="1").status == 403
            assert client.ask("PUT", "/closed/g", b"1").status == 403
            assert client.ask("PUT", "/fixed", b"1").status == 403
            assert client.ask("PUT", "/mine", b"1").status == 201
        served.folder.chmod(0o555)
        with nobody():
            assert client.ask("PUT", "/new", b"1").status == 403
            assert client.ask("MKCOL", "/new").status == 403
            assert client.ask("DELETE", "/fixed").status == 403
            assert client.ask("MOVE", "/fixed", Destination="/new").status == 403
            assert client.ask("LOCK", "/new", LOCK).status == 403
    finally:
        closed.chmod(0o755)
        served.folder.chmod(0o755)
    assert fixed.read_bytes() == b"fixed"


# Connections


def test_an_error_of_ours_is_500_and_one_line(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("spicebridge.endpoints.share_server.tree.Tree.status", lambda *_: 1 / 0)
    client = served.connect()
    for _ in range(2):
        assert client.ask("GET", "/\x1b[31m".replace("\x1b", "%1b")).status == 500
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0] == (
        r"spicebridge: share: GET '/\x1b[31m': ZeroDivisionError('division by zero')"
    )


NO_REQUESTS = {
    "no-http": b"hello\r\n\r\n",
    "two-lengths": b"PUT /f HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "minus": b"PUT /f HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
    "plus": b"PUT /f HTTP/1.1\r\nContent-Length: +3\r\n\r\n",
    "headers": b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 20_000,
    "line": b"GET /" + b"x" * 100_000,
}


@pytest.mark.parametrize("data", NO_REQUESTS.values(), ids=[*NO_REQUESTS])
def test_what_is_no_request_is_told_and_the_connection_ends(
    served: Served, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    client = served.connect()
    try:
        client.sock.sendall(data)
    except BrokenPipeError:  # it did not even want all of it
        pass
    assert client.sock.recv(10) == b"HTTP/1.1 4"
    assert served.tree() == {}
    assert served.connect().ask("GET", "/").status == 200
    assert capfd.readouterr().err == ""


def test_requests_may_come_all_at_once(served: Served, client: Client) -> None:
    """Pipelining (RFC 9112, 9.3.2)."""
    client.sock.sendall(
        b"PUT /f HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
        b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n"
        b"GET /f HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    )
    data = b""
    while piece := client.sock.recv(4096):
        data += piece
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"201", b"404", b"200"]
    assert data.endswith(b"abc")


def test_header_and_body_leave_in_one_piece(served: Served) -> None:
    (served.folder / "f").write_bytes(b"x" * 1000)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        served.server.serve_connection(theirs)
        ours.settimeout(PATIENCE)
        ours.send(b"GET /f HTTP/1.1\r\nHost: h\r\n\r\n")
        assert ours.recv(4096).endswith(b"\r\n\r\n" + b"x" * 1000)


def test_readers_that_stall_hold_up_nobody(served: Served) -> None:
    path = served.folder / "big"
    path.touch()
    os.truncate(path, 16 * 1024 * 1024)
    for _ in range(60):
        served.connect().request("GET", "/big")
    (served.folder / "f").write_bytes(b"f")
    assert served.connect().ask("GET", "/f").body == b"f"


def test_a_client_that_goes_is_no_trouble(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    (served.folder / "big").touch()
    os.truncate(served.folder / "big", 16 * 1024 * 1024)
    for data in (b"", b"GET", b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n"):
        client = served.connect()
        client.sock.sendall(data)
        client.close()
    assert served.connect().ask("GET", "/").status == 200
    served.server.end(PATIENCE)
    assert capfd.readouterr().err == ""
