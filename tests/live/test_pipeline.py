"""The pipeline of a server without private data, with clients' sites in this process."""

import re

import pytest
from safetensors.torch import load_file

pytest.importorskip("flwr")

from flwr.app import Context, Message, RecordDict
from support.sites import CONFIG, draw

from genfl import config, pipeline
from genfl.data.texts import train_tokenizer
from genfl.engines.flower.in_process import InProcessGrid
from genfl.engines.flower.member import GROUP_KEY
from genfl.engines.flower.node import build_client_app
from genfl.engines.flower.records import ACTIONS, RefusedMessage
from genfl.engines.flower.wire import Request, pack, request_records, tree_digest
from genfl.errors import GenflError, InputError
from genfl.live import apps
from genfl.live.context import RemoteContext
from genfl.live.keys import make_member, make_node_keys, node_keys, public_keys
from genfl.live.policy import ClientPolicy
from genfl.live.server import for_machines, results_of, results_table
from genfl.live.site import DataSite
from genfl.privacy.ledger import LEDGER_FILE
from genfl.privacy.secure_sum import Segment, SumParameters
from genfl.rng import Key
from genfl.storage import read_json

pytestmark = pytest.mark.slow

TEXTS = """
name: words
seeds: [0]
data: {name: texts, path: x, length: 4, partition: {clients: 2}}
generator: none
model: {name: lstm, embedding: 4, width: 4}
federate: {rounds: 1, clients_per_round: 2, local: {steps: 1, batch_size: 2}}
methods: {plain: {algorithm: fedavg}}
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The config of a server whose folder has test images, and training images that must not count."""
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    folder = draw(tmp_path / "at_server", ["cat", "dog", "mouse"], 0, "test")
    return config.parse(CONFIG.format(path=draw(folder, ["unused", "cat", "dog", "mouse"], 9)))


def execute(settings, tmp_path, policy=None):
    """Runs the pipeline at a server, with two clients that have images of their own."""
    if not (tmp_path / "a").exists():
        draw(tmp_path / "a", ["cat", "dog"], 1)
        draw(tmp_path / "b", ["cat", "mouse"], 2)
    return execute_with(settings, tmp_path, [ClientPolicy(), policy or ClientPolicy()])


def execute_with(settings, tmp_path, policies, order=(0, 1)):
    """Runs the pipeline at a server, with two clients whose data is in the folders a and b.

    `order` is that of the clients' keys in the file that clients have.
    """
    folders = [tmp_path / f"client-{n}" for n in range(2)]
    for folder in folders:
        if not node_keys(folder).key.exists():
            make_node_keys(folder)
    lines = [node_keys(folder).public.read_text() for folder in folders]
    (tmp_path / "registered.pub").write_text("".join(lines))
    (tmp_path / "peers.pub").write_text("".join(lines[number] for number in order))
    data = [tmp_path / "a", tmp_path / "b"]
    sites = [DataSite(folders[n], data[n], policies[n]) for n in range(2)]

    def member_of(context):
        folder = folders[context.node_config["client"]]
        return make_member(folder, tmp_path / "peers.pub", folder)

    app = build_client_app(lambda context: sites[context.node_config["client"]], member_of)
    grid, keys = InProcessGrid(app, 2), public_keys(tmp_path / "registered.pub")
    context = RemoteContext(grid, grid.get_node_ids(), tmp_path / "server", keys, patience=0.01)
    context.wait_for_clients(seconds=1)
    pipeline.execute(for_machines(settings), tmp_path / "run", context=context)
    return results_of(tmp_path / "run")


def test_clients_with_folders_of_images_train_together(settings, tmp_path):
    result = execute(settings, tmp_path)
    assert result["labels"] == {"cat": 2, "dog": 1, "mouse": 1}  # not those at the server
    assert [row[0] for row in results_table(result)[1]] == ["plain", "memory"]
    for traces in result["methods"].values():
        rounds = traces["0"]["rounds"]
        assert [row["refused"] for row in rounds] == [0, 0]
        assert rounds[0]["samples"] == 2 * 2 * 4  # clients, steps, batch size
    assert list((tmp_path / "client-0").rglob("round-2.safetensors"))
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "The server saw the table of each client" in page
    assert "The training data is on the clients’ machines." in page
    assert "simulat" not in re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    releases = read_json(tmp_path / "run" / LEDGER_FILE)["releases"]
    assert {row["recipient"] for row in releases if row["topic"] in ("labels", "training")} <= {
        "server",
        "nobody",
    }
    assert "secure_sum" not in {row["mechanism"] for row in releases}


def secured(settings):
    return config.parse(config.dump(settings), ["federate.secure=true"])


