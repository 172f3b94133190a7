"""Messages and states as bytes: they come back as they were, and nothing else is accepted."""

import random
from dataclasses import fields

import numpy as np
import pytest

from genfl.privacy import secure_sum as ss
from genfl.privacy.secure_sum.encoding import ByteReader, short_bytes

from .helpers import Federation, parameters


@pytest.fixture(scope="module")
def messages():
    """One message of each class, of a sum with a dropout."""
    federation = Federation(parameters(4, segments=((32, 3), (64, 2))), wire=False)
    everything = [federation.parameters]
    for phase in range(5):
        federation.phase(silent=[2] if phase == 2 else ())
        everything.append(federation.sent[-1][1])
        if phase < 4:
            federation.end()
            everything.append(federation.inbox[1])
    return everything


@pytest.fixture(scope="module")
def states():
    """A client's states after each phase."""
    federation, states = Federation(parameters(4), wire=False), []
    for phase in range(5):
        federation.phase()
        states.append(federation.states[1])
        if phase < 4:
            federation.end()
    return states


def equal(a, b):
    if isinstance(a, ss.MaskedInput):
        assert all(x.dtype == y.dtype for x, y in zip(a.vectors, b.vectors, strict=True))
        assert all(map(np.array_equal, a.vectors, b.vectors))
        return (a.digest, a.client) == (b.digest, b.client)
    return a == b


def test_there_is_one_of_each_class(messages):
    assert {type(message).__name__ for message in messages} == {
        "SumParameters",
        "Advertisement",
        "Roster",
        "SealedShares",
        "Delivery",
        "MaskedInput",
        "Survivors",
        "Confirmation",
        "Confirmations",
        "Reveal",
    }


def test_messages_come_back(messages):
    for message in messages:
        data = ss.to_bytes(message)
        assert equal(ss.from_bytes(data, type(message)), message)
        assert ss.to_bytes(ss.from_bytes(data, type(message))) == data


def test_every_shorter_or_longer_message_is_refused(messages):
    for message in messages:
        data = ss.to_bytes(message)
        for wrong in [data[:length] for length in range(len(data))] + [data + b"\0", data + data]:
            with pytest.raises(ss.SecureSumError) as refused:
                ss.from_bytes(wrong, type(message))
            assert refused.value.code == "encoding"


def test_other_classes_and_versions_are_refused(messages):
    for message in messages:
        data = ss.to_bytes(message)
        for other in messages:
            if type(other) is not type(message):
                with pytest.raises(ss.SecureSumError, match="this is no") as refused:
                    ss.from_bytes(data, type(other))
                assert refused.value.code == "encoding"
        with pytest.raises(ss.SecureSumError, match="another version"):
            ss.from_bytes(data[:2] + b"\2" + data[3:], type(message))


def test_altered_bytes_give_another_message_or_a_refusal(messages):
    """Nothing else: no other exception, and no two encodings of one message."""
    rng = random.Random(0)
    for message in messages:
        data = ss.to_bytes(message)
        for _ in range(200):
            wrong = bytearray(data)
            for _ in range(rng.choice((1, 1, 4))):
                wrong[rng.randrange(4, len(wrong))] = rng.randrange(256)
            if bytes(wrong) == data:
                continue
            try:
                read = ss.from_bytes(bytes(wrong), type(message))
            except ss.SecureSumError as refused:
                assert refused.code in ("encoding", "parameters")
            else:
                assert ss.to_bytes(read) == bytes(wrong)


def test_a_huge_count_takes_no_memory(messages):
    """A length is only believed as far as there are bytes."""
    survivors = next(m for m in messages if isinstance(m, ss.Survivors))
    data = ss.to_bytes(survivors)
    with pytest.raises(ss.SecureSumError, match=r"a list of 4294967295 entries"):
        ss.from_bytes(data[:36] + b"\xff" * 4 + data[40:], ss.Survivors)
    masked = next(m for m in messages if isinstance(m, ss.MaskedInput))
    data = ss.to_bytes(masked)
    with pytest.raises(ss.SecureSumError, match="bytes are missing"):
        ss.from_bytes(data[:56] + b"\xff" * 7 + b"\0" + data[64:], ss.MaskedInput)
    with pytest.raises(ss.SecureSumError, match="words of 2 bytes"):
        ss.from_bytes(data[:48] + b"\2" + data[49:], ss.MaskedInput)


def test_masked_words_are_views_of_the_bytes(messages):
    masked = next(m for m in messages if isinstance(m, ss.MaskedInput))
    vectors = ss.from_bytes(ss.to_bytes(masked), ss.MaskedInput).vectors
    assert not any(vector.flags.owndata for vector in vectors)
    assert vectors[0].flags.aligned


def test_values_that_do_not_fit_are_not_written(messages):
    reveal = messages[-1]
    for name in ("digest", "client"):
        wrong = {"digest": b"short", "client": 2**64}[name]
        values = {field.name: getattr(reveal, field.name) for field in fields(reveal)}
        with pytest.raises(ss.SecureSumError) as refused:
            ss.to_bytes(ss.Reveal(**{**values, name: wrong}))
        assert refused.value.code == "encoding"
    with pytest.raises(ss.SecureSumError, match="at most 3"):
        short_bytes(3).write(b"long")
    with pytest.raises(ss.SecureSumError, match="at most 3"):
        short_bytes(3).read(ByteReader(b"\4long"))


def test_states_come_back(states):
    assert [state.phase for state in states] == [
        "roster",
        "delivery",
        "survivors",
        "confirmations",
        "finished",
    ]
    for state in states:
        data = ss.state_to_bytes(state)
        assert ss.state_from_bytes(data) == state
        for wrong in (data[:-1], data + b"\0", b"x" + data[1:], b""):
            with pytest.raises(ss.SecureSumError) as refused:
                ss.state_from_bytes(wrong)
            assert refused.value.code == "encoding"
