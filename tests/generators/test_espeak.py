import sys

import datasets
import numpy as np
import pytest

from genfl import config, pipeline
from genfl.data.samples import Prompt
from genfl.data.sounds import RATE
from genfl.errors import InputError
from genfl.generators import espeak
from genfl.generators.espeak import Espeak, accents, background_noise, trim_silence, utter
from genfl.rng import Key

WORDS = ["yes", "stop", "happy"]


def ask(count, text=None):
    seeds = (Key(0).fold("test", n).integer() for n in range(count))
    return [Prompt(WORDS[n % 3], text or WORDS[n % 3], 1.0, seed, n // 3) for n, seed in enumerate(seeds)]


def spoken(speaker, prompts):
    return [sample.content.samples.tobytes() for sample in speaker.generate(prompts)]


def test_espeak_clip_depends_on_its_prompt_only():
    prompts = ask(24)
    alone = [spoken(Espeak(), [prompt])[0] for prompt in prompts]
    speaker = Espeak()
    assert spoken(speaker, prompts) == alone
    assert spoken(speaker, prompts[::-1]) == alone[::-1]
    assert len(set(alone)) == len(alone)


def test_utter_keeps_no_state_between_calls():
    voices = [f"gmw/en+{speaker}" for speaker in espeak.SPEAKERS]
    there = [utter("happy", voice, {}, 7).samples.tobytes() for voice in voices]
    utter("something else", "roa/fr+whisper", {"rate": 300, "pitch": 99, "range": 99}, 3)
    back = [utter("happy", voice, {}, 7).samples.tobytes() for voice in voices[::-1]]
    assert back[::-1] == there


def test_espeak_clip_has_rate_length_and_speech():
    starts = []
    for sample in Espeak(seconds=1.5, snr=None).generate(ask(12)):
        samples, rate = sample.content
        assert (samples.dtype, rate, len(samples)) == (np.float32, 16_000, 24_000)
        assert 0.09 < np.abs(samples).max() < 0.91
        heard = np.flatnonzero(samples)
        starts.append(heard[0])
        assert 0.15 < (heard[-1] - heard[0]) / rate < 1.0
    assert len(set(starts)) > 10


def test_espeak_speaks_short_and_long_texts_whole():
    bare = Espeak(seconds=0, snr=None)
    assert max(sample.content.seconds for sample in bare.generate(ask(60))) < 1
    (long,) = bare.generate(ask(1, "one two three four five six seven eight nine ten"))
    assert long.content.seconds > 2


def test_espeak_noise_has_the_drawn_power():
    clean, noisy = (Espeak(snr=snr).speak(ask(1)[0]).samples for snr in (None, (20.0, 20.0)))
    heard = np.flatnonzero(clean)
    said = clean[heard[0] : heard[-1] + 1]
    scale = noisy @ clean / (clean @ clean)
    left = noisy - scale * clean
    assert 10 * np.log10(np.square(scale * said).mean() / np.square(left).mean()) == pytest.approx(
        20, abs=0.3
    )
    for seed in range(3):
        assert np.square(background_noise(RATE, np.random.default_rng(seed))).mean() == pytest.approx(1)


@pytest.mark.slow
def test_espeak_voices_differ():
    speaker = Espeak()
    assert len(accents("en")) == 7
    assert len(set(speaker.voices)) == len(speaker.voices) >= 400
    assert accents("en-us") == ["gmw/en-US"]
    heard = {utter("happy", f"gmw/en-US+{name}", {}, 0).samples.tobytes() for name in espeak.SPEAKERS}
    assert len(heard) >= 40  # espeak-ng takes an unknown variant without a word: as the plain voice
    assert utter("happy", "gmw/en-US", {}, 0).samples.tobytes() not in heard


def test_trim_silence_keeps_all_that_is_loud():
    sound = np.concatenate([np.zeros(50), [0.5, 0.0, -0.5], np.full(20, 0.001)])
    assert trim_silence(sound).tolist() == [0.5, 0.0, -0.5]
    assert len(trim_silence(np.zeros(10))) == 0


def test_espeak_rejects_silent_and_equal_labels():
    prompts = [*ask(2), *ask(2, "..."), *ask(1, " ")]
    with pytest.raises(
        InputError, match=r"^prompts: espeak-ng's 'en' cannot speak 3 of 5 texts, such as '...'; write"
    ):
        list(Espeak().generate(prompts))
    Espeak().check_labels(WORDS)
    with pytest.raises(InputError, match=r"^generator.language: .* cannot speak the label '---'; rename"):
        Espeak().check_labels([*WORDS, "---"])
    with pytest.raises(InputError, match=r"^generator.language: .* speaks '左' and '右' the same; rename"):
        Espeak().check_labels([*WORDS, "左", "右"])  # both are a Chinese letter to it
    with pytest.raises(InputError, match=r"speaks 'two' and 'too' the same"):
        Espeak().check_labels(["two", "one", "too"])
    Espeak("cmn").check_labels(["左", "右"])


def test_espeak_names_unknown_language_and_missing_extra(monkeypatch):
    with pytest.raises(
        InputError, match=r"^generator.language: espeak-ng does not speak 'klingon'; use one of: .* de, "
    ):
        Espeak("klingon")
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    for ask_for in (lambda: Espeak("de"), espeak.espeak_fingerprint):
        with pytest.raises(
            InputError, match=r"needs espeak-ng, which is not installed; run pip install 'genfl\[speech\]'$"
        ):
            ask_for()


# --- in a run


@pytest.mark.parametrize("data", ["speech_commands", "sounds"])
def test_speech_rejects_classes_that_are_no_words(content, recordings, tmp_path, data):
    path = recordings(tmp_path / "words", ["_silence_", "yes"])
    content["data"] |= {"name": data, "path": str(path)}
    with pytest.raises(InputError, match=r"^generator.kind: speech cannot make the class '_silence_', "):
        pipeline.execute(config.validate(content), tmp_path / "run")


@pytest.fixture
def content(audio_config):
    prompts = {"per_label": 6, "block_size": 5}
    return audio_config(["yes", "no"], prompts=prompts, generator={"kind": "speech"})


def test_speech_config_defaults_to_labels_unguided(content):
    prompts = config.validate(content).prompts
    assert (prompts.style, prompts.guidance_scale, prompts.per_label) == ("label", [1.0], 6)
    del content["prompts"]
    assert config.validate(content).prompts.style == "label"
    content["prompts"] = {"style": "fill", "template": "{label}!"}
    assert config.validate(content).prompts.style == "fill"
    content["prompts"] = {"guidance_scale": 3.0}
    with pytest.raises(
        InputError, match=r"^prompts.guidance_scale: speech has no guidance scale; leave it out$"
    ):
        config.validate(content)


def test_speech_config_names_wrong_settings(content):
    for field, value in (("snr", [40.0, 0.0]), ("snr", [1.0]), ("seconds", -1.0), ("model", "")):
        content["generator"] = {"kind": "speech", field: value}
        with pytest.raises(InputError, match=rf"^generator.{field}: "):
            config.validate(content)


def test_run_rejects_a_generator_of_another_modality(content, tmp_path):
    with pytest.raises(
        InputError, match=r"^generator.kind: image cannot generate clips, .* use one of: speech, sound, files"
    ):
        pipeline.execute(config.validate(content | {"generator": {"kind": "image"}}), tmp_path / "run")


@pytest.mark.slow
def test_espeak_run_resumes_to_the_same_bytes(content, tmp_path):
    wanted = config.validate(content)
    for name in ("whole", "damaged"):
        pipeline.execute(wanted, tmp_path / name, until="generate")
    shards = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.parquet"))
    assert len(shards) == 3
    (tmp_path / "damaged" / shards[1]).write_bytes(b"half")
    (tmp_path / "damaged" / shards[2]).unlink()
    pipeline.execute(wanted, tmp_path / "damaged", until="generate")
    for shard in shards:
        assert (tmp_path / "whole" / shard).read_bytes() == (tmp_path / "damaged" / shard).read_bytes()
    rows = datasets.load_dataset(str(tmp_path / "whole" / "synthetic"), split="train")
    assert rows.column_names[0] == "audio"
    assert set(rows["prompt"]) == {"yes", "no"}
