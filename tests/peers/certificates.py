"""Certificates for servers on TLS: good ones, bad ones, and a chain like that of Proxmox VE.

trustme makes those of an authority. The others are made by hand, for what is odd about them is
the point: trustme would not leave out an extension or choose the order of a subject's parts.
"""

import base64
import datetime
import hashlib
import ipaddress
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NAME = "spice.test"
"""A name that no resolver knows, for what only compares it."""

HOSTS = ("127.0.0.1", "::1", "localhost", NAME)
"""What a certificate is for unless a test wants another host."""

_ORGANIZATION = "Example, Inc."
"""With a comma, which `host-subject` has to escape."""

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class CertificateFiles:
    """A certificate in PEM files that only their owner can read.

    Attributes:
        key: the private key.
        cert: the certificate, as a server sends it.
        ca: what a client has to trust: the authority, or a self-signed certificate itself.
        pin: `sha256//…` of the public key, as curl's --pinnedpubkey has it.
        subject: the subject in the order of its parts, as `host-subject` in a .vv file has it.
    """

    key: Path
    cert: Path
    ca: Path
    pin: str
    subject: str


class Authority:
    """A certification authority; two of them do not know each other.

    Args:
        folder: where its files go, under names of their own; the caller removes it.

    Attributes:
        ca: its certificate, the bundle for clients that trust it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = _new(folder)
        self._authority = trustme.CA()
        self.ca = _write(self._folder, "ca.pem", self._authority.cert_pem.bytes())

    def issue(self, *hosts: str, expired: bool = False) -> CertificateFiles:
        """Make a certificate for `hosts`, `HOSTS` by default; with `expired` it was good once."""
        now = datetime.datetime.now(datetime.UTC)
        hosts = hosts or HOSTS
        made = self._authority.issue_cert(
            *hosts,
            common_name=hosts[0],
            organization_name=_ORGANIZATION,
            not_before=now - 30 * _DAY,
            not_after=now + (-1 if expired else 1) * _DAY,
        )
        key = made.private_key_pem.bytes()
        return _files(self._folder, key, made.cert_chain_pems[0].bytes(), self.ca)


def self_signed(folder: Path, *hosts: str) -> CertificateFiles:
    """Make what `openssl req -x509` makes: a certificate that is its own authority."""
    hosts = hosts or HOSTS
    key = _rsa_key()
    subject = _name((NameOID.ORGANIZATION_NAME, _ORGANIZATION), (NameOID.COMMON_NAME, hosts[0]))
    builder = _authority_builder(subject, key).add_extension(_alternatives(hosts), critical=False)
    pem = _signed(builder, key)
    folder = _new(folder)
    return _files(folder, _key_pem(key), pem, _write(folder, "ca.pem", pem))


def proxmox(folder: Path, node: str = "node") -> CertificateFiles:
    """Make the chain that a node of Proxmox VE has, as PVE/Cluster/Setup.pm has openssl make it.

    The node's certificate lacks the key identifiers, and the authority's lacks the key usage, that
    OpenSSL's X509_STRICT (Python's default since 3.13) asks for. The strings of the node's subject
    are PrintableStrings, where OpenSSL would make UTF8Strings of the same words.
    """
    ca_key, key = _rsa_key(), _rsa_key()
    issuer = _name(
        (NameOID.COMMON_NAME, "Proxmox Virtual Environment"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, str(uuid.uuid4())),
        (NameOID.ORGANIZATION_NAME, "PVE Cluster Manager CA"),
    )
    subject = _name(
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "PVE Cluster Node"),
        (NameOID.ORGANIZATION_NAME, "Proxmox Virtual Environment"),
        (NameOID.COMMON_NAME, node),
        kind=_ASN1Type.PrintableString,
    )
    builder = (
        _builder(subject, issuer, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_alternatives(["127.0.0.1", "::1", "localhost", node]), critical=False)
    )
    folder = _new(folder)
    ca = _write(folder, "pve-root-ca.pem", _signed(_authority_builder(issuer, ca_key), ca_key))
    return _files(folder, _key_pem(key), _signed(builder, ca_key), ca)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: rsa.RSAPrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
    )


def _authority_builder(name: x509.Name, key: rsa.RSAPrivateKey) -> x509.CertificateBuilder:
    """One that signs itself, with the extensions of `v3_ca` in Debian's openssl.cnf."""
    public = key.public_key()
    by_whom = x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
    return (
        _builder(name, name, key)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(by_whom, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )


def _name(*parts: tuple[x509.ObjectIdentifier, str], kind: _ASN1Type | None = None) -> x509.Name:
    return x509.Name([x509.NameAttribute(part, value, kind) for part, value in parts])


def _alternatives(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    def one(host: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            return x509.DNSName(host)

    return x509.SubjectAlternativeName(map(one, hosts))


def _rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _signed(builder: x509.CertificateBuilder, key: rsa.RSAPrivateKey) -> bytes:
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _key_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _files(folder: Path, key: bytes, cert: bytes, ca: Path) -> CertificateFiles:
    folder = _new(folder)
    made = x509.load_pem_x509_certificate(cert)
    public = made.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return CertificateFiles(
        key=_write(folder, "key.pem", key),
        cert=_write(folder, "cert.pem", cert),
        ca=ca,
        pin="sha256//" + base64.b64encode(hashlib.sha256(public).digest()).decode(),
        subject=",".join(_part(attribute) for attribute in made.subject),
    )


def _part(attribute: x509.NameAttribute[str | bytes]) -> str:
    value = str(attribute.value).replace(",", "\\,")
    return f"{attribute.rfc4514_attribute_name}={value}"


def _new(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def _write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.touch(mode=0o600)
    path.write_bytes(data)
    return path
