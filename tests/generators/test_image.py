import inspect
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.parameters import mostly_slow

from genfl.data import quality
from genfl.data.samples import Prompt
from genfl.errors import InputError
from genfl.generators import classify, image
from genfl.generators.image import StableDiffusion, check_image_model, locate_image_model
from genfl.generators.registry import GENERATORS

FAMILIES = ("tiny_stable_diffusion", "tiny_sdxl", "tiny_sd3")


def _prompts(*seeds: int, scale: float = 3.0, guide: Image.Image | None = None) -> list[Prompt]:
    guides = (guide,) if guide else ()
    return [Prompt("seven", "a thin seven", scale, seed, guides=guides) for seed in seeds]


def _pixels(samples):
    return np.stack([np.asarray(sample.content) for sample in samples]).astype(int)


@pytest.fixture(scope="module")
def generator(tiny_stable_diffusion: Path) -> StableDiffusion:
    return StableDiffusion(str(tiny_stable_diffusion), steps=3)


@pytest.fixture(scope="module")
def families(request) -> dict[str, StableDiffusion]:
    return {name: StableDiffusion(str(request.getfixturevalue(name)), steps=3) for name in FAMILIES}


@pytest.fixture
def guide() -> Image.Image:
    """A real example of another size and mode: a bright disc on black."""
    x, y = np.mgrid[-1:1:40j, -1:1:40j]
    return Image.fromarray(((x**2 + y**2 < 0.5) * 255).astype(np.uint8))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_image_depends_on_its_seed_not_on_its_block(families, family, guided, guide):
    generator, start = families[family], guide if guided else None
    first = _pixels(generator.generate(_prompts(1, 2, 3, guide=start)))
    others = _prompts(9, 2, 1, guide=start)
    others[0] = others[0]._replace(text="another text")
    second = _pixels(generator.generate(others))
    assert first.shape == (3, 16, 16, 3)
    assert np.array_equal(first[0], second[2])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], first[1])
    # in a block of another size, the last bits of the network's sums may differ
    alone = _pixels(generator.generate(_prompts(2, guide=start)))
    assert np.abs(alone[0] - first[1]).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_image_depends_on_text_and_guidance_scale(families, family):
    generator = families[family]
    base = _pixels(generator.generate(_prompts(1)))
    other_text = _pixels(generator.generate([Prompt("six", "a bold six", 3.0, 1)]))
    other_scale = _pixels(generator.generate(_prompts(1, scale=9.0)))
    unguided = _pixels(generator.generate(_prompts(1, scale=1.0)))
    assert not np.array_equal(base, other_text)
    assert not np.array_equal(base, other_scale)
    assert not np.array_equal(base, unguided)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_image_equals_a_plain_loop_over_the_pipeline(families, family, request, guide):
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image, DPMSolverMultistepScheduler

    pipe = AutoPipelineForText2Image.from_pretrained(request.getfixturevalue(family))
    if family != "tiny_sd3":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)

    def plain(pipe, steps, **options):
        return np.stack(
            [
                np.asarray(
                    pipe(
                        p.text,
                        guidance_scale=p.guidance_scale,
                        num_inference_steps=steps,
                        generator=torch.Generator().manual_seed(p.seed),
                        **options,
                    ).images[0]
                ).astype(int)
                for p in _prompts(4, 5)
            ]
        )

    assert np.abs(_pixels(families[family].generate(_prompts(4, 5))) - plain(pipe, 3)).max() <= 1
    start = guide.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
    second = AutoPipelineForImage2Image.from_pipe(pipe)
    expected = plain(second, 3, image=start, strength=0.6)
    assert np.abs(_pixels(families[family].generate(_prompts(4, 5, guide=guide))) - expected).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_image_encodes_each_distinct_text_once(families, family, monkeypatch):
    generator, calls = families[family], []
    encode = generator.pipeline.encode_prompt

    def counted(prompt=None, *args, **options):
        calls.append(prompt)
        return encode(prompt, *args, **options)

    counted.__signature__ = inspect.signature(encode)
    monkeypatch.setattr(generator.pipeline, "encode_prompt", counted)
    texts = ["a photo of one", "a photo of two", "a photo of one"]
    for scale in (2.0, 4.0):
        list(generator.generate([Prompt("x", text, scale, n) for n, text in enumerate(texts)]))
    # The pipeline asks for embeddings with embeddings (and no text) on every block; texts only come from us.
    assert sorted(text for text in calls if text) == ["a photo of one", "a photo of two"]


