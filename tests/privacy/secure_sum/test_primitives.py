"""Our wrappers of the cryptographic primitives, against vectors of the Wycheproof project."""

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from genfl.privacy.secure_sum import NodeSigner, NodeVerifier, SecureSumError
from genfl.privacy.secure_sum.primitives import agree, derive, keystream, public_key, seal, unseal

VECTORS = json.loads((Path(__file__).parent / "wycheproof.json").read_text(encoding="utf-8"))


def cases(name):
    return [pytest.param(case, id=str(case["tcId"])) for case in VECTORS[name]]


def octets(case, *names):
    return [bytes.fromhex(case[name]) for name in names]


@pytest.mark.parametrize("case", cases("x25519"))
def test_agree_gives_the_shared_secret_or_refuses_a_low_order_point(case):
    private, public, shared = octets(case, "private", "public", "shared")
    if "ZeroSharedSecret" in case["flags"] or "LowOrderPublic" in case["flags"]:
        with pytest.raises(SecureSumError, match="low order") as refused:
            agree(private, public)
        assert refused.value.code == "key"
    else:
        assert agree(private, public) == shared


@pytest.mark.parametrize("length", [0, 31, 33])
def test_agree_refuses_other_lengths(length):
    with pytest.raises(SecureSumError) as refused:
        agree(bytes(range(32)), bytes(length))
    assert refused.value.code == "key"


@pytest.mark.parametrize("case", cases("hkdf_sha256"))
def test_derive_is_hkdf(case):
    secret, salt, info, key = octets(case, "ikm", "salt", "info", "okm")
    if case["result"] == "invalid":
        with pytest.raises(ValueError):
            derive(secret, info, case["size"], salt)
    else:
        assert derive(secret, info, case["size"], salt) == key


@pytest.mark.parametrize("case", cases("chacha20_poly1305"))
def test_seal_and_unseal_are_chacha20_poly1305(case):
    key, nonce, context, message, ciphertext, tag = octets(case, "key", "iv", "aad", "msg", "ct", "tag")
    if case["result"] == "valid":
        assert seal(key, nonce, message, context) == ciphertext + tag
        assert unseal(key, nonce, ciphertext + tag, context) == message
    else:
        with pytest.raises(SecureSumError) as refused:
            unseal(key, nonce, ciphertext + tag, context)
        assert refused.value.code == "share"


def test_the_selection_covers_what_must_be_refused():
    flags = [flag for cases in ("x25519", "chacha20_poly1305") for c in VECTORS[cases] for flag in c["flags"]]
    assert flags.count("LowOrderPublic") == 31
    assert flags.count("NonCanonicalPublic") == 19
    assert flags.count("ModifiedTag") >= 16


def test_keystream_is_aes_128_in_counter_mode():
    """NIST SP 800-38A, F.5.1 starts at another counter, so block by block: AES of 0, 1, 2 in ECB."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes(range(16))
    blocks = b"".join(number.to_bytes(16, "big") for number in range(5))
    expected = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)
    stream = keystream(key)
    assert stream.update(bytes(7)) + stream.update(bytes(73)) == expected


def test_public_keys_agree():
    a, b = (bytes([number]) * 32 for number in (1, 2))
    assert agree(a, public_key(b)) == agree(b, public_key(a))


def test_node_signatures():
    key, other = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    signature = NodeSigner(key).sign(b"message")
    assert len(signature) < 128
    assert NodeVerifier(key.public_key()).verify(signature, b"message")
    assert not NodeVerifier(key.public_key()).verify(signature, b"massage")
    assert not NodeVerifier(key.public_key()).verify(signature[:-1], b"message")
    assert not NodeVerifier(other.public_key()).verify(signature, b"message")


def test_derive_separates_purposes():
    keys = {derive(b"secret", purpose) for purpose in (b"a", b"b", b"ab", b"")}
    assert len(keys) == 4
    assert np.unpackbits(np.frombuffer(derive(b"secret", b"a", 8160), np.uint8)).mean() == pytest.approx(
        0.5, abs=0.01
    )
