"""Certificates of one local cluster: ECDSA P-256 everywhere, RSA-2048 for ServiceAccount tokens.

`Authority` issues certificates in memory; `Pki` writes the files that the components of a control plane need. The
layout follows kubeadm's (Kubernetes documentation, "PKI certificates and requirements").
"""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flotilla_devcluster import kubeconfig
from flotilla_devcluster.kubeconfig import Access, write_private

VALID_FOR = datetime.timedelta(days=3 * 365)
_CLOCK_SKEW = datetime.timedelta(hours=1)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class KeyPair:
    """PEM text of a certificate and its private key."""

    certificate: bytes
    key: bytes

    def write(self, directory: Path, stem: str) -> tuple[Path, Path]:
        """Write `stem.crt` and `stem.key`; returns both paths."""
        return write_private(directory / f"{stem}.crt", self.certificate), write_private(
            directory / f"{stem}.key", self.key
        )


class Authority:
    """A certificate authority that lives as long as its cluster."""

    def __init__(self, common_name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        self._certificate = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pair = KeyPair(_certificate_pem(self._certificate), _key_pem(self._key))

    def client(self, user: str, groups: Sequence[str] = ()) -> KeyPair:
        """A certificate by which the apiserver knows `user` as a member of `groups`."""
        return self._issue(_subject(user, groups), ExtendedKeyUsageOID.CLIENT_AUTH, sans=())

    def server(self, common_name: str, hosts: Sequence[str]) -> KeyPair:
        """A serving certificate for DNS names and IP addresses."""
        return self._issue(
            _subject(common_name, ()), ExtendedKeyUsageOID.SERVER_AUTH, sans=[_san(host) for host in hosts]
        )

    def _issue(self, subject: x509.Name, usage: x509.ObjectIdentifier, sans: Sequence[x509.GeneralName]) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(subject, self._name, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            # Python 3.13 refuses a chain without the key identifiers (ssl.VERIFY_X509_STRICT).
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        return KeyPair(_certificate_pem(builder.sign(self._key, hashes.SHA256())), _key_pem(key))


def service_account_keys() -> tuple[bytes, bytes]:
    """PEM of the private key that signs ServiceAccount tokens, and of its public half."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return _key_pem(key), public


def _builder(subject: x509.Name, issuer: x509.Name, key: PrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + VALID_FOR)
    )


def _subject(common_name: str, organizations: Sequence[str]) -> x509.Name:
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
    return x509.Name([*names, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _san(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


ADMIN_GROUP = "system:masters"
FRONT_PROXY = "front-proxy-client"
_SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "127.0.0.1",
)


@dataclass(frozen=True)
class Pki:
    """Paths of the PEM files under one folder, and the authority that can issue more."""

    directory: Path
    authority: Authority

    @classmethod
    def create(cls, directory: Path, *, service_ip: str) -> "Pki":
        """Write all that the components need; about 0.2 s, nearly all of it the RSA key."""
        authority, front_proxy = (
            Authority("flotilla-devcluster"),
            Authority("flotilla-front-proxy"),
        )
        authority.pair.write(directory, "ca")
        write_private(directory / "front-proxy-ca.crt", front_proxy.pair.certificate)
        front_proxy.client(FRONT_PROXY).write(directory, "front-proxy-client")
        authority.server("kube-apiserver", [*_SERVER_NAMES, service_ip]).write(directory, "apiserver")
        authority.server("controllers", ["localhost", "127.0.0.1"]).write(directory, "controllers")
        authority.client("kube-apiserver-kubelet-client", [ADMIN_GROUP]).write(directory, "kubelet-client")
        private, public = service_account_keys()
        write_private(directory / "sa.key", private)
        write_private(directory / "sa.pub", public)
        return cls(directory, authority)

    def path(self, name: str) -> Path:
        return self.directory / name

    def access(self, server: str, *, user: str, groups: tuple[str, ...] = ()) -> Access:
        """Credentials of a new client certificate."""
        pair = self.authority.client(user, groups)
        return Access(server, authority=self.authority.pair.certificate, certificate=pair.certificate, key=pair.key)

    def kubeconfig(self, path: Path, server: str, *, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Write a kubeconfig with a new client certificate."""
        return kubeconfig.write(path, self.access(server, user=user, groups=groups), name="devcluster")