def test_secure_sums_of_labels_census_and_uploads(settings, tmp_path):
    """The same models up to fixed point. The ledger says what the server learns: sums."""
    plain = execute(settings, tmp_path)
    folders = [tmp_path / "run" / "federate" / name / "seed-0" for name in ("plain", "memory")]
    models = [load_file(folder / "model.safetensors") for folder in folders]
    (tmp_path / "run").rename(tmp_path / "other")
    result = execute(secured(settings), tmp_path)
    assert result["labels"] == plain["labels"]
    for folder, model in zip(folders, models, strict=True):
        for name, tensor in load_file(folder / "model.safetensors").items():
            assert (tensor - model[name]).abs().max() < 1e-5
        assert not list(folder.rglob("opened-*"))  # the federation is over
    for name, traces in result["methods"].items():
        for secure, clear in zip(traces["0"]["rounds"], plain["methods"][name]["0"]["rounds"], strict=True):
            assert secure["samples"] == clear["samples"]
            assert secure["uplink_bytes"] == 2 * clear["uplink_bytes"]  # words of 64 bits
    assert (
        "machines added these tables in a secure sum"
        in (tmp_path / "run" / "report" / "index.html").read_text()
    )
    ledger = read_json(tmp_path / "run" / LEDGER_FILE)
    learned = [row for row in ledger["releases"] if row["topic"] in ("labels", "sizes", "training")]
    assert {row["recipient"] for row in learned} <= {"sum", "readers", "nobody"}
    assert {row["mechanism"] for row in learned if row["recipient"] == "sum"} == {"secure_sum"}
    assert "which clients take part, which ones refuse, and the sums" in ledger["notes"][-1]


def test_names_of_few_holders_stay_with_them(settings, tmp_path):
    """In no file of the server, and not in what travels. A client can insist on it."""
    asked = config.parse(config.dump(secured(settings)), ["labels.min_holders=2"])
    with pytest.raises(
        GenflError, match=r"client 1: labels.min_holders: 2, but this client allows 3 or more"
    ):
        execute(asked, tmp_path, ClientPolicy(min_holders=3))
    result = execute(asked, tmp_path, ClientPolicy(min_holders=2))
    assert result["labels"] == {"cat": 2}
    files = [list((tmp_path / f"client-{n}").rglob(GROUP_KEY)) for n in range(2)]
    keys = [{file.read_bytes() for file in own} for own in files]
    assert keys[0] == keys[1]
    assert {len(key) for key in keys[0]} == {32}
    for folder in ("run", "server"):
        contents = [file.read_bytes() for file in (tmp_path / folder).rglob("*") if file.is_file()]
        assert contents
        for content in contents:
            assert not any(key in content for key in keys[0])
            assert b"mouse" not in content


def test_a_client_can_insist_on_secure_sums(settings, tmp_path):
    with pytest.raises(GenflError, match=r"client 1: federate.secure: false, but this client"):
        execute(settings, tmp_path, ClientPolicy(secure=True))
    assert execute(secured(settings), tmp_path, ClientPolicy(secure=True))["labels"]


@pytest.mark.parametrize(
    "allowed, threshold, least", [(1, 2, None), (2, 2, None), (3, 2, 3), (1, 3, None), (4, 3, 4)]
)
def test_a_client_refuses_sums_of_fewer_clients_than_it_allows(allowed, threshold, least):
    """The config opens sums of two."""
    policy = ClientPolicy(min_cohort=allowed)
    asked = config.parse(CONFIG.format(path="x"), ["federate.secure=true"])
    parameters = SumParameters(b"s", (0, 1, 2, 3)[: 2 * threshold - 1], threshold, (Segment(32, 1),))
    if least is None:
        policy.check_sum(asked, parameters)
        return
    refused = f"one of {threshold} clients could be opened, but this client allows {least} or more"
    with pytest.raises(RefusedMessage, match=refused):
        policy.check_sum(asked, parameters)


def test_a_client_that_knows_the_others_sends_nothing_in_the_clear(tmp_path):
    """Without a policy, too."""
    folder = tmp_path / "client"
    folder.mkdir()
    settings = {"folder": str(folder), "data": str(tmp_path)}
    sites = [
        apps._site(Context(1, 1, settings | more, RecordDict(), {})) for more in ({}, {"peers": "nodes.pub"})
    ]
    assert [site.policy.secure for site in sites] == [False, True]


def test_what_a_client_holds_is_not_told_before_a_sum(settings, tmp_path):
    """A server asks about a label outside of a sum. The answers do not depend on the client's data."""
    draw(tmp_path / "a", ["cat", "dog"], 1)
    make_node_keys(tmp_path / "client-0")
    lines = (tmp_path / "client-0" / "node.pub").read_text()
    (tmp_path / "peers.pub").write_text(lines)
    member = make_member(tmp_path / "client-0", tmp_path / "peers.pub", tmp_path / "client-0")
    site = DataSite(tmp_path / "client-0", tmp_path / "a", ClientPolicy(secure=True))
    grid = InProcessGrid(build_client_app(lambda context: site, lambda context: member), 1)
    answers = []
    for label in ("cat", "mouse"):
        for delivery in (b"", None):
            about = {"config": config.dump(secured(settings)), "method": "plain", "labels": [label]}
            request = Request("ab" * 16, "census", 1, 0, 0, 0, None, Key(0), about, {}, {}, delivery)
            if delivery is not None:
                request = request._replace(initial_digest=tree_digest({}))
            records = request_records(request, pack({}), pack({}))
            message = Message(records, grid.get_node_ids()[0], ACTIONS["census"])
            (reply,) = grid.send_and_receive([message])
            answers.append(reply.content["about"]["refused"])
    assert answers[:2] == answers[2:]
    assert answers[0] == "sum: none is under way at this client"
    assert answers[1] == "federate.secure: the server asks for an upload in the clear"


