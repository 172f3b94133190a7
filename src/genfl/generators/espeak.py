"""Speech from espeak-ng, whose library comes as a wheel: hundreds of voices, no model to download, no GPU."""

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
from genfl.errors import GenflError, InputError
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
"""What each accent can be spoken by: espeak-ng's own variants but robots, whispers and effects, and but those
of its sixth Klatt synthesiser, which draws from the C library's random numbers: no two takes are the same."""

WORDS_A_MINUTE = (110, 230)
PITCH = (20, 80)
MELODY = (20, 80)
"""Ranges to draw from. Of pitch and melody (how far the pitch goes), 50 is the voice's own."""

PEAK = (0.1, 0.9)
"""The range of a clip's loudest sample."""

QUIET = 0.003
"""A sample below this share of full scale, or 50 dB, is silence."""

# Of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1
_PARAMETERS = {"rate": 1, "pitch": 3, "range": 4}
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak(Generator):
    """Speaks prompts, each in a voice, at a speed, a pitch and a loudness drawn from its seed.

    A clip depends on its prompt alone.

    Args:
        language: A language as espeak-ng calls it, with all its accents, such as ``en``; or one of them, such
            as ``en-us``.
        seconds: How long a clip is at least: what is said is put at a random place in it.
        snr: The range of the signal-to-noise ratio in dB, drawn for each clip, of noise that is added to all
            of it, with a spectrum between white and pink; None for silence around the words.

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
        """Speaks each prompt; see `genfl.generators.base.Generator`.

        Raises:
            InputError: Of some nothing can be heard.
        """
        spoken = [self.speak(prompt) for prompt in prompts]
        silent = [prompt.text for prompt, clip in zip(prompts, spoken, strict=True) if clip is None]
        if silent:
            raise InputError(
                f"prompts: {len(silent)} of {len(prompts)} cannot be heard in espeak-ng's {self.language!r},"
                f" such as {silent[0]!r}; write them in letters of the language"
            )
        for prompt, clip in zip(prompts, spoken, strict=True):
            yield Sample(prompt, clip)

    def speak(self, prompt: Prompt) -> Clip | None:
        """Returns a prompt as a clip of 16 kHz, or None where nothing can be heard."""
        rng = Key(prompt.seed).fold("espeak").numpy()
        voice = self.voices[rng.integers(len(self.voices))]
        drawn = {"rate": WORDS_A_MINUTE, "pitch": PITCH, "range": MELODY}
        parameters = {name: int(rng.integers(*span, endpoint=True)) for name, span in drawn.items()}
        said = trimmed(
            resampled(utter(prompt.text, voice, parameters, int(rng.integers(2**31))), RATE).samples
        )
        if not len(said):
            return None
        samples = np.zeros(max(len(said), round(self.seconds * RATE)), np.float32)
        start = rng.integers(len(samples) - len(said), endpoint=True)
        samples[start : start + len(said)] = said
        if self.snr:
            power = np.square(said).mean() / 10 ** (rng.uniform(self.snr[0], self.snr[1]) / 10)
            samples += np.sqrt(power) * noise(len(samples), rng)
        return Clip(samples * np.float32(rng.uniform(*PEAK) / np.abs(samples).max()), RATE)

    def check(self, labels: Sequence[str]) -> None:
        """Refuses labels that cannot be said, or are said as another is.

        Raises:
            InputError: Nothing can be heard of a label, or two sound the same; it says of which.
        """
        said: dict[bytes, str] = {}
        for label in labels:
            sound = trimmed(utter(label, self.voices[0], {}, 0).samples).tobytes()
            if sound and (other := said.setdefault(sound, label)) != label:
                raise InputError(
                    f"generator.language: espeak-ng's {self.language!r} says {other!r} and {label!r} alike;"
                    " rename one of them, or take another language"
                )
            if not sound:
                raise InputError(
                    f"generator.language: espeak-ng's {self.language!r} has no sound for the label {label!r};"
                    " rename it, or take another language"
                )


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Returns a sound without the silence before and after it."""
    loud = np.flatnonzero(np.abs(samples) > QUIET)
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


def noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns noise of power 1 whose spectrum falls with a drawn power of the frequency, from 0 to 1."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (rng.uniform() / 2)
    found = np.fft.irfft(spectrum, count)
    of_power_1: np.ndarray = found / np.sqrt(np.square(found).mean())
    return of_power_1


def utter(text: str, voice: str, parameters: dict[str, int], seed: int) -> Clip:
    """Returns what espeak-ng makes of a text.

    Args:
        text: What to say.
        voice: An accent's file and a variant: ``gmw/en-US+f1``.
        parameters: Rate, pitch and range; espeak-ng's defaults for those not given.
        seed: Of espeak-ng's own random numbers, below 2³¹.

    Raises:
        GenflError: It fails.
    """
    chunks = []

    def keep(samples: Any, count: int, events: Any) -> int:
        if samples and count:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(keep)
    # Loaded for each utterance: espeak-ng keeps state in static variables, even beyond espeak_Terminate.
    library = ctypes.CDLL(_loader().get_library_path())
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, _loader().get_data_path().encode(), _DO_NOT_EXIT)
        if rate <= 0:
            raise GenflError(f"espeak-ng cannot read its data in {_loader().get_data_path()}")
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        library.espeak_SetSynthCallback(callback)
        told = [library.espeak_SetVoiceByName(voice.encode())]
        told += [
            library.espeak_SetParameter(_PARAMETERS[name], value, 0) for name, value in parameters.items()
        ]
        said = text.encode()
        told.append(library.espeak_Synth(said, len(said) + 1, 0, 1, 0, _UTF8, None, None))
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    if any(told):
        raise GenflError(f"espeak-ng cannot say {text!r} as {voice}")
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    return Clip(samples.astype(np.float32) / 2**15, rate)


@lru_cache
def accents(language: str) -> list[str]:
    """Returns the files of the voices that speak a language, as `utter` takes them.

    Raises:
        InputError: espeak-ng is not installed, or does not speak it.
    """
    folder = Path(_loader().get_data_path()) / "lang"
    spoken: dict[str, list[str]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for line in path.read_text(encoding="utf-8").splitlines():
            match line.split():
                case ["language", name, *_]:
                    spoken.setdefault(name, []).append(path.relative_to(folder).as_posix())
    if language not in spoken:
        raise InputError(
            f"generator.language: espeak-ng does not speak {language!r};"
            f" it speaks: {', '.join(sorted(spoken))}"
        )
    return spoken[language]


def fingerprint() -> str:
    """Returns what changes when espeak-ng changes."""
    _loader()
    return version("espeakng-loader")


def _loader() -> Any:
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError("generator.kind: speech needs espeak-ng: pip install 'genfl[speech]'") from error
    return espeakng_loader
