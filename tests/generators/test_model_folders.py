"""Model folders as users have them: damaged, incomplete, of a variant, with code of their own."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genfl import hub
from genfl.data.samples import Prompt
from genfl.errors import InputError
from genfl.generation import kind_of_model
from genfl.generators import classify, image, sound, speech
from genfl.generators.image import StableDiffusion
from genfl.generators.sound import Sound
from genfl.generators.speech import Speech
from genfl.llm.local import LocalChat, check_local_model
from genfl.model_folders import check_weights, weights_variant

CHECKS = {
    "image": image.check_image_model,
    "sound": sound.check_sound_model,
    "speech": lambda model: speech.check_speech_model(model, speech.VOCODER, None),
    "text": lambda model: check_local_model(model, "generator"),
}
SETTINGS = {"image": "model_index.json", "sound": "model_index.json"}
PARTS = {"image": "unet", "sound": "vocoder"}


@pytest.fixture(params=CHECKS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tiny_stable_diffusion, tiny_audioldm, tiny_vits, tiny_chat_model, tmp_path, monkeypatch):
    """Copies an intact model of a kind into the home folder."""
    models = {"image": tiny_stable_diffusion, "sound": tiny_audioldm, "speech": tiny_vits}
    monkeypatch.setenv("HOME", str(tmp_path))
    return shutil.copytree(models.get(kind, tiny_chat_model), tmp_path / "model")


def message_of(kind, model):
    """Returns why a model is rejected, without its field."""
    with pytest.raises(InputError) as caught:
        CHECKS[kind](str(model))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    field, _, message = str(caught.value).partition(": ")
    assert field == "generator.model"
    assert "; " in message, "it says what to do"
    return message


def weights_of(kind, folder):
    return next((folder / PARTS.get(kind, "")).glob("*.safetensors"))


def test_model_in_the_home_folder_is_found(kind, folder):
    CHECKS[kind]("~/model")
    assert hub.fingerprint("~/model") == hub.fingerprint(str(folder))
    assert hub.model_name("~/model") == "model"
    assert kind_of_model("~/model") == kind
    assert "'~/absent' is not " in message_of(kind, "~/absent")
    assert "is not a valid Hub id" in message_of(kind, "~nobody-here/model")
    assert "is not a valid Hub id" in message_of(kind, "x" * 300)


@pytest.mark.parametrize("content", [b'{"_class_name": "Sta', b"[]", b"", b"\xff\xfe\xff"])
def test_damaged_settings_are_named(kind, folder, content):
    file = folder / SETTINGS.get(kind, "config.json")
    file.write_bytes(content)
    assert message_of(kind, folder).startswith(f"{file} is damaged (")


def test_settings_that_name_no_model_are_rejected(kind, folder):
    file = folder / SETTINGS.get(kind, "config.json")
    file.write_text("{}")
    assert ("does not name its pipeline" if kind in SETTINGS else "of type None") in message_of(kind, folder)


def test_single_file_is_told_from_a_folder(kind, folder, tmp_path):
    (tmp_path / "one").mkdir()
    file = tmp_path / "one" / "sd.safetensors"
    shutil.copy(weights_of(kind, folder), file)
    for model in (file, file.parent):
        message = message_of(kind, model)
        assert message.startswith(f"{file} is a single file")
        assert ("from_single_file" in message) == (kind in SETTINGS)


def test_lora_weights_alone_are_rejected(kind, folder, tmp_path):
    lora = tmp_path / "lora"
    lora.mkdir()
    save_file({"unet.down.lora_A.weight": torch.zeros(2)}, lora / "style.safetensors")
    assert "holds LoRA weights without their base model" in message_of(kind, lora / "style.safetensors")
    for name in ("adapter_config.json", "pytorch_lora_weights.safetensors"):
        shutil.rmtree(lora)
        lora.mkdir()
        (lora / name).write_text("{}")
        assert "holds LoRA weights without their base model" in message_of(kind, lora)


def test_damaged_weights_are_found_before_they_are_loaded(kind, folder):
    file = weights_of(kind, folder)
    file.write_bytes(file.read_bytes()[:-10])
    assert message_of(kind, folder).startswith(f"{file} is damaged (")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    assert message_of(kind, folder).startswith(f"{file} is a pointer of Git LFS")
    file.unlink()
    assert f"{file.parent} has no .safetensors files" in message_of(kind, folder)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    save_file({"b": torch.zeros(1)}, file.parent / "model-00002-of-00002.safetensors")
    (file.parent / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names model-00001-of-00002.safetensors, which is missing" in message_of(kind, folder)
    if kind in PARTS:
        shutil.rmtree(file.parent)
        assert f"has no folder {PARTS[kind]}, which its model_index.json names" in message_of(kind, folder)


def test_code_of_a_model_is_never_run(kind, folder, tmp_path, monkeypatch):
    """A prompt on the terminal would read from standard input, which fails in a test."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    evil = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n"
    settings = json.loads((folder / SETTINGS.get(kind, "config.json")).read_text())
    if kind in SETTINGS:
        (folder / "unet" / "evil.py").write_text(evil)
        settings["unet"] = ["evil", "Evil"]
    else:
        (folder / "evil.py").write_text(evil)
        settings |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (folder / SETTINGS.get(kind, "config.json")).write_text(json.dumps(settings))
    message = message_of(kind, folder)
    if kind != "speech":
        assert "the folder holds code of its own, which is not run; " in message
    with pytest.raises(InputError):
        loaded(kind, str(folder))
    if kind in SETTINGS:
        (folder / "unet" / "evil.py").rename(folder / "evil.py")
        settings |= {"_class_name": ["evil", "Evil"], "unet": ["diffusers", "UNet2DConditionModel"]}
        (folder / "model_index.json").write_text(json.dumps(settings))
        assert "code of its own" in message_of(kind, folder)
    assert not (tmp_path / "ran").exists()


