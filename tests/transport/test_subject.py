"""Subjects of certificates: read, compared and shown by spice-gtk's rules."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import TlsError, UsageError
from spicebridge.transport.certificate import subject_of
from spicebridge.transport.subject import (
    _ATTRIBUTES,
    Subject,
    format_subject,
    matches,
    parse_subject,
)
from tests.transport.attempt import attempt

PROXMOX = "OU=PVE Cluster Node,O=Proxmox Virtual Environment,CN=node"
KEY = ec.generate_private_key(ec.SECP256R1())
DAY = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


def certificate(*names: list[x509.NameAttribute[str] | x509.NameAttribute[bytes]]) -> bytes:
    """A certificate in DER whose subject has these relative names."""
    subject = x509.Name([x509.RelativeDistinguishedName(name) for name in names])
    builder = x509.CertificateBuilder(
        issuer_name=subject,
        subject_name=subject,
        public_key=KEY.public_key(),
        serial_number=1,
        not_valid_before=DAY,
        not_valid_after=DAY,
    )
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def attribute(number: str, value: str, kind: _ASN1Type | None = None) -> x509.NameAttribute[str]:
    """An attribute of a subject; the type is UTF8String unless said."""
    return x509.NameAttribute(x509.ObjectIdentifier(number), value, kind)


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("CN=vm", [("CN", "vm")]),
        ("C=IL, O=Example, CN=vm", [("C", "IL"), ("O", "Example"), ("CN", "vm")]),
        (r"O=Example\, Inc.,CN=a\\b", [("O", "Example, Inc."), ("CN", "a\\b")]),
        ("commonName=vm,2.5.4.10=O,DC=x", [("CN", "vm"), ("O", "O"), ("DC", "x")]),
        ("1.2.3.4=a", [("1.2.3.4", "a")]),
        ("  CN= a ", [("CN", " a ")]),
        ("CN=a=b+c", [("CN", "a=b+c")]),
        ("CN=a, ", [("CN", "a")]),
        ("CN=a,CN=b", [("CN", "a"), ("CN", "b")]),
    ],
)
def test_a_subject_is_read_as_spice_gtk_does(text: str, subject: list[tuple[str, str]]) -> None:
    assert parse_subject(text) == tuple(subject)


REFUSED = {
    "": "names nothing",
    "  ": "names nothing",
    "vm": "ends at 'vm'",
    ",": "ends at ','",
    "CN=": "ends at 'CN='",
    "CN=,O=x": "ends at 'CN=,O=x'",
    "CN=a,,O=x": "ends at ',O=x'",
    r"CN=a\b": r"ends at 'CN=a\\b'",
    "CN=a\\": r"ends at 'CN=a\\'",
    r"O=x,C\,N=a": r"ends at 'C\\,N=a'",
    "=a": "unknown attribute ''",
    "cn=a": "unknown attribute 'cn'",
    "CN =a": "unknown attribute 'CN '",
    "2.5.4.03=a": "unknown attribute '2.5.4.03'",
}


@pytest.mark.parametrize(("text", "complaint"), REFUSED.items(), ids=repr)
def test_what_is_no_subject_says_why_and_how_to_write_it(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_subject(text)
    assert complaint in caught.value.problem
    assert "write it as" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (PROXMOX, True),
        (PROXMOX.upper().replace("OU=", "organizationalUnitName="), True),
        ("OU=  PVE   Cluster Node , O=Proxmox Virtual\tEnvironment, CN=node", True),
        ("CN=node,O=Proxmox Virtual Environment,OU=PVE Cluster Node", False),
        ("O=Proxmox Virtual Environment,CN=node", False),
        (f"{PROXMOX},CN=node", False),
        ("OU=PVE Cluster Node,O=Proxmox Virtual Environment,CN=node2", False),
        ("OU=PVECluster Node,O=Proxmox Virtual Environment,CN=node", False),
        ("OU=PVE Cluster Node,O=Proxmox Virtual Environment,UID=node", False),
    ],
)
def test_all_of_a_subject_must_be_there_in_its_order(text: str, *, same: bool) -> None:
    der = certificate(
        [attribute("2.5.4.11", "PVE Cluster Node")],
        [attribute("2.5.4.10", "Proxmox Virtual Environment")],
        [attribute("2.5.4.3", "node")],
    )
    assert format_subject(subject_of(der)) == PROXMOX
    assert matches(parse_subject(text), subject_of(der)) is same


@pytest.mark.parametrize(
    ("wanted", "there", "same"),
    [
        ("CN=É", "É", True),
        ("CN=é", "É", False),
        ("CN=a b", "a\N{NO-BREAK SPACE}b", False),
        ("CN=a b", "\n a\r\n b", True),
    ],
)
def test_only_what_is_ascii_may_differ_in_case_and_space(
    wanted: str, there: str, *, same: bool
) -> None:
    for kind in (_ASN1Type.UTF8String, _ASN1Type.BMPString):
        der = certificate([attribute("2.5.4.3", there, kind)])
        assert matches(parse_subject(wanted), subject_of(der)) is same


def test_a_name_of_two_attributes_is_none_that_can_be_asked_for() -> None:
    der = certificate([attribute("2.5.4.3", "a"), attribute("0.9.2342.19200300.100.1.1", "b")])
    (only,) = subject_of(der)
    assert set(only[0].split("+")) == {"CN", "UID"}
    for text in ("CN=a,UID=b", "UID=b,CN=a", "CN=a+UID=b"):
        assert not matches(parse_subject(text), subject_of(der))


def test_attributes_that_are_unknown_or_no_text_are_shown_by_number() -> None:
    unique = x509.NameAttribute(x509.NameOID.X500_UNIQUE_IDENTIFIER, b"\0\x12", _ASN1Type.BitString)
    der = certificate([attribute("1.2.3.4", "a,b")], [unique])
    assert format_subject(subject_of(der)) == r"1.2.3.4=a\,b,2.5.4.45=#0012"


def test_a_subject_that_does_not_fit_on_a_line_is_shown_on_one() -> None:
    assert format_subject((("CN", "a\n\x1b[31mb"),)) == "CN=a\ufffd\ufffd[31mb"


def test_what_is_no_certificate_has_no_subject() -> None:
    with pytest.raises(TlsError, match="cannot be read"):
        subject_of(b"nonsense")


@pytest.mark.parametrize(("number", "names"), _ATTRIBUTES.items())
def test_attributes_have_all_their_names(number: str, names: tuple[str, str]) -> None:
    for name in (number, *names):
        assert parse_subject(f"{name}=x") == ((names[0], "x"),)


SUBJECTS: st.SearchStrategy[Subject] = st.lists(
    st.tuples(
        st.sampled_from([names[0] for names in _ATTRIBUTES.values()] + ["1.2.3.4"]),
        st.text(st.sampled_from("aB ,\\=+é"), min_size=1)
        | st.text(min_size=1).filter(str.isprintable),
    ),
    min_size=1,
).map(tuple)


@given(SUBJECTS)
def test_a_subject_is_read_as_it_was_shown(subject: Subject) -> None:
    assert parse_subject(format_subject(subject)) == subject
    assert matches(subject, subject)


@given(st.text(st.sampled_from("CNO=,\\ .12\0\ud800é")))
def test_any_text_is_a_subject_or_refused(text: str) -> None:
    subject = attempt(parse_subject, text)
    if isinstance(subject, UsageError):
        assert subject.problem.startswith("subject ")
    else:
        assert matches(subject, subject)
        assert not matches(subject, ())
