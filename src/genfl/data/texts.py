"""The form of texts: token ids, from hashed words or from a tokenizer of one's own."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from genfl.data.folders import first_line
from genfl.data.media import Modality
from genfl.errors import InputError
from genfl.storage import digest, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HASHED = "hashed"
"""The tokenizer that knows no words."""

GENERATED = "generated"
"""What stands for the tokenizer that a run makes of the texts it generates."""

BUCKETS = 9_999
"""What `hashed` sorts words into. With padding they are the LSTM's 10,000 tokens."""

UNKNOWN = "[UNK]"
"""The token of the words that a vocabulary made here does not have."""

_WORD = re.compile(r"\w+|[^\w\s]")
_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Tokens:
    """Texts as int32 token ids [length], given to models as floats: exact up to 2²⁴, and models round back.

    0 is padding, at the end; a tokenizer's own ids count from 1. A longer text is cut. No marks of beginning
    or end are added.

    Attributes:
        length: Tokens of a text.
        tokenizer: ``hashed``, or what `tokenizer` reads.
    """

    modality: ClassVar[Modality] = "text"
    options: ClassVar[tuple[str, ...]] = ("length", "tokenizer")

    length: int
    tokenizer: str = HASHED

    def missing(self) -> str | None:
        """Returns None: every option has a default."""
        return None

    def shape(self) -> tuple[int]:
        """Returns the length."""
        return (self.length,)

    def dtype(self) -> np.dtype[Any]:
        """Returns int32."""
        return np.dtype(np.int32)

    def identity(self) -> list[Any]:
        """Returns the length, and what decides a text's tokens: of a tokenizer its content, not its place."""
        if self.tokenizer == HASHED:
            return [self.length, HASHED, BUCKETS]
        return [self.length, digest(tokenizer(self.tokenizer).to_str())]

    def vocabulary(self) -> int:
        """Returns the number of tokens there can be, padding included."""
        if self.tokenizer == HASHED:
            return 1 + BUCKETS
        return 2 + max(tokenizer(self.tokenizer).get_vocab().values())  # ids may have gaps

    def encode(self, content: str) -> np.ndarray:
        """Returns a text's tokens; all are padding where a tokenizer finds none in it.

        Raises:
            InputError: The tokenizer has no token for what it does not know.
        """
        x = np.zeros(self.length, np.int32)
        ids = hashed(content, self.length) if self.tokenizer == HASHED else self._ids(content)
        x[: len(ids)] = 1 + np.array(ids, np.int32)
        return x

    def prepare(self, x: Tensor) -> Tensor:
        """Returns the ids as floats, which is what everything outside models works with."""
        return x.to(torch.get_default_dtype())

    def _ids(self, text: str) -> list[int]:
        try:
            return tokenizer(self.tokenizer).encode(text, add_special_tokens=False).ids[: self.length]
        except InputError:
            raise
        except Exception as error:  # the library raises nothing more special
            raise InputError(
                f"data.tokenizer: {self.tokenizer} cannot read a text ({first_line(error)}); give one with a"
                f" token for what is unknown, or {HASHED}"
            ) from error


def hashed(text: str, length: int) -> list[int]:
    """Returns the buckets, in [0, `BUCKETS`), of a text's first words and punctuation marks.

    A word's bucket is a hash of its lower-case letters, the same everywhere and always. It takes no
    vocabulary, so that nothing has to be learnt of private texts, or known about them, to read them. Words
    that share a bucket are one to a model.

    Source: the hashing trick, Weinberger et al., ICML 2009 (arXiv 0902.2206), without its signs.

    Args:
        text: The text.
        length: How many at most.
    """
    words = _WORD.finditer(unicodedata.normalize("NFC", text).lower())
    return [_bucket(word.group()) for word in itertools.islice(words, length)]


@lru_cache(maxsize=2**16)
def _bucket(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % BUCKETS


def require(name: str) -> None:
    """Sees that the library is there that a tokenizer of this name needs.

    Raises:
        InputError: It is not installed.
    """
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"data.tokenizer: {name!r} needs tokenizers: pip install 'genfl[text]', or use {HASHED}"
        ) from error


@lru_cache(maxsize=4)
def tokenizer(name: str) -> Tokenizer:
    """Returns a tokenizer of the `tokenizers` library.

    Args:
        name: A tokenizer.json, a folder with one, or the Hugging Face id of a model with one.

    Raises:
        InputError: There is none, it cannot be read, or the library is not installed.
    """
    require(name)
    from tokenizers import Tokenizer

    path = _locate(name)
    try:
        found = Tokenizer.from_file(str(path))
        if not found.get_vocab():
            raise ValueError("it knows no tokens")
    except Exception as error:  # the library raises nothing more special
        raise InputError(
            f"data.tokenizer: {path} cannot be read as a tokenizer ({first_line(error)});"
            f" give another, or {HASHED}"
        ) from error
    found.no_truncation()
    found.no_padding()
    return found


def _locate(name: str) -> Path:
    path = Path(name).expanduser()
    file = path / _FILE if path.is_dir() else path
    if file.is_file():
        return file
    if path.is_dir() or path.suffix == ".json" or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise InputError(f"data.tokenizer: there is no file {file}; give another, or {HASHED}")
    if close := difflib.get_close_matches(name, (HASHED, GENERATED), n=1, cutoff=0.7):
        raise InputError(f"data.tokenizer: there is no file {name!r}; did you mean {close[0]!r}?")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, _FILE))
    except Exception as error:  # of the Hub's client, and of any library below it
        raise InputError(
            f"data.tokenizer: {name} is no file here, and {_FILE} cannot be had from the Hugging Face Hub now"
            f" ({first_line(error)}); give a file, or {HASHED}"
        ) from error


def vocabulary(texts: Iterable[str], size: int, path: Path) -> None:
    """Learns a tokenizer's vocabulary from texts and writes it, for ``data.tokenizer`` to name.

    Give it generated or public texts only: every client gets the file, and the words in it are words of the
    texts. Words are lower-cased and split off punctuation; those that are not among the most frequent are all
    one token, `UNKNOWN`.

    Args:
        texts: What to learn from.
        size: The most words it may have, `UNKNOWN` included.
        path: The tokenizer.json to write.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=[UNKNOWN], show_progress=False)
    made.train_from_iterator(texts, trainer)
    write_text(path, made.to_str(pretty=True))
