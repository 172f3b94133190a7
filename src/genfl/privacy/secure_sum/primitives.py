"""The cryptography of a secure sum: key agreement and derivation, sealed messages, keystreams, signatures.

Each function wraps one primitive of the `cryptography` package: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869),
ChaCha20-Poly1305 (RFC 8439), AES-128 in counter mode (NIST SP 800-38A), and ECDSA on P-384 with SHA-384.
"""

from __future__ import annotations

from typing import Literal, Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from genfl.errors import GenflError

RefusalCode = Literal[
    "another_sum",
    "client",
    "encoding",
    "key",
    "parameters",
    "phase",
    "range",
    "set",
    "shape",
    "share",
    "signature",
    "threshold",
]
"""Why a party of a secure sum refuses.

* ``another_sum``: the message belongs to another sum, as a replayed one does.
* ``client``: it comes from a client that does not take part, or for the second time.
* ``encoding``: its bytes are no such message.
* ``key``: a public key is of low order, or two clients have the same.
* ``parameters``: the sum itself is unsafe or impossible.
* ``phase``: the message is not due now.
* ``range``: a value is not finite, or beyond the limit.
* ``set``: the set of clients contradicts what the party knows.
* ``shape``: the values do not have the agreed dtypes and sizes.
* ``share``: a share does not open, or does not fit its secret.
* ``signature``: one is missing or wrong.
* ``threshold``: too few clients are left.
"""


class SecureSumError(GenflError):
    """What a party of a secure sum refuses, and so takes no further part in this sum.

    Attributes:
        code: Why, by its stable name.
        reason: Why, in words.
    """

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(f"secure sum: {message}")
        self.code: RefusalCode = code
        self.reason = message


class Signer(Protocol):
    """Signs as a node: with the key by which the server knows it."""

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message, 1 to 255 bytes."""
        ...


class Verifier(Protocol):
    """Checks the signatures of a node."""

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Return whether the node signed the message."""
        ...


class NodeSigner:
    """Signs with a P-384 key, as Flower's SuperNodes have.

    Args:
        key: The private key.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def sign(self, message: bytes) -> bytes:
        """Return the ECDSA signature of a message with SHA-384, in DER."""
        return self._key.sign(message, ec.ECDSA(hashes.SHA384()))


class NodeVerifier:
    """Checks signatures of `NodeSigner`.

    Args:
        key: The node's public key.
    """

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Return whether the node signed the message."""
        try:
            self._key.verify(signature, message, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            return False
        return True


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key of a private one, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """Return the 32 bytes that two holders of X25519 keys share.

    Args:
        private: One's own private key, 32 bytes.
        public: The other's public key, 32 bytes.

    Raises:
        SecureSumError: ``key``: the public key has another length, or is of low order, so that everybody
            knows what comes out.
    """
    try:
        other = X25519PublicKey.from_public_bytes(public)
        return X25519PrivateKey.from_private_bytes(private).exchange(other)
    except ValueError as error:
        raise SecureSumError("key", "a public key is unusable: it is of low order or not 32 bytes") from error


def derive(secret: bytes, purpose: bytes, length: int = 32, salt: bytes | None = None) -> bytes:
    """Derive a key from a secret for one purpose, with HKDF-SHA256.

    Args:
        secret: The secret.
        purpose: What the key is for: two purposes give independent keys.
        length: Bytes of the key, 1 to 8160.
        salt: A salt that need not be secret.
    """
    return HKDF(hashes.SHA256(), length, salt, purpose).derive(secret)


def seal(key: bytes, nonce: bytes, message: bytes, context: bytes) -> bytes:
    """Encrypt and authenticate a message with ChaCha20-Poly1305.

    Args:
        key: 32 bytes.
        nonce: 12 bytes, never the same twice for a key.
        message: What is encrypted.
        context: What is authenticated with it, but not sent.

    Returns:
        The ciphertext, 16 bytes longer than the message.
    """
    return ChaCha20Poly1305(key).encrypt(nonce, message, context)


def unseal(key: bytes, nonce: bytes, sealed: bytes, context: bytes) -> bytes:
    """Return the message that `seal` encrypted.

    Raises:
        SecureSumError: ``share``: ciphertext, key, nonce or context are not those of `seal`.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, sealed, context)
    except (InvalidTag, ValueError) as error:
        raise SecureSumError(
            "share", "a sealed message was altered, or is of another sum or sender"
        ) from error


def keystream(key: bytes) -> CipherContext:
    """Return AES-128 in counter mode from block 0; it turns zeros into pseudorandom bytes.

    Args:
        key: 16 bytes, for one stream only.
    """
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
