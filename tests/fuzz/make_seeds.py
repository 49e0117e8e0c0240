"""Makes the seeds: ``python -m tests.fuzz.make_seeds``, after a change of what targets read.

What is said in them comes from our own encoders and from conversations of our own two sides. Those
that are called ``good-`` come to their good end, ``bad-`` ones are refused; of ``any-`` ones only
the fuzzer expects something.
"""

from __future__ import annotations

import base64
import datetime
import shutil
import struct
from collections.abc import Callable, Sequence
from typing import Final
from unittest import mock

import lz4.block
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from scramp import ScramMechanism

from spicebridge.protocol.constants import (
    ChannelType,
    LinkErr,
    MigrationMsg,
    Msg,
    MsgC,
    PortEventType,
)
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.events import ChannelsList, MainInit, Ping, PortEvent, PortInit
from spicebridge.protocol.framing import Framing
from spicebridge.protocol.link import link_client, link_server
from spicebridge.protocol.login import ClientTicket
from spicebridge.protocol.messages import (
    encode_channels_list,
    encode_main_init,
    encode_ping,
    encode_port_event,
    encode_port_init,
)
from spicebridge.protocol.server_ticket import ServerTicket
from tests.fuzz import conversation, link, mux, share, wire, words
from tests.fuzz.script import Parser
from tests.fuzz.targets import SEEDS

Seeds = dict[str, bytes]

_CUTS: Final = b"\7"
"""Of the pieces in which a stream is heard the second time."""


def _first(parsers: Sequence[Parser], parser: Parser) -> bytes:
    """The byte that chooses a parser."""
    return bytes((parsers.index(parser),))


# Links


def _link() -> Seeds:
    to_server = _first(link.PARSERS, link.link_to_server)
    from_client = _first(link.PARSERS, link.link_from_client)
    port = bytes((link.TYPES.index(ChannelType.PORT),))
    ticket, sasl, sasl_in_tls = b"\1\0", b"\6", b"\x0e"
    asked, reply = _played(ChannelType.PORT)
    main_asked, main_reply = _played(ChannelType.MAIN)
    head = reply[:-4]  # up to the result
    chosen = head[:16] + _with_sasl(head[16:])
    scram = chosen + _scram()
    admits, refuses = bytes(3), bytes((0, LinkErr.OK, LinkErr.CHANNEL_NOT_AVAILABLE))
    refusal = struct.pack("<4sIIII", b"REDQ", 2, 2, 178, LinkErr.NEED_SECURED) + bytes(174)
    frames = _first(link.PARSERS, link.frames) + _CUTS
    names = {name: bytes((at,)) for at, name in enumerate(link._MECHANISMS)}
    client = {
        "good-ticket": port + ticket + _CUTS + reply,
        "good-main": b"\0" + ticket + _CUTS + main_reply,
        "good-scram": port + sasl + b"\0" + _CUTS + scram,
        "good-plain": port + sasl_in_tls + names["PLAIN"] + _CUTS + chosen + _plain(b"PLAIN"),
        "good-external": port + b"\x0a" + names["EXTERNAL"] + _CUTS + chosen + _plain(b"EXTERNAL"),
        "good-kerberos": port + sasl + names["GSSAPI"] + _CUTS + chosen + _kerberos(),
        "bad-password": port + ticket + _CUTS + head + struct.pack("<I", 7),
        "bad-refusal": port + ticket + _CUTS + refusal,
        "bad-version": port + ticket + _CUTS + struct.pack("<4sIII", b"REDQ", 3, 0, 178),
        "bad-http": port + ticket + _CUTS + b"HTTP/1.1 400 Bad Request\r\n\r\n",
        "bad-sasl": port + sasl + b"\0" + _CUTS + chosen + _sized(b",CRAM-MD5,LOGIN,"),
    }
    served = {
        "good-ticket": admits + _CUTS + asked,
        "good-main": admits + _CUTS + main_asked,
        "bad-ticket": admits + _CUTS + asked[:-1] + b"\0",
        "bad-magic": admits + _CUTS + b"GET / HTTP/1.1\r\n",
        "bad-busy": refuses + _CUTS + asked,
    }
    return {
        **{_named(name, "client"): to_server + each for name, each in client.items()},
        **{_named(name, "server"): from_client + each for name, each in served.items()},
        "good-both": _first(link.PARSERS, link.link_both)
        + struct.pack("<IBB4s4s", 7, 128, 1, b"\0\1\3\2", b"\0\x21\4\5")
        + b"sesame",
        "good-frames": frames + b"\5\0" + b"plain" + struct.pack(">I", 4) + b"cba.",
        "bad-frames": frames + b"\0\0" + struct.pack(">I", 3) + b"bad",
    }


