"""A USB device that is not there: the usb-host side of usbredir, on a connected socket.

After the hellos it announces a full-speed, vendor-specific device of one interface and no
endpoints but 0, then answers what a guest asks while it enumerates. The numbers are those of
usbredirproto.h (Debian: libusbredirparser-dev). QEMU's xhci wants a peer with the last three of the
capabilities below; with 64-bit ids headers are longer after the hellos. The descriptors are those
of the USB 2.0 specification, chapter 9.
"""

import contextlib
import socket
import struct
import threading
from typing import Self

_HELLO, _DEVICE_CONNECT, _INTERFACE_INFO, _EP_INFO = 0, 1, 4, 5
_SET_CONFIGURATION, _GET_CONFIGURATION, _CONFIGURATION_STATUS = 6, 7, 8
_SET_ALT_SETTING, _GET_ALT_SETTING, _ALT_SETTING_STATUS = 9, 10, 11
_CONTROL_PACKET = 100

_CAP_CONNECT_DEVICE_VERSION = 1
_CAP_EP_INFO_MAX_PACKET_SIZE = 4
_CAP_64BITS_IDS = 5
_CAP_32BITS_BULK_LENGTH = 6
_CAPS = (
    1 << _CAP_CONNECT_DEVICE_VERSION
    | 1 << _CAP_EP_INFO_MAX_PACKET_SIZE
    | 1 << _CAP_64BITS_IDS
    | 1 << _CAP_32BITS_BULK_LENGTH
)
_SUCCESS, _STALL = 0, 4
_SPEED_FULL = 1
_EP_CONTROL, _EP_INVALID = 0, 255
_EP_SLOTS = 32
"""Endpoints 0 to 15 out, then 0 to 15 in."""

_HELLO_HEADER = struct.Struct("<III")  # type, length, id
_HELLO_BODY = struct.Struct("<64sI")  # version, capabilities
_HEADER = struct.Struct("<IIQ")
_CONTROL = struct.Struct("<BBBBHHH")  # endpoint, request, type, status, value, index, length

_GET_DESCRIPTOR = 6
_DEVICE, _CONFIGURATION, _STRING = 1, 2, 3
_EP0_SIZE = 64
_VENDOR_CLASS = 0xFF
_CONFIGURATION_VALUE = 1


class UsbDevice:
    """The device, served by a thread until the peer closes or the `with` block is left.

    It owns the socket. `peer_version` is what the usb-guest (QEMU) called itself in its hello.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        vendor: int = 0x1234,
        product: int = 0x5678,
        name: str = "spicebridge test device",
    ) -> None:
        self.peer_version = ""
        self._sock = sock
        self._stream = sock.makefile("rb")
        self._ids = struct.pack("<HHH", vendor, product, 0x0100)  # device version 1.0
        self._descriptors = _descriptors(self._ids, name)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the peer may have been faster
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._stream.close()
        self._sock.close()
        if self._failure:
            raise self._failure

    def _serve(self) -> None:
        try:
            self._greet()
            self._announce()
            while header := self._stream.read(_HEADER.size):
                kind, length, number = _HEADER.unpack(header)
                self._answer(kind, number, self._stream.read(length))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the peer may go at any time
        except Exception as error:  # noqa: BLE001 - told to who leaves the block
            self._failure = error

    def _greet(self) -> None:
        hello = _HELLO_BODY.pack(b"spicebridge test device", _CAPS)
        self._sock.sendall(_HELLO_HEADER.pack(_HELLO, len(hello), 0) + hello)
        _, length, _ = _HELLO_HEADER.unpack(self._stream.read(_HELLO_HEADER.size))
        version, peer_caps = _HELLO_BODY.unpack_from(self._stream.read(length))
        if not peer_caps & 1 << _CAP_64BITS_IDS:
            raise ValueError(f"the usb-guest {version!r} has no 64-bit ids")
        self.peer_version = version.rstrip(b"\0").decode()

    def _send(self, kind: int, body: bytes, number: int = 0) -> None:
        self._sock.sendall(_HEADER.pack(kind, len(body), number) + body)

    def _answer(self, kind: int, number: int, body: bytes) -> None:
        """Answer a message; those that ask for nothing, such as reset, are passed over."""
        if kind in (_SET_CONFIGURATION, _GET_CONFIGURATION):
            status = bytes([_SUCCESS, _CONFIGURATION_VALUE])
            self._send(_CONFIGURATION_STATUS, status, number)
        elif kind in (_SET_ALT_SETTING, _GET_ALT_SETTING):
            self._send(_ALT_SETTING_STATUS, bytes([_SUCCESS, body[0], 0]), number)
        elif kind == _CONTROL_PACKET:
            self._control(number, body)

    def _announce(self) -> None:
        def slots(first: int, other: int) -> bytes:
            return bytes([first] + [other] * (_EP_SLOTS - 1))

        classes = slots(_VENDOR_CLASS, 0) + slots(0, 0) * 2  # class, subclass, protocol
        self._send(_INTERFACE_INFO, struct.pack("<I", 1) + slots(0, 0) + classes)

        half = [_EP_CONTROL] + [_EP_INVALID] * (_EP_SLOTS // 2 - 1)
        sizes = [_EP0_SIZE if kind == _EP_CONTROL else 0 for kind in half * 2]
        intervals_and_interfaces = bytes(_EP_SLOTS) * 2
        packed_sizes = struct.pack(f"<{_EP_SLOTS}H", *sizes)
        self._send(_EP_INFO, bytes(half * 2) + intervals_and_interfaces + packed_sizes)

        self._send(_DEVICE_CONNECT, bytes([_SPEED_FULL, 0, 0, 0]) + self._ids)

    def _control(self, number: int, body: bytes) -> None:
        """Give a descriptor, or stall: so a device answers what it does not know."""
        endpoint, request, kind, _, value, index, length = _CONTROL.unpack_from(body)
        known = self._descriptors.get(value) if request == _GET_DESCRIPTOR else None
        data = (known or b"")[:length]
        status = _STALL if known is None else _SUCCESS
        header = _CONTROL.pack(endpoint, request, kind, status, value, index, len(data))
        self._send(_CONTROL_PACKET, header + data, number)


def _descriptors(ids: bytes, name: str) -> dict[int, bytes]:
    """The descriptors by the `value` of the request: type in the high byte, index in the low."""
    usb_version, configurations = 0x0200, 1
    product_string = 1
    device = struct.pack("<HBBBB", usb_version, 0, 0, 0, _EP0_SIZE) + ids
    device += bytes([0, product_string, 0, configurations])
    interface = _descriptor(4, bytes([0, 0, 0, _VENDOR_CLASS, 0, 0, 0]))
    bus_powered, milliamps = 0x80, 100
    total = 9 + len(interface)
    configuration = struct.pack(
        "<HBBBBB", total, 1, _CONFIGURATION_VALUE, 0, bus_powered, milliamps // 2
    )
    return {
        _DEVICE << 8: _descriptor(_DEVICE, device),
        _CONFIGURATION << 8: _descriptor(_CONFIGURATION, configuration) + interface,
        _STRING << 8: _descriptor(_STRING, b"\x09\x04"),  # the languages: English
        _STRING << 8 | product_string: _descriptor(_STRING, name.encode("utf-16-le")),
    }


def _descriptor(kind: int, body: bytes) -> bytes:
    return bytes([2 + len(body), kind]) + body
