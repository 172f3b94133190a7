"""The wire format: what is sent arrives, and nothing else is taken."""

import json

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, RecordDict

from genfl import trees
from genfl.data.plans import Batches, PoissonSampling
from genfl.engines.flower.wire import (
    RefusedMessage,
    Reply,
    Request,
    pack,
    read_reply,
    read_request,
    reply_records,
    request_records,
)
from genfl.rng import Key

TREE = {
    "weights": {
        "params": {"b/c": torch.randn(2, 3), "a": torch.tensor(1.5, dtype=torch.float64)},
        "buffers": {},
    },
    "table": torch.tensor([0, 2**32 - 1], dtype=torch.uint32),
    "round": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "none": torch.empty(0, 4, dtype=torch.bfloat16),
    "strided": torch.arange(6.0).reshape(2, 3).T,
}
REQUEST = Request(
    "0f" * 16,
    "train",
    3,
    1,
    2,
    2,
    Batches(4, None, 2, Key(0).fold("plan", 3), [1, 0], None),
    Key(5).fold("client", 3, 1),
    {"attempt": 1},
    TREE,
    {"method": {"control": torch.arange(3)}, "local": {}},
)


def sent(request=REQUEST):
    initial = None if request.initial is None else pack(request.initial)
    return request_records(request, pack(request.message), initial)


def assert_equal(a, b):
    assert trees.names(a) == trees.names(b)  # sums over leaves depend on the order
    for one, other in zip(trees.leaves(a), trees.leaves(b), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_a_request_arrives_as_it_was_sent():
    poisson = REQUEST._replace(batches=Batches(4, 3, 1, Key(1), None, PoissonSampling(0.1, (1,))))
    for request in (REQUEST, poisson, REQUEST._replace(batches=None), REQUEST._replace(delivery=b"shares")):
        read = read_request(sent(request))
        trees_of = ("message", "initial")
        plain, asked = (
            {k: v for k, v in each._asdict().items() if k not in trees_of} for each in (read, request)
        )
        assert plain == asked
        assert_equal(read.message, TREE)
        assert_equal(read.initial, request.initial)
    assert read_request(sent(REQUEST._replace(initial=None))).initial is None


def test_a_reply_arrives_as_it_was_sent():
    read = read_reply(reply_records(Reply(*REQUEST[:4], TREE)), REQUEST)
    assert read[:4] == REQUEST[:4]
    assert_equal(read.upload, TREE)
    refusal = Reply(*REQUEST[:4], None, "upload: too large\nfor this")
    assert read_reply(reply_records(refusal), REQUEST).refused == r"upload: too large\nfor this"


@pytest.mark.parametrize(
    "change, named",
    [
        ({"action": "steal"}, "action: there is no 'steal'"),
        ({"round": 0}, "round: 0, but it is at least 1"),
        ({"counted": -1}, "counted: -1, but it is at least 0"),
        ({"client": "1"}, "client: it is missing, or no int"),
        ({"format": 2}, "format: version 2, but 1 is expected"),
        ({"key": "[5, [1.5]]"}, "key: a seed and a list of numbers"),
        ({"key": "[" * 100_000}, "key: it is no JSON"),
        ({"round": 2**31}, "round: 2147483648, but it is at most 2147483647"),
        ({"client": 2**40}, "client: 1099511627776, but it is at most"),
        ({"counted": 2**62}, "counted: 4611686018427387904, but it is at most"),
        ({"finished": 2**31}, "finished: 2147483648, but it is at most"),
        ({"finished": -1}, "finished: -1, but it is at least 0"),
        ({"batches": "[0, null, 1, [0, []], null, null]"}, "batches: batch_size is 0, but"),
        ({"batches": "[1.5, null, 1, [0, []], null, null]"}, "batches: batch_size is 1.5, but"),
        ({"batches": "[NaN, null, 1, [0, []], null, null]"}, "batches: batch_size is nan, but"),
        (
            {"batches": f"[{2**63}, null, 1, [0, []], null, null]"},
            "batches: batch_size is 9223372036854775808, but",
        ),
        ({"batches": "[1, -1, 1, [0, []], null, null]"}, "batches: steps is -1, but"),
        ({"batches": "[1, Infinity, 1, [0, []], null, null]"}, "batches: steps is inf, but"),
        ({"batches": "[1, 1e400, 1, [0, []], null, null]"}, "batches: steps is inf, but"),
        ({"batches": f"[1, {10**30}, 1, [0, []], null, null]"}, "batches: steps is 1000"),
        ({"batches": "[1, null, -1, [0, []], null, null]"}, "batches: epochs is -1, but"),
        ({"batches": "[1, null, NaN, [0, []], null, null]"}, "batches: epochs is nan, but"),
        ({"batches": "[1, null, true, [0, []], null, null]"}, "batches: epochs is True, but"),
        ({"batches": "[1, null, 1, [0, []], null, [1e-300, []]]"}, "batches: more than 2147483647 steps"),
        ({"batches": "[1, null, 1, [0, []], null, [5e-324, []]]"}, "batches: more than 2147483647 steps"),
        ({"batches": "[1, null, 1, [0, []], null, [NaN, []]]"}, "batches: their sampling"),
        ({"batches": "[1, null]"}, "batches: they are not as expected"),
        ({"batches": "[1, null, 1, [0, []], null, [2, []]]"}, "batches: their sampling"),
        ({"settings": "[]"}, "settings: a mapping is expected"),
        ({"tree_layout": json.dumps({"a": ["float32", -1]})}, "tree_layout: it is none of a tree"),
        ({"tree_layout": json.dumps({"a": ["load", 1]})}, "tree_layout: it is none of a tree"),
        (
            {"tree_layout": json.dumps({"a": ["float32", 10**12]})},
            "tree: 74 bytes, but its layout has 4000000000000",
        ),
        ({"tree_layout": '{"a":' * 33 + "{}" + "}" * 33}, "tree_layout: it is none of a tree (it is deeper"),
        ({"tree_layout": '{"a":' * 5000 + "1" + "}" * 5000}, "tree_layout: it is"),
    ],
)
def test_a_wrong_request_is_refused_by_name(change, named):
    records = sent()
    for name, value in change.items():
        records["about"][name] = value
    with pytest.raises(RefusedMessage) as refused:
        read_request(records)
    assert named in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(RefusedMessage, match="tree: it holds NaN or infinite values"):
        read_request(sent(REQUEST._replace(message={"weights": torch.tensor([1.0, value])})))


@pytest.mark.parametrize("records", [RecordDict(), RecordDict({"about": ConfigRecord({"format": 1})})])
def test_what_is_no_message_is_refused(records):
    for read in (read_request, lambda content: read_reply(content, REQUEST)):
        with pytest.raises(RefusedMessage):
            read(records)
