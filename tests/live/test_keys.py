"""Keys of a federation: what they prove, who may read them, and that none is overwritten."""

import ipaddress
import stat

import pytest

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from genfl.errors import InputError
from genfl.live.keys import make_node_keys, make_server_keys


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def verified(authority, name):
    return PolicyBuilder().store(Store([authority])).build_server_verifier(name)


def test_a_server_is_known_by_its_names_and_its_authority(tmp_path):
    keys = make_server_keys(tmp_path / "a", ["server.example.org"])  # and itself, by 127.0.0.1
    authority, server = certificate(keys.authority), certificate(keys.certificate)
    for name in (x509.DNSName("server.example.org"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))):
        assert verified(authority, name).verify(server, [])[-1] == authority
    with pytest.raises(VerificationError):
        verified(authority, x509.DNSName("other.example.org")).verify(server, [])
    other = certificate(make_server_keys(tmp_path / "b", ["server.example.org"]).authority)
    with pytest.raises(VerificationError):
        verified(other, x509.DNSName("server.example.org")).verify(server, [])


def test_keys_belong_to_their_certificates(tmp_path):
    keys = make_server_keys(tmp_path, ["localhost"])
    for certified, key in ((keys.authority, keys.authority_key), (keys.certificate, keys.key)):
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        assert private.public_key() == certificate(certified).public_key()


def test_a_node_key_is_of_the_kind_that_flower_takes(tmp_path):
    keys = make_node_keys(tmp_path)
    private = serialization.load_ssh_private_key(keys.key.read_bytes(), None)
    public = serialization.load_ssh_public_key(keys.public.read_bytes())
    assert private.public_key() == public
    assert public.curve.name == "secp384r1"


def test_only_the_user_reads_private_keys(tmp_path):
    keys = make_server_keys(tmp_path / "server", ["localhost"])
    node = make_node_keys(tmp_path / "node")
    for path in (keys.key, keys.authority_key, node.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_key_is_overwritten(tmp_path):
    keys = make_server_keys(tmp_path, ["localhost"])
    before = keys.authority_key.read_bytes()
    with pytest.raises(InputError, match=r"--out: .*ca.pem exists"):
        make_server_keys(tmp_path, ["localhost"])
    assert keys.authority_key.read_bytes() == before
    make_node_keys(tmp_path)
    with pytest.raises(InputError, match=r"--out: .*node.key exists"):
        make_node_keys(tmp_path)


@pytest.mark.parametrize("host", ["", "grüße.example"])
def test_a_wrong_host_is_refused(tmp_path, host):
    with pytest.raises(InputError, match="--host"):
        make_server_keys(tmp_path, [host] if host else [])
    assert not list(tmp_path.iterdir())
