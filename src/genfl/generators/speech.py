"""Speech from a text-to-speech model of transformers: SpeechT5 with a vocoder and speakers, or any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfl import hub
from genfl.data.samples import Prompt, Sample
from genfl.errors import InputError, first_line
from genfl.generators import pretrained
from genfl.generators.base import Generator
from genfl.model_folders import CONFIG_FILE, check_weights, expanded, model_files
from genfl.rng import Key

SPEECHT5, VITS = "speecht5", "vits"
"""Model types as transformers names them."""

VOCODER = "microsoft/speecht5_hifigan"
"""The published vocoder of SpeechT5."""


class Speech(Generator):
    """A text-to-speech model that draws the voice of each prompt from the prompt's seed.

    The voice is an x-vector of SpeechT5, or a speaker of VITS.

    A clip depends on its prompt alone. Models draw from torch's global stream: SpeechT5 for the dropout of
    its decoder, which is never switched off, and VITS for its noise. So each clip is made alone, with the
    global stream set to the prompt's seed and restored afterwards.

    Source: Ao et al., ACL 2022 (arXiv 2110.07205); VITS: Kim et al., ICML 2021 (arXiv 2106.06103).

    Args:
        model: A folder that ``save_pretrained`` wrote, or a Hugging Face model id, of a text-to-speech model.
        vocoder: The HiFi-GAN that turns the spectrograms of SpeechT5 into sound, by folder or id.
        speakers: A file or folder of x-vectors for SpeechT5, see `x_vectors`.
        device: A torch device.

    Raises:
        InputError: transformers is not installed, a model does not exist, or the speakers do not fit.
    """

    def __init__(
        self, model: str, vocoder: str = VOCODER, speakers: str | None = None, device: str = "cpu"
    ) -> None:
        self.speakers = check_speech_model(model, vocoder, speakers)
        from transformers import SpeechT5HifiGan, pipeline

        parts = {}
        if self.speakers is not None:
            parts["vocoder"] = hub.load_model(
                SpeechT5HifiGan.from_pretrained, vocoder, "generator.vocoder", device
            )
        self.pipeline: Any = hub.load_model(
            lambda name, trust_remote_code, **options: pipeline(
                "text-to-audio",
                model=name,
                trust_remote_code=trust_remote_code,
                model_kwargs=options,
                device=device,
                **parts,
            ),
            model,
        )
        self.id = hub.model_name(model)
        self.device = device

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Speak each prompt as a clip of 16 kHz; see `genfl.generators.base.Generator`.

        Raises:
            InputError: A clip does not fit into memory.
        """
        for prompt in prompts:
            with (
                torch.random.fork_rng(devices=range(torch.cuda.device_count())),
                hub.explain_out_of_memory(1, self.device),
            ):
                torch.manual_seed(prompt.seed)
                speech = self.pipeline(prompt.text, forward_params=self._voice(prompt))
            yield Sample(prompt, pretrained.clip_of(speech["audio"], speech["sampling_rate"]))

    def _voice(self, prompt: Prompt) -> dict[str, Any]:
        rng = Key(prompt.seed).fold("speaker").numpy()
        if self.speakers is not None:
            return {"speaker_embeddings": self.speakers[rng.integers(len(self.speakers))][None]}
        config = self.pipeline.model.config
        if config.model_type == VITS and config.num_speakers > 1:
            return {"speaker_id": int(rng.integers(config.num_speakers))}
        return {}


def check_speech_model(model: str, vocoder: str, speakers: str | None) -> Tensor | None:
    """Check that a model speaks, and that its vocoder and speakers fit, without loading models.

    Args:
        model: A folder, or a Hugging Face model id.
        vocoder: The vocoder, if the model is SpeechT5.
        speakers: A file or folder of x-vectors; required for SpeechT5, and None for other models.

    Returns:
        The x-vectors of SpeechT5 [n, width]; None for other models.

    Raises:
        InputError: transformers is not installed, the model does not exist or does not speak, or its vocoder
            or speakers are missing or do not fit.
    """
    hub.require_libraries("speech")
    config = hub.read_settings(model, CONFIG_FILE)
    hub.silence_libraries()
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind not in (SPEECHT5, *MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES):
        raise InputError(
            f"generator.model: {model} is a model of type {kind!r}, which does not speak; use SpeechT5, VITS"
            " (MMS) or another text-to-speech model of transformers"
        )
    check_weights(model)
    if kind != SPEECHT5:
        if speakers is not None:
            raise InputError(
                f"generator.speakers: {model} takes no x-vectors, only SpeechT5 does; leave it out"
            )
        return None
    architectures = hub.read_settings(vocoder, CONFIG_FILE, "generator.vocoder").get("architectures") or []
    if "SpeechT5HifiGan" not in architectures:
        raise InputError(
            f"generator.vocoder: {vocoder} is not a SpeechT5HifiGan, which SpeechT5 needs; use {VOCODER}"
        )
    check_weights(vocoder, "generator.vocoder")
    if speakers is None:
        raise InputError(
            "generator.speakers: SpeechT5 needs a file or folder of x-vectors; give one, such as a copy of"
            " the data set Matthijs/cmu-arctic-xvectors"
        )
    vectors, width = x_vectors(speakers), config.get("speaker_embedding_dim", 512)
    if vectors.shape[1] != width:
        raise InputError(
            f"generator.speakers: the x-vectors in {speakers} have {vectors.shape[1]} numbers, but {model}"
            f" takes {width}; give x-vectors of that width"
        )
    return vectors


