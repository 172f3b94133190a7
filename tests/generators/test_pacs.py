"""Clients whose images look different: real photos, paintings, cartoons, sketches; a tiny pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest

from genfl import config, pipeline
from genfl.experiment.context import RunContext
from genfl.experiment.folder import Run
from genfl.stages import guided

PACS = Path(__file__).parents[3] / "shared" / "data" / "pacs64"
EXAMPLE = Path(__file__).parents[2] / "examples" / "pacs.yaml"

pytestmark = [
    pytest.mark.slow,  # all of them look at one run on real images
    pytest.mark.skipif(not PACS.exists(), reason=f"needs PACS in {PACS}"),
]


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


@pytest.fixture(scope="module")
def step(run):
    """The guided stage of the run, with its inputs."""
    return next(step for step in pipeline.steps(run, RunContext()) if step.stage is guided.STAGE)


def test_pacs_clients_are_guided_by_their_own_domain(run, step):
    (kind,) = guided.guided_contents(run.config)
    train_rows, _ = step.work.context.train_test_rows(run.config.data, 0)
    domains = np.asarray(step.work.context.data_set(run.config.data).train.client_ids)
    looks = [set(domains[rows].tolist()) for rows in train_rows]
    assert all(len(look) == 1 for look in looks)
    assert len(set.union(*looks)) == 4
    guides = 0
    for block in guided._blocks(step.inputs, step.work, kind, 0):
        rows = np.concatenate([np.asarray(rows, int) for rows in block.guides])
        assert set(domains[rows].tolist()) <= looks[block.client]
        guides += len(rows)
    assert guides > 0


def test_pacs_clients_guide_half_of_their_own_classes(run, step):
    (kind,) = guided.guided_contents(run.config)
    digest = guided.kind_digest(step.inputs, step.work.upstream, kind)
    folder = guided.content_folder(step.work.folder, digest, kind, 0)
    data = step.work.context.data_set(run.config.data)
    _, y, parts = guided.read_guided(folder, data, run.labels, run.config.data.partition.clients)
    has_class = step.work.context.label_counts(run.config.data, run.labels, 0) > 0
    samples = [np.bincount(y[part], minlength=7).tolist() for part in parts]
    assert samples == has_class.astype(int).tolist()
    assert not has_class.all(), "or nothing was left out"


def test_pacs_summary_has_the_heterogeneity(run):
    methods = json.loads((run.folder / "summary.json").read_text())["methods"]
    assert methods["fedavg"]["heterogeneity"] != methods["fedavg+fedgc"]["heterogeneity"]
    assert methods["fedavg+fedgc"]["generated_samples"] == 112
