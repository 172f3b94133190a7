"""The stage vocabulary: build a tokenizer from the words of generated texts.

The clients tokenize their private texts with it. It contains no information about these texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genfl.config import Config, Data
from genfl.data.synthetic import SyntheticData
from genfl.data.texts import (
    GENERATED_TOKENIZER,
    HASH_BUCKETS,
    UNKNOWN,
    load_tokenizer,
    require_tokenizers,
    train_tokenizer,
)
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.experiment.folder import AUDIT, VOCABULARY
from genfl.stages import generate
from genfl.stages.audit import dropped_rows, unread
from genfl.stages.base import DataInputs, Stage, StageRun, Upstream
from genfl.storage import digest


@dataclass(frozen=True)
class VocabularyInputs:
    """The inputs of the vocabulary, besides the generated texts.

    Attributes:
        most_words: The largest number of words.
        data: The private data. The stage reports how many of its words are unknown.
    """

    most_words: int
    data: DataInputs


def _inputs(config: Config, context: RunContext) -> VocabularyInputs:
    return VocabularyInputs(_most_words(config), DataInputs.of(config, context))


def _run(inputs: VocabularyInputs, work: StageRun) -> dict[str, Any]:
    data = SyntheticData.open(work.upstream.folder(generate.STAGE.name))
    texts, _ = data.read(lambda cell: str(data.medium.read(cell)))
    dropped = {*dropped_rows(work.upstream)}
    texts = [text for row, text in enumerate(texts) if row not in dropped]
    name = digest([inputs.most_words, texts])[:16]  # another vocabulary gets another folder
    folder = work.folder / name
    train_tokenizer(texts, inputs.most_words, folder / "tokenizer.json")
    words = load_tokenizer(str(folder))
    section = inputs.data.section.model_copy(update={"tokenizer": str(folder)})
    test: Tensor = work.context.data_set(section).test.x
    unknown = test.eq(1 + words.get_vocab()[UNKNOWN]).sum() / test.ne(0).sum().clamp(min=1)
    return {"folder": name, "words": words.get_vocab_size(), "unknown": round(float(unknown), 4)}


def _most_words(config: Config) -> int:
    """Return the largest number of words that fit into all models, besides padding."""
    sizes = [
        model.options().get("vocabulary", 1 + HASH_BUCKETS) for model in (config.model, *config.client_models)
    ]
    return int(min(sizes)) - 1


def readable(data: Data, upstream: Upstream) -> Data:
    """Return the data section with the tokenizer of this stage, if the config asks for it.

    Later stages read the private data with this section.

    Args:
        data: The section of the config.
        upstream: The outputs that the calling stage may read.
    """
    if data.tokenizer != GENERATED_TOKENIZER:
        return data
    folder = upstream.folder(VOCABULARY) / upstream.result(VOCABULARY)["folder"]
    return data.model_copy(update={"tokenizer": str(folder)})


def _gives(inputs: VocabularyInputs, context: RunContext) -> Any:
    """Return what decides the tokenizer, besides the texts: the private data does not."""
    return inputs.most_words


def _check(inputs: VocabularyInputs, context: RunContext) -> None:
    require_tokenizers(GENERATED_TOKENIZER)
    if inputs.most_words < 2:
        raise InputError("model.vocabulary: too small for padding, unknown words and a word; raise it")


STAGE = Stage(
    VOCABULARY,
    VOCABULARY,
    1,
    (generate.STAGE.name, AUDIT),
    _inputs,
    _run,
    check=_check,
    wanted=lambda config: config.data.tokenizer == GENERATED_TOKENIZER,
    gives=_gives,
    unread=unread,
)
