"""Generation from Python: a generator, labels and a folder become a labelled synthetic data set."""

from __future__ import annotations

import numbers
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import filelock
import numpy as np
import torch
from torch import Tensor

from genfl import config as configs
from genfl import hub
from genfl import progress as bars
from genfl.config.names import ESPEAK, GENERATOR_KINDS
from genfl.data import quality
from genfl.data.formats import image_pixels
from genfl.data.media import Modality
from genfl.data.sounds import HOP, MELS, RATE, LogMelFormat
from genfl.data.synthetic import DATA, EMPTY, SyntheticData
from genfl.data.texts import TokenFormat
from genfl.errors import InputError, suggest
from genfl.generators.missing import generate_missing
from genfl.generators.registry import GENERATORS, GeneratorEntry, Purpose
from genfl.model_folders import CONFIG_FILE, PIPELINE_FILE, local_folder
from genfl.options import whole_number
from genfl.prompts.plan import PromptSource, plan_prompts
from genfl.prompts.templates import LABEL, Style, Templates
from genfl.rng import Key
from genfl.storage import digest, locked, read_json, refuse_links, write_json

REQUEST = "request.json"
"""The file in the folder of generated samples that says how they were asked for."""

_LOCK = ".lock"
"""The file that a process locks while it generates into a folder."""

STYLES = ("label", "single", "multiple")
"""The styles of prompts that need nothing but the labels."""

Encode = Callable[[Any], Any]
"""Turns a sample's content (a PIL image, a `genfl.data.media.Clip`, a text) into an input."""


class GeneratedSamples:
    """A labelled synthetic data set in a folder, which ``datasets.load_dataset`` opens, too.

    `genfl.generate` makes one. ``len(samples)`` is the number of samples.

    Attributes:
        folder: The folder.
        label_names: The names of the classes, in order.
        modality: image, audio or text.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._data = SyntheticData.open(self.folder)
        self.label_names = list(self._data.label_names)
        self.modality: Modality = self._data.modality

    def __len__(self) -> int:
        return sum(shard.rows for shard in self._data.finished().values())

    def __repr__(self) -> str:
        kept = f"{len(self)} samples of {len(self.label_names)} classes"
        return f"GeneratedSamples({kept}, {self.modality}, in {str(self.folder)!r})"

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        """Yield the content and the label of each sample."""
        yield from zip(*self._data.read(self._data.medium.read), strict=True)

    def arrays(
        self,
        shape: Sequence[int] | None = None,
        labels: Sequence[str] | None = None,
        *,
        encode: Encode | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return inputs [m, ...] and class indices [m], as models and `FederatedDataset` take them.

        Args:
            shape: The shape of one input. Images: channels (1 or 3), height and width; pixels are floats in
                [0, 1]. Sounds: frames and 128 mels of a log-mel spectrogram, such as (101, 128) for one
                second. Texts: the number of hashed tokens. These are the formats of genfl's data sets.
            labels: The names of the classes in the order that numbers them; by default `label_names`.
            encode: Turns a sample's content into an input, in place of `shape`.

        Raises:
            InputError: Neither `shape` nor `encode` fits, or a sample's label is none of `labels`.
        """
        encode = encode or _encoder(self.modality, None if shape is None else tuple(shape))
        order = list(labels or self.label_names)
        read = self._data.medium.read
        inputs, names = self._data.read(lambda cell: torch.as_tensor(encode(read(cell))))
        if unknown := sorted(set(names) - set(order)):
            raise InputError(f"labels: {unknown[0]!r} is none of them; known: {', '.join(order[:10])}")
        return torch.stack(inputs), torch.tensor([order.index(name) for name in names])


def _encoder(modality: Modality, shape: tuple[int, ...] | None) -> Encode:
    """Return what turns a sample's content into an input, in the format of genfl's data sets.

    Raises:
        InputError: The format has no inputs of this shape.
    """
    if modality == "image" and shape is not None and len(shape) == 3:
        channels, height, width = shape
        return lambda image: image_pixels(image, (height, width), channels).astype(np.float32) / 255
    if modality == "audio" and shape is not None and len(shape) == 2 and shape[1] == MELS and shape[0] > 1:
        return LogMelFormat((shape[0] - 1) * HOP / RATE).encode
    if modality == "text" and shape is not None and len(shape) == 1:
        return TokenFormat(shape[0]).encode
    raise InputError(
        f"shape: {shape} does not say how {modality} samples become inputs; give encode, or (channels,"
        f" height, width) of images, (frames, {MELS}) of sounds or (tokens,) of texts"
    )


