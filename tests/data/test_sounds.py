"""Log-mel spectrograms against a reference, and sounds that are none."""

import io

import datasets
import numpy as np
import pytest
import soundfile
import torch

from genfl import config
from genfl.data.media import MEDIA, Clip
from genfl.data.sounds import (
    FLOOR,
    HOP,
    MELS,
    RANGE,
    RATE,
    WINDOW,
    LogMelFormat,
    log_mel,
    mel_bands,
    resampled,
)
from genfl.data.sources import DATASETS
from genfl.errors import InputError
from genfl.experiment.context import RunContext

from .helpers import find, tone, wav, write_parquet

RNG = np.random.default_rng(0)


# --- the spectrogram


@pytest.mark.slow
def test_spectrograms_are_those_of_the_reference():
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    bands = mel_filter_bank(1 + WINDOW // 2, MELS, 0, RATE / 2, RATE, norm=None, mel_scale="htk")
    assert np.abs(mel_bands().toarray().T - bands).max() < 1e-9
    fading = np.exp(-np.arange(RATE) / 1000)  # from loud to below the floor
    for samples in (
        np.zeros(RATE),
        tone(440),
        0.1 * RNG.normal(size=RATE),
        fading * tone(3000),
        RNG.normal(size=WINDOW),
    ):
        expected = spectrogram(
            samples,
            window_function(WINDOW, "hann"),
            WINDOW,
            HOP,
            power=2.0,
            mel_filters=bands,
            mel_floor=FLOOR,
            log_mel="dB",
            db_range=RANGE,
        ).T
        found = log_mel(samples)
        assert found.shape == (1 + len(samples) // HOP, MELS)
        assert np.abs(found - expected).max() < 1e-4


def test_a_tone_is_in_the_band_of_its_pitch():
    for hertz in (200, 1000, 5000):
        mel = 2595 * np.log10(1 + hertz / 700) / (2595 * np.log10(1 + RATE / 2 / 700)) * (MELS + 1) - 1
        loudest = log_mel(tone(hertz))[10:-10].argmax(1)
        assert (np.abs(loudest - mel) <= 1).all()


def test_a_clip_becomes_standardised_half_precision():
    form = LogMelFormat(1.0)
    x = form.encode(Clip(tone(700) * np.linspace(0, 1, RATE, dtype=np.float32), RATE))
    assert (x.shape, x.dtype) == ((101, 128), np.float16) == (form.shape(), form.dtype())
    assert abs(x.astype(float).mean()) < 1e-3
    assert abs(x.astype(float).std() - 1) < 1e-3
    prepared = form.prepare(torch.from_numpy(x)[None])
    assert prepared.dtype == torch.float32
    assert torch.equal(prepared[0].half(), torch.from_numpy(x))


def test_loudness_says_nothing():
    form, clip = LogMelFormat(1.0), (0.1 * RNG.normal(size=RATE)).astype(np.float32)
    assert np.abs(form.encode(Clip(clip, RATE)) - form.encode(Clip(clip / 8, RATE))).max() < 2e-3


def test_long_clips_are_cut_and_short_ones_followed_by_silence():
    form, samples = LogMelFormat(0.5), (0.1 * RNG.normal(size=RATE)).astype(np.float32)
    assert form.shape() == (51, 128)
    half = RATE // 2
    same = form.encode(Clip(samples[:half], RATE))
    assert np.array_equal(form.encode(Clip(samples, RATE)), same)
    short = form.encode(Clip(samples[: half // 2], RATE))
    padded = np.concatenate([samples[: half // 2], np.zeros(half // 2, np.float32)])
    assert np.array_equal(short, form.encode(Clip(padded, RATE)))
    assert short[:20].min() > short[30:].max()


def test_silence_is_zeros():
    assert (LogMelFormat(1.0).encode(Clip(np.zeros(RATE, np.float32), RATE)) == 0).all()


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_a_tone_stays_a_tone_at_any_rate(rate):
    clip = resampled(Clip(tone(1000, rate=rate), rate), RATE)
    assert clip.rate == RATE
    assert clip.seconds == pytest.approx(1.0, abs=1e-3)
    assert np.abs(clip.samples[500:-500] - tone(1000)[500 : len(clip.samples) - 500]).max() < 0.01


def test_channels_are_averaged():
    both = np.stack([tone(300), -tone(300)], 1)
    assert np.abs(MEDIA["audio"].read(wav(both, subtype="FLOAT")).samples).max() < 1e-6
    one = MEDIA["audio"].read(wav(np.stack([tone(300), tone(300)], 1), subtype="FLOAT"))
    assert np.allclose(one.samples, tone(300), atol=1e-6)


# --- a folder of one's own, and what can be wrong with it


@pytest.fixture
def folder(tmp_path):
    """Five tones of each of two labels, at different rates, and five files that are no sounds."""
    rates = (8_000, 16_000, 22_050, 44_100, 48_000)
    for label, hertz in (("low_tone", 200), ("high_tone", 3000)):
        for split, count in (("train", 5), ("test", 2)):
            place = tmp_path / "own" / split / label
            place.mkdir(parents=True)
            for number, rate in enumerate(rates[:count]):
                soundfile.write(place / f"{number}.wav", tone(hertz + number, 0.6, rate), rate)
    damaged = tmp_path / "own" / "train" / "low_tone"
    (damaged / "5-not-a-sound.wav").write_bytes(b"RIFF and nothing more")
    (damaged / "6-empty.wav").write_bytes(b"")
    soundfile.write(damaged / "7-no-samples.wav", np.zeros(0), RATE)
    soundfile.write(damaged / "8-too-short.wav", tone(200)[: WINDOW - 1], RATE)
    broken = tone(200)
    broken[100] = np.nan
    soundfile.write(damaged / "9-nan.wav", broken, RATE, subtype="FLOAT")
    return tmp_path / "own"


def test_own_sounds_are_read_and_unreadable_ones_counted(folder, caplog):
    data = DATASETS["sounds"].load(path=str(folder), seconds=0.5)
    assert data.modality == "audio"
    assert data.train.x.shape == (10, 51, 128)
    assert data.train.x.dtype == torch.float16
    assert sorted(data.train.labels) == ["high tone"] * 5 + ["low tone"] * 5
    assert len(data.test.labels) == 4
    assert "5 clips of train cannot be read and are left out" in caplog.text
    loudest = data.prepare(data.train.x)[:, 10:40].mean(1).argmax(1)
    high = torch.tensor([label == "high tone" for label in data.train.labels])
    assert loudest[high].min() > 50 > 20 > loudest[~high].max()
    clip = Clip(tone(3000), RATE)
    assert torch.equal(data.encode(clip), torch.from_numpy(LogMelFormat(0.5).encode(clip)))
    assert data.decode is None


def test_another_length_is_another_array(folder):
    one, other = (DATASETS["sounds"].load(path=str(folder), seconds=s) for s in (0.5, 0.7))
    assert one.digest != other.digest
    assert other.shape == (71, 128)


def content(**data):
    return {
        "name": "s",
        "data": {"name": "sounds", "path": "somewhere", **data},
        "model": "fedaudio",
        "methods": {"a": {"algorithm": "fedavg"}},
    }


def test_the_length_must_be_said_and_is_the_users():
    assert config.validate(content(seconds=2.0)).data.options()["seconds"] == 2.0
    with pytest.raises(InputError, match=r"^data.seconds: give the length .* as in 1.0$"):
        config.validate(content())
    with pytest.raises(
        InputError, match=r"^data.size: not an option of sounds, which is audio; leave it out$"
    ):
        config.validate(content(seconds=1.0, size=[8, 8]))
    with pytest.raises(
        InputError, match=r"^data.seconds: not an option of mnist, which is image; leave it out$"
    ):
        config.validate(content(name="mnist", seconds=1.0))
    with pytest.raises(InputError, match=r"^data.seconds: "):
        config.validate(content(seconds=0.0))


def labelled(path, labels, names, folds=None):
    """Writes a train split whose tone of each row says which row it is."""
    rows = {"audio": [{"bytes": wav(tone(200 + 50 * n)), "path": None} for n in range(len(labels))]}
    features = {"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    rows["label"], features["label"] = labels, datasets.ClassLabel(names=names)
    if folds:
        whole = all(isinstance(fold, int) for fold in folds)
        rows["fold"], features["fold"] = folds, datasets.Value("int64" if whole else "float64")
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features)).with_format("arrow")[:]
    features["audio"] = datasets.Audio(decode=False)
    write_parquet(path / "data", train=table.cast(datasets.Features(features).arrow_schema))
    return path


def test_a_label_outside_the_names_is_named(tmp_path):
    path = labelled(tmp_path / "d", [0, 1, 0, 1, 0, 1], ["a", "b"])
    file = next(path.rglob("*.parquet"))
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    place = table.schema.get_field_index("label")
    table = table.set_column(place, table.schema.field("label"), [[0, 1, 7, 1, 0, 1]])
    pyarrow.parquet.write_table(table, file)
    with pytest.raises(
        InputError, match=r"^data.label: split train has the label '7', .*none of the 2 classes"
    ):
        DATASETS["sounds"].load(path=str(path), seconds=1.0)


def test_a_client_id_of_the_recipe_is_the_test_set_where_there_is_none(tmp_path, monkeypatch):
    path = labelled(tmp_path / "d", [0, 1] * 5, ["a", "b"], folds=[1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    data = DATASETS["esc10"].load(path=str(path), seconds=1.0)
    assert data.test.client_ids == ["5", "5"]
    assert data.train.client_ids == ["1", "1", "2", "2", "3", "3", "4", "4"]
    whole = LogMelFormat(1.0).encode(MEDIA["audio"].read(wav(tone(200 + 50 * 8))))
    assert np.array_equal(data.test.x[0].numpy(), whole)


@pytest.mark.parametrize("client_id", ["fold", "label"])
def test_clips_of_a_recording_stay_together_whatever_the_client_id(tmp_path, client_id):
    path = labelled(tmp_path / "d", [0, 1] * 5, ["a", "b"], folds=[1.0, 1, 2, 2, 3, 3, None, 4, 5, 5])
    whole = DATASETS["esc10"].load(path=str(path), seconds=1.0)
    assert whole.test.client_ids == ["5", "5"], "also where a gap made the folds real numbers"
    data = DATASETS["esc10"].load(path=str(path), seconds=1.0, client_id=client_id)
    assert np.array_equal(data.test.x, whole.test.x)
    assert set(data.test.client_ids) == ({"5"} if client_id == "fold" else {"a", "b"})


def test_without_its_fold_a_fifth_is_the_test_set_and_that_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    without = labelled(tmp_path / "e", [0, 1] * 5, ["a", "b"], folds=[1, 1, 2, 2, 3, 3, 4, 4, 4, 4])
    assert len(DATASETS["esc10"].load(path=str(without), seconds=1.0).test.labels) == 2
    assert "fold 5 does not divide it, so a fifth of each class" in caplog.text


@pytest.mark.parametrize("library", ["soundfile", "soxr"])
def test_a_missing_extra_is_named(folder, monkeypatch, library):
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        InputError, match=rf"^data.name: sounds need {library}: pip install 'genfl\[audio\]'$"
    ):
        DATASETS["sounds"].load(path=str(folder), seconds=0.5)


# --- the real ones

SETS = [
    ("speech_commands_9", "speech_commands_9", 2_395, 410, (101, 128), 9),
    ("spoken_digits", "fsdd", 2_250, 250, (101, 128), 10),
    ("esc10", "esc10", 320, 80, (501, 128), 10),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder", "train", "test", "shape", "classes"), SETS)
def test_real_clips_are_in_their_place(real, name, folder, train, test, shape, classes):
    import pyarrow.parquet

    data = real(name, folder)
    assert (len(data.train.labels), len(data.test.labels)) == (train, test)
    assert (data.train.x.shape, data.train.x.dtype) == ((train, *shape), torch.float16)
    assert len(set(data.train.labels)) == len(set(data.test.labels)) == classes
    x = data.train.x[:: max(1, train // 200)].float()
    assert x.mean((1, 2)).abs().max() < 2e-3
    assert x.isfinite().all()
    table = pyarrow.parquet.read_table(next((find(folder) / "data").glob("train-*.parquet")))
    rows = [n for n, fold in enumerate(table["fold"].to_pylist()) if fold != 5] if name == "esc10" else None
    seconds = (shape[0] - 1) / 100
    for row in RNG.integers(train, size=10).tolist():
        cell = table["audio"][rows[row] if rows else row].as_py()
        samples, rate = soundfile.read(io.BytesIO(cell["bytes"]), dtype="float32")
        assert np.array_equal(LogMelFormat(seconds).encode(Clip(samples, rate)), data.train.x[row].numpy())


@pytest.mark.slow
def test_words_stand_for_the_digits(real):
    assert set(real("spoken_digits", "fsdd").test.labels) >= {"zero", "five", "nine"}
    assert "dog bark" in real("esc10", "esc10").test.labels


@pytest.mark.slow
def test_speakers_are_clients_and_nobody_is_on_both_sides(real, session_cache):
    data = real("speech_commands_9", "speech_commands_9")
    assert not set(data.train.client_ids) & set(data.test.client_ids)
    settings = content(name="speech_commands_9", path=str(find("speech_commands_9")))
    settings["data"]["partition"] = {"kind": "natural", "clients": 127}
    split = RunContext().client_rows(config.validate(settings).data, 0)
    assert [len({data.train.client_ids[row] for row in rows}) for rows in split] == [1] * 127
    assert sorted(np.concatenate(split).tolist()) == list(range(2_395))
    assert min(map(len, split)) >= 6


@pytest.mark.slow
def test_recordings_are_not_on_both_sides(real):
    data = real("esc10", "esc10")
    assert set(data.test.client_ids) == {"5"}
    assert set(data.train.client_ids) == {"1", "2", "3", "4"}
    # of the digits, the official test set holds other takes of the same speakers
    digits = real("spoken_digits", "fsdd")
    assert set(digits.train.client_ids) == set(digits.test.client_ids)
    assert len(set(digits.train.client_ids)) == 5
