"""Builders of small data sets, and the path of real ones, for all tests of this folder."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from PIL import Image

from genfl.data.sounds import RATE

SHARED = Path(__file__).parents[3] / "shared" / "data"
"""The folder of the real data sets, if there is one."""


def find(folder):
    """Returns the path of a real data set, or skips the test."""
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"no real data: {path} is absent")
    return path


def png(array):
    """Returns an array as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def tone(hertz, seconds=1.0, rate=RATE, loud=0.5):
    """Returns the samples of a sine wave, float32 [seconds * rate]."""
    time = np.arange(round(seconds * rate)) / rate
    return (loud * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def wav(samples, rate=RATE, **options):
    """Returns samples as the bytes of a WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", **options)
    return buffer.getvalue()


def write_parquet(folder, **splits):
    """Writes each split, a table or a `datasets.Dataset`, under its name on the Hub; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in splits.items():
        table = data if isinstance(data, pyarrow.Table) else data.with_format("arrow")[:]
        pyarrow.parquet.write_table(table, folder / f"{name}-00000-of-00001.parquet")
    return folder


def tables(folder, kind="parquet", **splits):
    """Writes each split, a list of rows, as a csv, jsonl or parquet file; returns the folder."""
    folder.mkdir()
    for name, rows in splits.items():
        table = pd.DataFrame(rows)
        path = folder / f"{name}.{kind}"
        match kind:
            case "csv":
                table.to_csv(path, index=False)
            case "jsonl":
                table.to_json(path, orient="records", lines=True)
            case "parquet":
                table.to_parquet(path)
    return folder
