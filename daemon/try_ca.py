"""A certification authority for a first try: CA, server and client certificates, never for patients' data."""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_Key = ec.EllipticCurvePrivateKey
# A node is both: it listens as SCP and calls as SCU.
_BOTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


@dataclass(frozen=True, slots=True)
class _Issuer:
    certificate: x509.Certificate
    key: _Key


def make_test_ca(
    folder: Path, hosts: Sequence[str] = ("localhost", "127.0.0.1"), days: int = 365
) -> list[Path]:
    """Write ``ca``, ``server`` and ``client``, each as ``.crt`` and ``.key``, readable by the owner alone.

    Parameters
    ----------
    folder
        Where to; made if absent.
    hosts
        Names and addresses that the two certificates are for.
    days
        How long they are good for.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    FileExistsError
        A file is there already: keys are never overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = _authority(days)
    written = _write(folder, "ca", authority)
    for name in ("server", "client"):
        written += _write(folder, name, _leaf(authority, name, hosts, days))
    return written


def _authority(days: int) -> _Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("pacs-anomaly-daemon test CA")
    builder = (
        _builder(name, name, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _Issuer(builder.sign(key, hashes.SHA256()), key)


def _leaf(issuer: _Issuer, name: str, hosts: Sequence[str], days: int) -> _Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    builder = (
        _builder(_name(name), issuer.certificate.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(_BOTH, critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(identifier, critical=False)
    )
    return _Issuer(builder.sign(issuer.key, hashes.SHA256()), key)


def _builder(subject: x509.Name, issuer: x509.Name, key: _Key, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of modalities are often behind.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(folder: Path, name: str, made: _Issuer) -> list[Path]:
    certificate = made.certificate.public_bytes(serialization.Encoding.PEM)
    key = made.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths = []
    for suffix, content in ((".crt", certificate), (".key", key)):
        path = folder / f"{name}{suffix}"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(content)
        paths.append(path)
    return paths
