"""A module ``gssapi`` that believes every token, but those that begin with ``!``."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any


class _RefusedError(Exception):
    pass


class _Context:
    def __init__(self, **_: object) -> None:
        self.complete = False

    def step(self, token: bytes | None = None) -> bytes | None:
        self.complete = token is not None and bool(_believed(token))
        return None if self.complete else b"token"

    def wrap(self, message: bytes, encrypt: bool) -> Any:
        return SimpleNamespace(message=message, encrypted=encrypt)

    def unwrap(self, message: bytes) -> Any:
        return SimpleNamespace(message=_believed(message))

    def encrypt(self, message: bytes) -> bytes:
        return message

    def decrypt(self, message: bytes) -> bytes:
        return _believed(message)

    def get_wrap_size_limit(self, desired_output_size: int, encrypted: bool) -> int:
        return desired_output_size if encrypted else 0


def _believed(token: bytes) -> bytes:
    if token.startswith(b"!"):
        raise _RefusedError(f"Major (1): No, Minor (2): {token.decode('latin-1')}")
    return token


class _Flags:
    mutual_authentication = replay_detection = out_of_sequence_detection = 0
    integrity = confidentiality = 0


def fake_gssapi() -> ModuleType:
    """The module."""
    module = ModuleType("gssapi")
    module.__dict__.update(
        exceptions=SimpleNamespace(GSSError=_RefusedError, GeneralError=_RefusedError),
        Name=lambda text, kind: text,
        NameType=SimpleNamespace(user=1, hostbased_service=2),
        MechType=SimpleNamespace(kerberos=1),
        RequirementFlag=_Flags,
        Credentials=lambda **_: None,
        SecurityContext=_Context,
    )
    return module