def _named(name: str, who: str) -> str:
    kind, _, what = name.partition("-")
    return f"{kind}-{who}-{what}"


def _played(channel_type: int) -> tuple[bytes, bytes]:
    """What a client of ours and a server of ours say to each other; always the same ticket."""
    theirs = Exchange(
        link_server(
            link.PUBKEY,
            [ServerTicket(link.KEY, link.PASSWORD)],
            lambda _: LinkErr.OK,
            lambda _: LinkErr.OK,
        )
    )
    with mock.patch("spicebridge.protocol.oaep.os.urandom", bytes):
        ours = Exchange(link_client(link.request(channel_type), [ClientTicket(link.PASSWORD)]))
        asked = replied = b""
        while not ours.done:
            asked += (said := ours.data_to_send())
            theirs.receive_data(said)
            replied += (answer := theirs.data_to_send())
            ours.receive_data(answer)
    return asked, replied


def _with_sasl(reply: bytes) -> bytes:
    """A link reply's body whose server offers SASL, too."""
    (caps,) = struct.unpack_from("<I", reply, 178)
    return reply[:178] + struct.pack("<I", caps | 1 << 2) + reply[182:]


def _sized(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def _scram() -> bytes:
    """What a server says in SCRAM-SHA-256, up to the link result."""
    mechanism = ScramMechanism("SCRAM-SHA-256")
    known = mechanism.make_auth_info(link.PASSWORD, iteration_count=4096, salt=bytes(16))
    server = mechanism.make_server({link.USER: known}.get, s_nonce="server")
    with link.recorded():
        from scramp import ScramClient

        client = ScramClient(["SCRAM-SHA-256"], link.USER, link.PASSWORD)
    server.set_client_first(client.get_client_first())
    first = server.get_server_first()
    client.set_server_first(first)
    server.set_client_final(client.get_client_final())
    final = server.get_server_final()
    return (
        _sized(b",SCRAM-SHA-256,")
        + _sized(first.encode() + b"\0")
        + b"\0"
        + _sized(final.encode() + b"\0")
        + b"\1"
        + bytes(8)
    )


def _plain(name: bytes) -> bytes:
    return _sized(b"," + name + b",") + bytes(4) + b"\1" + bytes(8)


def _kerberos() -> bytes:
    """What a server says in GSSAPI; its result comes through the layer."""
    return (
        _sized(b",GSSAPI,")
        + _sized(b"answer\0")
        + b"\0"
        + _sized(b"\4\0\x20\0\0")
        + b"\0"
        + bytes(4)
        + b"\1"
        + bytes(4)
        + struct.pack(">I", 4)
        + bytes(4)
    )


# Channels


def _side(channel_type: int, *, server: bool = False, mini_header: bool = True) -> bytes:
    """The bytes that choose who hears, and the pieces."""
    place = conversation.TYPES.index(channel_type)
    return bytes((place, server | mini_header << 1)) + _CUTS


def _stream(*each: tuple[int, bytes], mini_header: bool = True) -> bytes:
    framing = Framing(mini_header=mini_header)
    return b"".join(framing.pack(number, payload) for number, payload in each)


def _conversation() -> Seeds:
    anything = _first(conversation.PARSERS, conversation.anything)
    made = _first(conversation.PARSERS, conversation.messages)
    ping = Msg.PING, encode_ping(Ping(1, 2)) + b"padding"
    set_ack = Msg.SET_ACK, struct.pack("<II", 1, 2)
    data = Msg.DATA, b"some data"
    notify = Msg.NOTIFY, struct.pack("<QIIII", 9, 1, 1, 2, 5) + b"hello\0"
    waits = Msg.WAIT_FOR_CHANNELS, b"\1" + struct.pack("<BBQ", 10, 0, 7)
    port_init = Msg.PORT_INIT, encode_port_init(PortInit("org.example.0", opened=True))
    opened, broke = (
        encode_port_event(PortEvent(each)) for each in (PortEventType.OPENED, PortEventType.BREAK)
    )
    unfolded = b"data " * 9
    folded = (
        Msg.COMPRESSED_DATA,
        struct.pack("<BI", 1, len(unfolded)) + lz4.block.compress(unfolded, store_size=False),
    )
    bomb = Msg.COMPRESSED_DATA, struct.pack("<BI", 1, 1 << 20) + b"\x1f?\1\0" + b"\xff" * 2000
    main = (
        (Msg.MAIN_INIT, encode_main_init(MainInit(7))),
        (Msg.MAIN_CHANNELS_LIST, encode_channels_list(ChannelsList(((10, 0), (9, 1))))),
    )
    acks = (MsgC.ACK_SYNC, bytes(4)), (MsgC.ACK, b""), (MsgC.PONG, bytes(12))
    port, user = int(ChannelType.PORT), 128
    good = {
        "port": _side(port) + _stream(port_init, set_ack, ping, data, folded, (202, broke)),
        "main": _side(1) + _stream(*main, set_ack, ping, notify, waits),
        "usbredir": _side(9, mini_header=False) + _stream(ping, data, folded, mini_header=False),
        "webdav": _side(11) + _stream(port_init, (202, opened), data),
        "user": _side(user, mini_header=False) + _stream(port_init, data, data, mini_header=False),
        "moves": _side(9) + _stream(data, (Msg.MIGRATE, b"\3\0\0\0"), (Msg.MIGRATE_DATA, b"state")),
        "leaves": _side(9) + _stream((Msg.MIGRATE, bytes(4)), (Msg.DISCONNECTING, bytes(12))),
        "migration": _side(1)
        + _stream(
            (MigrationMsg.BEGIN, _target()),
            (MigrationMsg.CANCEL, b""),
            (MigrationMsg.BEGIN_SEAMLESS, _target(version=2)),
            (MigrationMsg.DST_SEAMLESS_ACK, b""),
            (MigrationMsg.DST_SEAMLESS_NACK, b""),
            (MigrationMsg.END, b""),
            (MigrationMsg.SWITCH_HOST, _target()),
        ),
        "served-port": _side(port, server=True) + _stream(*acks, data, folded, (201, broke)),
        "served-main": _side(1, server=True, mini_header=False)
        + _stream(*acks, (MsgC.MAIN_ATTACH_CHANNELS, b""), mini_header=False),
    }
    bad = {
        "bomb": _side(port) + _stream(bomb),
        "sub-list": _side(port, mini_header=False) + struct.pack("<QHII", 1, 4, 12, 30),
        "name": _side(port) + _stream((Msg.PORT_INIT, struct.pack("<IIB", 9, 99, 1) + b"name")),
        "list": _side(1) + _stream((Msg.MAIN_CHANNELS_LIST, struct.pack("<I", 99) + b"\1\0")),
        "end": _side(port) + _stream(data)[:-1],
        "target": _side(1) + _stream((MigrationMsg.BEGIN, _target()[:-1])),
    }
    long = b"\2" + struct.pack("<H", 20_000) + b"long"
    long_folded = b"\3" + struct.pack("<H", 9_000) + b"long"
    short = b"\0\3abc\1\4abcd"
    every = {
        f"any-{'served-' if server else ''}{ChannelType(channel_type).name.lower()}": made
        + _side(channel_type, server=server)
        + _every(channel_type, server)
        for channel_type in (1, port)
        for server in (False, True)
    }
    return {
        **{f"good-{name}": anything + seed for name, seed in good.items()},
        **{f"bad-{name}": anything + seed for name, seed in bad.items()},
        "good-made": made + _side(port, mini_header=False) + short + long_folded,
        "good-long": made + _side(9, server=True) + short + long + short,
        **every,
    }


def _target(version: int | None = None) -> bytes:
    """SpiceMigrationDstInfo, behind which a seamless migration has the version of the state."""
    host, subject = b"other.example\0", b"O=Example,CN=other\0"
    behind = b"" if version is None else struct.pack("<I", version)
    start = 20 + len(behind)
    sizes = len(host), start, len(subject), start + len(host)
    return struct.pack("<HHIIII", 5900, 0xFFFF, *sizes) + behind + host + subject


def _every(channel_type: int, server: bool) -> bytes:
    """Every message that there is, with a payload of zeros."""
    table = conversation.Side(channel_type, server, mini_header=True).table
    form = b"" if channel_type == ChannelType.MAIN else bytes((conversation.TABLE,))
    return b"".join(
        form + bytes((number, 0)) + (b"" if kind.head is None else b"\0")
        for number, kind in table.items()
    )


# Streams


def _frame(client_id: int, data: bytes = b"") -> bytes:
    return struct.pack("<qH", client_id, len(data)) + data


def _mux() -> Seeds:
    accepts, opens = b"\1", b"\0"
    decoder, streams, lives = (_first(mux.PARSERS, each) for each in mux.PARSERS)
    get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    pointer = 0x5581_2345_6780
    ended = (
        _frame(pointer, get) + _frame(pointer + 64, get) + _frame(pointer) + _frame(pointer + 64)
    )
    return {
        "good-frames": decoder + _CUTS + ended,
        "good-streams": streams + accepts + _CUTS + ended + _frame(pointer, get),
        "good-answers": streams + opens + _CUTS + _frame(1, b"HTTP/1.1 200 OK\r\n\r\n") + _frame(1),
        "bad-zeros": streams + accepts + _CUTS + bytes(2000),
        "bad-text": streams + accepts + _CUTS + get,
        "good-life": lives + accepts + b"\0\3abc" + b"\1\3abc" + b"\0\0" + b"\xc0" + b"\1\0",
        "good-abandoned": lives
        + accepts
        + b"\0\3abc"
        + b"\xd0"
        + b"\0\3abc"
        + b"\xfe"
        + b"\0\3abc",
        "good-opened": lives + opens + b"\xa0\xa0" + b"\0\3abc" + b"\1\3abc" + b"\xc1\1\0\xff",
    }


# Before there is SPICE


def _wire() -> Seeds:
    chosen = {each.__name__: _first(wire.PARSERS, each) for each in wire.PARSERS}
    hello = wire._frame(0x82, b"hello")
    close = wire._frame(0x88, struct.pack(">H", 1000) + b"bye")
    answer = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + wire.ACCEPT + b"\r\nSec-WebSocket-Protocol: binary\r\n\r\n"
    )
    pieces = wire._frame(0x02, b"he") + wire._frame(0x89, b"ping") + wire._frame(0x80, b"llo")
    established = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n"
    wants = b"HTTP/1.1 407 Authentication\r\nProxy-Authenticate: Negotiate\r\n\r\n"
    moved = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere?token\r\nContent-Length: 0\r\n\r\n"
    no_login, login = b"\0" + _CUTS, b"\1" + _CUTS
    return {
        "good-frames": chosen["frames"] + _CUTS + hello + pieces + close,
        "bad-masked": chosen["frames"] + _CUTS + b"\x82\x81key!x",
        "bad-text": chosen["frames"] + _CUTS + wire._frame(0x81, b"text"),
        "bad-length": chosen["frames"] + _CUTS + b"\x82\x7f" + bytes(6) + b"\1\0",
        "good-made-frames": chosen["made_frames"] + _CUTS + b"\x1cabc\0\1" + b"\x0aa" + b"\x09b",
        "good-masked": chosen["masked"] + b"\0\x40" + b"odd",
        "good-websocket": chosen["websocket"] + _CUTS + answer + hello + pieces + close,
        "bad-websocket": chosen["websocket"] + _CUTS + moved,
        "bad-websocket-proofs": chosen["websocket"] + _CUTS + answer[:-2] + b"X: " + answer[-80:],
        "bad-spice": chosen["websocket"] + _CUTS + b"REDQ" + bytes(12),
        "good-http": chosen["http_proxy"] + no_login + established + b"REDQ",
        "good-http-login": chosen["http_proxy"] + login + b"HTTP/1.1 100 C\r\n\r\n" + established,
        "bad-http": chosen["http_proxy"] + no_login + wants,
        "bad-http-secret": chosen["http_proxy"] + login + b"HTTP/1.1 403 classified\r\n\r\n",
        "good-socks": chosen["socks_proxy"] + no_login + b"\5\0" + b"\5\0\0\1" + bytes(6) + b"REDQ",
        "good-socks-login": chosen["socks_proxy"]
        + login
        + b"\5\2\1\0"
        + b"\5\0\0\3\5proxy\0\0"
        + b"REDQ",
        "bad-socks": chosen["socks_proxy"] + no_login + b"\5\0\5\5\0\1",
        "good-certificate": chosen["certificate"] + _certificate(),
    }


