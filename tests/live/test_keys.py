"""Keys of a federation: what they prove, who may read them, and that none is overwritten."""

import ipaddress
import stat
import subprocess
import sys

import pytest

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from genfl.errors import InputError
from genfl.live.keys import make_node_keys, make_server_keys
from genfl.live.logs import log_to


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
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_only_the_user_reads_a_log(tmp_path):
    log_to(tmp_path / "client.log")
    assert stat.S_IMODE((tmp_path / "client.log").stat().st_mode) == 0o600


KILLED = """
import os, sys
from pathlib import Path
from genfl.live import keys

names, replace = [], Path.replace

def killing(path, target):
    names.append(path)
    if len(names) == {number}:
        os._exit(9)
    return replace(path, target)

Path.replace = killing
{make}
"""


@pytest.mark.parametrize(
    ("owner", "number"), [*(("server", number) for number in (1, 2, 3, 4)), ("node", 1), ("node", 2)]
)
def test_keys_that_were_cut_off_are_made_again(tmp_path, owner, number):
    """A process that ends before it gives a file its name leaves the files before it."""
    make = {
        "server": f"keys.make_server_keys(Path({str(tmp_path)!r}), ['localhost'])",
        "node": f"keys.make_node_keys(Path({str(tmp_path)!r}))",
    }[owner]
    code = KILLED.format(number=number, make=make)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not (tmp_path / f"{owner}.key").exists()  # by which `deploy` knows that all are complete
    if owner == "server":
        keys = make_server_keys(tmp_path, ["localhost"])
        assert verified(certificate(keys.authority), x509.DNSName("localhost")).verify(
            certificate(keys.certificate), []
        )
    else:
        keys = make_node_keys(tmp_path)
        private = serialization.load_ssh_private_key(keys.key.read_bytes(), None)
        assert private.public_key() == serialization.load_ssh_public_key(keys.public.read_bytes())
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in keys}


def test_a_lost_public_key_is_made_again(tmp_path):
    keys = make_node_keys(tmp_path)
    public, private = keys.public.read_bytes(), keys.key.read_bytes()
    keys.public.unlink()
    make_node_keys(tmp_path)
    assert (keys.public.read_bytes(), keys.key.read_bytes()) == (public, private)


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
