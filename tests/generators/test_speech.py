import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.numpy import save_file

from genfl.data.samples import Prompt
from genfl.data.sounds import RATE
from genfl.errors import InputError
from genfl.generators import speech
from genfl.generators.speech import Speech, x_vectors

VOICES = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    file = tmp_path_factory.mktemp("voices") / "voices.npy"
    np.save(file, VOICES)
    return str(file)


@pytest.fixture(scope="module")
def speakers(tiny_speecht5, tiny_vits, voices) -> dict[str, Speech]:
    return {
        "speecht5": Speech(str(tiny_speecht5 / "model"), str(tiny_speecht5 / "vocoder"), voices),
        "vits": Speech(str(tiny_vits)),
    }


def _prompts(*seeds: int, text: str = "yes") -> list[Prompt]:
    return [Prompt("yes", text, 1.0, seed) for seed in seeds]


def _clips(samples):
    clips = [sample.content for sample in samples]
    assert {clip.rate for clip in clips} == {RATE}
    return [clip.samples for clip in clips]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["speecht5", "vits"])
def test_speech_clip_depends_on_its_prompt_only(speakers, family):
    speaker = speakers[family]
    first = _clips(speaker.generate(_prompts(1, 2, 3)))
    torch.manual_seed(77)
    second = _clips(speaker.generate([*_prompts(9, text="a longer word"), *_prompts(2, 1)]))
    assert np.array_equal(first[0], second[2])
    assert np.array_equal(first[1], second[1])
    for clip in first:
        assert clip.ndim == 1 and clip.dtype == np.float32 and len(clip) > 100
        assert 1e-3 < np.abs(clip).max() <= 1
    texts = {clip.tobytes() for clip in (*first, second[0])}
    assert len(texts) == 4


@pytest.mark.parametrize("family", ["speecht5", "vits"])
def test_speech_leaves_the_global_stream_alone(speakers, family):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(speakers[family].generate(_prompts(1)))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_speecht5_equals_a_plain_call_of_the_model(speakers, tiny_speecht5):
    from transformers import SpeechT5ForTextToSpeech, SpeechT5HifiGan, SpeechT5Tokenizer

    tokenizer = SpeechT5Tokenizer.from_pretrained(tiny_speecht5 / "model")
    model = SpeechT5ForTextToSpeech.from_pretrained(tiny_speecht5 / "model")
    vocoder = SpeechT5HifiGan.from_pretrained(tiny_speecht5 / "vocoder")
    for prompt in _prompts(1, 2, 3):
        voice = speakers["speecht5"]._voice(prompt)["speaker_embeddings"]
        torch.manual_seed(prompt.seed)
        ids = tokenizer(prompt.text, return_tensors="pt").input_ids
        said = model.generate_speech(ids, voice, vocoder=vocoder).numpy()
        (ours,) = _clips(speakers["speecht5"].generate([prompt]))
        np.testing.assert_allclose(ours, said, atol=1e-6)


def test_speecht5_uses_every_speaker(speakers):
    speaker = speakers["speecht5"]
    drawn = [speaker._voice(prompt)["speaker_embeddings"][0].tolist() for prompt in _prompts(*range(40))]
    assert set(map(tuple, drawn)) == set(map(tuple, VOICES.tolist()))
    said = set()
    for row in range(4):  # the same seed, and so the same dropout
        alone = Speech.__new__(Speech)
        vars(alone).update(vars(speaker) | {"speakers": speaker.speakers[row : row + 1]})
        said.add(_clips(alone.generate(_prompts(1)))[0].tobytes())
    assert len(said) == 4


def test_vits_draws_speakers_from_the_seed(tiny_vits, tmp_path):
    from transformers import VitsConfig, VitsModel

    shutil.copytree(tiny_vits, tmp_path / "model")
    config = VitsConfig.from_pretrained(tiny_vits, num_speakers=5, speaker_embedding_size=8)
    VitsModel(config).save_pretrained(tmp_path / "model")
    speaker = Speech(str(tmp_path / "model"))
    assert {speaker._voice(prompt)["speaker_id"] for prompt in _prompts(*range(40))} == set(range(5))
    assert len(_clips(speaker.generate(_prompts(1)))[0]) > 100


