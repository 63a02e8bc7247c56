# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An authority, and certificates of it that are good, expired, of the future, and of another authority."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
NAMES = ["www.example.test", *(f"{name}.eu-central-1.amazonaws.com" for name in ("ssm", "ssmmessages", "ec2messages"))]


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _issue(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    days: tuple[int, int],
    ca: bool,
) -> bytes:
    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * DAY)
        .not_valid_after(now + days[1] * DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not ca:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in NAMES]), critical=False
        )
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write(folder: Path) -> None:
    """ca.pem, and good.pem, expired.pem, future.pem, other.pem with their keys."""
    authority, other, key = (ec.generate_private_key(ec.SECP256R1()) for _each in range(3))
    (folder / "ca.pem").write_bytes(_issue("Test authority", "Test authority", authority, authority, (-2, 9), ca=True))
    (folder / "both.pem").write_bytes(
        (folder / "ca.pem").read_bytes()
        + _issue("Inspecting proxy", "Inspecting proxy", other, other, (-2, 9), ca=True)
    )
    for name, issuer, signer, days in (
        ("good", "Test authority", authority, (-1, 9)),
        ("expired", "Test authority", authority, (-3, -1)),
        ("future", "Test authority", authority, (1, 9)),
        ("other", "Inspecting proxy", other, (-1, 9)),
    ):
        (folder / f"{name}.pem").write_bytes(_issue(NAMES[0], issuer, key, signer, days, ca=False) + _private(key))