def _certificate() -> bytes:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example, Inc."),
            x509.NameAttribute(NameOID.COMMON_NAME, "vm"),
        ]
    )
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=9999))
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


# Words


_FILE: Final = r"""# a file of Proxmox VE
[virt-viewer]
type=spice
title=VM 100\s-\stest
host=pvespiceproxy:5f3a0000:100:node::61700::0123456789abcdef
tls-port=61000
proxy=http://me:secret@proxy.example:3128
host-subject=OU=PVE Cluster Node,O=Proxmox\\, Inc,CN=node
secure-channels=main;inputs\;;200
password=0123456789
delete-this-file=1
ca=-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n
toggle-fullscreen[de]=shift+f11
"""


def _words() -> Seeds:
    chosen = {each.__name__: _first(words.PARSERS, each) for each in words.PARSERS}
    pin = "sha256//" + base64.b64encode(bytes(range(32))).decode()
    line = (
        "--custom-channel=unixsocket=/tmp/s,channelid=128\n--custom-channel\nstdio,port=p*\n"
        "-v\n--connect-timeout=3\n--proxy\nsocks5://h:1080\nspice://[::1]:5900"
    )
    told = {
        "uri": {
            "tcp": "spice://alice:p%40ss@vm.example:5900?tls-port=5901",
            "tls": "spice+tls://[fe80::1%25eth0]:5901?password=p%26ss",
            "unix": "spice+unix:///run/vm%201.sock",
            "web": "wss://vm.example/spice/vm1?token=a%20b",
        },
        "connection_file": {
            "file": _FILE,
            "unix-file": "[virt-viewer]\ntype=spice\nunix-path=/s\n",
        },
        "proxy": {"proxy": "https://me:p%3Ass@[2001:db8::1]:3129/", "socks": "socks5h://proxy"},
        "subject": {
            "subject": r"C=DE, O=Example\, Inc.,2.5.4.3=vm\\1,1.2.3=x,",
            "long-subject": "commonName=node,emailAddress=a@b",
        },
        "pinned_key": {"pin": pin},
        "custom_channel": {
            "socket": "\0unixsocket=/tmp/a,,b,channelid=usbredir,perm=660,linger=1.5,attach=always",
            "streams": "\0tcp=[::1]:80,channelid=200,demux=on,buffer=64K,stall=3,max-streams=9",
            "share": "\0share=/srv,channelid=webdav,readonly=on",
            "served": "\1pty,port=org.example.0,on-close=keep",
        },
        "host_port": {"address": "[::]:5900"},
        "secure_channels": {"channels": "main,port,200,all"},
        "command_line": {"line": line},
    }
    refused = {
        "uri": {"uri": "spice://host:99999?port=1", "control": "spice://h\x1b[2J:1"},
        "connection_file": {"file": "[virt-viewer]\ntype=vnc\nhost=\\q\n"},
        "subject": {"subject": r"CN=a\b"},
        "custom_channel": {
            "key": "\0unixsock=/tmp/s",
            "size": "\0exec=a,channelid=webdav,buffer=9T",
        },
    }
    return {
        f"{kind}-{name}": chosen[parser] + text.encode()
        for kind, table in (("good", told), ("bad", refused))
        for parser, texts in table.items()
        for name, text in texts.items()
    }