def test_another_order_of_keys_is_refused_by_name(settings, tmp_path):
    draw(tmp_path / "a", ["cat", "dog"], 1)
    draw(tmp_path / "b", ["cat", "mouse"], 2)
    with pytest.raises(
        GenflError, match=r"client 0: client: the server calls this client 0, and its own key is"
    ):
        execute_with(secured(settings), tmp_path, [ClientPolicy(), ClientPolicy()], order=(1, 0))


def test_labels_that_changed_train_anew(settings, tmp_path):
    settings = settings.model_copy(update={"methods": {"plain": settings.methods["plain"]}})
    execute(settings, tmp_path)
    model = tmp_path / "run" / "federate" / "plain" / "seed-0" / "model.safetensors"
    first = model.stat().st_mtime_ns
    execute(settings, tmp_path)
    assert model.stat().st_mtime_ns == first  # the same labels train nothing
    (tmp_path / "b" / "train" / "mouse").rename(tmp_path / "b" / "train" / "dog")
    assert execute(settings, tmp_path)["labels"] == {"cat": 2, "dog": 2}
    biases = [len(tensor) for name, tensor in load_file(model).items() if name.endswith("bias")]
    assert biases[-1] == 2  # the number of labels


def test_another_config_is_refused_with_what_the_commands_have(settings, tmp_path):
    execute(settings.model_copy(update={"methods": {"plain": settings.methods["plain"]}}), tmp_path)
    with pytest.raises(InputError) as refused:
        execute(settings, tmp_path)
    assert "choose another folder, or delete this one to start over" in str(refused.value)
    assert "--update" not in str(refused.value)


def test_a_client_that_refuses_stops_the_federation_by_name(settings, tmp_path):
    policy = ClientPolicy(algorithms=["fedavg"])
    with pytest.raises(GenflError) as refused:
        execute(settings, tmp_path, policy)
    assert "labels: every client is needed, and client 1" in str(refused.value)
    assert "methods.memory.algorithm: scaffold, but this client allows fedavg" in str(refused.value)


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """The config of a server with texts, and a tokenizer of six words."""
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    rows = ["text,label", *(f"{word} film,{label}" for word, label in [("good", "like"), ("bad", "not")] * 4)]
    for folder in ("at_server", "a", "b"):
        (tmp_path / folder).mkdir()
        for split in ("train", "test"):
            (tmp_path / folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
    words = tmp_path / "tokenizer.json"
    train_tokenizer(["good bad film"], 6, words)
    return config.parse(TEXTS, [f"data.path={tmp_path / 'at_server'}", f"data.tokenizer={words}"])


def test_texts_have_the_vocabulary_of_a_tokenizer_that_clients_allow(texts, tmp_path):
    allowed = ClientPolicy(tokenizers=[texts.data.tokenizer])
    result = execute_with(texts, tmp_path, [allowed, allowed])
    assert result["labels"] == {"like": 2, "not": 2}
    weights = load_file(tmp_path / "run" / "federate" / "plain" / "seed-0" / "model.safetensors")
    (embedding,) = (tensor for name, tensor in weights.items() if "embedding" in name)
    assert len(embedding) == 5  # padding, unknown words, and three words


def test_a_client_opens_no_tokenizer_that_it_does_not_allow(texts, tmp_path):
    """Neither a path of its machine, nor a download."""
    refused = r"client 1: data.tokenizer: .*tokenizer.json', but this client allows hashed"
    allowed = ClientPolicy(tokenizers=[texts.data.tokenizer])
    with pytest.raises(GenflError, match=refused):
        execute_with(texts, tmp_path, [allowed, ClientPolicy()])


def test_the_number_of_registered_clients_must_fit(settings, tmp_path):
    grid = InProcessGrid(build_client_app(lambda context: None), 3)
    context = RemoteContext(grid, grid.get_node_ids(), tmp_path / "server", patience=0.01)
    with pytest.raises(InputError, match=r"data.partition.clients: 2, but 3 clients are registered"):
        pipeline.execute(for_machines(settings), tmp_path / "run", until="federate", context=context)


def test_clients_that_are_not_online_are_named(tmp_path):
    grid = InProcessGrid(build_client_app(lambda context: None), 1)
    context = RemoteContext(grid, [*grid.get_node_ids(), 77], tmp_path / "server", patience=0.01)
    with pytest.raises(GenflError, match=r"clients \[1\] are not online after 0 s"):
        context.wait_for_clients(seconds=0)
