"""vocabulary: the words of generated texts, by which clients read their own: it says nothing of theirs."""

from __future__ import annotations

from typing import Any

from genfl.config import Config
from genfl.data.synthetic import SyntheticData
from genfl.data.texts import BUCKETS, GENERATED, require, tokenizer, vocabulary
from genfl.run import VOCABULARY, Run
from genfl.stages import generate
from genfl.stages.base import Stage
from genfl.storage import digest

WORDS = BUCKETS
"""The most words it may have: as many as `hashed` has buckets, so that models are of one form with either."""


def _run(run: Run) -> dict[str, Any]:
    data = SyntheticData.open(run.folder / generate.STAGE.folder)
    texts, _ = data.read(lambda cell: str(data.medium.read(cell)))
    place = digest(texts)[:16]  # other words are never found under a name that was read before
    path = run.folder / VOCABULARY / place / "tokenizer.json"
    vocabulary(texts, WORDS, path)
    return {"folder": place, "words": tokenizer(str(path)).get_vocab_size()}


def _inputs(config: Config) -> Any:
    return [WORDS]


STAGE = Stage(
    VOCABULARY,
    VOCABULARY,
    1,
    _inputs,
    (generate.STAGE.name,),
    _run,
    check=lambda config: require(GENERATED),
    wanted=lambda config: config.data.tokenizer == GENERATED,
)
