"""The systemd units, the compose file and the guide: they parse, and genfl accepts their command lines."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import typer
import yaml

from genfl.cli import app

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "deploy"
UNITS = ("genfl-server.service", "genfl-client.service")


def accepted(words):
    """The parameters that a command line of genfl gives its command. A wrong one raises an error."""
    program, name, *rest = words
    assert Path(program).name == "genfl"
    group = typer.main.get_command(app)
    with click.Context(group) as context:
        command = group.get_command(context, name)
        assert command is not None, name
        return command.make_context(name, rest, parent=context).params


def unit(name):
    """The sections of a unit. Of a key that is there several times, the last value counts."""
    parser = configparser.ConfigParser(strict=False, delimiters="=", interpolation=None)
    parser.optionxform = str
    parser.read_string((FOLDER / name).read_text().replace("\\\n", " "))
    return parser


def test_a_wrong_command_line_is_rejected():
    with pytest.raises(click.UsageError, match="No such option"):
        accepted(["genfl", "client", "--dataset", "x"])
    with pytest.raises(click.UsageError, match="Missing parameter: server"):
        accepted(["genfl", "client", "--data", "x"])


@pytest.mark.parametrize("name", UNITS)
def test_units_run_commands_as_another_user_that_writes_one_folder(name):
    service = unit(name)["Service"]
    words = shlex.split(service["ExecStart"])
    params = accepted(words)
    assert words[1] == name.removeprefix("genfl-").removesuffix(".service")
    assert service["User"] == "genfl"
    state = Path(service["ReadWritePaths"])
    assert Path(params["out"]).is_relative_to(state)
    assert state == Path("/var/lib", service["StateDirectory"])
    expected = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "Restart": "on-failure", "UMask": "0077"}
    assert {key: service[key] for key in expected} == expected
    assert service["CapabilityBoundingSet"] == ""
    assert service["SuccessExitStatus"] == "130"  # how the command ends when it is told to


def test_commands_of_units_have_what_they_need():
    server, client = (accepted(shlex.split(unit(name)["Service"]["ExecStart"])) for name in UNITS)
    assert (server["host"], server["port"], server["health"]) == ("0.0.0.0", 9092, 9093)
    assert len(server["nodes"]) == 3
    assert client["server"].endswith(f":{server['port']}")
    assert client["policy"] and client["peers"]
    assert client["data"] == unit(UNITS[1])["Service"]["ReadOnlyPaths"]


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_units(name, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / name
    copy.write_text((FOLDER / name).read_text().replace("/opt/genfl/bin/genfl", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_containers_run_commands_with_few_rights():
    content = yaml.safe_load((FOLDER / "compose.yml").read_text())
    server, client = content["services"]["server"], content["services"]["client"]
    for service, state in ((server, "/state/server"), (client, "/state/client")):
        params = accepted(service["command"])
        assert params["out"] == state
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        mounts = {volume.split(":")[1]: volume.endswith(":ro") for volume in service["volumes"]}
        assert mounts == {"/config": True, "/data": True, "/state": False}
    params = accepted(server["command"])
    assert server["ports"] == [f"{params['port']}:{params['port']}"]  # and not that of the health endpoint
    assert f"127.0.0.1:{params['health']}/health" in server["healthcheck"]["test"][-1]
    assert "ports" not in client


def test_command_lines_of_the_guide_are_accepted():
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("genfl ")]
    known = {"deploy", "keys", "server", "client", "status", "nodes", "memory"}
    assert {words[1] for words in commands} == known
    for words in commands:
        accepted(words)
