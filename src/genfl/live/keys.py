"""Keys of a federation: a certificate authority, the server's certificate, and a key for each node.

Each is made where it is used. A private key is never sent: clients get the authority's certificate, and the
server gets the nodes' public keys.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from genfl.errors import InputError, on_one_line
from genfl.live.processes import private_folder
from genfl.storage import remove, write_bytes, write_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization.ssh import SSHPrivateKeyTypes

    from genfl.engines.flower.member import SumMember

YEARS = 2
"""How long certificates are valid."""

_UNFINISHED = ".unfinished-keys"
"""The file that is in a folder while its keys are made."""


class ServerKeys(NamedTuple):
    """The files of a server's keys.

    Attributes:
        authority: The certificate of the authority, which every client needs.
        authority_key: Its private key.
        certificate: The server's certificate.
        key: The server's private key.
    """

    authority: Path
    authority_key: Path
    certificate: Path
    key: Path


class NodeKeys(NamedTuple):
    """The files of a node's keys.

    Attributes:
        key: The private key, which stays at the client.
        public: The public key, which the server registers.
    """

    key: Path
    public: Path


def server_keys(folder: Path) -> ServerKeys:
    """Return the paths of a server's keys."""
    return ServerKeys(*(folder / name for name in ("ca.pem", "ca.key", "server.pem", "server.key")))


def node_keys(folder: Path) -> NodeKeys:
    """Return the paths of a node's keys."""
    return NodeKeys(folder / "node.key", folder / "node.pub")


def make_server_keys(folder: Path, hosts: list[str]) -> ServerKeys:
    """Make a certificate authority, and the certificate of a server.

    Args:
        folder: Where the files are written.
        hosts: The names and addresses by which clients reach the server. The server reaches itself, too.

    Raises:
        InputError: There are keys already, or no host is named.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    if not hosts:
        raise InputError("--host: name at least one host name or address of the server")
    names = [_general_name(host) for host in dict.fromkeys([*hosts, "localhost", "127.0.0.1"])]
    paths = server_keys(folder)
    _refuse_existing(paths)
    begin, end = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(days=365 * YEARS)

    def builder(name: str, issuer: str, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        subject, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(by)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
        )

    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = "genfl certificate authority"
    usage = x509.KeyUsage(*(name in ("key_cert_sign", "crl_sign") for name in _USAGES))
    root = (
        builder(issuer, issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    certificate = (
        builder(hosts[0], issuer, server)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
        )
        .sign(authority, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    with _together(folder):
        for path, public in ((paths.authority, root), (paths.certificate, certificate)):
            write_bytes(path, public.public_bytes(pem))
        for path, key in ((paths.authority_key, authority), (paths.key, server)):
            write_private(path, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return paths


_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)
"""The usages of a certificate's key, in the order of X.509."""


def make_node_keys(folder: Path) -> NodeKeys:
    """Make the key by which the server knows a node, in the format of OpenSSH (ECDSA on P-384).

    A public key that was lost is made again from its private one.

    Args:
        folder: Where the files are written.

    Raises:
        InputError: There are keys already.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def write_public(key: SSHPrivateKeyTypes) -> None:
        encoding, openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        write_bytes(paths.public, key.public_key().public_bytes(encoding, openssh) + b"\n")

    paths = node_keys(folder)
    if paths.key.exists() and not paths.public.exists():
        try:
            write_public(serialization.load_ssh_private_key(paths.key.read_bytes(), None))
        except ValueError:
            raise InputError(f"--out: {paths.key} is no private key; name another folder") from None
        return paths
    _refuse_existing(paths)
    key = ec.generate_private_key(ec.SECP384R1())
    pem, openssh = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    with _together(folder):
        write_public(key)
        write_private(paths.key, key.private_bytes(pem, openssh, serialization.NoEncryption()))
    return paths


def make_member(folder: Path, peers: Path, memory: Path) -> SumMember:
    """Return a client as a member of secure sums.

    Args:
        folder: The client's folder, with its node's key.
        peers: The file with the public keys of all clients' nodes, one on each line, in the order of numbers.
        memory: Where the secrets of a sum are kept.

    Raises:
        InputError: A file is missing or holds something else, or lacks the client's own key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from genfl.engines.flower.member import SumMember
    from genfl.privacy.secure_sum import NodeSigner, NodeVerifier

    key = serialization.load_ssh_private_key(node_keys(folder).key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # `make_node_keys` makes no other
    known = public_keys(peers)
    own = key.public_key()
    if own not in known:
        raise InputError(
            f"--peers: {peers} does not have this client's key; it needs the node.pub of every client"
        )
    verifiers = {number: NodeVerifier(public) for number, public in enumerate(known)}
    return SumMember(memory, known.index(own), NodeSigner(key), verifiers)


def public_keys(file: Path) -> list[EllipticCurvePublicKey]:
    """Return the public keys of a file: of one node, or of several, one on each line.

    Raises:
        InputError: It cannot be read, holds something else, or a key twice.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    keys: list[EllipticCurvePublicKey] = []
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        for line in lines:
            key = serialization.load_ssh_public_key(line.encode())
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise ValueError
            keys.append(key)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); name a file of public keys") from error
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(
            f"{file} has a line that is no public key of a node; copy each client's node.pub"
        ) from None
    if any(key in keys[:number] for number, key in enumerate(keys)):
        raise InputError(f"{file} has a key twice; give each client its own")
    return keys


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise InputError(
            f"--host: {on_one_line(host)!r} is no host name or address; name one, without a port"
        ) from None


def _refuse_existing(paths: tuple[Path, ...]) -> None:
    """Refuse to write over keys, except over an incomplete set of a process that was killed."""
    existing = [path for path in paths if path.exists()]
    unfinished = (paths[0].parent / _UNFINISHED).exists() and len(existing) < len(paths)
    if existing and not unfinished:
        raise InputError(f"--out: {existing[0]} exists; keep it, or name another folder")


@contextlib.contextmanager
def _together(folder: Path) -> Iterator[None]:
    """Mark the keys of a folder as unfinished while they are written.

    The key that a server or a client uses is written last, so where it exists, all the others do.
    """
    private_folder(folder)
    mark = folder / _UNFINISHED
    mark.touch()
    yield
    remove(mark, folder)
