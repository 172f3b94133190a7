"""Speech from espeak-ng: hundreds of voices from a wheel, without a model to download or a GPU."""

from __future__ import annotations

import _ctypes
import ctypes
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from genfl.data.media import Clip
from genfl.data.samples import Prompt, Sample
from genfl.data.sounds import RATE, resampled
from genfl.errors import GenflError, InputError, first_line
from genfl.generators.base import Generator
from genfl.rng import Key

# fmt: off
SPEAKERS = (
    "f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Alicia", "Andrea",
    "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario",
    "Michael", "Mike", "Nguyen", "anika", "announcer", "antonio", "aunty", "belinda", "boris", "ed",
    "edward", "grandma", "grandpa", "gustave", "ian", "iven", "john", "klatt", "klatt2", "klatt3",
    "klatt4", "linda", "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy",
    "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
)
# fmt: on
"""The voice variants that can speak each accent.

These are espeak-ng's own variants without robots, whispers and effects. Its sixth Klatt synthesiser is left
out too: it draws from the random numbers of the C library, so its speech cannot be repeated.
"""

WORDS_A_MINUTE = (110, 230)
PITCH = (20, 80)
MELODY = (20, 80)
"""Ranges to draw from. Melody is the range of the pitch; 50 is the voice's own pitch and melody."""

PEAK = (0.1, 0.9)
"""The range of a clip's loudest sample."""

QUIET = 0.003
"""A sample below this share of full scale (−50 dB) is silence."""

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1
_PARAMETERS = {"rate": 1, "pitch": 3, "range": 4}
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak(Generator):
    """A text-to-speech program that draws voice, speed, pitch and loudness from each prompt's seed.

    A clip depends on its prompt alone.

    Args:
        language: A language as espeak-ng names it, with all its accents, such as ``en``; or one accent, such
            as ``en-us``.
        seconds: The least length of a clip, at least 0; speech starts at a random time in it.
        snr: The range of the signal-to-noise ratio in dB, drawn for each clip. The noise covers the whole
            clip, with a spectrum between white and pink. None for silence around the speech.

    Raises:
        InputError: espeak-ng is not installed, or does not speak the language.
    """

    id = "espeak-ng"

    def __init__(
        self, language: str = "en", seconds: float = 1.0, snr: Sequence[float] | None = (0.0, 40.0)
    ) -> None:
        self.voices = [f"{accent}+{speaker}" for accent in accents(language) for speaker in SPEAKERS]
        self.language = language
        self.seconds = seconds
        self.snr = snr

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Speak each prompt; see `genfl.generators.base.Generator`.

        Raises:
            InputError: The speech of a prompt is silent.
        """
        clips = [self.speak(prompt) for prompt in prompts]
        silent = [prompt.text for prompt, clip in zip(prompts, clips, strict=True) if clip is None]
        if silent:
            raise InputError(
                f"prompts: espeak-ng's {self.language!r} cannot speak {len(silent)} of {len(prompts)} texts,"
                f" such as {silent[0]!r}; write them in letters of the language"
            )
        for prompt, clip in zip(prompts, clips, strict=True):
            yield Sample(prompt, clip)

    def speak(self, prompt: Prompt) -> Clip | None:
        """Return a prompt as a clip of 16 kHz, or None if it is silent."""
        rng = Key(prompt.seed).fold("espeak").numpy()
        voice = self.voices[rng.integers(len(self.voices))]
        spans = {"rate": WORDS_A_MINUTE, "pitch": PITCH, "range": MELODY}
        parameters = {name: int(rng.integers(*span, endpoint=True)) for name, span in spans.items()}
        utterance = utter(prompt.text, voice, parameters, int(rng.integers(2**31)))
        speech = trim_silence(resampled(utterance, RATE).samples)
        if not len(speech):
            return None
        samples = np.zeros(max(len(speech), round(self.seconds * RATE)), np.float32)
        start = rng.integers(len(samples) - len(speech), endpoint=True)
        samples[start : start + len(speech)] = speech
        if self.snr:
            power = np.square(speech).mean() / 10 ** (rng.uniform(self.snr[0], self.snr[1]) / 10)
            samples += np.sqrt(power) * background_noise(len(samples), rng)
        return Clip(samples * np.float32(rng.uniform(*PEAK) / np.abs(samples).max()), RATE)

    def check_labels(self, labels: Sequence[str]) -> None:
        """Check that all labels can be spoken, and that no two sound the same.

        Args:
            labels: The names of the classes.

        Raises:
            InputError: A label is silent, or two labels sound the same; the message names them.
        """
        spoken: dict[bytes, str] = {}
        for label in labels:
            sound = trim_silence(utter(label, self.voices[0], {}, 0).samples).tobytes()
            if sound and (other := spoken.setdefault(sound, label)) != label:
                raise InputError(
                    f"generator.language: espeak-ng's {self.language!r} speaks {other!r} and {label!r} the"
                    " same; rename one of them, or use another language"
                )
            if not sound:
                raise InputError(
                    f"generator.language: espeak-ng's {self.language!r} cannot speak the label {label!r};"
                    " rename it, or use another language"
                )


def trim_silence(samples: np.ndarray) -> np.ndarray:
    """Return a sound without the silence before and after it.

    Args:
        samples: [n], full scale is [−1, 1]; a sample below `QUIET` is silence.
    """
    loud = np.flatnonzero(np.abs(samples) > QUIET)
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


def background_noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise of power 1 whose spectrum falls with a power of the frequency, drawn from [0, 1].

    Args:
        count: The number of samples.
        rng: The random stream.
    """
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (rng.uniform() / 2)
    noise = np.fft.irfft(spectrum, count)
    normalized: np.ndarray = noise / np.sqrt(np.square(noise).mean())
    return normalized


