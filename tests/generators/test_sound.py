import inspect
import json

import numpy as np
import pytest
import torch

from genfl.data.samples import Prompt
from genfl.data.sounds import RATE
from genfl.errors import InputError
from genfl.generators import sound
from genfl.generators.sound import Sound

pytestmark = pytest.mark.slow

FAMILIES = ("tiny_audioldm", "tiny_audioldm2")


@pytest.fixture(scope="module")
def families(request) -> dict[str, Sound]:
    return {name: Sound(str(request.getfixturevalue(name)), steps=3, seconds=0.05) for name in FAMILIES}


def _prompts(*seeds: int, scale: float = 3.0, text: str = "a dog") -> list[Prompt]:
    return [Prompt("dog", text, scale, seed) for seed in seeds]


def _clips(samples):
    clips = [sample.content for sample in samples]
    assert {clip.rate for clip in clips} == {RATE}
    return np.stack([clip.samples for clip in clips])


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_depends_on_its_seed_not_on_its_block(families, family):
    generator = families[family]
    first = _clips(generator.generate(_prompts(1, 2, 3)))
    others = _clips(generator.generate([*_prompts(9, 2), *_prompts(1)]))
    assert first.shape == (3, 0.05 * RATE)
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1
    loud = np.abs(first).mean()
    assert loud > 1e-3
    assert np.array_equal(first, _clips(generator.generate(_prompts(1, 2, 3))))
    # elsewhere in a block, in one of another size, or with a longer text beside it, last bits may differ
    np.testing.assert_allclose(first[:2], others[[2, 1]], atol=loud / 1000)
    assert np.abs(first[0] - first[1]).mean() > loud / 100
    alone = _clips(generator.generate(_prompts(2)))
    longer = _clips(generator.generate([*_prompts(2), *_prompts(5, text="a cat on a hot tin roof")]))
    for other in (alone, longer):
        np.testing.assert_allclose(other[0], first[1], atol=loud / 1000)


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_depends_on_text_and_guidance_scale(families, family):
    generator = families[family]
    base = _clips(generator.generate(_prompts(1)))
    for other in (_prompts(1, text="rain"), _prompts(1, scale=9.0), _prompts(1, scale=1.0)):
        assert np.abs(_clips(generator.generate(other)) - base).max() > np.abs(base).mean() / 100


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_equals_a_plain_loop_over_the_pipeline(families, family, request):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(request.getfixturevalue(family))
    pipe.set_progress_bar_config(disable=True)
    prompts = [*_prompts(4), *_prompts(5, text="a long storm of rain")]
    plain = [
        pipe(
            p.text,
            guidance_scale=p.guidance_scale,
            num_inference_steps=3,
            audio_length_in_s=0.05,
            generator=torch.Generator().manual_seed(p.seed),
        ).audios[0]
        for p in prompts
    ]
    ours = _clips(families[family].generate(prompts))
    np.testing.assert_allclose(ours, np.stack(plain), atol=np.abs(ours).mean() / 1000)


@pytest.mark.slow
def test_sound_adds_the_head_of_a_language_model(families, tiny_audioldm2, tmp_path):
    """As in the published folders of AudioLDM 2."""
    from diffusers import AudioLDM2Pipeline

    pipe = AudioLDM2Pipeline.from_pretrained(tiny_audioldm2)
    pipe.register_modules(language_model=pipe.language_model.transformer)
    pipe.save_pretrained(tmp_path / "model")
    assert (
        json.loads((tmp_path / "model" / "model_index.json").read_text())["language_model"][1] == "GPT2Model"
    )
    bare = Sound(str(tmp_path / "model"), steps=3, seconds=0.05)
    prompts = [*_prompts(1), *_prompts(2, text="rain")]
    assert np.array_equal(
        _clips(bare.generate(prompts)), _clips(families["tiny_audioldm2"].generate(prompts))
    )


def test_sound_encodes_each_distinct_text_once(families, monkeypatch):
    for family, name in (("tiny_audioldm", "_encode_prompt"), ("tiny_audioldm2", "encode_prompt")):
        generator, calls = families[family], []
        encode = getattr(generator.pipeline, name)

        def counted(prompt, *args, calls=calls, encode=encode, **options):
            calls.append(prompt)
            return encode(prompt, *args, **options)

        monkeypatch.setattr(generator.pipeline, name, counted)
        texts = ["sea waves", "a hen", "sea waves"]
        for scale in (2.0, 4.0):
            list(generator.generate([Prompt("x", text, scale, n) for n, text in enumerate(texts)]))
        # on every block, the pipeline asks for embeddings with embeddings and no text
        assert sorted(text for text in calls if text) == ["a hen", "sea waves"]


def test_sound_resamples_a_vocoder_of_another_rate(tiny_audioldm):
    generator = Sound(str(tiny_audioldm), steps=1, seconds=0.1)
    generator.pipeline.vocoder.config.sampling_rate = 8000
    assert _clips(generator.generate(_prompts(1))).shape == (1, 1600)


def test_check_sound_model_rejects_other_models(tiny_stable_diffusion, tmp_path):
    with pytest.raises(InputError, match=r"^generator\.model: .* is a StableDiffusionPipeline; use AudioLDM"):
        sound.check_sound_model(str(tiny_stable_diffusion))
    with pytest.raises(InputError, match=r"^generator\.model: the folder .* has no model_index\.json"):
        sound.check_sound_model(str(tmp_path))
    with pytest.raises(InputError, match=r"^generator\.model: 'genfl-tests/absent' is not a folder, not in "):
        sound.check_sound_model("genfl-tests/absent")


def test_sound_options_are_those_of_the_config():
    from genfl.config.generation import SoundGenerator

    assert set(inspect.signature(Sound).parameters) == set(SoundGenerator.model_fields) - {"kind"}