def generate(
    model: str,
    *,
    labels: Sequence[str],
    per_label: int,
    out: str | Path,
    prompts: str | Sequence[str] | None = None,
    blanks: Mapping[str, Sequence[str]] | None = None,
    kind: str | None = None,
    modality: Modality | None = None,
    guidance_scale: float | Sequence[float] | None = None,
    block_size: int = 50,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> GeneratedSamples:
    """Generate labelled samples into a folder, or resume an interrupted generation.

    Finished blocks are kept. The same call resumes where the last one stopped, and ends with the same
    samples. Unusable samples (empty, silent, black) are left out.

    Example:
        >>> import tempfile, genfl
        >>> folder = tempfile.mkdtemp()
        >>> samples = genfl.generate("miniature", labels=["zero", "one"], per_label=2, out=folder, steps=2)
        >>> samples.label_names
        ['zero', 'one']

    Args:
        model: A folder or a Hugging Face id of a model, or ``miniature`` (embedded) or ``espeak``. For the
            kind files, a folder of samples. For a registered kind, the value of its option ``model`` or
            ``path``, or the kind's name.
        labels: The names of the classes.
        per_label: Samples of each class.
        out: The folder; made if absent.
        prompts: A style (``label``, ``single`` or ``multiple``), a template with ``{label}`` in it, or
            several, of which one is drawn for each sample. By default one sentence for the kind of sample.
        blanks: The words for each further blank of a template, as in ``{"look": ["red", "old"]}``.
        kind: The kind of generator, as in a config; by default found in the model's own files.
        modality: image, audio or text; needed for a kind that makes several, such as files.
        guidance_scale: One scale, or several of which one is drawn for each block; by default those of a
            config.
        block_size: Samples generated in one call of the model.
        seed: Decides prompts and samples.
        progress: Whether to show a progress bar.
        **options: Settings of the generator, as in a config: ``steps``, ``device``, ...

    Raises:
        InputError: An argument is wrong, the model cannot be loaded, the folder holds samples of another
            request, or no sample is usable.
    """
    names = [unicodedata.normalize("NFC", str(label)) for label in labels]
    if isinstance(labels, str) or not names or len(set(names)) < len(names) or not all(names):
        raise InputError(f"labels: {labels!r}; give a list of different names")
    per_label, block_size = whole_number("per_label", per_label), whole_number("block_size", block_size)
    seed = whole_number("seed", seed, 0)
    kind = kind or (model if model in GENERATORS.added() else kind_of_model(model))
    if kind not in GENERATORS:
        raise InputError(f"kind: there is no {kind!r}; {suggest(kind, list(GENERATORS))}")
    entry = GENERATORS[kind]
    modality = _modality(kind, entry, modality)
    settings = _settings(kind, model, options)
    scales = _scales(kind, guidance_scale)
    source = _source(prompts, blanks, kind, modality)
    purpose = Purpose(modality, names, {}, per_label, lambda content: content, None, Path(out) / "answers")
    entry.check(settings, purpose)
    request = {
        "kind": kind,
        "model": entry.fingerprint(settings, modality),
        "settings": settings,
        "labels": names,
        "per_label": per_label,
        "prompts": prompts if prompts is None or isinstance(prompts, str) else list(prompts),
        "blanks": {blank: list(words) for blank, words in (blanks or {}).items()},
        "guidance_scale": scales,
        "block_size": block_size,
        "seed": seed,
    }
    blocks = plan_prompts(names, per_label, source, scales, block_size, Key(seed).fold("prompts"))
    data = SyntheticData(Path(out), names, len(blocks), modality, digest(request))
    with _claim(Path(out), request):
        token = bars.enabled.set(progress)
        try:
            generate_missing(
                data,
                blocks,
                range(len(blocks)),
                lambda: entry.make(settings, purpose),
                prompted=entry.prompted,
            )
        finally:
            bars.enabled.reset(token)
        return _finished(data, entry, settings)


def kind_of_model(model: str) -> str:
    """Return the kind of generator that can load a model, found in the model's own files.

    Args:
        model: A folder or a Hugging Face id, or an embedded model.

    Raises:
        InputError: There is no such model, or its files do not say for certain.
    """
    if model == "miniature":
        return "image"
    if model == ESPEAK:
        return "speech"
    known = ", ".join(GENERATOR_KINDS)
    folder = local_folder(model)
    if folder and not any((folder / name).is_file() for name in (PIPELINE_FILE, CONFIG_FILE)):
        raise InputError(f"kind: the folder {model} holds no model's settings; give one of {known}")
    if folder and not (folder / PIPELINE_FILE).is_file():
        return _kind_of_transformers(model, hub.read_settings(model, CONFIG_FILE))
    try:
        name = str(hub.read_settings(model, PIPELINE_FILE)["_class_name"])
    except InputError as pipeline_error:
        try:
            content = hub.read_settings(model, CONFIG_FILE)
        except InputError:
            raise pipeline_error from None
        return _kind_of_transformers(model, content)
    if name.startswith("AudioLDM"):
        return "sound"
    if "Text2Video" in name or "Video" in name:
        raise InputError(f"kind: {model} is a {name}, which makes videos; take another model")
    if "Diffusion" in name or "Flux" in name or "PixArt" in name:
        return "image"
    raise InputError(f"kind: {model} is a {name}, which does not say what it makes; give one of {known}")


def _kind_of_transformers(model: str, content: Mapping[str, Any]) -> str:
    architectures = [str(name) for name in content.get("architectures") or ()]
    if any(name.endswith("ForCausalLM") for name in architectures):
        return "text"
    if any(name.endswith(("ForTextToSpeech", "VitsModel")) for name in architectures):
        return "speech"
    raise InputError(
        f"kind: {model} is a {', '.join(architectures) or 'model without architectures'}, which does not say"
        f" what it makes; give one of {', '.join(GENERATOR_KINDS)}"
    )


def _settings(kind: str, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a generator's settings, checked and with their defaults, as a config's section has them."""
    chosen = {name: _plain(value) for name, value in options.items()}
    section = configs.generator_section({"kind": kind, **_model_option(kind, model), **chosen})
    return section.model_dump(exclude={"kind"})


def _plain(value: Any) -> Any:
    """Return a setting as YAML would give it: tuples are lists, and NumPy's numbers are Python's."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def _model_option(kind: str, model: str) -> dict[str, str]:
    """Return the option that says what a kind of generator loads.

    Raises:
        InputError: The kind has no such option.
    """
    if kind in GENERATOR_KINDS:
        return {"path" if kind == "files" else "model": model}
    if model == kind:
        return {}
    known = GENERATORS[kind].options()
    for name in ("model", "path"):
        if name in known:
            return {name: model}
    raise InputError(f"model: {kind} has no option for {model!r}; give {kind!r} instead")


def _modality(kind: str, entry: GeneratorEntry, modality: Modality | None) -> Modality:
    known = list(entry.modalities)
    if modality is None and len(known) == 1:
        return known[0]
    if modality not in known:
        raise InputError(f"modality: {kind} makes {', '.join(known)}, and {modality} was asked for; give one")
    return modality


def _scales(kind: str, guidance_scale: float | Sequence[float] | None) -> list[float]:
    if guidance_scale is None:
        return list(configs.default_guidance(kind))
    asked: Any = guidance_scale
    scales = list(map(float, [asked] if isinstance(asked, numbers.Real) else asked))
    if not scales or not all(0 <= scale < float("inf") for scale in scales):
        raise InputError(f"guidance_scale: {guidance_scale!r}; give a number from 0, or several")
    return scales


class _Several:
    """Prompts drawn from several templates with equal probability."""

    def __init__(self, templates: Sequence[Templates]) -> None:
        self.templates = templates

    def draw(self, label: str, rng: np.random.Generator) -> str:
        """Draw a prompt for a label."""
        return self.templates[int(rng.integers(len(self.templates)))].draw(label, rng)


def _source(
    prompts: str | Sequence[str] | None,
    blanks: Mapping[str, Sequence[str]] | None,
    kind: str,
    modality: Modality,
) -> PromptSource:
    if prompts is None:
        prompts = "label" if kind == "speech" else "single"
    if isinstance(prompts, str) and f"{{{LABEL}}}" not in prompts:
        if prompts not in STYLES:
            raise InputError(
                f"prompts: {prompts!r} is no style ({', '.join(STYLES)}) and holds no {{label}}; put"
                " {label} where the class is to stand"
            )
        return Templates(cast(Style, prompts), blanks=blanks, modality=modality)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise InputError("prompts: the list is empty; give a template at least")
    return _Several([Templates("fill", text, blanks, modality) for text in texts])


@contextmanager
def _claim(folder: Path, request: dict[str, Any]) -> Iterator[None]:
    """Make a folder that of a request, and keep other processes out of it.

    Raises:
        InputError: It holds something else, or another process generates into it.
    """
    _check_folder(folder, request)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder, [_LOCK, DATA, EMPTY, "answers"])
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / _LOCK))
        except filelock.Timeout:
            raise InputError(
                f"out: another process generates into {folder}; wait, or choose another"
            ) from None
        _check_folder(folder, request)
        if not (folder / REQUEST).exists():
            write_json(folder / REQUEST, request)
        yield


