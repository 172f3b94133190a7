"""Clients whose images look different: real photos, paintings, cartoons, sketches; a tiny pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest

from genfl import config, pipeline
from genfl.experiment.context import data_set, train_test_rows
from genfl.experiment.folder import Run
from genfl.stages import guided
from genfl.stages.federate.generated_content import label_counts

PACS = Path(__file__).parents[3] / "shared" / "data" / "pacs64"
EXAMPLE = Path(__file__).parents[2] / "examples" / "pacs.yaml"

pytestmark = pytest.mark.skipif(not PACS.exists(), reason=f"needs PACS in {PACS}")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_sdxl):
    few = {
        "seeds": "[0]",
        "data.path": PACS,
        "data.size": "[16, 16]",
        "data.partition.clients_per_domain": 2,
        "data.partition.clients": 8,
        "prompts.per_label": 16,
        "prompts.guidance_scale": "[3]",
        "generator.model": tiny_sdxl,
        "generator.steps": 3,
        "generator.device": "cpu",
        "content.samples": 112,
        "model.width": 4,
        "pretrain.epochs": 1,
        "federate.rounds": 1,
        "federate.clients_per_round": 4,
        "federate.local.steps": 1,
        "federate.heterogeneity": "true",
    }
    settings = config.load(EXAMPLE, [f"{field}={value}" for field, value in few.items()])
    folder = tmp_path_factory.mktemp("pacs") / "run"
    pipeline.execute(settings, folder)
    return Run(settings, folder)


def test_pacs_clients_are_guided_by_their_own_domain(run):
    (kind,) = guided.wanted(run.config)
    kept, _ = train_test_rows(run.config, 0)
    domains = np.asarray(data_set(run.config.data).train.keys)
    looks = [set(domains[rows].tolist()) for rows in kept]
    assert all(len(look) == 1 for look in looks)
    assert len(set.union(*looks)) == 4
    guides = 0
    for block in guided._blocks(run, kind, 0):
        rows = np.concatenate([np.asarray(rows, int) for rows in block.guides])
        assert set(domains[rows].tolist()) <= looks[block.client]
        guides += len(rows)
    assert guides > 0


def test_pacs_clients_guide_half_of_their_own_classes(run):
    (kind,) = guided.wanted(run.config)
    _, y, parts = guided.read(run, kind, 0)
    own = label_counts(run.config, run.labels, 0) > 0
    assert [np.bincount(y[part], minlength=7).tolist() for part in parts] == own.astype(int).tolist()
    assert not own.all(), "or nothing was left out"


def test_pacs_summary_has_the_heterogeneity(run):
    methods = json.loads((run.folder / "summary.json").read_text())["methods"]
    assert methods["fedavg"]["heterogeneity"] != methods["fedavg+fedgc"]["heterogeneity"]
    assert methods["fedavg+fedgc"]["generated_samples"] == 112
