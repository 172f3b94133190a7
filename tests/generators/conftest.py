"""Generative models in small: of the very classes of the full ones, with random weights."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile


@pytest.fixture
def recordings():
    """Writes ten tones of a second for each label, as a folder of files for each class."""

    def write(folder: Path, labels: list[str]) -> Path:
        seconds = np.arange(16_000) / 16_000
        for row in range(10 * len(labels)):
            file = folder / labels[row % len(labels)] / f"{row}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, 0.5 * np.sin(2 * np.pi * (200 + 50 * row) * seconds), 16_000)
        return folder

    return write


@pytest.fixture
def audio_config(tmp_path, monkeypatch, recordings):
    """Builds the config of a run on 20 recordings of two labels, with sections of the caller's."""
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))

    def build(labels: list[str], **sections: Any) -> dict[str, Any]:
        path = recordings(tmp_path / "private", labels)
        partition = {"clients": 2, "kind": "iid"}
        return {
            "name": "audio",
            "seeds": [0],
            "data": {"name": "sounds", "path": str(path), "seconds": 1.0, "partition": partition},
            "model": "fedaudio",
            "federate": {"clients_per_round": 2},
            "methods": {"a": {"algorithm": "fedavg"}},
            **sections,
        }

    return build


def _wordpieces(folder: Path) -> tuple[str, str, dict[str, int]]:
    """Writes the vocabulary of a byte-pair tokenizer that knows the small letters alone."""
    letters = string.ascii_lowercase
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return str(folder / "vocab.json"), str(folder / "merges.txt"), vocabulary


def _clip(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A tokenizer and the settings of a text encoder that it fits."""
    from transformers import CLIPTokenizer

    vocab, merges, vocabulary = _wordpieces(folder)
    end = vocabulary["<|endoftext|>"]
    return CLIPTokenizer(vocab, merges, model_max_length=77), {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 32,
        "projection_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _t5(folder: Path, words: int = 40) -> tuple[Any, Any]:
    """A tokenizer of letters and T5's encoder."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [*vocabulary, *((letter, -3.0) for letter in string.ascii_lowercase)]
    tokenizer = T5Tokenizer(vocab=letters, extra_ids=0, model_max_length=512)
    encoder = T5EncoderModel(
        T5Config(vocab_size=words, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    return tokenizer, encoder


def _vae(**other: Any) -> Any:
    from diffusers import AutoencoderKL

    settings = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return AutoencoderKL(**settings | other)


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionXLPipeline folder."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("tiny-sdxl")
    tokenizer, text = _clip(folder)
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
    )
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusion3Pipeline folder, with all three text encoders."""
    import torch
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("tiny-sd3")
    tokenizer, text = _clip(folder)
    torch.manual_seed(2)
    t5_tokenizer, t5 = _t5(folder)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(CLIPTextConfig(**text)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text)),
        text_encoder_3=t5,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=t5_tokenizer,
    )
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


def _hifigan(mels: int, **other: Any) -> Any:
    """A vocoder of 16 kHz, twenty samples for each frame."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    settings = {
        "model_in_dim": mels,
        "sampling_rate": 16_000,
        "upsample_initial_channel": 8,
        "upsample_rates": [5, 4],
        "upsample_kernel_sizes": [9, 8],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
        "initializer_range": 0.3,  # with the usual one, nothing would be heard
    }
    return SpeechT5HifiGan(SpeechT5HifiGanConfig(**settings | other))


def _roberta(folder: Path) -> Any:
    from transformers import RobertaTokenizer

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *string.ascii_lowercase]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return RobertaTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=20, add_prefix_space=True
    )


