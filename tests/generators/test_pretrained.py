import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from genfl import config, hub, pipeline
from genfl.data.samples import Prompt
from genfl.data.sounds import RATE
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.generators import image, pretrained, sound, speech
from genfl.generators.image import StableDiffusion
from genfl.model_folders import check_weights
from genfl.stages.base import digest_of
from genfl.stages.generate import GeneratorInputs


def test_hub_fingerprint_notices_changed_weights(tiny_stable_diffusion, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_stable_diffusion, copy)
    before = hub.fingerprint(str(copy))
    assert before == hub.fingerprint(str(tiny_stable_diffusion)), "a copy is the same model"
    (copy / "README.md").write_text("words do not matter")
    assert hub.fingerprint(str(copy)) == before
    weights = next((copy / "unet").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert hub.fingerprint(str(copy)) != before, "a change within one process is noticed"
    assert image.image_fingerprint("miniature") != image.image_fingerprint("some/id") == "some/id"


def test_hub_fingerprint_follows_links(tiny_stable_diffusion, tmp_path):
    plain, linked, parts = tmp_path / "plain", tmp_path / "linked", tmp_path / "parts"
    shutil.copytree(tiny_stable_diffusion, plain)
    shutil.copytree(tiny_stable_diffusion, linked)
    (linked / "unet").rename(parts)
    (linked / "unet").symlink_to(parts, target_is_directory=True)
    (linked / "self").symlink_to(linked, target_is_directory=True)  # a loop
    (linked / "broken.json").symlink_to(tmp_path / "absent.json")
    (tmp_path / "link").symlink_to(linked, target_is_directory=True)
    before = hub.fingerprint(str(tmp_path / "link"))
    assert before == hub.fingerprint(str(plain))
    (parts / "config.json").write_text("{}")
    assert hub.fingerprint(str(tmp_path / "link")) != before


def test_hub_weights_behind_a_link_are_accepted(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.safetensors").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "unet").symlink_to(tmp_path / "parts", target_is_directory=True)
    check_weights(str(tmp_path / "model"))


def test_model_checks_name_a_missing_library(monkeypatch, tiny_stable_diffusion, tiny_audioldm, tiny_vits):
    checks = {
        "image": lambda: image.check_image_model(str(tiny_stable_diffusion)),
        "sound": lambda: sound.check_sound_model(str(tiny_audioldm)),
        "speech": lambda: speech.check_speech_model(str(tiny_vits), speech.VOCODER, None),
    }
    for kind, check in checks.items():
        check()
        for library in hub.LIBRARIES[kind]:
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, library, None)
                message = (
                    f"generator.kind: {kind} needs {library}, which is not installed; run pip install"
                    f" 'genfl[{kind}]'"
                )
                with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
                    check()


def test_extras_hold_the_libraries_of_their_kind():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for kind, libraries in hub.LIBRARIES.items():
        wanted = {re.split(r"[><=]", need)[0] for need in project["optional-dependencies"][kind]}
        assert set(libraries) <= wanted


def test_check_device_names_a_missing_gpu():
    hub.check_device("cpu")
    with pytest.raises(
        InputError, match=r"^generator\.device: 'cuda:99', but torch sees no GPU of that number; use cpu$"
    ):
        hub.check_device("cuda:99")


def test_hub_loads_no_pickles(tiny_stable_diffusion, tmp_path):
    shutil.copytree(tiny_stable_diffusion, tmp_path / "model")
    weights = next((tmp_path / "model" / "unet").glob("*.safetensors"))
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(
        InputError,
        match=r"^generator\.model: .* could not be loaded \(.*\); give a model with safetensors files$",
    ):
        StableDiffusion(str(tmp_path / "model"))
    for file in (tmp_path / "model").rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(InputError, match=r"^generator\.model: .* has no \.safetensors files, and pickles "):
        image.check_image_model(str(tmp_path / "model"))


def test_explain_out_of_memory_names_the_block_size():
    regenerated = r" \(existing blocks will be regenerated\)"
    for samples, fix in ((50, f"set prompts.block_size to 25{regenerated}"), (1, "use a smaller model")):
        message = rf"^generator\.device: out of memory on cpu with a block of {samples}; {fix}$"
        with pytest.raises(InputError, match=message), hub.explain_out_of_memory(samples, "cpu"):
            torch.empty(2**60)
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        with pytest.raises(InputError, match=r"block_size to 25 "), hub.explain_out_of_memory(50, "cuda"):
            raise error
    with pytest.raises(RuntimeError, match="must match the size"), hub.explain_out_of_memory(1, "cpu"):
        torch.ones(2) + torch.ones(3)


def test_clip_of_is_mono_16_khz_within_full_scale():
    stereo = np.stack([np.full(480, 2.0), np.zeros(480)])
    clip = pretrained.clip_of(stereo, 48_000)
    assert (clip.rate, clip.samples.shape, clip.samples.dtype) == (RATE, (160,), np.float32)
    assert clip.samples.max() <= 1
    assert clip.samples[80] == pytest.approx(1.0, abs=0.01)


# --- in a run


@pytest.fixture
def content(audio_config):
    return audio_config(["rain", "dog"], prompts={"per_label": 3, "block_size": 4})


@pytest.fixture
def made_by(content, tmp_path, tiny_audioldm, tiny_audioldm2, tiny_speecht5, tiny_sdxl):
    """Returns the config of a run with a generator of a name."""
    np.save(tmp_path / "voices.npy", np.eye(6))
    generators = {
        "audioldm": {"kind": "sound", "model": str(tiny_audioldm), "steps": 2, "seconds": 0.1},
        "audioldm2": {"kind": "sound", "model": str(tiny_audioldm2), "steps": 2, "seconds": 0.1},
        "speecht5": {
            "kind": "speech",
            "model": str(tiny_speecht5 / "model"),
            "vocoder": str(tiny_speecht5 / "vocoder"),
            "speakers": str(tmp_path / "voices.npy"),
        },
        "sdxl": {"kind": "image", "model": str(tiny_sdxl), "steps": 2, "size": [16, 16]},
    }

    def named(name):
        settings = {**content, "generator": generators[name]}
        if name == "sdxl":
            settings |= {
                "data": {"name": "digits", "partition": {"clients": 2, "kind": "iid"}},
                "model": "cnn",
            }
        return settings

    return named


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audioldm", "audioldm2", "speecht5"])
def test_killed_run_resumes_to_the_same_data_set(made_by, tmp_path, generating, name):
    content = made_by(name)
    content["prompts"] = {"per_label": 30, "block_size": 2}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    generating(tmp_path / "c.yaml", tmp_path / "killed").kill()
    for folder in ("killed", "whole"):
        pipeline.execute(config.load(tmp_path / "c.yaml"), tmp_path / folder, until="generate")
    shards = sorted((tmp_path / "whole" / "synthetic" / "data").iterdir())
    assert len(shards) == 30
    for shard in shards:
        assert (
            shard.read_bytes() == (tmp_path / "killed" / shard.relative_to(tmp_path / "whole")).read_bytes()
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audioldm", "speecht5", "sdxl"])
def test_damaged_run_repairs_to_the_same_data_set(made_by, tmp_path, name):
    import datasets

    content = made_by(name)
    wanted = config.validate(content)
    for folder in ("whole", "damaged"):
        pipeline.execute(wanted, tmp_path / folder, until="generate")
    shards = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.parquet"))
    assert len(shards) > 1
    (tmp_path / "damaged" / shards[1]).unlink()
    pipeline.execute(wanted, tmp_path / "damaged", until="generate")
    for shard in shards:
        assert (tmp_path / "whole" / shard).read_bytes() == (tmp_path / "damaged" / shard).read_bytes()
    rows = datasets.load_dataset(str(tmp_path / "whole" / "synthetic"), split="train")
    assert len(rows) == (30 if name == "sdxl" else 6)
    card = (tmp_path / "whole" / "synthetic" / "README.md").read_text()
    assert f"- generator: {Path(content['generator']['model']).name}\n" in card
    assert content["generator"]["model"] not in card


@pytest.mark.parametrize(
    ("generator", "line"),
    [
        ({"kind": "sound"}, "generator.model: required, but missing"),
        (
            {"kind": "sound", "model": "IMAGE"},
            "generator.model: .* is a StableDiffusionPipeline; use AudioLDM or AudioLDM 2",
        ),
        ({"kind": "sound", "model": "SOUND", "device": "cuda:99"}, "generator.device: 'cuda:99', but torch "),
        (
            {"kind": "sound", "model": "nowhere/at-all"},
            "generator.model: 'nowhere/at-all' is not a folder, not in ",
        ),
        ({"kind": "speech", "model": "SOUND"}, "generator.model: the folder .* has no config.json, so it "),
        (
            {"kind": "speech", "model": "VITS", "snr": None},
            "generator.snr: only espeak has it; leave it out",
        ),
        (
            {"kind": "speech", "model": "VITS", "speakers": "x"},
            "generator.speakers: .* takes no x-vectors, only ",
        ),
        (
            {"kind": "speech", "speakers": "x"},
            "generator.speakers: espeak does not have it; leave it out, or ",
        ),
        (
            {"kind": "speech", "device": "cuda"},
            "generator.device: espeak does not have it; leave it out, or ",
        ),
        ({"kind": "image", "size": [30, 32]}, "generator.size.0: should be a multiple of 8, not 30"),
        ({"kind": "image", "strength": 0.0}, "generator.strength: should be greater than 0, not 0.0"),
    ],
)
def test_run_reports_mistakes_in_one_line_first(
    content, tmp_path, tiny_stable_diffusion, tiny_audioldm, tiny_vits, generator, line, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folders = {"IMAGE": tiny_stable_diffusion, "SOUND": tiny_audioldm, "VITS": tiny_vits}
    model = generator.get("model")
    if model in folders:
        generator = generator | {"model": str(folders[model])}
    with pytest.raises(InputError, match=f"^{line}") as caught:
        pipeline.execute(config.validate(content | {"generator": generator}), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "prompts").exists()


def test_resolved_generator_config_is_valid(content):
    for generator in (
        {"kind": "speech"},
        {"kind": "speech", "model": "a/model"},
        {"kind": "sound", "model": "m"},
    ):
        resolved = config.validate(content | {"generator": generator}).model_dump(mode="json")
        assert config.validate(json.loads(json.dumps(resolved))).model_dump(mode="json") == resolved


@pytest.mark.parametrize("kind", ["image", "speech"])
def test_generator_inputs_ignore_the_place_of_a_model(
    content, tmp_path, tiny_stable_diffusion, tiny_speecht5, kind
):
    """Shards made elsewhere fit, and no path is in a data set that may be shared."""
    folder = {"image": tiny_stable_diffusion, "speech": tiny_speecht5}[kind]
    shutil.copytree(folder, tmp_path / "copy")
    digests = set()
    for path in (folder, tmp_path / "copy"):
        parts = {"model": str(path)}
        if kind == "speech":
            np.save(path / "voices.npy", np.eye(6))
            names = {"model": "model", "vocoder": "vocoder", "speakers": "voices.npy"}
            parts = {option: str(path / name) for option, name in names.items()}
        changed = config.validate(content | {"generator": {"kind": kind, **parts}})
        inputs = GeneratorInputs.of(changed, RunContext())
        digests.add(digest_of("generate", 1, inputs, {}))
        assert str(path) not in str(inputs.facts)
        assert path.name in str(inputs.facts) or kind == "speech"
    assert len(digests) == 1


def test_generator_config_accepts_a_kind_alone(content):
    """Of speech and texts nothing is guided, and of speech a prompt is the label."""
    named = config.validate(content | {"generator": "speech"})
    assert named == config.validate(content | {"generator": {"kind": "speech"}})
    assert named.prompts.guidance_scale == [1.0]
    assert named.prompts.style == "label"
    for style in ("single", "multiple"):
        told = {"generator": "speech", "prompts": {"style": style}}
        with pytest.raises(InputError, match=rf"^prompts.style: {style} is a description, but speech"):
            config.validate(content | told)


def test_image_embedding_cache_is_bounded(tiny_stable_diffusion):
    generator = StableDiffusion(str(tiny_stable_diffusion), steps=1)
    for letter in ("a", "b", "a"):
        list(generator.generate([Prompt("x", letter, 2.0, 0)]))
    info = generator.embedding.cache_info()
    assert (info.misses, info.hits, info.maxsize) == (2, 1, pretrained.CACHED_PROMPTS)
