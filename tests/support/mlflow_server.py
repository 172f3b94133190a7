"""The few REST endpoints of MLflow that genfl uses, as a process: ``mlflow_server.py PORT STATE.json``.

What it is told is in the state file before it answers, so a kill loses nothing that it acknowledged.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qs, urlsplit

PORT, STATE = int(sys.argv[1]), Path(sys.argv[2])
LOCK = Lock()


class Missing(Exception):
    """There is no such thing on the server."""


def run_of(state, request):
    if request["run_id"] not in state["runs"]:
        raise Missing(f"no run {request['run_id']}")
    return state["runs"][request["run_id"]]


def answer(state, call, request):
    if call == "experiments/get-by-name":
        if request["experiment_name"] not in state["experiments"]:
            raise Missing(f"no experiment {request['experiment_name']}")
        name = request["experiment_name"]
        return {"experiment": {"experiment_id": state["experiments"][name], "name": name}}
    if call == "experiments/create":
        state["experiments"][request["name"]] = str(len(state["experiments"]) + 1)
        return {"experiment_id": state["experiments"][request["name"]]}
    if call == "runs/create":
        number = f"{len(state['runs']):032x}"
        info = {"run_id": number, "run_name": request["run_name"], "lifecycle_stage": "active"}
        info |= {"experiment_id": request["experiment_id"], "status": "RUNNING", "user_id": ""}
        state["runs"][number] = {"info": info, "metrics": [], "params": [], "asked": request}
        return {"run": {"info": info, "data": {}}}
    run = run_of(state, request)
    if call == "runs/get":
        return {"run": {"info": run["info"], "data": {}}}
    if call == "runs/update":
        run["info"] |= {name: request[name] for name in ("status", "end_time") if name in request}
        return {"run_info": run["info"]}
    if call == "runs/log-batch":
        run["metrics"] += request.get("metrics", [])
        run["params"] += request.get("params", [])
        return {}
    if call == "metrics/get-history":
        return {"metrics": [m for m in run["metrics"] if m["key"] == request["metric_key"]]}
    raise NotImplementedError(call)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self, request):
        call = urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/")
        with LOCK:
            state = json.loads(STATE.read_text()) if STATE.exists() else {"experiments": {}, "runs": {}}
            try:
                status, reply = 200, answer(state, call, request)
                temporary = STATE.with_suffix(".tmp")
                temporary.write_text(json.dumps(state))
                temporary.replace(STATE)
            except Missing as error:
                status, reply = 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": str(error)}
            except NotImplementedError as error:
                print("unknown call:", error, flush=True)
                status, reply = 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": str(error)}
        body = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self._answer({name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()})

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever(0.05)
