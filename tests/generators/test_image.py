import shutil
from pathlib import Path

import numpy as np
import pytest

from genfl.errors import InputError
from genfl.generators.base import Prompt
from genfl.generators.image import StableDiffusion, fingerprint, locate


def _prompts(*seeds: int, scale: float = 3.0) -> list[Prompt]:
    return [Prompt("seven", "a thin seven", scale, seed) for seed in seeds]


def _pixels(samples):
    return np.stack([np.asarray(sample.content) for sample in samples])


@pytest.fixture(scope="module")
def generator(tiny_stable_diffusion: Path) -> StableDiffusion:
    return StableDiffusion(str(tiny_stable_diffusion), steps=3)


def test_a_seed_decides_its_image_whatever_the_seeds_beside_it(generator):
    first = _pixels(generator.generate(_prompts(1, 2, 3)))
    second = _pixels(generator.generate(_prompts(9, 2, 1)))
    assert first.shape == (3, 16, 16, 3)
    assert np.array_equal(first[0], second[2])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], first[1])


def test_the_text_and_the_guidance_scale_change_the_image(generator):
    base = _pixels(generator.generate(_prompts(1)))
    other_text = _pixels(generator.generate([Prompt("six", "a bold six", 3.0, 1)]))
    other_scale = _pixels(generator.generate(_prompts(1, scale=9.0)))
    assert not np.array_equal(base, other_text)
    assert not np.array_equal(base, other_scale)


def test_it_equals_a_plain_loop_over_the_pipeline(generator, tiny_stable_diffusion):
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_stable_diffusion, safety_checker=None)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    plain = [
        np.asarray(
            pipe(
                p.text,
                guidance_scale=p.guidance_scale,
                num_inference_steps=3,
                generator=torch.Generator().manual_seed(p.seed),
            ).images[0]
        )
        for p in _prompts(4, 5)
    ]
    ours = _pixels(generator.generate(_prompts(4, 5)))
    assert np.abs(ours.astype(int) - np.stack(plain).astype(int)).max() <= 1


def test_each_distinct_text_is_encoded_once(generator, monkeypatch):
    calls = []
    encode = generator.pipeline.encode_prompt
    monkeypatch.setattr(
        generator.pipeline, "encode_prompt", lambda text, *a, **k: calls.append(text) or encode(text, *a, **k)
    )
    texts = ["a photo of one", "a photo of two", "a photo of one"]
    for scale in (2.0, 4.0):
        list(generator.generate([Prompt("x", text, scale, n) for n, text in enumerate(texts)]))
    # The pipeline calls encode_prompt with embeddings (and no text) on every block; texts only come from us.
    assert sorted(text for text in calls if text is not None) == ["a photo of one", "a photo of two"]


def test_a_block_of_two_scales_is_refused(generator):
    with pytest.raises(ValueError, match="one guidance scale"):
        list(generator.generate([*_prompts(1, scale=1.0), *_prompts(2, scale=2.0)]))


def test_a_retrained_folder_has_another_fingerprint(tiny_stable_diffusion, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_stable_diffusion, copy)
    before = fingerprint(str(copy))
    assert before == fingerprint(str(tiny_stable_diffusion)), "a copy is the same model"
    (copy / "README.md").write_text("words do not matter")
    fingerprint.cache_clear()
    assert fingerprint(str(copy)) == before
    weights = next((copy / "unet").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    fingerprint.cache_clear()  # once a process is enough elsewhere
    assert fingerprint(str(copy)) != before
    assert fingerprint("miniature") != fingerprint("some/id") == "some/id"


def test_models_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(InputError, match=r"generator\.model: .*holds no model_index\.json"):
        locate(str(tmp_path))
    with pytest.raises(InputError, match=r"generator\.model: 'no/such model' .*no valid Hub id"):
        locate("no/such model")
    with pytest.raises(InputError, match=r"generator\.model: 'genfl-tests/absent'"):
        locate("genfl-tests/absent")