def check_speech_labels(model: str, labels: Sequence[str]) -> None:
    """Check that SpeechT5 or VITS can speak all labels, without loading the model.

    Args:
        model: A folder, or a Hugging Face model id; labels of other models are not checked.
        labels: The names of the classes.

    Raises:
        InputError: A label has letters that the model does not know, or nothing that it can speak.
    """
    from transformers import AutoTokenizer

    if hub.read_settings(model, CONFIG_FILE).get("model_type") not in (SPEECHT5, VITS):
        return
    tokenizer = hub.load_model(
        lambda name, trust_remote_code, **_: AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code
        ),
        model,
    )
    for label in labels:
        try:
            tokens, empty = tokenizer(label).input_ids, tokenizer("").input_ids
        except Exception as error:  # voices that read phonemes need another library, and files are damaged
            fix = "install the library" if isinstance(error, ImportError) else "copy the whole model"
            raise InputError(
                f"generator.model: {model} cannot read texts here ({first_line(error)}); {fix}, or use"
                " another model"
            ) from error
        if tokens == empty or tokenizer.unk_token_id in tokens:
            raise InputError(
                f"generator.model: {model} cannot speak the label {label!r}; rename it, or use another model"
            )


def x_vectors(path: str) -> Tensor:
    """Read the embeddings of speakers.

    Args:
        path: A file, or a folder of files: ``.npy`` (one vector, or one in each row), ``.safetensors`` (the
            same in each tensor), ``.parquet`` (in the column ``xvector``, or in the first column of lists).

    Returns:
        [n, width], float32, in the order of the names of the files.

    Raises:
        InputError: The files do not exist, cannot be read, or differ in width.
    """
    location = Path(expanded(path))
    files = model_files(location) if location.is_dir() else [location]
    files = [file for file in files if file.is_file() and file.suffix in _READERS]
    if not files:
        raise InputError(
            f"generator.speakers: {path} is not a file or folder of x-vectors; give .npy, .safetensors or"
            " .parquet files"
        )
    parts = []
    for file in files:
        try:
            parts += [np.atleast_2d(np.asarray(part, np.float32)) for part in _READERS[file.suffix](file)]
        except Exception as error:  # each format's library raises its own errors
            reason = first_line(error)
            raise InputError(
                f"generator.speakers: {file} could not be read ({reason}); give an undamaged file"
            ) from error
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) != 1:
        raise InputError(
            f"generator.speakers: {path} has x-vectors of different widths: {widths}; give vectors of one"
            " width"
        )
    return torch.from_numpy(np.concatenate(parts))


def _read_numpy(file: Path) -> list[Any]:
    return [np.load(file, allow_pickle=False)]


def _read_safetensors(file: Path) -> list[Any]:
    from safetensors.numpy import load_file

    return [vectors for _, vectors in sorted(load_file(file).items())]


def _read_parquet(file: Path) -> list[Any]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    kinds = pyarrow.ListType, pyarrow.LargeListType, pyarrow.FixedSizeListType
    lists = [field.name for field in table.schema if isinstance(field.type, kinds)]
    name = "xvector" if "xvector" in lists else lists[0]
    return [table[name].to_pylist()]


_READERS = {".npy": _read_numpy, ".safetensors": _read_safetensors, ".parquet": _read_parquet}


def speech_fingerprint(model: str, vocoder: str, speakers: str | None) -> list[str]:
    """Return digests that change when local files change; see `genfl.hub.fingerprint`."""
    return [hub.fingerprint(path) for path in (model, vocoder, speakers) if path]
