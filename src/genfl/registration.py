"""Registration: names in configs for methods, models, data sets and generators of a user's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from genfl.errors import InputError
from genfl.identity import value_digest
from genfl.options import check_options, options, range_checked

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
            InputError: The name is built in, the return annotation names none of the kinds, or no config can
                give a keyword parameter.
        """
        from genfl.algorithms.registry import ALGORITHMS, KINDS, RESOURCES, AlgorithmEntry

        ALGORITHMS.check_name(name)

        def decorate(builder: Builder) -> Builder:
            entry = AlgorithmEntry(_named(builder, name, KINDS), paper, builder)
            example = f"def {name}(*, mu: float = 0.1) -> genfl.LocalHook"
            try:
                kind: Any = entry.kind
            except NameError as error:
                raise InputError(
                    f"register: {name}: an annotation cannot be resolved ({error}); import that name at the"
                    f" top of the module, as for {example}"
                ) from error
            except (KeyError, TypeError, AttributeError):
                kind = None
            if kind not in KINDS.values():
                raise InputError(
                    f"register: {name}: the builder must say what it returns; annotate it with"
                    f" {', '.join(KINDS)}, as in {example}"
                )
            check_options(builder, KINDS, provided=RESOURCES)
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

        A module that is no `Classifier` is wrapped, for which its last layer must be linear. Parameters with
        ``requires_grad=False`` are never changed or sent.

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
            InputError: The name is built in, or no config can give a keyword parameter.
        """
        from genfl.models import MODELS, ModelEntry
        from genfl.models.wrapped import as_classifier

        MODELS.check_name(name)

        def decorate(builder: Builder) -> Builder:
            @functools.wraps(builder)
            def build(*args: Any, **options: Any) -> Any:
                return as_classifier(builder(*args, **options))

            check_options(builder)
            size = tuple(shape or _SHAPES[modality])
            MODELS[name] = ModelEntry(build, modality, size, classes, builder)
            return builder

        return decorate

    def dataset(
        self, name: str, *, modality: Modality = "image", summary: str = ""
    ) -> Callable[[Builder], Builder]:
        """Register the loader of a data set: ``() -> genfl.DataSet``.

        Reports show none of its examples unless a config says so. The data is read again for every run. Its
        digest decides whether results are reused. The digest covers all examples and the code of the loader,
        `encode` and `prepare`.

        Example:
            >>> import genfl, torch
            >>> @genfl.register.dataset("noise", summary="random images of two classes")
            ... def noise() -> genfl.DataSet:
            ...     x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
            ...     examples = genfl.LabelledExamples(x, ["left", "right"] * 30)
            ...     return genfl.DataSet(examples, examples, "image", encode=lambda image: x[0])

        Args:
            name: The name in configs.
            modality: The kind of its examples: image, audio or text.
            summary: One line for ``genfl list datasets``.

        Raises:
            InputError: The name is built in, or the modality is unknown.
        """
        from genfl.data.sources import DATASETS, registered_dataset

        DATASETS.check_name(name)

        def decorate(loader: Builder) -> Builder:
            DATASETS[name] = registered_dataset(loader, modality, summary)
            return loader

        return decorate

    def generator(
        self,
        name: str,
        *,
        modalities: Sequence[Modality] = ("image",),
        models: str = "",
        ignored_options: Sequence[str] = (),
        fingerprint: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> Callable[[Builder], Builder]:
        """Register the builder of a generator: ``(**options) -> genfl.Generator``.

        Its keyword parameters are the options of the config; one without a default must be set. A parameter
        ``labels`` gets the names of the classes. Samples are generated again when an option or the builder's
        code changes.

        Args:
            name: The kind in configs.
            modalities: The kinds of samples that it makes: image, audio, text.
            models: What it can load, for ``genfl list generators``.
            ignored_options: The options that change no sample, such as a timeout.
            fingerprint: ``(options) -> plain values`` that change with the files that the options name.

        Raises:
            InputError: The name is built in, or no config can give a keyword parameter.
        """
        from genfl.generators.registry import GENERATORS, GeneratorEntry, Purpose

        GENERATORS.check_name(name)

        def decorate(builder: Builder) -> Builder:
            check_options(builder, provided={"labels"}, required=True)
            known = options(builder, required=True)
            known.pop("labels", None)
            if unknown := sorted(set(ignored_options) - known.keys()):
                raise InputError(
                    f"register: {name}: ignored_options names {unknown[0]!r}, which is no option"
                )
            wants_labels = "labels" in inspect.signature(builder).parameters

            def make(chosen: Mapping[str, Any], purpose: Purpose) -> Any:
                return builder(**chosen, **({"labels": list(purpose.labels)} if wants_labels else {}))

            entry = GeneratorEntry(
                tuple(modalities),
                models,
                make,
                fingerprint=lambda chosen, modality: [
                    value_digest(builder),
                    fingerprint(chosen) if fingerprint else None,
                ],
                check=lambda chosen, purpose: None,
                facts=lambda chosen: {"generator": name},
                read_options=lambda: known,
                ignored_options=tuple(ignored_options),
            )
            GENERATORS[name] = entry
            return builder

        return decorate


register = Register()


def _named(builder: Callable[..., Any], name: str, names: dict[str, Any]) -> Callable[..., Any]:
    """Return a builder whose parts carry its name, for messages."""
    check = range_checked(builder, names)

    @functools.wraps(builder)
    def build(*args: Any, **options: Any) -> Any:
        part = check(*args, **options)
        return part._replace(name=name) if getattr(part, "name", None) == "" else part

    build.__name__ = name
    return build
