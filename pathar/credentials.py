"""C2PA content credentials of a PNG: signs it, and checks the signature that it has.

Whether the certificate of a signer is one that others trust is not judged here. Knows nothing of
records. Needs the extra `sign`.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

from pathar.contract import SOURCE_TYPE, VERSION
from pathar.errors import UsageError

FORMAT = "image/png"
BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----\s*", re.DOTALL)
EXPECTED = "expected a private key (PKCS 8) and its certificates in one PEM file, its own first"


@dataclass(frozen=True)
class Key:
    """A private key with its certificates, PEM; `algorithm` as C2PA names it."""

    algorithm: str
    private: bytes
    certificates: bytes


@dataclass(frozen=True)
class Credentials:
    """The signature in a PNG: who made it, and whether it fits the file."""

    signer: str
    valid: bool


def read_key(path: Path) -> Key:
    """A key as `--key` names it; UsageError."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        blocks = {"key": b"", "certificates": b""}
        for found in BLOCK.finditer(path.read_bytes()):
            blocks["key" if found[1].endswith(b"PRIVATE KEY") else "certificates"] += found[0]
        algorithm = _algorithm(load_pem_private_key(blocks["key"], password=None))
    except OSError as error:
        raise UsageError(f"key {path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"key {path}: {EXPECTED} ({error})") from None
    if not blocks["certificates"]:
        raise UsageError(f"key {path}: has no certificate; {EXPECTED}")
    return Key(algorithm, blocks["key"], blocks["certificates"])


def sign(png: bytes, key: Key, title: str) -> bytes:
    """The PNG with credentials that say it was made by a trained model; UsageError on a key whose
    certificates C2PA does not accept.
    """
    import c2pa

    action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}
    manifest = {
        "claim_generator_info": [{"name": "PathAR", "version": VERSION}],
        "title": title,
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
    }
    info = c2pa.C2paSignerInfo(key.algorithm, key.certificates, key.private, None)
    signed = io.BytesIO()
    try:
        with (
            c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}}) as context,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(manifest, context) as builder,
        ):
            builder.sign(signer, FORMAT, io.BytesIO(png), signed)
    except c2pa.C2paError as error:
        raise UsageError(f"key: C2PA refuses it ({error})") from None
    return signed.getvalue()


def credentials(png: bytes) -> Credentials:
    """Who signed a PNG that has credentials, and whether the signature fits it."""
    import c2pa

    try:
        with c2pa.Reader(FORMAT, io.BytesIO(png)) as reader:
            told = json.loads(reader.json())
            valid = reader.get_validation_state() in ("Valid", "Trusted")
    except (c2pa.C2paError, ValueError):
        return Credentials("nobody known", valid=False)
    by = told["manifests"][told["active_manifest"]].get("signature_info", {})
    names = [by[name] for name in ("common_name", "issuer") if name in by]
    return Credentials(", ".join(dict.fromkeys(names)) or "nobody known", valid)


def _algorithm(key: object) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size in (256, 384, 521):
        return {256: "es256", 384: "es384", 521: "es512"}[key.key_size]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise ValueError("expected an elliptic curve P-256, P-384 or P-521, Ed25519 or RSA")