def test_own_tokenizer_code_is_never_run(tiny_chat_model, tmp_path):
    folder = shutil.copytree(tiny_chat_model, tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "the folder holds code of its own, which is not run" in message_of("text", folder)
    assert not (tmp_path / "ran").exists()


def loaded(kind, model):
    """Returns what a model makes of a seed."""
    if kind == "text":
        return LocalChat(model, "cpu", 1.0, 5, "generator").ask("a", 0)
    makers = {
        "image": lambda: StableDiffusion(model, steps=2),
        "sound": lambda: Sound(model, steps=2, seconds=0.1),
        "speech": lambda: Speech(model),
    }
    (sample,) = makers[kind]().generate([Prompt("a", "a", 2.0, 3)])
    return np.asarray(sample.content if kind == "image" else sample.content.samples)


@pytest.mark.slow
def test_weights_of_a_variant_are_loaded(kind, folder):
    plain = loaded(kind, str(folder))
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    CHECKS[kind](str(folder))
    variant = loaded(kind, "~/model")
    assert plain == variant if kind == "text" else np.array_equal(plain, variant)


def test_weights_variant_is_read_from_the_names():
    unet, vae = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"
    assert weights_variant([f"{unet}.safetensors", f"{vae}.fp16.safetensors", f"{vae}.safetensors"]) is None
    assert weights_variant([f"{unet}.fp16.safetensors", f"{vae}.safetensors"]) == "fp16"
    assert weights_variant([f"{unet}.{v}.safetensors" for v in ("bf16", "fp16", "ema")]) == "fp16"
    assert weights_variant([f"{unet}.non_ema.safetensors", f"{vae}.non_ema.safetensors"]) == "non_ema"
    assert weights_variant(["model.fp16-00001-of-00002.safetensors", "config.json"]) == "fp16"
    assert weights_variant(["model-00001-of-00002.fp16.safetensors"]) == "fp16"
    assert weights_variant(["model-00001-of-00002.safetensors", "sd.fp16.safetensors"]) is None
    assert weights_variant([]) is None


def test_variants_that_differ_between_parts_are_rejected(tiny_stable_diffusion, tmp_path):
    folder = shutil.copytree(tiny_stable_diffusion, tmp_path / "model")
    for part, variant in (("unet", "fp16"), ("vae", "bf16")):
        file = weights_of("", folder / part)
        file.rename(file.with_suffix(f".{variant}.safetensors"))
    with pytest.raises(InputError, match=r"^generator\.model: .* different variants \(bf16, fp16\); copy "):
        check_weights(str(folder))


def test_vocoder_is_named_by_its_field(tiny_speecht5, tmp_path):
    vocoder = shutil.copytree(tiny_speecht5 / "vocoder", tmp_path / "vocoder")
    file = next(vocoder.glob("*.safetensors"))
    file.write_bytes(b"x" * 20)
    with pytest.raises(InputError, match=r"^generator\.vocoder: .*safetensors is damaged \("):
        speech.check_speech_model(str(tiny_speecht5 / "model"), str(vocoder), None)
    (vocoder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"^generator\.vocoder: .*config\.json is damaged \("):
        speech.check_speech_model(str(tiny_speecht5 / "model"), str(vocoder), None)


def test_classifier_check_names_damaged_settings(tiny_stable_diffusion, tmp_path):
    folder = shutil.copytree(tiny_stable_diffusion, tmp_path / "model")
    (folder / "model_index.json").write_text("{")
    with pytest.raises(InputError, match=r"^generator\.model: .*model_index\.json is damaged \("):
        classify.check_classifier(str(folder))
