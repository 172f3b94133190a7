"""Runs that are told, and what their records say."""

import json

import numpy as np
from PIL import Image

from genfl.tracking.events import rows_of
from genfl.tracking.metrics_file import METRICS_FILE, read_events
from genfl.tracking.series import Series

TEXT = """
name: told
seeds: [0, 1]
data: {{name: images, path: {private}, size: [4, 4], partition: {{kind: iid, clients: 3}}}}
generator: {{kind: files, path: {made}}}
prompts: {{per_label: 4}}
model: {{name: mlp, width: 8}}
pretrain: {{epochs: 4, patience: 4, batch_size: 4}}
federate:
  {{rounds: 7, clients_per_round: 2, evaluate_every: 3, checkpoint_every: 2, engine: sequential,
   local: {{steps: 1, batch_size: 4}}}}
methods:
  plain: {{algorithm: fedavg}}
  warm: {{algorithm: fedavg, start: pretrained}}
  alone: {{algorithm: local}}
  together: {{algorithm: centralised}}
"""


def write_images(folder):
    """Writes 20 private and 20 generated images of two classes; returns a config that reads them."""
    for seed, part in enumerate(("private", "made")):
        rng = np.random.default_rng(seed)
        for number, name in enumerate(("black", "white")):
            (folder / part / "train" / name).mkdir(parents=True)
            for n in range(10):
                pixels = rng.integers(100, size=(4, 4, 3), dtype=np.uint8) + np.uint8(150 * number)
                Image.fromarray(pixels).save(folder / part / "train" / name / f"{n}.bmp")
    return TEXT.format(private=folder / "private", made=folder / "made")


def told(folder):
    """The rows of each series in the file; fails if a number appears twice."""
    series = {}
    for event in read_events(folder / METRICS_FILE):
        if name := Series.of(event):
            about = {*name.about, "time"}
            series.setdefault(name, []).append({key: v for key, v in event.items() if key not in about})
    for name, rows in series.items():
        assert [row[name.kind] for row in rows] == sorted({row[name.kind] for row in rows}), name
    return series


def recorded(folder):
    """The rows of each series, from the records of the stages."""
    methods = json.loads((folder / "stages" / "federate.json").read_text())["result"]["methods"]
    series = {
        Series("round", name, int(seed)): rows_of(trace)
        for name, traces in methods.items()
        for seed, trace in traces.items()
    }
    if (folder / "stages" / "pretrain.json").exists():
        models = json.loads((folder / "stages" / "pretrain.json").read_text())["result"]["seeds"]
        series |= {Series("epoch", "generated", int(seed)): m["history"] for seed, m in models.items()}
    return series