@pytest.mark.slow
def test_image_guided_block_shares_the_model(families, guide):
    for generator in families.values():
        before = _pixels(generator.generate(_prompts(1, 2)))
        list(generator.generate(_prompts(1, 2, guide=guide)))
        assert np.array_equal(_pixels(generator.generate(_prompts(1, 2))), before)
        ours, theirs = generator.pipeline.components, generator._guided.components
        assert all(theirs[name] is part for name, part in ours.items() if name in theirs)


@pytest.mark.slow
def test_image_has_the_size_of_the_options(request, guide):
    for family in FAMILIES:
        generator = StableDiffusion(str(request.getfixturevalue(family)), steps=2, size=[16, 32])
        assert _pixels(generator.generate(_prompts(1))).shape == (1, 16, 32, 3)
        assert _pixels(generator.generate(_prompts(1, guide=guide))).shape == (1, 16, 32, 3)


def test_image_rejects_a_size_that_does_not_fit(tiny_sd3):
    with pytest.raises(
        InputError, match=r"^generator\.size: \[18, 16\], but .* in multiples of 4 pixels; round it$"
    ):
        StableDiffusion(str(tiny_sd3), size=[18, 16])


def test_check_classifier_rejects_other_models_with_two_text_encoders(
    tiny_sdxl, tiny_stable_diffusion, tmp_path
):
    for model in (tiny_stable_diffusion, tiny_sdxl):
        classify.check_classifier(str(model))
    parts = json.loads((tiny_sdxl / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**parts, "_class_name": "KolorsPipeline"}))
    with pytest.raises(InputError, match=r"one text encoder; .* \(KolorsPipeline\) has several$"):
        classify.check_classifier(str(tmp_path))


@pytest.fixture
def with_safety_checker(tiny_stable_diffusion, tmp_path):
    """Adds a safety checker to the tiny Stable Diffusion, which flags all images or none."""

    def build(flags):
        from diffusers import StableDiffusionPipeline
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPConfig, CLIPImageProcessor, CLIPVisionConfig

        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        vision = CLIPVisionConfig(**sizes, image_size=8, patch_size=4, projection_dim=4)
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=4))
        with torch.no_grad():
            checker.concept_embeds_weights.fill_(-2 if flags else 2)  # thresholds of a cosine
            checker.special_care_embeds_weights.fill_(2)
        pipeline = StableDiffusionPipeline.from_pretrained(
            tiny_stable_diffusion,
            safety_checker=checker,
            feature_extractor=CLIPImageProcessor(
                size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
            ),
            requires_safety_checker=True,
        )
        pipeline.save_pretrained(tmp_path / "checked")
        return str(tmp_path / "checked")

    return build


@pytest.mark.slow
@pytest.mark.parametrize("guided", mostly_slow([False, True], False))
@pytest.mark.parametrize("flags", mostly_slow([True, False], True))
def test_safety_checker_blackens_what_it_flags_if_it_is_on(with_safety_checker, flags, guided, guide):
    model = with_safety_checker(flags)
    prompts = [Prompt("cat", "a cat", 2.0, seed, guides=(guide,) if guided else ()) for seed in range(2)]
    off, on = (
        list(StableDiffusion(model, steps=1, safety_checker=checked).generate(prompts))
        for checked in (False, True)
    )
    assert all(np.asarray(sample.content).any() for sample in off), "the default leaves it out"
    same = [
        np.array_equal(np.asarray(a.content), np.asarray(b.content)) for a, b in zip(on, off, strict=True)
    ]
    assert same == [not flags] * 2
    assert [bool(np.asarray(sample.content).any()) for sample in on] == [not flags] * 2
    usable, removed = quality.sift(on, "image")
    assert (len(usable), sum(sum(counts.values()) for counts in removed.values())) == (
        (0, 2) if flags else (2, 0)
    )
    check_image_model(model, safety_checker=True)


