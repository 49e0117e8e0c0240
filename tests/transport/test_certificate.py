"""What a certificate says, and what is said of one that cannot be read."""

from __future__ import annotations

import ssl
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import TlsError
from spicebridge.transport.certificate import describe_certificate, key_digest, subject_of
from tests.peers.certificates import self_signed


def test_a_certificate_tells_its_subject_and_its_days(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    der = ssl.PEM_cert_to_DER_cert(files.cert.read_text())
    assert describe_certificate(der) == f"{files.subject}, 0 days left"
    assert f"sha256//{b64encode(key_digest(der)).decode()}" == files.pin


def test_a_certificate_of_another_version_cannot_be_read(tmp_path: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert(self_signed(tmp_path).cert.read_text())
    version = bytes.fromhex("a003020102")  # [0] INTEGER 2, which is version 3 (RFC 5280, 4.1)
    assert der.count(version) == 1
    der = der.replace(version, version[:-1] + b"\x0a")
    assert describe_certificate(der) == "an unreadable subject"
    for ask in (subject_of, key_digest):
        with pytest.raises(TlsError, match="the server's certificate cannot be read"):
            ask(der)


@given(st.binary(max_size=200))
def test_rubbish_is_no_certificate(der: bytes) -> None:
    assert describe_certificate(der) == "an unreadable subject"
    for ask in (subject_of, key_digest):
        with pytest.raises(TlsError, match="the server's certificate cannot be read"):
            ask(der)
