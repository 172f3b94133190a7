"""vocabulary: the words of generated texts, by which clients read their own: it says nothing of theirs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from genfl.config import Config
from genfl.data.synthetic import SyntheticData
from genfl.data.texts import BUCKETS, GENERATED, UNKNOWN, require, tokenizer, vocabulary
from genfl.errors import InputError
from genfl.experiment.context import data_set
from genfl.experiment.folder import VOCABULARY, Run
from genfl.stages import generate
from genfl.stages.base import Stage
from genfl.storage import digest


def _run(run: Run) -> dict[str, Any]:
    data = SyntheticData.open(run.folder / generate.STAGE.folder)
    texts, _ = data.read(lambda cell: str(data.medium.read(cell)))
    most = words(run.config)
    place = digest([most, texts])[:16]  # other words are never found under a name that was read before
    folder = run.folder / VOCABULARY / place
    vocabulary(texts, most, folder / "tokenizer.json")
    made = tokenizer(str(folder))
    test: Tensor = data_set(run.config.data.model_copy(update={"tokenizer": str(folder)})).test.x
    unknown = test.eq(1 + made.get_vocab()[UNKNOWN]).sum() / test.ne(0).sum().clamp(min=1)
    return {"folder": place, "words": made.get_vocab_size(), "unknown": round(float(unknown), 4)}


def words(config: Config) -> int:
    """Returns how many words there may be: what models have room for, beside padding."""
    rooms = [
        model.options().get("vocabulary", 1 + BUCKETS) for model in (config.model, *config.client_models)
    ]
    return int(min(rooms)) - 1


def _check(config: Config) -> None:
    require(GENERATED)
    if words(config) < 2:
        raise InputError("model.vocabulary: no room for words beside padding and what is unknown; raise it")


def _inputs(config: Config) -> Any:
    return [words(config)]


STAGE = Stage(
    VOCABULARY,
    VOCABULARY,
    1,
    _inputs,
    (generate.STAGE.name,),
    _run,
    check=_check,
    wanted=lambda config: config.data.tokenizer == GENERATED,
)