CLAP_TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "projection_dim": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="session")
def tiny_audioldm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AudioLDMPipeline folder."""
    import torch
    from diffusers import AudioLDMPipeline, DDIMScheduler, UNet2DConditionModel
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    folder = tmp_path_factory.mktemp("tiny-audioldm")
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(8, 16),
        attention_head_dim=4,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True,
    )
    pipeline = AudioLDMPipeline(
        vae=_vae(in_channels=1, out_channels=1),
        text_encoder=ClapTextModelWithProjection(ClapTextConfig(**CLAP_TEXT)),
        tokenizer=_roberta(folder),
        unet=unet,
        scheduler=DDIMScheduler(),
        vocoder=_hifigan(8),
    )
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_audioldm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AudioLDM2Pipeline folder."""
    import torch
    from diffusers import (
        AudioLDM2Pipeline,
        AudioLDM2ProjectionModel,
        AudioLDM2UNet2DConditionModel,
        DDIMScheduler,
    )
    from transformers import (
        ClapAudioConfig,
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        ClapTextConfig,
        GPT2Config,
        GPT2LMHeadModel,
    )

    folder = tmp_path_factory.mktemp("tiny-audioldm2")
    torch.manual_seed(4)
    t5_tokenizer, t5 = _t5(folder)
    unet = AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=([None, 16, 16], [None, 16, 16]),
        attention_head_dim=4,
    )
    audio = ClapAudioConfig(
        spec_size=64,
        window_size=4,
        num_mel_bins=64,
        patch_embeds_hidden_size=16,
        projection_dim=16,
        depths=[1, 1],
        num_attention_heads=[1, 1],
        num_hidden_layers=1,
        hidden_size=32,
        patch_size=4,
        patch_stride=4,
    )
    text = ClapTextConfig(**CLAP_TEXT)
    pipeline = AudioLDM2Pipeline(
        vae=_vae(in_channels=1, out_channels=1),
        text_encoder=ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16)),
        text_encoder_2=t5,
        projection_model=AudioLDM2ProjectionModel(16, 16, 16),
        language_model=GPT2LMHeadModel(
            GPT2Config(
                n_embd=16,
                n_layer=1,
                n_head=2,
                vocab_size=99,
                n_positions=99,
                bos_token_id=0,
                eos_token_id=0,
                max_new_tokens=8,
            )
        ),
        tokenizer=_roberta(folder),
        tokenizer_2=t5_tokenizer,
        feature_extractor=ClapFeatureExtractor(feature_size=64, hop_length=480),
        unet=unet,
        scheduler=DDIMScheduler(),
        vocoder=_hifigan(8),
    )
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_speecht5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SpeechT5 in ``model`` and HiFi-GAN in ``vocoder``."""
    import sentencepiece
    import torch
    from transformers import SpeechT5Config, SpeechT5ForTextToSpeech, SpeechT5Tokenizer

    folder = tmp_path_factory.mktemp("tiny-speecht5")
    with (folder / "spm_char.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([string.ascii_lowercase, " ".join(string.ascii_lowercase)]),
            model_writer=file,
            vocab_size=31,
            model_type="char",
            pad_id=1,
            bos_id=0,
            eos_id=2,
            unk_id=3,
            minloglevel=2,
        )
    torch.manual_seed(5)
    model = SpeechT5ForTextToSpeech(
        SpeechT5Config(
            vocab_size=40,
            hidden_size=16,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=32,
            num_mel_bins=8,
            speech_decoder_prenet_units=16,
            speech_decoder_postnet_units=16,
            speaker_embedding_dim=6,
            conv_dim=(8,),
            conv_stride=(2,),
            conv_kernel=(2,),
        )
    )
    torch.nn.init.constant_(model.speech_decoder_postnet.prob_out.bias, -3.0)  # it goes on to the end
    model.save_pretrained(folder / "model")
    SpeechT5Tokenizer(str(folder / "spm_char.model")).save_pretrained(folder / "model")
    _hifigan(8).save_pretrained(folder / "vocoder")
    return folder


@pytest.fixture(scope="session")
def tiny_vits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VitsModel folder, of 22,050 Hz."""
    import torch
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    folder = tmp_path_factory.mktemp("tiny-vits")
    (folder / "vocab.json").write_text(
        json.dumps({letter: number for number, letter in enumerate(["_", " ", *string.ascii_lowercase])})
    )
    torch.manual_seed(6)
    model = VitsModel(
        VitsConfig(
            vocab_size=28,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=32,
            flow_size=16,
            spectrogram_bins=9,
            duration_predictor_filter_channels=16,
            duration_predictor_num_flows=2,
            depth_separable_num_layers=2,
            prior_encoder_num_flows=2,
            prior_encoder_num_wavenet_layers=2,
            posterior_encoder_num_wavenet_layers=2,
            upsample_initial_channel=16,
            upsample_rates=[8, 8],
            upsample_kernel_sizes=[16, 16],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            sampling_rate=22_050,
        )
    )
    model.save_pretrained(folder / "model")
    VitsTokenizer(str(folder / "vocab.json"), pad_token="_", phonemize=False).save_pretrained(
        folder / "model"
    )
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_pixart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PixArtAlphaPipeline folder: a text-to-image model that is no Stable Diffusion."""
    import torch
    from diffusers import DDIMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    folder = tmp_path_factory.mktemp("tiny-pixart")
    torch.manual_seed(7)
    tokenizer, t5 = _t5(folder)
    transformer = PixArtTransformer2DModel(
        sample_size=32,  # the least that its pipeline knows; it draws 256×256 pixels, and shrinks them
        num_layers=1,
        patch_size=8,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
    )
    pipeline = PixArtAlphaPipeline(
        tokenizer=tokenizer, text_encoder=t5, vae=_vae(), transformer=transformer, scheduler=DDIMScheduler()
    )
    pipeline.save_pretrained(folder / "model")
    return folder / "model"