def utter(text: str, voice: str, parameters: dict[str, int], seed: int) -> Clip:
    """Return a text as espeak-ng speaks it.

    Args:
        text: What to say.
        voice: The file of an accent and a variant: ``gmw/en-US+f1``.
        parameters: Rate, pitch and range; espeak-ng's defaults for the missing ones.
        seed: The seed of espeak-ng's own random numbers, below 2³¹.

    Raises:
        GenflError: espeak-ng fails.
    """
    chunks = []

    def keep(samples: Any, count: int, events: Any) -> int:
        if samples and count:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(keep)
    # Loaded anew for each utterance: static variables of espeak-ng outlive espeak_Terminate.
    try:
        library = ctypes.CDLL(_loader().get_library_path())
    except OSError as error:
        raise GenflError(
            f"espeak-ng cannot be loaded ({first_line(error)}); reinstall espeakng-loader"
        ) from error
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, _loader().get_data_path().encode(), _DO_NOT_EXIT)
        if rate <= 0:
            raise GenflError(
                f"espeak-ng cannot read its data in {_loader().get_data_path()}; reinstall espeakng-loader"
            )
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        library.espeak_SetSynthCallback(callback)
        errors = [library.espeak_SetVoiceByName(voice.encode())]
        errors += [
            library.espeak_SetParameter(_PARAMETERS[name], value, 0) for name, value in parameters.items()
        ]
        encoded = text.encode()
        errors.append(library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None))
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    if any(errors):
        raise GenflError(f"espeak-ng cannot speak {text!r} with the voice {voice}; use another text or voice")
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    return Clip(samples.astype(np.float32) / 2**15, rate)


@lru_cache  # the voices belong to the installed wheel, so they do not change within a process
def accents(language: str) -> list[str]:
    """Return the files of the voices that speak a language, as `utter` takes them.

    Raises:
        InputError: espeak-ng is not installed, or does not speak the language.
    """
    folder = Path(_loader().get_data_path()) / "lang"
    voices: dict[str, list[str]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for line in path.read_text(encoding="utf-8").splitlines():
            match line.split():
                case ["language", name, *_]:
                    voices.setdefault(name, []).append(path.relative_to(folder).as_posix())
    if language not in voices:
        raise InputError(
            f"generator.language: espeak-ng does not speak {language!r}; use one of:"
            f" {', '.join(sorted(voices))}"
        )
    return voices[language]


def espeak_fingerprint() -> str:
    """Return the version of the installed espeak-ng.

    Raises:
        InputError: espeak-ng is not installed.
    """
    _loader()
    return version("espeakng-loader")


def _loader() -> Any:
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError(
            "generator.kind: speech needs espeak-ng, which is not installed; run pip install 'genfl[speech]'"
        ) from error
    return espeakng_loader
