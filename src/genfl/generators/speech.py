"""Speech from a text-to-speech model of transformers: SpeechT5 with a vocoder and speakers, or any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfl import hub
from genfl.data.folders import first_line
from genfl.data.samples import Prompt, Sample
from genfl.errors import InputError
from genfl.generators import pretrained
from genfl.generators.base import Generator
from genfl.rng import Key

SPEECHT5, VITS = "speecht5", "vits"
VOCODER = "microsoft/speecht5_hifigan"


class Speech(Generator):
    """Speaks prompts, each in a voice drawn from its seed: an x-vector of SpeechT5, a speaker of VITS.

    A clip depends on its prompt alone, and is made alone: models draw from torch's global stream (SpeechT5 in
    the dropout of its decoder, which is never switched off; VITS for its noise), which is set to the prompt's
    seed meanwhile, and left as it was.

    Source: Ao et al., ACL 2022 (arXiv 2110.07205); VITS: Kim et al., ICML 2021 (arXiv 2106.06103).

    Args:
        model: A folder that ``save_pretrained`` wrote, or a Hugging Face model id, of a text-to-speech model.
        vocoder: Of SpeechT5, what turns its spectrograms into sound: HiFi-GAN, by folder or id.
        speakers: Of SpeechT5, a file or folder of x-vectors, see `x_vectors`.
        device: A torch device.

    Raises:
        InputError: transformers is not installed, there are no such models, or the speakers do not fit.
    """

    def __init__(
        self, model: str, vocoder: str = VOCODER, speakers: str | None = None, device: str = "cpu"
    ) -> None:
        self.speakers = check(model, vocoder, speakers)
        from transformers import SpeechT5HifiGan, pipeline

        parts = {}
        if self.speakers is not None:
            parts["vocoder"] = hub.load_model(SpeechT5HifiGan.from_pretrained, vocoder, "vocoder", device)
        self.pipeline: Any = hub.load_model(
            lambda name, **options: pipeline(
                "text-to-audio", model=name, model_kwargs=options, device=device, **parts
            ),
            model,
        )
        self.id = hub.model_name(model)
        self.device = device

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Speaks each prompt, as a clip of 16 kHz; see `genfl.generators.base.Generator`.

        Raises:
            InputError: One does not fit into memory.
        """
        for prompt in prompts:
            with (
                torch.random.fork_rng(devices=range(torch.cuda.device_count())),
                pretrained.in_memory(1, self.device),
            ):
                torch.manual_seed(prompt.seed)
                said = self.pipeline(prompt.text, forward_params=self._voice(prompt))
            yield Sample(prompt, pretrained.clip(said["audio"], said["sampling_rate"]))

    def _voice(self, prompt: Prompt) -> dict[str, Any]:
        rng = Key(prompt.seed).fold("speaker").numpy()
        if self.speakers is not None:
            return {"speaker_embeddings": self.speakers[rng.integers(len(self.speakers))][None]}
        config = self.pipeline.model.config
        if config.model_type == VITS and config.num_speakers > 1:
            return {"speaker_id": int(rng.integers(config.num_speakers))}
        return {}


