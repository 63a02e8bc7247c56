# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates as servers show them: good, expired, of the future, self-signed, and of another authority."""

from __future__ import annotations

import dataclasses
import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


@dataclasses.dataclass(frozen=True)
class Issued:
    """Paths of a certificate and its key."""

    certificate: Path
    key: Path
    fingerprint: str


class Authority:
    """Signs certificates; *path* holds its own."""

    def __init__(self, folder: Path, name: str = "Test authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.path = folder / f"{name.replace(' ', '-')}.pem"
        builder = _builder(self._name, self._name, self._key, self._key, (-3, 30), ca=True)
        self.path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    def issue(
        self, name: str, hosts: tuple[str, ...], days: tuple[int, int] = (-1, 30), self_signed: bool = False
    ) -> Issued:
        """A certificate for *hosts* that is valid between these days from now, and its key: *name*.pem, *name*.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        signer = key if self_signed else self._key
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        subject = _name(name)
        builder = _builder(subject, subject if self_signed else self._name, key, signer, days, ca=False)
        certificate = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(
            signer, hashes.SHA256()
        )
        paths = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(PEM))
        plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        paths[1].write_bytes(key.private_bytes(PEM, *plain))
        return Issued(*paths, certificate.fingerprint(hashes.SHA256()).hex())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    days: tuple[int, int],
    ca: bool,
) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    # Python 3.13 and later want the identifiers of the keys.
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