def test_safety_checker_of_a_model_without_one_is_a_mistake(tiny_stable_diffusion, tiny_sdxl):
    for model in (tiny_stable_diffusion, tiny_sdxl, "miniature"):
        with pytest.raises(
            InputError, match=r"^generator\.safety_checker: .*Pipeline\) has none; leave it out"
        ):
            check_image_model(str(model), safety_checker=True)


def test_image_takes_at_least_one_step_from_a_guide(tiny_stable_diffusion, guide):
    generator = StableDiffusion(str(tiny_stable_diffusion), steps=1, strength=0.05)
    taken = []
    generator.pipeline.unet.register_forward_hook(lambda *_: taken.append(1))
    list(generator.generate(_prompts(1, guide=guide)))
    assert len(taken) == 1


def test_image_rejects_blocks_that_mix_scales_or_guides(generator, guide):
    with pytest.raises(ValueError, match="one guidance scale"):
        list(generator.generate([*_prompts(1, scale=1.0), *_prompts(2, scale=2.0)]))
    with pytest.raises(ValueError, match="one guide each, or none"):
        list(generator.generate([*_prompts(1), *_prompts(2, guide=guide)]))
    with pytest.raises(ValueError, match="one guide each, or none"):
        list(generator.generate([p._replace(guides=(guide, guide)) for p in _prompts(1, 2)]))


@pytest.mark.slow
def test_image_runs_models_other_than_stable_diffusion(tiny_pixart, guide):
    """Their encoders differ, so that the prompts of a block are encoded together."""
    image.check_image_model(str(tiny_pixart))
    assert (
        "is a PixArtAlphaPipeline, which cannot start from real images; use prompt"
        in image.image_guidance_problem(str(tiny_pixart))
    )
    generator = StableDiffusion(str(tiny_pixart), steps=2, size=[16, 16])
    first = _pixels(generator.generate(_prompts(1, 2)))
    again = _pixels(generator.generate(_prompts(3, 1)))
    assert first.shape == (2, 16, 16, 3)
    assert np.abs(first[0] - again[1]).max() <= 1 < np.abs(first[0] - first[1]).max()
    with pytest.raises(
        InputError, match=r"^generator\.model: .* cannot start from real images; use guidance "
    ):
        list(generator.generate(_prompts(1, guide=guide)))


def test_image_guidance_problem_loads_no_model(families, request, tmp_path):
    for family, generator in families.items():
        assert image.image_guidance_problem(str(request.getfixturevalue(family))) is None
        assert generator._guided
    # by the class alone
    for name, can in (
        ("FluxPipeline", True),
        ("SanaPipeline", False),
        ("Flux2Pipeline", False),  # takes all images of a call as references for each
        ("LatentConsistencyModelPipeline", True),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        options = {"model": str(tmp_path)}
        assert (GENERATORS["image"].unguided(options) is None) is can
    assert image.image_guidance_problem("miniature") is None


@pytest.mark.parametrize("name", ["WuerstchenCombinedPipeline", "StableCascadeCombinedPipeline"])
def test_check_image_model_rejects_one_without_guidance_scale(tmp_path, name):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=rf"is a {name}, which takes no guidance_scale"):
        image.check_image_model(str(tmp_path))


def test_image_rejects_a_prompt_that_is_too_long(families):
    """What is cut off may be the label."""
    for family, generator in families.items():
        longest = 75 if family != "tiny_sd3" else 127  # words: CLIP's 77 tokens, or T5's 256 of half a word
        list(generator.generate([Prompt("seven", " ".join("a" * longest), 3.0, 1)]))
        with pytest.raises(
            InputError, match=r"^prompts: 'a a .*' has \d+ tokens, but model reads only \d+; sho"
        ):
            list(generator.generate([Prompt("seven", " ".join("a" * (longest + 1)), 3.0, 1)]))