# A shared folder


def _share() -> Seeds:
    first, writable, readonly = _first(share.PARSERS, share.requests), b"\0", b"\1"
    get = "GET /f HTTP/1.1\nHost: localhost\nRange: bytes=2-5\n"
    find = (
        '<?xml version="1.0"?><D:propfind xmlns:D="DAV:"><D:prop><D:getetag/></D:prop></D:propfind>'
    )
    lock = (
        '<D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope>'
        "<D:locktype><D:write/></D:locktype></D:lockinfo>"
    )
    patch = (
        '<D:propertyupdate xmlns:D="DAV:"><D:set><D:prop><D:getlastmodified>'
        "Thu, 01 Jan 2026 00:00:00 GMT</D:getlastmodified></D:prop></D:set></D:propertyupdate>"
    )
    asked = {
        "get": (readonly, get + "\n" + get.replace("GET", "HEAD") + "\n"),
        "options": (readonly, "OPTIONS * HTTP/1.1\nHost: localhost\n\n"),
        "find": (readonly, _request("PROPFIND / HTTP/1.1", find, "Depth: 1")),
        "put": (writable, _request("PUT /new HTTP/1.1", "content") + get + "\n"),
        "chunks": (
            writable,
            "PUT /n%20w HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n3;x=y\nabc\n0\nT: t\n\n",
        ),
        "move": (writable, _request("MOVE /f HTTP/1.1", "", "Destination: http://h/d/w%3Fhy")),
        "copy": (writable, _request("COPY /d HTTP/1.1", "", "Destination: /e", "Overwrite: F")),
        "lock": (writable, _request("LOCK /f HTTP/1.1", lock, "Timeout: Second-9", "Depth: 0")),
        "patch": (writable, _request("PROPPATCH /f HTTP/1.1", patch)),
        "make": (writable, _request("MKCOL /x HTTP/1.1", "") + _request("DELETE /x HTTP/1.1", "")),
    }
    refused = {
        "link": (readonly, "GET /l HTTP/1.1\nHost: h\n\n"),
        "up": (readonly, "GET /d/%2e%2e/%2e%2e/secret HTTP/1.1\nHost: h\n\n"),
        "put": (readonly, _request("PUT /new HTTP/1.1", "content")),
        "smuggled": (writable, _request("PUT /n HTTP/1.1", "0\n\n", "Transfer-Encoding: chunked")),
        "move": (writable, _request("MOVE /f HTTP/1.1", "", "Destination: http://h/%2e%2e/f")),
    }
    return {
        f"{kind}-{name}": first + choice + text.replace("\n", "\r\n").encode()
        for kind, table in (("good", asked), ("bad", refused))
        for name, (choice, text) in table.items()
    }


def _request(line: str, body: str, *headers: str) -> str:
    length = len(body.replace("\n", "\r\n"))
    head = "\n".join([line, "Host: h", f"Content-Length: {length}", *headers])
    return f"{head}\n\n{body}"


_MAKERS: Final[dict[str, Callable[[], Seeds]]] = {
    "link": _link,
    "conversation": _conversation,
    "mux": _mux,
    "wire": _wire,
    "words": _words,
    "share": _share,
}


def main() -> None:
    """Writes them all."""
    for target, make in _MAKERS.items():
        folder = SEEDS / target
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, seed in make().items():
            (folder / name).write_bytes(seed)


if __name__ == "__main__":
    main()