@pytest.mark.parametrize("form", ["rows.npy", "one.npy", "a.safetensors", "fixed.parquet", "lists.parquet"])
def test_x_vectors_reads_every_format(tmp_path, form):
    file, rows = tmp_path / form, VOICES
    match form:
        case "rows.npy":
            np.save(file, VOICES)
        case "one.npy":
            np.save(file, VOICES[0])
            rows = VOICES[:1]
        case "a.safetensors":
            save_file({"b": VOICES[2:], "a": VOICES[:2]}, file)
        case "fixed.parquet":
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(VOICES.ravel()), 6)
            parquet.write_table(pa.table({"filename": list("abcd"), "xvector": vectors}), file)
        case _:
            parquet.write_table(pa.table({"filename": list("abcd"), "v": VOICES.tolist()}), file)
    for place in (file, tmp_path):
        found = x_vectors(str(place))
        assert found.dtype == torch.float32
        assert np.array_equal(found.numpy(), rows)


def test_x_vectors_reads_files_in_name_order(tmp_path):
    for name, row in zip("cab", VOICES, strict=False):
        np.save(tmp_path / f"{name}.npy", row)
    assert np.array_equal(x_vectors(str(tmp_path)).numpy(), VOICES[[1, 2, 0]])


def test_x_vectors_names_bad_files(tmp_path):
    with pytest.raises(InputError, match=r"^generator\.speakers: .*/absent is not a file or folder of x-"):
        x_vectors(str(tmp_path / "absent"))
    np.save(tmp_path / "a.npy", VOICES)
    np.save(tmp_path / "b.npy", VOICES[:, :3])
    with pytest.raises(
        InputError,
        match=r"^generator\.speakers: .* of different widths: \[3, 6\]; give vectors of one width$",
    ):
        x_vectors(str(tmp_path))
    (tmp_path / "a.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"^generator\.speakers: .*a\.npy could not be read \("):
        x_vectors(str(tmp_path))
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"^generator\.speakers: .*a\.npy could not be read \(.*pickle"):
        x_vectors(str(tmp_path))


def test_check_speech_model_rejects_parts_that_do_not_fit(
    tiny_speecht5, tiny_vits, tiny_stable_diffusion, voices, tmp_path
):
    model, vocoder = str(tiny_speecht5 / "model"), str(tiny_speecht5 / "vocoder")
    np.save(tmp_path / "wide.npy", np.zeros((2, 9)))
    for given, message in (
        (
            (model, vocoder, None),
            r"speakers: SpeechT5 needs a file or folder of x-vectors; give one, such as ",
        ),
        (
            (model, vocoder, str(tmp_path / "wide.npy")),
            r"speakers: the x-vectors in .* have 9 numbers, but .* takes 6; give ",
        ),
        ((model, model, voices), r"vocoder: .* is not a SpeechT5HifiGan, which SpeechT5 needs; use "),
        (
            (model, str(tmp_path), voices),
            r"vocoder: the folder .* has no config.json, so it is not a transformers model; ",
        ),
        ((str(tiny_vits), vocoder, voices), r"speakers: .* takes no x-vectors, .* leave it out$"),
        ((vocoder, vocoder, voices), r"model: .* is a model of type '.*hifigan', which does not speak; "),
        ((str(tiny_stable_diffusion), vocoder, voices), r"model: the folder .* has no config.json"),
        (("genfl-tests/absent", vocoder, voices), r"model: 'genfl-tests/absent' is not a folder, not in the"),
    ):
        with pytest.raises(InputError, match=rf"^generator\.{message}"):
            speech.check_speech_model(*given)
    assert speech.check_speech_model(model, vocoder, voices).shape == (4, 6)
    assert speech.check_speech_model(str(tiny_vits), vocoder, None) is None


@pytest.mark.parametrize("family", ["speecht5", "vits"])
def test_check_speech_labels_names_unknown_letters(tiny_speecht5, tiny_vits, family):
    model = {"speecht5": str(tiny_speecht5 / "model"), "vits": str(tiny_vits)}[family]
    speech.check_speech_labels(model, ["yes", "no way"])
    for label in ("7", "ü"):
        with pytest.raises(
            InputError, match=rf"^generator\.model: .* cannot speak the label '{label}'; rename"
        ):
            speech.check_speech_labels(model, ["yes", label])


def test_speech_fingerprint_covers_all_parts(tiny_speecht5, voices, tmp_path):
    given = [str(tiny_speecht5 / "model"), str(tiny_speecht5 / "vocoder"), voices]
    other = tmp_path / "voices.npy"
    np.save(other, VOICES + 1)
    assert speech.speech_fingerprint(*given) == speech.speech_fingerprint(*given)
    assert speech.speech_fingerprint(*given) != speech.speech_fingerprint(*given[:2], str(other))
    assert speech.speech_fingerprint(*given) != speech.speech_fingerprint(given[1], *given[1:])
