"""The keys of a federation itself: a CA, and the door's certificate.

The CA signs the door's certificate and nothing else; a holder is known by its public key alone
(``common.machine.kit``; X.509 as RFC 5280 has it, P-384 throughout). A private key is written once,
into a file that only its owner can read, and is never printed, logged or put into an error.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ...common.errors import ConfideError
from ...common.machine.paths import write_public, write_secret

CA_DAYS = 3650
DOOR_DAYS = 397  # the longest that browsers and many libraries still take
_CLOCKS_DIFFER = timedelta(minutes=10)

_CA_USES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def write_ca(key: Path, certificate: Path, name: str) -> None:
    """Make a CA that lasts ten years and may sign no other CA."""
    private = ec.generate_private_key(ec.SECP384R1())
    title = _title(f"confide federation {name}")
    signed = (
        _builder(title, title, private.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CA_USES, critical=True)
        .sign(private, hashes.SHA384())
    )
    write_secret(key, _pem(private))
    write_public(certificate, signed.public_bytes(Encoding.PEM))


def write_door_certificate(
    key: Path, certificate: Path, *, ca_key: Path, ca_certificate: Path, host: str
) -> None:
    """Make the door's key and a certificate for ``host``, and for the loopback behind the door.

    Raises:
        ConfideError: ``provision.ca`` when the CA's key is not there: it may lie in a safe.
    """
    try:
        signer = load_pem_private_key(ca_key.read_bytes(), None)
    except OSError as error:
        raise ConfideError(
            "provision.ca",
            f"The key of the CA, {ca_key}, cannot be read ({error.strerror}).",
            "Put it back for this command; it may be taken away again afterwards.",
        ) from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ConfideError("provision.ca", f"{ca_key} is not a key that confide made.")
    issuer = x509.load_pem_x509_certificate(ca_certificate.read_bytes())
    private = ec.generate_private_key(ec.SECP384R1())
    names = x509.SubjectAlternativeName(
        [general_name(name) for name in dict.fromkeys([host, "localhost", "127.0.0.1", "::1"])]
    )
    signed = (
        _builder(_title(host[:64]), issuer.subject, private.public_key(), DOOR_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA384())
    )
    write_secret(key, _pem(private))
    write_public(certificate, signed.public_bytes(Encoding.PEM))


def expiry_of(certificate: Path) -> datetime:
    """When a certificate ends, in UTC."""
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


def general_name(host: str) -> x509.GeneralName:
    """A host as a certificate writes it: an address, or a name in ASCII."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _title(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _pem(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
