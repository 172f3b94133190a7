"""Registration: names in configs for methods, models, data sets and generators of a user's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from genfl.errors import InputError
from genfl.identity import value_digest

if TYPE_CHECKING:
    from genfl.data.media import Modality

Builder = TypeVar("Builder", bound=Callable[..., Any])

_SHAPES: dict[str, tuple[int, ...]] = {"image": (3, 32, 32), "audio": (101, 128), "text": (25,)}


class Register:
    """Decorators that give entries a name in configs, in ``genfl list`` and in the JSON schema.

    An entry may be registered at any time before a config names it. Registering a name again replaces the
    entry, as when a notebook's cell runs twice. Built-in names cannot be replaced. A distribution registers
    entries by an entry point of the group ``genfl.plugins``, which names the module that registers them.
    """

    def __call__(self, name: str, *, paper: str = "") -> Callable[[Builder], Builder]:
        """Register the builder of a method.

        Its return annotation says which kind of method it is: `LocalHook`, `ServerOptimizer`, `Weighting` or
        `Algorithm`. Its keyword parameters with defaults are the options of the config.

        Example:
            >>> import genfl
            >>> @genfl.register("halved", paper="none")
            ... def halved(*, lr: float = 0.5) -> genfl.ServerOptimizer:
            ...     return genfl.algorithms.sgd(lr)
            >>> methods = {"mine": {"algorithm": {"name": "halved", "lr": 0.25}}}
            >>> genfl.parse_config({"name": "x", "data": "digits", "model": "cnn", "methods": methods})
            ...     # doctest: +ELLIPSIS
            Config(name='x', ...

        Args:
            name: The name in configs.
            paper: The publication, for ``genfl list algorithms``.

        Raises:
            InputError: The name is built in, or the return annotation names none of the kinds.
        """
        from genfl.algorithms.registry import ALGORITHMS, KINDS, AlgorithmEntry

        ALGORITHMS.check_name(name)

        def decorate(builder: Builder) -> Builder:
            entry = AlgorithmEntry(_named(builder, name), paper, value_digest(builder))
            try:
                kind = entry.kind
            except (NameError, KeyError, TypeError, AttributeError):
                kind = type(None)
            if kind not in KINDS.values():
                raise InputError(
                    f"register: {name}: the builder must say what it returns; annotate it with"
                    f" {', '.join(KINDS)}, as in def {name}(*, mu: float = 0.1) -> genfl.LocalHook"
                )
            entry.options()  # annotations that cannot be read show here, not in a run
            ALGORITHMS[name] = entry
            return builder

        return decorate

    def model(
        self,
        name: str,
        *,
        modality: Modality = "image",
        shape: Sequence[int] | None = None,
        classes: int = 10,
    ) -> Callable[[Builder], Builder]:
        """Register the builder of a model: ``(shape, classes, **options) -> torch.nn.Module``.

        A module that is no `Classifier` is wrapped, for which its last layer must be linear.

        Example:
            >>> import genfl
            >>> from torch import nn
            >>> @genfl.register.model("softmax", shape=(1, 8, 8))
            ... def softmax(shape: tuple[int, ...], classes: int) -> nn.Module:
            ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
            >>> genfl.task("softmax", (1, 8, 8), 10).shapes().features
            64

        Args:
            name: The name in configs.
            modality: The kind of its inputs: image, audio or text.
            shape: The input shape for which ``genfl list models`` counts parameters.
            classes: The number of classes for which it counts them.

        Raises:
            InputError: The name is built in.
        """
        from genfl.models import MODELS, ModelEntry
        from genfl.models.wrapped import as_classifier

        MODELS.check_name(name)

        def decorate(builder: Builder) -> Builder:
            @functools.wraps(builder)
            def build(*args: Any, **options: Any) -> Any:
                return as_classifier(builder(*args, **options))

            size = tuple(shape or _SHAPES[modality])
            MODELS.register(name, ModelEntry(build, modality, size, classes, value_digest(builder)))
            return builder

        return decorate

    def dataset(
        self, name: str, *, modality: Modality = "image", summary: str = ""
    ) -> Callable[[Builder], Builder]:
        """Register the loader of a data set: ``() -> genfl.DataSet``.

        Reports show none of its examples unless a config says so. The data is read again for every run; its
        digest, of all examples, decides whether results are reused.

        Args:
            name: The name in configs.
            modality: The kind of its examples: image, audio or text.
            summary: One line for ``genfl list datasets``.

        Raises:
            InputError: The name is built in.
        """
        from genfl.data.sources import DATASETS, DataEntry, register_dataset

        DATASETS.check_name(name)

        DATASETS.check_name(name)

        def decorate(loader: Builder) -> Builder:
            register_dataset(name, DataEntry(loader, modality, summary))
            return loader

        return decorate

    def generator(
        self, name: str, *, modalities: Sequence[Modality] = ("image",), models: str = ""
    ) -> Callable[[Builder], Builder]:
        """Register the builder of a generator: ``(**options) -> genfl.Generator``.

        Its keyword parameters with defaults are the options of the config. A parameter ``labels`` gets the
        names of the classes.

        Args:
            name: The kind in configs.
            modalities: The kinds of samples that it makes: image, audio, text.
            models: What it can load, for ``genfl list generators``.

        Raises:
            InputError: The name is built in.
        """
        from genfl.generators.registry import GENERATORS, GeneratorEntry, Purpose
        from genfl.options import options

        GENERATORS.check_name(name)

        def decorate(builder: Builder) -> Builder:
            code = value_digest(builder)
            wants_labels = "labels" in inspect.signature(builder).parameters

            def make(chosen: Mapping[str, Any], purpose: Purpose) -> Any:
                return builder(**chosen, **({"labels": list(purpose.labels)} if wants_labels else {}))

            entry = GeneratorEntry(
                tuple(modalities),
                models,
                make,
                fingerprint=lambda chosen, modality: code,
                check=lambda chosen, purpose: None,
                facts=lambda chosen: {"generator": name},
                read_options=lambda: options(builder),
            )
            GENERATORS[name] = entry
            return builder

        return decorate


register = Register()


def _named(builder: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a builder whose parts carry its name, for messages."""

    @functools.wraps(builder)
    def build(*args: Any, **options: Any) -> Any:
        part = builder(*args, **options)
        return part._replace(name=name) if getattr(part, "name", None) == "" else part

    build.__name__ = name
    return build
