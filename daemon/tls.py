"""TLS after BCP 195 (RFC 9325; PS3.15 B.12): 1.2 with the modern suites and 1.3, certificates on both sides.

Certificates and keys are PEM files without a passphrase, readable by the daemon's user alone.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import SettingsError

if TYPE_CHECKING:
    from daemon.settings import Settings

# RFC 9325 4.2: forward secrecy and authenticated encryption; TLS 1.3 brings its own suites.
_CIPHERS = ":".join(
    f"ECDHE-{kind}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for kind in ("ECDSA", "RSA")
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are and whom we trust in TLS.

    Parameters
    ----------
    certificate, key
        Our PEM files; None to show none.
    ca
        PEM file of the authorities whose certificates are accepted; None for those of the system.
    host_name
        What the other side's certificate must name; "" for the host that is called, None when any
        name under ``ca`` will do.
    """

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    host_name: str | None = ""


@dataclass(frozen=True, slots=True)
class Expiry:
    """A certificate that ends soon, or has ended (``days`` below 0)."""

    key: str
    path: Path
    ends: datetime
    days: int

    def __str__(self) -> str:
        """Say it in an administrator's words."""
        when = f"{self.ends:%Y-%m-%d}"
        if self.days < 0:
            return f"{self.key}: the certificate {self.path} ended on {when}: put a new one there and restart"
        return f"{self.key}: the certificate {self.path} ends on {when}, in {self.days} days"


def credentials(settings: Settings, ca: str = "", host_name: str = "") -> Credentials:
    """Return our certificate, and whom to trust.

    Parameters
    ----------
    settings
        Whose ``[tls]``.
    ca
        PEM file of the other side's authorities; "" for ``tls.ca``.
    host_name
        What its certificate must name; "" for the host that is called, "*" for any.
    """
    own = settings.tls
    trusted = ca or own.ca
    return Credentials(
        Path(own.certificate) if own.certificate else None,
        Path(own.key) if own.key else None,
        Path(trusted) if trusted else None,
        None if host_name == "*" else host_name,
    )


def server_context(credentials: Credentials, require_client_certificate: bool) -> ssl.SSLContext:
    """Return the context of a listener.

    Raises
    ------
    SettingsError
        A file is missing or no PEM, key and certificate do not match, or nothing says whom to trust.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    if credentials.certificate is None:
        raise SettingsError("tls.certificate: a TLS port needs a certificate and its key")
    _load(context, credentials)
    if require_client_certificate:
        if credentials.ca is None:
            raise SettingsError("tls.ca: needed to check client certificates; name the CA's PEM file")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """Return the context of a connection that we open; the other side's certificate is always checked.

    Raises
    ------
    SettingsError
        A file is missing or no PEM, or key and certificate do not match.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = credentials.host_name is not None
    context.verify_mode = ssl.CERT_REQUIRED
    _load(context, credentials)
    if credentials.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def _context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def _load(context: ssl.SSLContext, credentials: Credentials) -> None:
    if credentials.certificate is not None:
        _readable("tls.certificate", credentials.certificate)
        if credentials.key is not None:
            _readable("tls.key", credentials.key)
        try:
            # Without a passphrase callback OpenSSL would ask at the terminal and hang a service.
            context.load_cert_chain(credentials.certificate, credentials.key, password=_no_passphrase)
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or "a key with a passphrase is not supported"
            raise SettingsError(f"tls.certificate, tls.key: {reason}".lower()) from None
    if credentials.ca is not None:
        _readable("tls.ca", credentials.ca)
        try:
            context.load_verify_locations(credentials.ca)
        except ssl.SSLError as error:
            raise SettingsError(f"tls.ca: {credentials.ca} is no PEM file of certificates") from error


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")


def _readable(key: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise SettingsError(f"{key}: cannot read {path} ({error.strerror})") from None


# Expiry


def expiring(settings: Settings, within_days: int = 31) -> list[Expiry]:
    """Return our certificates that end within some days, soonest first.

    Parameters
    ----------
    settings
        Whose certificates: of ``[tls]``, page and audit repository, and each destination's own.
    within_days
        From now on.

    Raises
    ------
    SettingsError
        A file cannot be read or is no certificate.
    """
    now = datetime.now(UTC)
    found = []
    for key, path in certificates(settings):
        ends = _ends(key, path)
        days = (ends - now).days
        if days < within_days:
            found.append(Expiry(key, path, ends, days))
    return sorted(found, key=lambda item: item.ends)


def certificates(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield each certificate of the settings with the key that names it."""
    if settings.tls.certificate:
        yield "tls.certificate", Path(settings.tls.certificate)
    if settings.tls.ca:
        yield "tls.ca", Path(settings.tls.ca)
    if settings.web.certificate:
        yield "web.certificate", Path(settings.web.certificate)
    if settings.audit.syslog and settings.audit.syslog_ca:
        yield "audit.syslog_ca", Path(settings.audit.syslog_ca)
    for entry in settings.destinations:
        if entry.tls_ca:
            yield f"destinations.{entry.name}.tls_ca", Path(entry.tls_ca)


def days_left(settings: Settings) -> dict[str, float]:
    """Return the days until each certificate ends, by the key that names it; for metrics."""
    now = datetime.now(UTC)
    return {key: (_ends(key, path) - now).total_seconds() / 86_400 for key, path in certificates(settings)}


def _ends(key: str, path: Path) -> datetime:
    """Return when the first certificate of a file to end does so."""
    from cryptography import x509

    _readable(key, path)
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError:
        raise SettingsError(f"{key}: {path} is no PEM file of certificates") from None
    return min(certificate.not_valid_after_utc for certificate in found)


def cipher_names() -> list[str]:
    """TLS 1.2 suites that we use, in our order."""
    return _CIPHERS.split(":")
