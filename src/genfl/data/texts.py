"""The input format of texts: token ids, from hashed words or from a tokenizer."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from genfl.data.media import Modality
from genfl.errors import InputError, first_line
from genfl.model_folders import expanded
from genfl.storage import digest, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HASHED_TOKENIZER = "hashed"
"""The name of the tokenizer without a vocabulary; see `hash_words`."""

GENERATED_TOKENIZER = "generated"
"""The name of the tokenizer that a run trains on the texts it generates."""

HASH_BUCKETS = 9_999
"""The number of buckets of `hash_words`. With padding, they are the LSTM's 10,000 tokens."""

UNKNOWN = "[UNK]"
"""The token of all words outside the vocabulary of a tokenizer that genfl trains."""

_WORD = re.compile(r"\w+|[^\w\s]")
_FILE = "tokenizer.json"


@dataclass(frozen=True)
class TokenFormat:
    """Texts as int32 token ids [length]; models get the ids as floats.

    Id 0 is padding, at the end; a tokenizer's own ids are shifted to start at 1. Longer texts are cut. No
    tokens for beginning or end are added. Floats are exact up to 2²⁴, and models round them back.

    A tokenizer is read once by each instance, on first use. So an instance keeps the same tokens if the file
    changes later, and a new instance reads the changed file.

    Attributes:
        length: The number of tokens of a text.
        tokenizer: ``hashed``, or a name that `load_tokenizer` takes.
    """

    modality: ClassVar[Modality] = "text"
    options: ClassVar[tuple[str, ...]] = ("length", "tokenizer")

    length: int
    tokenizer: str = HASHED_TOKENIZER

    def missing(self) -> str | None:
        """Return None: every option has a default."""
        return None

    def shape(self) -> tuple[int]:
        """Return the length."""
        return (self.length,)

    def dtype(self) -> np.dtype[Any]:
        """Return int32."""
        return np.dtype(np.int32)

    def identity(self) -> list[Any]:
        """Return the length, and the content of the tokenizer; its path does not matter."""
        if self.tokenizer == HASHED_TOKENIZER:
            return [self.length, HASHED_TOKENIZER, HASH_BUCKETS]
        return [self.length, digest(self._tokenizer.to_str())]

    def vocabulary(self) -> int:
        """Return the number of distinct tokens, padding included."""
        if self.tokenizer == HASHED_TOKENIZER:
            return 1 + HASH_BUCKETS
        return 2 + max(self._tokenizer.get_vocab().values())  # ids may have gaps

    def input_range(self) -> None:
        """Return None: gradients do not reach tokens."""
        return None

    def encode(self, content: str) -> np.ndarray:
        """Return the tokens of a text; all are padding if the tokenizer finds none.

        Raises:
            InputError: The tokenizer has no token for unknown words.
        """
        x = np.zeros(self.length, np.int32)
        ids = hash_words(content, self.length) if self.tokenizer == HASHED_TOKENIZER else self._ids(content)
        x[: len(ids)] = 1 + np.array(ids, np.int32)
        return x

    def tokenizer_json(self) -> str:
        """Return the tokenizer as the text of a tokenizer.json, as this instance read it."""
        content: str = self._tokenizer.to_str()
        return content

    def prepare(self, x: Tensor) -> Tensor:
        """Return the ids as floats, because all other code treats inputs as floats."""
        return x.to(torch.get_default_dtype())

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer)

    def _ids(self, text: str) -> list[int]:
        tokenizer = self._tokenizer
        try:
            return tokenizer.encode(text, add_special_tokens=False).ids[: self.length]
        except Exception as error:  # the library raises no narrower type
            raise InputError(
                f"data.tokenizer: {self.tokenizer} cannot read a text ({first_line(error)}); give one with a"
                f" token for unknown words, or {HASHED_TOKENIZER}"
            ) from error


def hash_words(text: str, length: int) -> list[int]:
    """Return the buckets, in [0, `HASH_BUCKETS`), of the first words and punctuation marks of a text.

    The bucket of a word is a hash of its lower-case letters, the same on every machine. There is no
    vocabulary, so nothing is learnt from private texts. A model cannot distinguish words that share a bucket.

    Source: the hashing trick, Weinberger et al., ICML 2009 (arXiv 0902.2206). Deviation from the paper:
    buckets have no signs.

    Args:
        text: The text.
        length: The maximum number of words and punctuation marks.
    """
    words = _WORD.finditer(unicodedata.normalize("NFC", text).lower())
    return [_bucket(word.group()) for word in itertools.islice(words, length)]


@lru_cache(maxsize=2**16)
def _bucket(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % HASH_BUCKETS


def require_tokenizers(name: str) -> None:
    """Check that the library tokenizers is installed.

    Args:
        name: The name of the tokenizer that needs it, for the message.

    Raises:
        InputError: The library is not installed.
    """
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"data.tokenizer: {name!r} needs tokenizers: pip install 'genfl[text]', or use {HASHED_TOKENIZER}"
        ) from error


def load_tokenizer(name: str) -> Tokenizer:
    """Read a tokenizer of the `tokenizers` library.

    Args:
        name: A tokenizer.json, a folder with one, or the Hugging Face id of a model with one.

    Raises:
        InputError: The tokenizer does not exist or cannot be read, or the library is not installed.
    """
    require_tokenizers(name)
    from tokenizers import Tokenizer

    path = _locate(name)
    try:
        tokenizer = Tokenizer.from_file(str(path))
        if not tokenizer.get_vocab():
            raise ValueError("it has no tokens")
    except Exception as error:  # the library raises no narrower type
        raise InputError(
            f"data.tokenizer: {path} cannot be read as a tokenizer ({first_line(error)});"
            f" give another tokenizer, or {HASHED_TOKENIZER}"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _locate(name: str) -> Path:
    path = Path(expanded(name))
    file = path / _FILE if path.is_dir() else path
    if file.is_file():
        return file
    if path.is_dir() or path.suffix == ".json" or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise InputError(
            f"data.tokenizer: there is no file {file}; give another tokenizer, or {HASHED_TOKENIZER}"
        )
    if close := difflib.get_close_matches(name, (HASHED_TOKENIZER, GENERATED_TOKENIZER), n=1, cutoff=0.7):
        raise InputError(f"data.tokenizer: there is no file {name!r}; did you mean {close[0]!r}?")
    from genfl.hub import download_file, hub_reason

    try:
        return download_file(name, _FILE)
    except Exception as error:  # the Hub's client and the libraries below it raise many types
        raise InputError(
            f"data.tokenizer: {name} is not a file, and its {_FILE} cannot be downloaded from the Hugging"
            f" Face Hub ({hub_reason(error)}); give a file, or {HASHED_TOKENIZER}"
        ) from error


def train_tokenizer(texts: Iterable[str], size: int, path: Path) -> None:
    """Train a word-level tokenizer on texts, and write it as a file for ``data.tokenizer``.

    Use generated or public texts only: every client gets the file, and it holds words of the texts. Words are
    lower-cased and separated from punctuation. All words but the most frequent share one token, `UNKNOWN`.
    The same texts give the same file.

    Args:
        texts: The texts to learn the words from.
        size: The maximum number of words, `UNKNOWN` included.
        path: The tokenizer.json to write.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=[UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    write_text(path, tokenizer.to_str(pretty=True))
