"""The subject that a server's certificate must have: ``O=Example\\, Inc., CN=vm.example``.

The rules are spice-gtk's (spice-common's ssl_verify.c, subject_to_x509_name and verify_subject):

- Attributes are separated by commas and written as OpenSSL knows them: by short name (``CN``), long
  name (``commonName``) or number (``2.5.4.3``), upper and lower case being different.
- Spaces before a name do not count. A value goes on to the next comma; it cannot be empty.
- ``\\,`` is a comma and ``\\\\`` a backslash; a backslash stands before nothing else.
- All of the subject must be there, in the order of the certificate.
- Values are compared as X509_NAME_cmp(3) does: ASCII letters in either case are the same, and so
  are any runs of white space, which at the ends does not count.
- A certificate that has two attributes in one relative name (``CN=a+UID=b``) matches nothing, as
  this syntax cannot say it.

What OpenSSL also wants of a value's length and ASN.1 type, such as a country of two letters, is not
checked: a certificate that breaks it may match here, and does not there.
"""

from __future__ import annotations

import re
from typing import Final

from spicebridge.errors import UsageError

Subject = tuple[tuple[str, str], ...]
"""Attributes in order: OpenSSL's short name, or the number of what has none here, and the value."""

_EXAMPLE: Final = "write it as O=Example,CN=vm.example, with \\, for a comma in a value"
_NUMBER: Final = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")

_ATTRIBUTES: Final = {
    "2.5.4.3": ("CN", "commonName"),
    "2.5.4.4": ("SN", "surname"),
    "2.5.4.5": ("serialNumber", "serialNumber"),
    "2.5.4.6": ("C", "countryName"),
    "2.5.4.7": ("L", "localityName"),
    "2.5.4.8": ("ST", "stateOrProvinceName"),
    "2.5.4.9": ("street", "streetAddress"),
    "2.5.4.10": ("O", "organizationName"),
    "2.5.4.11": ("OU", "organizationalUnitName"),
    "2.5.4.12": ("title", "title"),
    "2.5.4.13": ("description", "description"),
    "2.5.4.15": ("businessCategory", "businessCategory"),
    "2.5.4.16": ("postalAddress", "postalAddress"),
    "2.5.4.17": ("postalCode", "postalCode"),
    "2.5.4.20": ("telephoneNumber", "telephoneNumber"),
    "2.5.4.41": ("name", "name"),
    "2.5.4.42": ("GN", "givenName"),
    "2.5.4.43": ("initials", "initials"),
    "2.5.4.44": ("generationQualifier", "generationQualifier"),
    "2.5.4.46": ("dnQualifier", "dnQualifier"),
    "2.5.4.65": ("pseudonym", "pseudonym"),
    "2.5.4.97": ("organizationIdentifier", "organizationIdentifier"),
    "0.9.2342.19200300.100.1.1": ("UID", "userId"),
    "0.9.2342.19200300.100.1.25": ("DC", "domainComponent"),
    "1.2.840.113549.1.9.1": ("emailAddress", "emailAddress"),
    "1.2.840.113549.1.9.2": ("unstructuredName", "unstructuredName"),
    "1.2.840.113549.1.9.8": ("unstructuredAddress", "unstructuredAddress"),
    "1.3.6.1.4.1.311.60.2.1.1": ("jurisdictionL", "jurisdictionLocalityName"),
    "1.3.6.1.4.1.311.60.2.1.2": ("jurisdictionST", "jurisdictionStateOrProvinceName"),
    "1.3.6.1.4.1.311.60.2.1.3": ("jurisdictionC", "jurisdictionCountryName"),
}
"""Numbers of what subjects are made of, and OpenSSL's two names of each (openssl/obj_mac.h)."""

SHORT_NAMES: Final = {
    name: short for number, (short, long) in _ATTRIBUTES.items() for name in (short, long, number)
}


_ATTRIBUTE: Final = re.compile(r" *([^\\,=]*)=((?:[^\\,]|\\[\\,])+)(?:,|\Z)", re.DOTALL)


def parse_subject(text: str) -> Subject:
    """Reads a subject as users write it.

    Raises:
        UsageError: it is no subject, or has an attribute that we do not know.
    """
    subject = []
    position = 0
    while text[position:].strip(" "):  # nothing need follow the last comma
        match = _ATTRIBUTE.match(text, position)
        if match is None:
            raise UsageError(f"subject {text!r} ends at {text[position:]!r}", _EXAMPLE)
        name, value = match.groups()
        short = SHORT_NAMES.get(name, name if _NUMBER.fullmatch(name) else "")
        if not short:
            raise UsageError(f"subject {text!r} has an unknown attribute {name!r}", _EXAMPLE)
        subject.append((short, re.sub(r"\\(.)", r"\1", value)))
        position = match.end()
    if not subject:
        raise UsageError(f"subject {text!r} names nothing", _EXAMPLE)
    return tuple(subject)


def matches(wanted: Subject, certificate: Subject) -> bool:
    """Whether a certificate has the wanted subject, by the rules of this module."""
    return _canonical(wanted) == _canonical(certificate)


def _canonical(subject: Subject) -> list[tuple[str, bytes]]:
    # bytes know no letters and no spaces but ASCII's, as OpenSSL's asn1_string_canon does
    return [
        (name, b" ".join(value.encode(errors="surrogatepass").split()).lower())
        for name, value in subject
    ]


def format_subject(subject: Subject) -> str:
    """A subject as `parse_subject` reads it, for messages: what cannot be printed is replaced."""
    escaped = ((name, re.sub(r"([\\,])", r"\\\1", value)) for name, value in subject)
    text = ",".join(f"{name}={value}" for name, value in escaped)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
