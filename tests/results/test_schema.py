"""The schema of summary.json, against the summary and the records of a real run."""

import ast
import json
from pathlib import Path

import pytest
from support.command import run_command

from genfl import config, pipeline
from genfl.data.recipes import DIGIT_NAMES
from genfl.errors import GenflError, InputError
from genfl.experiment import records
from genfl.experiment.context import RunContext
from genfl.experiment.folder import Run
from genfl.results import document, names, schema
from genfl.results.evidence import collect
from genfl.results.schema import StageRecord, Summary

ROOT = Path(__file__).parents[2]
CONFIG = """
name: every field
seeds: [0, 1]
data: {name: digits, partition: {kind: dirichlet, alpha: 1.0, clients: 4, min_size: 5, test: 0.2}}
prompts: {style: label, per_label: 4}
generator: {steps: 2}
model: {name: mlp, width: 16}
pretrain: {epochs: 2}
federate:
  {rounds: 2, clients_per_round: 2, local: {steps: 2, batch_size: 8}, evaluate_every: 1, heterogeneity: true}
methods:
  plain: {algorithm: fedavg}
  both: {algorithm: [{name: fedprox, mu: 0.5}, fedadam], start: pretrained}
  mixed: {algorithm: fedavg, data: mixed, content: {by: server, filter: {share: 0.5}}}
  guided: {algorithm: fedavg, data: mixed, content: {guidance: real, samples: 8}}
  alone: {algorithm: local}
  together: {algorithm: centralised}
report: {target_accuracy: [0.1, 0.2], compare: [mixed, plain]}
"""
STAGES = {"labels", "prompts", "generate", "guided", "audit", "pretrain", "federate", "report"}
"""The stages of its run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run that fills every field of the schema but those of texts."""
    folder = tmp_path_factory.mktemp("run")
    pipeline.execute(config.parse(CONFIG), folder)
    return folder


@pytest.fixture(scope="module")
def content(folder):
    return json.loads((folder / names.SUMMARY_FILE).read_text(encoding="utf-8"))