@pytest.mark.parametrize(
    ("name", "options", "kept"),
    [
        ("DDIMScheduler", {}, False),
        pytest.param("PNDMScheduler", {"skip_prk_steps": True}, False, marks=pytest.mark.slow),
        pytest.param(
            "EulerDiscreteScheduler", {"timestep_spacing": "leading"}, False, marks=pytest.mark.slow
        ),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, True),  # SD-Turbo, Lightning
        pytest.param(
            "EulerAncestralDiscreteScheduler",  # SDXL-Turbo
            {"timestep_spacing": "trailing"},
            True,
            marks=pytest.mark.slow,
        ),
        pytest.param("EDMEulerScheduler", {"sigma_max": 120.0}, True, marks=pytest.mark.slow),  # CosXL
        ("LCMScheduler", {}, True),
    ],
)
def test_image_keeps_the_scheduler_of_distilled_models(tiny_stable_diffusion, tmp_path, name, options, kept):
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_stable_diffusion)
    pipe.scheduler = getattr(diffusers, name)(**options)
    pipe.save_pretrained(tmp_path / "model")
    found = StableDiffusion(str(tmp_path / "model"), steps=2).pipeline.scheduler
    assert type(found).__name__ == (name if kept else "DPMSolverMultistepScheduler")
    for option, value in options.items():
        assert not kept or found.config[option] == value


@pytest.mark.slow
def test_image_slicing_gives_the_same_images(families):
    """As on a GPU, where a block's decoder would want tens of gigabytes."""
    for generator in families.values():
        whole = _pixels(generator.generate(_prompts(1, 2, 3)))
        generator.pipeline.vae.enable_slicing()
        sliced = _pixels(generator.generate(_prompts(1, 2, 3)))
        generator.pipeline.vae.disable_slicing()
        assert np.abs(whole - sliced).max() <= 1


@pytest.mark.slow
def test_benchmark_of_a_full_model_runs(tmp_path):
    """With channels a tenth as wide."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "generation.py"))
    script["full_size"](tmp_path, width=32, vae_width=32, latent=8)
    generator = StableDiffusion(str(tmp_path), steps=1)
    (sample,) = generator.generate([Prompt("seven", "a handwritten seven", 3.0, 1)])
    assert sample.content.size == (64, 64)
    assert (
        0
        < script["share_outside"](generator.pipeline.unet, lambda: list(generator.generate(_prompts(1))))
        < 1
    )


def test_locate_image_model_names_missing_models(tmp_path):
    with pytest.raises(InputError, match=r"generator\.model: .*has no model_index\.json"):
        locate_image_model(str(tmp_path))
    with pytest.raises(InputError, match=r"generator\.model: 'no/such model' .*not a valid Hub id"):
        locate_image_model("no/such model")
    with pytest.raises(InputError, match=r"generator\.model: 'genfl-tests/absent'"):
        locate_image_model("genfl-tests/absent")


def test_check_image_model_rejects_a_model_of_sounds(tiny_audioldm):
    with pytest.raises(InputError, match=r"^generator\.model: .* is a AudioLDMPipeline, which makes no "):
        image.check_image_model(str(tiny_audioldm))


def test_check_image_labels_rejects_what_is_no_digit(tmp_path):
    image.check_image_labels("miniature", ["zero", "Seven", "4", "digit nine"])
    with pytest.raises(
        InputError, match="draws handwritten digits only, not 'polar bear'; give the folder or"
    ):
        image.check_image_labels("miniature", ["one", "polar bear", "dog"])
    with pytest.raises(InputError, match="not 'a'"):
        image.check_image_labels("miniature", list("abc"))
    image.check_image_labels(str(tmp_path), ["dog"])  # what other models know nobody can say
