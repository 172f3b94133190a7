"""The input format of sounds: log-mel spectrograms."""

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
"""Sample rate in Hz that every clip is resampled to."""

WINDOW = 1024
"""Samples in a frame, 64 ms; shorter clips cannot be used."""

HOP = 160
"""Samples between frames, 10 ms."""

MELS = 128
"""Mel bands of a spectrogram."""

FLOOR = 1e-10
"""The lowest power that differs from silence; 16-bit quantisation noise has a hundred times more."""

RANGE = 50
"""Dynamic range of a spectrogram in dB, below its loudest value.

Quieter values are background noise, which differs between recordings more than the sounds do.
"""


@dataclass(frozen=True)
class LogMelFormat:
    """Sounds as float16 [time, mels]: a hundred frames a second of 128 mels, standardised for each clip.

    A clip is cut at `seconds`, or padded with silence. It has mean 0 and variance 1. A clip of constant
    sound, such as silence, is all zeros.

    Source: the features of FedAudio (Zhang et al., ICASSP 2023, arXiv 2210.15707). Deviation from the paper:
    the dynamic range is limited, and every clip is standardised.

    Attributes:
        seconds: The length of a clip in seconds; None if the user has to set it.
    """

    modality: ClassVar[Modality] = "audio"
    options: ClassVar[tuple[str, ...]] = ("seconds",)

    seconds: float | None

    def missing(self) -> str | None:
        """Return that the length must be set, if it is not; else None."""
        return None if self.seconds else "seconds: give the length that clips are cut or padded to, as in 1.0"

    def shape(self) -> tuple[int, int]:
        """Return the number of frames and mels."""
        return (1 + self._samples() // HOP, MELS)

    def dtype(self) -> np.dtype[Any]:
        """Return float16, whose error is a thousandth of the clip's standard deviation."""
        return np.dtype(np.float16)

    def identity(self) -> list[Any]:
        """Return the length and the parameters of the spectrogram."""
        return [self.seconds, RATE, WINDOW, HOP, MELS, FLOOR, RANGE]

    def vocabulary(self) -> int:
        """Return 0: spectrograms are not tokens."""
        return 0

    def input_range(self) -> None:
        """Return None: every clip is standardised, so the range differs from clip to clip."""
        return None

    def encode(self, content: Clip) -> np.ndarray:
        """Return the standardised log-mel spectrogram of a clip.

        Raises:
            ValueError: The clip is shorter than a frame, or holds NaN or infinity.
        """
        samples = resampled(content, RATE).samples
        if len(samples) < WINDOW or not np.isfinite(samples).all():
            raise ValueError("too short, or not finite")
        samples = samples[: self._samples()]
        x = log_mel(np.pad(samples, (0, self._samples() - len(samples))))
        deviation = max(x.std(), 1e-6)  # rounding keeps that of constant sound above 0
        standardised: np.ndarray = (x - x.mean()) / deviation
        return standardised.astype(np.float16)

    def prepare(self, x: Tensor) -> Tensor:
        """Return the spectrograms as floats."""
        return x.to(torch.get_default_dtype())

    def _samples(self) -> int:
        assert self.seconds is not None
        return round(self.seconds * RATE)


def resampled(clip: Clip, rate: int) -> Clip:
    """Return a clip at another sample rate.

    Args:
        clip: The clip.
        rate: The new sample rate, in Hz.

    Raises:
        InputError: The library soxr is not installed.
    """
    if clip.rate == rate:
        return clip
    try:
        import soxr
    except ImportError as error:
        raise InputError("data.name: sounds need soxr: pip install 'genfl[audio]'") from error
    return Clip(soxr.resample(clip.samples, clip.rate, rate), rate)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Return the power in each mel band, in dB.

    Frames have `WINDOW` samples and a Hann window. They are centred, with the sound mirrored at its ends.
    Bands are triangular, on the HTK mel scale up to 8 kHz, without normalisation. These are torchaudio's
    defaults for ``MelSpectrogram(16000, n_fft=1024, hop_length=160, n_mels=128)``. Powers below `FLOOR` are
    raised to it, and powers more than `RANGE` below the greatest to that limit.

    Args:
        samples: Sound at 16 kHz, [n].

    Returns:
        Decibels, float64 [1 + n // HOP, MELS].
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
    """Return the weights of the frequencies in each mel band, a sparse matrix [MELS, 1 + WINDOW // 2].

    With a dense matrix, BLAS would use threads that compete with the decoding threads.
    """
    from scipy.sparse import csr_array

    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    frequencies = np.linspace(0, RATE / 2, 1 + WINDOW // 2)[:, None]
    rising = (frequencies - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies) / np.diff(edges)[1:]
    return csr_array(np.maximum(0, np.minimum(rising, falling)).T)
