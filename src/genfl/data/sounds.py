"""The form of sounds: log-mel spectrograms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from genfl.data.media import Clip, Modality
from genfl.errors import InputError

RATE = 16_000
"""Samples a second that every clip is resampled to."""

WINDOW = 1024
"""Samples of a frame, 64 ms; a clip that is shorter holds nothing to learn from."""

HOP = 160
"""Samples between frames, 10 ms."""

MELS = 128
FLOOR = 1e-10
"""The least power that is told from silence: the quantisation noise of 16 bits has a hundred times more."""

RANGE = 50
"""How far below its loudest place a clip is told from silence, in dB. Deeper down is the background, in which
recordings differ more than in what was recorded."""


@dataclass(frozen=True)
class LogMel:
    """Sounds as float16 [time, mels], a hundred frames a second and 128 mels, of mean 0 and variance 1 each.

    A clip is cut at `seconds`, or followed by silence. One of constant sound, such as silence, is all zeros.

    Source: the features of FedAudio (Zhang et al., ICASSP 2023, arXiv 2210.15707), here of limited range and
    standardised.

    Attributes:
        seconds: How long a clip is; None where the user is to say.
    """

    modality: ClassVar[Modality] = "audio"
    options: ClassVar[tuple[str, ...]] = ("seconds",)

    seconds: float | None

    def missing(self) -> str | None:
        """Says that the length must be set, where it must."""
        return (
            None if self.seconds else "seconds: give the length that clips are cut or filled up to, as in 1.0"
        )

    def shape(self) -> tuple[int, int]:
        """Returns time and mels."""
        return (1 + self._samples() // HOP, MELS)

    def dtype(self) -> np.dtype[Any]:
        """Returns float16: the error is a thousandth of the clip's standard deviation."""
        return np.dtype(np.float16)

    def identity(self) -> list[Any]:
        """Returns the length and what a spectrogram is made with."""
        return [self.seconds, RATE, WINDOW, HOP, MELS, FLOOR, RANGE]

    def vocabulary(self) -> int:
        """Returns 0: spectrograms are no tokens."""
        return 0

    def encode(self, content: Clip) -> np.ndarray:
        """Returns a clip's standardised log-mel spectrogram.

        Raises:
            ValueError: It is shorter than a frame, or holds NaN.
        """
        samples = resampled(content, RATE).samples
        if len(samples) < WINDOW or not np.isfinite(samples).all():
            raise ValueError("too short, or not finite")
        samples = samples[: self._samples()]
        x = log_mel(np.pad(samples, (0, self._samples() - len(samples))))
        deviation = max(x.std(), 1e-6)  # that of constant sound is not quite 0
        standardised: np.ndarray = (x - x.mean()) / deviation
        return standardised.astype(np.float16)

    def prepare(self, x: Tensor) -> Tensor:
        """Returns the spectrograms as floats."""
        return x.to(torch.get_default_dtype())

    def _samples(self) -> int:
        assert self.seconds is not None
        return round(self.seconds * RATE)


def resampled(clip: Clip, rate: int) -> Clip:
    """Returns a clip at another number of samples a second."""
    if clip.rate == rate:
        return clip
    try:
        import soxr
    except ImportError as error:
        raise InputError("data.name: sounds need soxr: pip install 'genfl[audio]'") from error
    return Clip(soxr.resample(clip.samples, clip.rate, rate), rate)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Returns the power in each mel band in dB, float64 [1 + n // HOP, MELS], of 16 kHz sound [n].

    Frames of `WINDOW` samples, centred, with the sound mirrored at its ends; a Hann window; triangular bands
    on the HTK mel scale up to 8 kHz, without normalisation: torchaudio's defaults for
    ``MelSpectrogram(16000, n_fft=1024, hop_length=160, n_mels=128)``. Powers below `FLOOR`, or more than
    `RANGE` below the greatest, count as that.
    """
    mirrored = np.pad(samples, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, WINDOW)[::HOP]
    hann = np.hanning(WINDOW + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    decibels = 10 * np.log10(np.maximum((mel_bands() @ power.T).T, FLOOR))
    limited: np.ndarray = np.maximum(decibels, decibels.max() - RANGE)
    return limited


@lru_cache(maxsize=1)
def mel_bands() -> Any:
    """Returns the weights of the frequencies in each mel band, a sparse matrix [MELS, 1 + WINDOW // 2].

    With a dense one, BLAS would spread the product over threads that get into the way of the decoding ones.
    """
    from scipy.sparse import csr_array

    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    frequencies = np.linspace(0, RATE / 2, 1 + WINDOW // 2)[:, None]
    rising = (frequencies - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies) / np.diff(edges)[1:]
    return csr_array(np.maximum(0, np.minimum(rising, falling)).T)
