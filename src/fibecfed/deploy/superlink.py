"""How a client reaches the server: address, certificates and key, checked before anything is started, each mistake told in a sentence."""

from __future__ import annotations

import contextlib
import datetime
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError

PATIENCE_S = 5.0
"""How long the server's machine may take to answer; where it does not, Flower's SuperNode keeps trying."""

SOON_S = 14 * 86400.0
"""A certificate that expires within this time is reported."""

_MAKE_A_KEY = 'make one, ssh-keygen -t ecdsa -b 384 -N "" -f client -C "", and send client.pub to the server\'s operator'
_NEW = "ask the server's operator for a new one (docs/deploy.md)"
_CODES = {"expired": (10,), "early": (9,), "name": (62, 64)}  # of OpenSSL: X509_V_ERR_...


@dataclass(frozen=True)
class SuperLink:
    """Where the server is, and how this machine proves who it is.

    Attributes:
        address: host and port of the SuperLink.
        root_certificates: PEM file of the authority that signed the server's certificate; None: the authorities that this system trusts.
        key: the private key whose public half the server's operator has registered, an OpenSSH file; None: none, in plain HTTP alone.
        plain_http: whether this machine's user allows plain HTTP, without certificates and key; the server cannot.
    """

    address: str
    root_certificates: Path | None
    key: Path | None
    plain_http: bool


def checked(link: SuperLink) -> None:
    """Look at what was given; nothing is sent.

    Raises:
        UserError: an address, certificates or a key that cannot be used, with what to do.
    """
    _host_and_port(link.address)
    if link.plain_http:
        if link.root_certificates is not None or link.key is not None:
            raise UserError(
                "--allow-plain-http: got --root-certificates or --key beside it, which plain HTTP cannot use; leave out one or the other"
            )
        return
    if link.key is None:
        raise UserError(f"--key: not given, and the server admits only keys that it knows; {_MAKE_A_KEY}")
    _check_key(link.key)
    if link.root_certificates is not None:
        _check_authority(link.root_certificates)


def expiry(link: SuperLink) -> tuple[float | None, str | None]:
    """When the certificate of the server ends, in seconds since 1970, and why that could not be found out now: the server is away.

    Raises:
        UserError: the server's certificate cannot be trusted, or it speaks plain HTTP.
    """
    if link.plain_http:
        return None, None
    host, port = _host_and_port(link.address)
    context = ssl.create_default_context(cafile=link.root_certificates)
    try:
        with (
            socket.create_connection((host, port), PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            return ssl.cert_time_to_seconds(str((secured.getpeercert() or {})["notAfter"])), None
    except ssl.SSLCertVerificationError as error:
        raise UserError(_distrusted(link, host, error)) from None
    except ssl.SSLError as error:
        raise UserError(
            f"--superlink: {link.address} does not answer in TLS ({error.reason or error}): a SuperLink in plain HTTP (--insecure), or "
            "another program. Nothing was sent, and the server cannot allow that for this machine. Ask its operator for TLS "
            "(docs/deploy.md); only where another layer encrypts, start this client with --allow-plain-http"
        ) from None
    except OSError as error:
        return None, str(error.strerror or error)


def expires_soon(end: float | None, now: float) -> str | None:
    """A sentence where a certificate has not long to go."""
    if end is None or end - now > SOON_S:
        return None
    return f"the server's certificate expires in {max(0.0, end - now) / 86400:.0f} days; its operator should renew it (docs/deploy.md)"


def _host_and_port(address: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^\[\]:/\s]+)):(\d{1,5})", address)
    if found is None or not 0 < int(found[3]) < 2**16:
        raise UserError(f"--superlink: got {address!r}, expected HOST:PORT, e.g. server.example:8000, without https://; correct it")
    return found[1] or found[2], int(found[3])


def _check_key(path: Path) -> None:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    except ImportError:
        raise UserError("--superlink needs Flower in this Python's environment; in a clone of fibecfed: pip install '.[flower]'") from None
    text = _read(path, "--key", _MAKE_A_KEY)
    if text.startswith((b"ecdsa-", b"ssh-", b"sk-")):
        raise UserError(f"--key: {path} is a public key; give the private one, beside it without .pub, which never leaves this machine")
    try:
        key = load_ssh_private_key(text, None)
    except TypeError:
        raise UserError(
            f"--key: {path} is protected with a passphrase, and nobody is there to type it; take it off: ssh-keygen -p -f {path}"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"--key: {path} is no private key of OpenSSH; {_MAKE_A_KEY}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        kind = type(key).__name__.strip("_").removesuffix("PrivateKey")
        raise UserError(f"--key: {path} is a key of type {kind}, and Flower expects ECDSA; {_MAKE_A_KEY}")


def _check_authority(path: Path) -> None:
    from cryptography import x509

    text = _read(path, "--root-certificates", "copy ca.crt from the server's operator")
    try:
        found = x509.load_pem_x509_certificates(text)
    except ValueError:
        raise UserError(f"--root-certificates: {path} holds no certificate in PEM; copy ca.crt from the server's operator again") from None
    now = datetime.datetime.now(datetime.UTC)
    if all(certificate.not_valid_after_utc < now for certificate in found):
        end = max(certificate.not_valid_after_utc for certificate in found)
        raise UserError(f"--root-certificates: {path} expired on {end:%Y-%m-%d}; {_NEW}")


def _read(path: Path, option: str, advice: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be read ({error.strerror}); {advice}") from None


def _distrusted(link: SuperLink, host: str, error: ssl.SSLCertVerificationError) -> str:
    start = f"--superlink: the certificate of {link.address}"
    if error.verify_code in _CODES["expired"]:
        end = _end_of_certificate(link)
        return f"{start} has expired{end}; its operator must renew it (docs/deploy.md). Nothing was sent"
    if error.verify_code in _CODES["early"]:
        return f"{start} is not valid yet; compare the clocks of both machines. Nothing was sent"
    if error.verify_code in _CODES["name"]:
        return f"{start} is not for the name {host!r}; use a name that stands in it, or ask for one with this name. Nothing was sent"
    by = link.root_certificates or "an authority that this system trusts; give --root-certificates ca.crt"
    return f"{start} is not signed by {by} ({error.verify_message}); compare ca.crt with the operator's. Nothing was sent"


def _end_of_certificate(link: SuperLink) -> str:
    from cryptography import x509

    with contextlib.suppress(OSError, ValueError):
        pem = ssl.get_server_certificate(_host_and_port(link.address), timeout=PATIENCE_S)
        return f" on {x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc:%Y-%m-%d}"
    return ""
