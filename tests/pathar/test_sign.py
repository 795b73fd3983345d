"""`pathar sign`: copies with content credentials, which `pathar verify` and C2PA's reader check."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Callable
from pathlib import Path

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pathar.cli import main
from pathar.provenance import verify_files
from tests.pathar.tampering import Files, pixels, place

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
KEYS: dict[str, Callable[[], PrivateKey]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


def certificate(key: PrivateKey, name: str, issuer: PrivateKey, by: str, *, ca: bool) -> bytes:
    """One that C2PA accepts, PEM."""
    now = datetime.datetime.now(datetime.UTC)
    subject, author = (
        x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, each),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A lab"),
            ]
        )
        for each in (name, by)
    )
    off = {"content_commitment", "data_encipherment", "encipher_only", "decipher_only"}
    off |= {"key_encipherment", "key_agreement", "crl_sign"}
    usage = x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, **dict.fromkeys(sorted(off), False)
    )
    built = (
        x509.CertificateBuilder(author, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False
        )
    )
    if not ca:
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        built = built.add_extension(uses, critical=True)
    signed = built.sign(
        issuer, None if isinstance(issuer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    )
    return signed.public_bytes(serialization.Encoding.PEM)


def write_key(path: Path, kind: str) -> Path:
    key, authority = KEYS[kind](), KEYS["P-256"]()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    chain = certificate(key, "Ann", authority, "A root", ca=False)
    chain += certificate(authority, "A root", authority, "A root", ca=True)
    path.write_bytes(private + chain)
    return path


@pytest.fixture(scope="module")
def pair(test_checkpoint: Path) -> Files:
    from model.engine import load_engine
    from model.request import ImageRequest, SamplingSettings
    from worker.drawing import draw

    engine = load_engine(test_checkpoint, device="cpu", slots=1, threads=1)
    ((_, files),) = draw(engine, [ImageRequest("histology", 3, SamplingSettings())])
    return files


@pytest.fixture
def folder(pair: Files, tmp_path: Path) -> Path:
    place(tmp_path / "out", 0, pair)
    return tmp_path / "out"


@pytest.mark.parametrize("kind", KEYS)
def test_signed_copies_are_authentic_and_say_who_signed_them(
    folder: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = write_key(tmp_path / "key.pem", kind)
    signed = tmp_path / "signed"
    assert main(["sign", str(folder), "--key", str(key), "--out", str(signed)]) == 0
    assert capsys.readouterr().out == f"signed 3 PNGs in {signed}\n"
    assert {path.name for path in signed.iterdir()} == {path.name for path in folder.iterdir()}
    for path in signed.iterdir():
        assert (
            path.suffix != ".png"
            or (pixels(path.read_bytes()) == pixels((folder / path.name).read_bytes())).all()
        )
    assert main(["verify", str(signed), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["files"]
    assert told["signed_by"] == dict.fromkeys(
        ("image.png", "mask.png", "instances.png"), "Ann, A lab"
    )
    assert told["text"].endswith("; image.png, mask.png, instances.png signed by Ann, A lab")


def test_other_software_reads_that_a_trained_model_made_it(folder: Path, tmp_path: Path) -> None:
    key, signed = write_key(tmp_path / "key.pem", "P-256"), tmp_path / "signed"
    image = folder / "histology_0_00000_image.png"
    assert main(["sign", str(image), "--key", str(key), "--out", str(signed)]) == 0
    with c2pa.Reader("image/png", io.BytesIO((signed / image.name).read_bytes())) as reader:
        assert reader.get_validation_state() == "Valid"
        told = json.loads(reader.json())
    manifest = told["manifests"][told["active_manifest"]]
    (action,) = manifest["assertions"][0]["data"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert (manifest["title"], manifest["claim_generator_info"][0]["name"]) == (
        image.name,
        "PathAR",
    )


def test_a_signature_of_another_file_or_a_changed_one_is_altered(
    pair: Files, folder: Path, tmp_path: Path
) -> None:
    key, signed = write_key(tmp_path / "key.pem", "P-256"), tmp_path / "signed"
    assert main(["sign", str(folder), "--key", str(key), "--out", str(signed)]) == 0
    data = (signed / "histology_0_00000_mask.png").read_bytes()
    at, end = data.index(b"caBX") - 4, data.index(b"iTXt") - 4
    assert verify_files({**pair, "mask.png": data}).kind == "authentic"
    moved = pair["image.png"][:33] + data[at:end] + pair["image.png"][33:]
    verdict = verify_files({**pair, "image.png": moved})
    assert (verdict.kind, verdict.signed_by) == ("altered", {})
    assert "content credentials that do not fit it (of Ann, A lab)" in verdict.text
    empty = pair["image.png"][:33] + b"\0\0\0\0caBX" + b"\x8a\x8b\x8c\x8d" + pair["image.png"][33:]
    assert verify_files({**pair, "image.png": empty}).kind == "altered"


def test_what_is_altered_is_not_signed_and_nothing_is_replaced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, signed = write_key(tmp_path / "key.pem", "P-256"), tmp_path / "signed"
    words = ["sign", str(folder), "--key", str(key), "--out"]
    assert main([*words, str(folder)]) == 2
    assert "exists" in capsys.readouterr().err
    mask = folder / "histology_0_00000_mask.png"
    mask.write_bytes(mask.read_bytes()[:-1])
    assert main([*words, str(signed)]) == 1
    assert "is not signed: altered, mask.png is cut off" in capsys.readouterr().err
    assert not signed.exists()


@pytest.mark.parametrize("content", ["", "no PEM", "key alone", "certificate alone", "no leaf"])
def test_a_key_that_cannot_sign_is_refused_with_what_is_expected(
    folder: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_key(tmp_path / "key.pem", "P-256")
    text = path.read_text()
    first = text.index("-----BEGIN CERT")
    last = text.rindex("-----BEGIN CERT")
    made = {
        "key alone": text[:first],
        "certificate alone": text[first:],
        "no leaf": text[:first] + text[last:],
    }
    path.write_text(made.get(content, content))
    out = tmp_path / "signed"
    assert main(["sign", str(folder), "--key", str(path), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("pathar: key")
    assert told.count("\n") == 1
    assert not out.exists()


def test_without_the_package_a_signature_is_named_and_not_checked(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key, signed = write_key(tmp_path / "key.pem", "P-256"), tmp_path / "signed"
    assert main(["sign", str(folder), "--key", str(key), "--out", str(signed)]) == 0
    monkeypatch.setattr("pathar.provenance.find_spec", lambda _: None)
    capsys.readouterr()
    assert main(["verify", str(signed)]) == 0
    assert "were not checked: pip install 'pathar[sign]'" in capsys.readouterr().out
