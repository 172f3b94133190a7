"""Public data: which examples it has, and which of them methods may use."""

import numpy as np
import pytest
import torch

from genfl.data.partition import subset
from genfl.data.public import public_data
from genfl.data.sources import DataSet, LabelledExamples
from genfl.errors import InputError


def examples(values, labels, size=4):
    x = torch.tensor(values, dtype=torch.uint8)[:, None].expand(-1, size).contiguous()
    return LabelledExamples(x, labels)


def data_set(train, test, size=4):
    return DataSet(examples(*train, size), examples(*test, size), "image", lambda content: content)


PRIVATE = data_set((range(40), ["cat", "dog"] * 20), ([100, 101], ["cat", "dog"]))
OPTIONS = {"held": None, "samples": None, "labelled": True}


def test_the_rest_is_what_clients_do_not_hold():
    public = public_data(PRIVATE, None, **{**OPTIONS, "held": 24})
    held = subset(PRIVATE.train.labels, 24)
    assert sorted([*public.x[:, 0].tolist(), *held.tolist()]) == list(range(40))
    assert public.labels == [PRIVATE.train.labels[value] for value in public.x[:, 0]]
    assert public.notes == ()


def test_all_public_examples_count_but_no_private_test_example():
    other = data_set(([50, 51, 101, 3], ["dog", "cat", "cat", "dog"]), ([52, 100], ["cat", "dog"]))
    public = public_data(PRIVATE, other, **OPTIONS)
    assert public.x[:, 0].tolist() == [50, 51, 3, 52]
    assert public.labels == ["dog", "cat", "dog", "cat"]
    assert public.notes == (
        "2 of 6 public samples are also private test samples and are left out",
        "1 of 4 public samples are also private training samples of clients",
    )


def test_no_public_example_is_one_that_a_client_may_hold_back():
    other = data_set(([50, 51, 101, 3], ["dog", "cat", "cat", "dog"]), ([52, 7, 100], ["cat", "dog", "dog"]))
    public = public_data(PRIVATE, other, **OPTIONS, tested=True)
    assert public.x[:, 0].tolist() == [50, 51, 52]
    assert public.labels == ["dog", "cat", "cat"]
    assert public.notes[1] == (
        "2 of 5 public samples are also private training samples of clients; they are left out, because"
        " clients test on some (data.partition.test)"
    )
    twice = data_set(([*range(40), *range(40)], ["cat", "dog"] * 40), ([100, 101], ["cat", "dog"]))
    rest = public_data(twice, None, **{**OPTIONS, "held": 24}, tested=True)
    held = {twice.train.x[row, 0].item() for row in subset(twice.train.labels, 24)}
    assert len(rest.x)
    assert not held & {*rest.x[:, 0].tolist()}
    assert rest.notes, "copies of what clients hold are left out of the rest, too"


def test_labels_are_matched_by_name_and_others_left_out():
    other = data_set(([50, 51, 52, 53], ["dog", "cow", "cat", "cow"]), ([54], ["cafe\u0301"]))
    public = public_data(PRIVATE, other, **OPTIONS)
    x, y = public.matched(["caf\u00e9", "cat", "dog"])  # other classes than the private data's, in NFC
    assert x[:, 0].tolist() == [50, 52, 54]
    assert y.tolist() == [2, 1, 0]
    assert len(public.x) == 5, "without labels, all are used"
    assert public.unmatched(["caf\u00e9", "cat", "dog"]) == (
        "2 of 5 public samples have labels that no client has (cow): methods that need labels leave them out"
    )
    assert public.unmatched(["caf\u00e9", "cat", "cow", "dog"]) is None
    with pytest.raises(InputError, match=r"^public\.label: no client has any of its 4 labels \(cafe?"):
        public.matched(["bird"])


def test_labels_that_methods_may_not_read_are_absent():
    other = data_set(([50, 51], ["dog", "cow"]), ([54], ["cat"]))
    public = public_data(PRIVATE, other, **{**OPTIONS, "labelled": False})
    assert public.labels is None
    assert public.unmatched(["cat"]) is None
    with pytest.raises(InputError, match=r"^public\.labelled: "):
        public.matched(["cat"])
    renamed = data_set(([50, 51], ["a", "b"]), ([54], ["c"]))
    assert public.digest == public_data(PRIVATE, renamed, **{**OPTIONS, "labelled": False}).digest
    assert public.digest != public_data(PRIVATE, renamed, **OPTIONS).digest


def test_samples_are_drawn_with_classes_as_frequent_as_in_all():
    values, labels = list(range(110, 210)), ["cat"] * 80 + ["dog"] * 20
    other = data_set((values, labels), ([220], ["cat"]))
    public = public_data(PRIVATE, other, **{**OPTIONS, "samples": 20})
    assert np.unique(public.labels, return_counts=True)[1].tolist() == [16, 4]
    again = public_data(PRIVATE, other, **{**OPTIONS, "samples": 20})
    assert torch.equal(public.x, again.x)
    unlabelled = public_data(PRIVATE, other, **{**OPTIONS, "samples": 20, "labelled": False})
    assert len(set(unlabelled.x[:, 0].tolist())) == 20
    with pytest.raises(InputError, match=r"^public\.samples: 102, but there are 101 public samples"):
        public_data(PRIVATE, other, **{**OPTIONS, "samples": 102})


def test_inputs_of_another_shape_are_refused():
    other = data_set(([50], ["dog"]), ([54], ["cat"]), size=5)
    with pytest.raises(InputError, match=r"^public\.name: its inputs are torch\.uint8 of shape \(5,\)"):
        public_data(PRIVATE, other, **OPTIONS)
