"""What genfl says if the Hugging Face Hub gives nothing, against a Hub on this machine."""

import ast
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genfl import hub
from genfl.data.folders import dataset_folder
from genfl.data.texts import load_tokenizer
from genfl.errors import InputError
from genfl.llm.local import check_local_model
from genfl.model_folders import CONFIG_FILE, PIPELINE_FILE

RESTRICTED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted. Please log in."}
REPLIES = {
    "gated": (401, RESTRICTED),
    "absent": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."}),
    "busy": (429, {}),
    "broken": (503, {}),
    "login": (403, {}),
}
REASONS = {
    "gated": "access is restricted: ask for it on the page of the repository, and log in with hf auth login",
    "absent": "there is no such repository, or it is private: correct the name, or log in with hf auth login",
    "busy": "the Hub limits requests: try again later, or log in with hf auth login",
    "broken": "the Hub answers with status 503: try again later",
    "login": "the Hub rejects the login, with status 403: log in with hf auth login",
}


class HubHandler(BaseHTTPRequestHandler):
    """Replies by the name of the owner; of gated repositories, the names of the files are public."""

    def reply(self):
        status, headers = next((REPLIES[name] for name in REPLIES if f"/{name}/" in self.path), (404, {}))
        content = {"error": "no"}
        if "/gated/" in self.path and "/api/" in self.path and "/tree/" not in self.path:
            files = [{"rfilename": "model_index.json"}]
            content = {"id": "gated/x", "sha": "a" * 40, "siblings": files, "private": False, "tags": []}
            status, headers = 200, {}
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"X-Request-Id": "Root=1-abc", "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = reply

    def log_message(self, *args):
        pass


@pytest.fixture
def hub_address(monkeypatch, tmp_path):
    def use(url):
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}.ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)

    return use


@pytest.fixture
def local_hub(hub_address):
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        hub_address(f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


ASKERS = {
    "generator.model": lambda name: hub.read_settings(name, PIPELINE_FILE),
    "generator.vocoder": lambda name: hub.read_settings(name, CONFIG_FILE, "generator.vocoder"),
    "prompts.llm.model": lambda name: check_local_model(name, "prompts.llm"),
    "data.path": lambda name: dataset_folder(f"hf://datasets/{name}"),
    "data.tokenizer": load_tokenizer,
}


def reason_of(field, name):
    with pytest.raises(InputError) as caught:
        ASKERS[field](name)
    message = str(caught.value)
    assert message.startswith(f"{field}: ")
    assert "\n" not in message
    assert "Request ID" not in message
    return message


@pytest.mark.parametrize("field", ASKERS)
def test_hub_reason_says_what_the_hub_said(local_hub, field):
    for owner, reason in REASONS.items():
        assert f"({reason})" in reason_of(field, f"{owner}/x")


@pytest.mark.parametrize("field", ASKERS)
def test_hub_that_cannot_be_reached_is_named_at_once(hub_address, monkeypatch, field):
    hub_address("http://127.0.0.1:9")
    assert "(the Hub cannot be reached: [Errno" in reason_of(field, "owner/x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "(HF_HUB_OFFLINE switches the Hub off)" in reason_of(field, "owner/x")


@pytest.mark.slow
def test_models_are_loaded_without_code_of_their_own():
    """`load_model` passes the option on; a model that is loaded past it must name it."""
    calls = [
        node
        for path in Path(hub.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    names = {call: ast.unparse(call.func) for call in calls}
    loading = [call for call in calls if names[call] == "loader" or names[call].endswith(".from_pretrained")]
    loading = [call for call in loading if call.args]
    assert len(loading) >= 3
    for call in loading:
        assert "trust_remote_code" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)
