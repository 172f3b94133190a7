"""Halves of shadow models, and the loop that trains them."""

from __future__ import annotations

import numpy as np
import pytest

from genfl.errors import InputError
from genfl.privacy.attacks.shadow import deal_to_clients, shadow_members, train_shadows
from genfl.rng import Key

CLIENTS = np.repeat([0, 1, 2], [2, 7, 40])


@pytest.mark.parametrize("models", [2, 5, 16])
def test_shadow_members_are_halves_of_every_client(models):
    member = shadow_members(CLIENTS, models, Key(0))
    assert member.shape == (models, 49)
    for client, size in enumerate((2, 7, 40)):
        counts = member[:, client == CLIENTS].sum(1)
        assert set(counts) <= {size // 2, size - size // 2}
    for first in range(0, models - 1, 2):
        assert (member[first] == ~member[first + 1]).all()


def test_shadow_members_stay_when_models_are_added():
    few, many = (shadow_members(CLIENTS, models, Key(1)) for models in (3, 8))
    assert (many[:3] == few).all()
    assert (many[0] != many[2]).any()
    assert (shadow_members(CLIENTS, 3, Key(2)) != few).any()


def test_shadow_members_choose_examples_equally_often():
    """Each example of a client of seven is in 4/7 or 3/7 of the first models of pairs, 1/2 on average."""
    member = shadow_members(CLIENTS, 4000, Key(3))[::2]
    assert member.mean(0) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2000))


def test_shadow_members_need_two_examples_of_a_client():
    with pytest.raises(InputError, match=r"^attacks: client 1 has fewer than two examples.*use loss$"):
        shadow_members(np.array([0, 0, 1, 2, 2]), 4, Key(0))
    with pytest.raises(InputError, match=r"^shadows: 1, but two are needed"):
        shadow_members(CLIENTS, 1, Key(0))


def test_deal_to_clients_follows_the_members_labels():
    owners, labels = np.array([0] * 30 + [1] * 10 + [2] * 20), np.array([0] * 40 + [1] * 20)
    others = np.array([0] * 4000 + [1] * 1000 + [2] * 900)
    clients = deal_to_clients(owners, np.concatenate([labels, others]), Key(0))
    assert (clients[:60] == owners).all()
    dealt = clients[60:]
    assert (dealt[:4000] == 0).mean() == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 4000))
    assert set(dealt[:4000]) == {0, 1}
    assert set(dealt[4000:5000]) == {2}
    assert set(dealt[5000:]) == {0, 1, 2}  # no member is of this class


class Trained:
    """Trains nothing: a confidence is the number of the model where it was trained. It fails when told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.numbers: list[int] = []
        self.fails_at = fails_at

    def __call__(self, number, member, checkpoint, digest, advance):
        if number == self.fails_at:
            checkpoint.parent.mkdir(parents=True)
            checkpoint.write_text("unfinished")
            raise RuntimeError("killed")
        self.numbers.append(number)
        advance(3)
        return np.where(member, float(number), -1.0)


def test_train_shadows_trains_each_model_once(tmp_path):
    member = shadow_members(CLIENTS, 4, Key(0))
    expected = np.where(member, np.arange(4.0)[:, None], -1.0)
    killed, resumed, done = Trained(fails_at=2), Trained(), Trained()
    with pytest.raises(RuntimeError, match="killed"):
        train_shadows(member, killed, tmp_path, "digest", 3)
    assert (tmp_path / "shadow-2" / "checkpoint.safetensors").exists(), "so that the model can be resumed"
    assert (train_shadows(member, resumed, tmp_path, "digest", 3) == expected).all()
    assert (train_shadows(member, done, tmp_path, "digest", 3) == expected).all()
    assert (killed.numbers, resumed.numbers, done.numbers) == ([0, 1], [2, 3], [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"shadow-{n}.safetensors" for n in range(4)]


def test_train_shadows_again_what_changed_or_is_damaged(tmp_path):
    member = shadow_members(CLIENTS, 4, Key(0))
    train_shadows(member, Trained(), tmp_path, "digest", 3)
    (tmp_path / "shadow-1.safetensors").write_bytes(b"damaged")
    damaged, others, more, changed = Trained(), Trained(), Trained(), Trained()
    train_shadows(member, damaged, tmp_path, "digest", 3)
    train_shadows(np.stack([member[0], member[0]]), others, tmp_path, "digest", 3)
    train_shadows(shadow_members(CLIENTS, 6, Key(0)), more, tmp_path, "digest", 3)
    train_shadows(member, changed, tmp_path, "another digest", 3)
    assert damaged.numbers == [1]
    assert others.numbers == [1]
    assert more.numbers == [1, 4, 5]
    assert changed.numbers == [0, 1, 2, 3]