def test_a_summary_survives_a_round_trip_to_the_last_digit(folder, tmp_path):
    file = folder / names.SUMMARY_FILE
    Summary.read(file).write(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == file.read_bytes()


def test_the_figures_are_those_of_the_records(folder, content):
    record = StageRecord.read(folder / "stages" / "federate.json")
    summary = Summary.read(folder / names.SUMMARY_FILE)
    for name, traces in record.result["methods"].items():
        last = [trace["evaluations"][-1]["accuracy"] for trace in traces.values()]
        point = summary.methods[name].curve[-1]
        assert point.mean == pytest.approx(sum(last) / len(last), abs=1e-15)
        assert content["methods"][name]["curve"][-1] == list(point)
    assert summary.environment == record.environment
    assert summary.labels.to_dict() == StageRecord.read(folder / "stages" / "labels.json").result


def test_every_field_of_the_schema_has_a_value_somewhere(content):
    """Else the tests of this module would say nothing about it."""
    filled = {"vocabulary", "secure_sums"}  # a run of images without secure sums has none
    filled |= {field for field, value in content.items() if value is not None}
    assert filled >= {model.alias or name for name, model in Summary.model_fields.items()}
    for name in schema.MethodResult.model_fields:
        empty = name in ("untrained_seeds", "masked_upload_bytes")  # of runs that fail, of secure sums
        assert empty or any(method[name] not in (None, []) for method in content["methods"].values()), name
    heterogeneity = content["methods"]["plain"]["heterogeneity"]
    assert all(heterogeneity[name] for name in schema.Heterogeneity.model_fields)


def test_what_methods_are_is_typed(folder):
    methods = Summary.read(folder / names.SUMMARY_FILE).methods
    assert [part.name for part in methods["both"].algorithm] == ["fedprox", "fedadam"]
    assert methods["both"].algorithm[0].to_dict()["mu"] == 0.5
    assert methods["mixed"].content.filter.share == 0.5
    assert [name for name, method in methods.items() if method.upper_bound] == ["together"]
    assert methods["plain"].bytes_per_round == (
        methods["plain"].uplink_bytes_per_round + methods["plain"].downlink_bytes_per_round
    )


def test_records_of_stages_survive_a_round_trip(folder):
    files = sorted((folder / "stages").glob("*.json"))
    assert {file.stem for file in files} == STAGES
    for file in files:
        assert StageRecord.read(file).to_dict() == json.loads(file.read_text(encoding="utf-8"))


def test_a_record_of_an_unfinished_stage_has_no_result(tmp_path):
    records.write_record(tmp_path / "x.json", {"stage": "x", "digest": "0" * 64, "done": False})
    record = StageRecord.read(tmp_path / "x.json")
    assert (record.done, record.digest, record.result) == (False, "0" * 64, {})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"schema": 7}, "schema 7, but this version of genfl reads schema 8; run the config again"),
        ({"schema": 9}, "schema 9, but this version of genfl reads schema 8; update genfl"),
        ({"schema": None}, "schema None, but"),
        ({"color": "red"}, "color: Extra inputs are not permitted; run the config again"),
        ({"seeds": "0"}, "seeds: Input should be a valid list; run the config again"),
    ],
)
def test_a_summary_that_does_not_fit_is_rejected_in_one_line(content, tmp_path, change, line):
    (tmp_path / "summary.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError) as caught:
        Summary.read(tmp_path / "summary.json")
    assert str(caught.value).startswith(f"{tmp_path / 'summary.json'}: {line}")
    assert "\n" not in str(caught.value)


def test_a_missing_and_a_damaged_summary_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Summary.read(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text('{"schema": 8')
    with pytest.raises(GenflError, match=r"summary\.json is damaged"):
        Summary.read(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(InputError, match="schema None"):
        Summary.read(tmp_path / "summary.json")


def test_results_do_not_change(content):
    summary = Summary.parse(content)
    with pytest.raises(ValueError, match="frozen"):
        summary.name = "other"


@pytest.mark.slow
def test_the_command_prints_the_json_schema():
    printed, _ = run_command("schema", "summary")
    assert json.loads(printed) == Summary.json_schema()
    of_configs, _ = run_command("schema")
    assert "methods" in json.loads(of_configs)["required"]
    assert json.loads(of_configs) != json.loads(printed)


def models(schema):
    """Yields the name and the schema of each object, the outermost first."""
    yield "Summary", schema
    yield from schema["$defs"].items()


def test_the_json_schema_is_of_draft_2020_12_and_describes_every_field():
    schema = Summary.json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "definitions" not in schema
    assert schema["$defs"]["CurvePoint"]["prefixItems"]
    for name, model in models(schema):
        if "properties" in model:
            assert model["type"] == "object"
            assert model["additionalProperties"] is (name == "AlgorithmPart")
        for field, described in model.get("properties", {}).items():
            assert described.get("description"), f"{name}.{field}"


def fits(value, schema, definitions):
    """Whether a value fits a schema, of the words of JSON Schema that ours uses."""
    if "$ref" in schema:
        return fits(value, definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return any(fits(value, option, definitions) for option in schema["anyOf"])
    if "const" in schema:
        return value == schema["const"]
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "object":
            fields, others = schema.get("properties", {}), schema.get("additionalProperties", True)
            if not isinstance(value, dict) or not set(schema.get("required", ())) <= set(value):
                return False
            return all(
                fits(item, fields[name], definitions)
                if name in fields
                else fits(item, others, definitions)
                if isinstance(others, dict)
                else others
                for name, item in value.items()
            )
        case "array":
            if not isinstance(value, list):
                return False
            items = schema.get("prefixItems") or [schema["items"]] * len(value)
            return len(items) == len(value) and all(
                fits(item, kind, definitions) for item, kind in zip(value, items, strict=True)
            )
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case kind:
            types = {"integer": int, "string": str, "boolean": bool, "null": type(None)}
            return type(value) is types[kind]


def test_a_real_summary_fits_the_json_schema(content):
    schema = Summary.json_schema()
    assert fits(content, schema, schema["$defs"])
    assert not fits(content | {"seeds": ["0"]}, schema, schema["$defs"])
    assert not fits({**content, "color": "red"}, schema, schema["$defs"])
    assert not fits({k: v for k, v in content.items() if k != "labels"}, schema, schema["$defs"])


def test_the_documentation_has_every_field():
    page = (ROOT / "docs" / "summary.md").read_text(encoding="utf-8")
    assert document.update_page(page) == page, "python -m genfl.results.document docs/summary.md"
    for model in vars(schema).values():
        fields = getattr(model, "model_fields", {})
        if model not in (schema.ResultModel, schema.Content):
            assert all(f"| `{field.alias or name}` |" in page for name, field in fields.items()), model
    assert "summary.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_evidence_is_that_of_the_run(folder):
    run, context = Run(config.load(folder / "config.yaml"), folder), RunContext()
    evidence = collect(run, context)
    clients = context.private_data(run.config.data, run.labels, 0)
    table = clients.client_info_table["label_counts"].numpy()
    assert (evidence.label_counts == table).all()
    assert evidence.generator["denoising steps"] == 2
    assert list(evidence.pretraining.seeds) == ["0", "1"]
    assert [row.label for row in evidence.examples] == [name for name in DIGIT_NAMES if name in run.labels]
    assert {len(row.real) for row in evidence.examples} == {6}
    assert {len(row.generated) for row in evidence.examples} == {4}


def imported(file):
    """The modules of genfl that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("genfl"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("genfl"))


def test_results_import_no_stage_and_no_report():
    for file in (ROOT / "src" / "genfl" / "results").glob("*.py"):
        assert not [name for name in imported(file) if name.startswith(("genfl.stages", "genfl.report"))], (
            file
        )


def test_the_report_reads_results_alone():
    """Of the rest it knows the config's types, and how images, sounds and texts are kept."""
    known = ("genfl.report", "genfl.results", "genfl.config", "genfl.data.")
    for file in (ROOT / "src" / "genfl" / "report").glob("*.py"):
        assert not [name for name in imported(file) if not name.startswith(known)], file