def _check_folder(folder: Path, request: dict[str, Any]) -> None:
    """Check that a folder is that of a request, or empty.

    Raises:
        InputError: It holds something else.
    """
    file = folder / REQUEST
    if file.exists():
        changes = configs.differences(read_json(file), request)
        if changes:
            raise InputError(
                f"out: {folder} holds samples of another request ({changes[0]}); choose another folder, or"
                " delete it"
            )
    elif folder.exists() and (not folder.is_dir() or any(path.name != _LOCK for path in folder.iterdir())):
        raise InputError(f"out: {folder} is not empty and holds no generated samples; choose another folder")


def _finished(data: SyntheticData, entry: GeneratorEntry, settings: dict[str, Any]) -> GeneratedSamples:
    """Write the data card, and return the samples.

    Raises:
        InputError: A class has no usable sample.
    """
    survey = quality.survey(data)
    empty = [label for label, counts in survey.items() if not counts["samples"]]
    if empty:
        raise InputError(
            f"generate: no sample of {empty[0]!r} is usable ({data.removed().get(empty[0])}); change the"
            " prompts or the generator's settings"
        )
    facts = entry.described(settings)
    left_out = sum(sum(counts.values()) for counts in data.removed().values())
    data.write_card("Synthetic data", {**facts, "left out": left_out or "nothing"})
    return GeneratedSamples(data.folder)