def check(model: str, vocoder: str, speakers: str | None) -> Tensor | None:
    """Refuses what cannot speak, without loading models.

    Returns:
        The speakers of SpeechT5 [n, width]; None for other models.

    Raises:
        InputError: transformers is not installed, there is no such model, it speaks no texts, or its vocoder
            or speakers are missing or do not fit.
    """
    hub.require_libraries("speech")
    config = hub.read_settings(model, hub.CONFIG_FILE)
    hub.hush()
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind not in (SPEECHT5, *MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES):
        raise InputError(
            f"generator.model: {model} is a model of type {kind!r}, which does not speak; take SpeechT5, VITS"
            " (MMS) or another text-to-speech model of transformers"
        )
    hub.check_weights(model)
    if kind != SPEECHT5:
        if speakers is not None:
            raise InputError(
                f"generator.speakers: {model} takes no x-vectors, as SpeechT5 does; leave it out"
            )
        return None
    made = hub.read_settings(vocoder, hub.CONFIG_FILE, "vocoder").get("architectures") or []
    if "SpeechT5HifiGan" not in made:
        raise InputError(
            f"generator.vocoder: {vocoder} is no SpeechT5HifiGan, which SpeechT5 needs; take {VOCODER}"
        )
    hub.check_weights(vocoder, "vocoder")
    if speakers is None:
        raise InputError(
            "generator.speakers: SpeechT5 needs a file or folder of x-vectors, such as a copy of the data set"
            " Matthijs/cmu-arctic-xvectors"
        )
    vectors, width = x_vectors(speakers), config.get("speaker_embedding_dim", 512)
    if vectors.shape[1] != width:
        raise InputError(
            f"generator.speakers: x-vectors of {vectors.shape[1]} numbers in {speakers}, but {model} takes"
            f" {width}"
        )
    return vectors


def check_labels(model: str, labels: Sequence[str]) -> None:
    """Refuses labels that SpeechT5 or VITS cannot say, without loading them.

    Raises:
        InputError: Of a label some letters are not known, or those that are known leave nothing to say.
    """
    from transformers import AutoTokenizer

    if hub.read_settings(model, hub.CONFIG_FILE)["model_type"] not in (SPEECHT5, VITS):
        return
    tokenizer = hub.load_model(lambda name, **_: AutoTokenizer.from_pretrained(name), model)
    for label in labels:
        try:
            said, nothing = tokenizer(label).input_ids, tokenizer("").input_ids
        except ImportError as error:  # some voices are told phonemes
            raise InputError(f"generator.model: {model}: {first_line(error)}") from error
        if said == nothing or tokenizer.unk_token_id in said:
            raise InputError(
                f"generator.model: {model} has no sound for the label {label!r}; rename it, or take another"
                " model"
            )


def x_vectors(place: str) -> Tensor:
    """Reads speakers' embeddings.

    Args:
        place: A file, or a folder of files: ``.npy`` (one vector, or one in each row), ``.safetensors`` (the
            same in each tensor), ``.parquet`` (in the column ``xvector``, or the first one of lists).

    Returns:
        [n, width], float32, in the order of the files' names.

    Raises:
        InputError: There are none, one cannot be read, or they differ in width.
    """
    path = Path(place).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in files if file.is_file() and file.suffix in _READERS]
    if not files:
        raise InputError(
            f"generator.speakers: {place} is no file or folder of x-vectors (.npy, .safetensors, .parquet)"
        )
    parts = []
    for file in files:
        try:
            parts += [np.atleast_2d(np.asarray(part, np.float32)) for part in _READERS[file.suffix](file)]
        except Exception as error:  # each format's library raises its own
            reason = first_line(error)
            raise InputError(f"generator.speakers: {file} could not be read: {reason}") from error
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) != 1:
        raise InputError(f"generator.speakers: {place} holds x-vectors of different widths: {widths}")
    return torch.from_numpy(np.concatenate(parts))


def _of_numpy(file: Path) -> list[Any]:
    return [np.load(file, allow_pickle=False)]


def _of_safetensors(file: Path) -> list[Any]:
    from safetensors.numpy import load_file

    return [vectors for _, vectors in sorted(load_file(file).items())]


def _of_parquet(file: Path) -> list[Any]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    kinds = pyarrow.ListType, pyarrow.LargeListType, pyarrow.FixedSizeListType
    lists = [field.name for field in table.schema if isinstance(field.type, kinds)]
    name = "xvector" if "xvector" in lists else lists[0]
    return [table[name].to_pylist()]


_READERS = {".npy": _of_numpy, ".safetensors": _of_safetensors, ".parquet": _of_parquet}


def fingerprint(model: str, vocoder: str, speakers: str | None) -> list[str]:
    """Returns what changes when local files change; see `genfl.hub.fingerprint`."""
    return [hub.fingerprint(place) for place in (model, vocoder, speakers) if place]
