"""The ledger of a run: what is computed from private data and released, to whom, and how it is protected.

It is made from the config, and from the noise that finished trials report. No private data is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch

from genfl.algorithms.base import Algorithm, run_once
from genfl.algorithms.profile import in_reference_setting
from genfl.algorithms.registry import ALGORITHMS, AlgorithmEntry
from genfl.config import Config, Method
from genfl.config.generation import TextGenerator
from genfl.config.names import ASKED_STYLES, FLOWER, GENERATOR_REFERENCE
from genfl.config.privacy import Privacy, PrivacyUnit, PublicFact
from genfl.data.sources import DATASETS
from genfl.data.texts import GENERATED_TOKENIZER
from genfl.errors import InputError
from genfl.learning.task import Weights
from genfl.privacy.dp.accounting import NoisedSums, compose, epsilon_of
from genfl.rng import Key
from genfl.trees import Tree

LEDGER_FILE = "privacy.json"
"""The file in a run's folder that holds its ledger."""

Topic = Literal[
    "labels",
    "sizes",
    "training",
    "generated",
    "guided",
    "clients",
    "test",
    "measures",
    "examples",
    "references",
]
"""What a release is about. A report has a line for each."""

Recipient = Literal["server", "sum", "others", "language model", "readers", "nobody"]
"""Who learns a release. ``sum``: the server, which needs the sum over clients alone. ``others``: other
clients, and whoever gets the model. ``readers``: whoever reads the report and the summary. ``nobody``: it
stays where the private data is."""

Mechanism = Literal[
    "exact",
    "secure_sum",
    "gaussian",
    "discrete_gaussian",
    "discrete_laplace",
    "trusted",
    "derived",
    "local",
]
"""How a release is protected. ``exact``: not at all. ``secure_sum``: only the exact sum over clients is seen;
in simulations, the protocol is simulated. ``gaussian``: by noise. ``discrete_gaussian``: by noise that
clients add before a secure sum. ``discrete_laplace``: by noise on whole numbers. ``trusted``: not at all, but
the guarantee counts on its recipient, who adds the noise. ``derived``: it is computed from other releases and
public data alone.
``local``: it does not leave the place of the private data."""

NOISED: tuple[Mechanism, ...] = ("gaussian", "discrete_gaussian")
"""The mechanisms with noise on what clients learn."""

NEIGHBOURING: dict[PrivacyUnit, str] = {
    "sample": "two trainings are neighbours if the gradients of one private sample are zero in one of them",
    "user": "two federations are neighbours if one has one client more, with all its data",
}
"""The data sets that differential privacy makes hard to tell apart, for each unit."""

ZEROED_OUT = "two federations are neighbours if one client uploads zeros in one of them"
"""The same for users in cohorts of a fixed size."""

UPLOADS = {
    "delta": "changes of the model",
    "direction": "mean steps of training",
    "buffers": "running statistics of the model",
    "control": "changes of control variates",
    "probabilities": "predictions for shared inputs",
    "logits": "predictions for shared inputs",
    "model": "models of single clients",
    "trained": "models of single clients",
}
"""What the parts of an upload are that local training decides, in words."""

COUNTS = {
    "weight": "weights by numbers of samples",
    "samples": "numbers of samples",
    "label_counts": "numbers of samples of each label",
    "steps": "numbers of steps, which depend on numbers of samples",
}
"""What the parts of an upload or a census are that tell how many samples clients hold, in words."""


class Noise(NamedTuple):
    """The noise on a series of sums, and what it guarantees.

    Attributes:
        unit: What is protected.
        neighbours: The neighbouring relation, in words.
        noise_multiplier: Standard deviation of the noise σ, divided by the clipping norm; positive.
        norm: The clipping norm; positive.
        sampling_rate: The probability q with which a unit takes part in a step, in (0, 1].
        steps: How many noised sums the most exposed unit took part in.
        delta: The probability δ with which the bound may fail, in (0, 1).
        epsilon: The bound ε on the privacy loss of these steps.
        sensitivity: Of noise that is correlated over rounds: how far one unit can move what it is added to,
            divided by the norm, in all of these steps together. None if noise is independent.
        min_separation: Of the same: the least number of rounds from one of these steps to the next.
    """

    unit: PrivacyUnit
    neighbours: str
    noise_multiplier: float
    norm: float
    sampling_rate: float
    steps: int
    delta: float
    epsilon: float
    sensitivity: float | None = None
    min_separation: int | None = None

    @property
    def sums(self) -> NoisedSums:
        """What is accounted for: correlated noise makes one release of all steps."""
        if self.sensitivity is None:
            return NoisedSums(self.noise_multiplier, self.sampling_rate, self.steps)
        return NoisedSums(self.noise_multiplier / self.sensitivity, 1.0, 1)


class Release(NamedTuple):
    """Something that is computed from private data.

    Attributes:
        name: A short name.
        stage: The stage that computes it.
        topic: What it is about.
        what: What is released, in words.
        source: The data that it is computed from, in words.
        recipient: Who learns it.
        mechanism: How it is protected.
        methods: The methods that it belongs to; empty if it belongs to the run.
        noise: The noise; None without noise, and before training.
        pure_epsilon: The ε of discrete Laplace noise with δ = 0, which hides all data of a client; else None.
        public: Whether the config declares it as public knowledge.
        fix: How a config avoids it; empty where there is no need.
    """

    name: str
    stage: str
    topic: Topic
    what: str
    source: str
    recipient: Recipient
    mechanism: Mechanism
    methods: tuple[str, ...] = ()
    noise: Noise | None = None
    pure_epsilon: float | None = None
    public: bool = False
    fix: str = ""

    @property
    def outside(self) -> bool:
        """Whether it is released as it is, so that no guarantee covers it."""
        return self.mechanism in ("exact", "secure_sum") and not self.public

    @property
    def epsilon(self) -> float | None:
        """Its own privacy loss: None if it is exact, 0 if it tells nothing more than other releases do."""
        if self.mechanism == "discrete_laplace":
            return self.pure_epsilon
        if self.mechanism in NOISED:
            return self.noise.epsilon if self.noise else None
        return None if self.outside or self.mechanism == "trusted" else 0.0


class Guarantee(NamedTuple):
    """What differential privacy guarantees for one federation: one method with one seed.

    Attributes:
        unit: What is protected.
        epsilon: The bound ε on the privacy loss of all noised releases together.
        delta: The probability δ with which it may fail.
        outside: The names of the releases that it does not cover, those of the run included.
    """

    unit: PrivacyUnit
    epsilon: float
    delta: float
    outside: tuple[str, ...]


class Ledger(NamedTuple):
    """All releases of a run, and what follows from them.

    Attributes:
        releases: In the order of the stages.
        guarantees: For each method that is trained with noise, that of the seed with the largest ε.
        notes: What a reader must know besides, in sentences.
    """

    releases: list[Release]
    guarantees: dict[str, Guarantee]
    notes: tuple[str, ...]


ONE_FEDERATION = (
    "The epsilon of a method is that of one federation with one seed. Several methods and seeds of a run are"
    " a simulation of alternatives. If all of them ran on the same people, their privacy losses would add up."
)

SEEDED = "The noise comes from the run's seed. Whoever knows the seed can subtract the noise."

FROM_SECRET = (
    "The noise comes from a secret in the run's folder (federate/noise.key, labels/noise.key). Whoever has it"
    " can subtract the noise."
)

SIMULATED = (
    "Clients, server and secure sum are simulated in one process. That process has all private data, and the"
    " run's folder has clients' memories. They protect nobody from whoever runs the simulation."
)

IN_THE_CLEAR = (
    "federate.secure is not set. Each client's uploads and table of label names reach the server in the"
    " clear."
)

SUMMED = (
    "A secure sum adds the uploads and the tables of label names. The server sees which clients take part,"
    " which ones refuse, and the sums. docs/security.md says what a malicious server can do."
)

NO_FIX = "no config avoids it on real machines yet"
"""How a config of real machines avoids a release: noise and public facts are refused there."""


class Exchange(NamedTuple):
    """What the clients of an algorithm tell the server, read off the algorithm itself.

    Attributes:
        census: Names of the sums over all clients before round 1 that depend on clients' data.
        trained: Names of the parts of an upload that local training decides.
        counts: Names of the parts of an upload that tell how many samples a client holds.
        sums: Whether sums of uploads suffice.
        measured: Whether the cohort's changes can be measured: all clients train the global model.
        heads: Whether the server needs no sum of the census but the number of clients.
    """

    census: tuple[str, ...]
    trained: tuple[str, ...]
    counts: tuple[str, ...]
    sums: bool
    measured: bool
    heads: bool


UNKNOWN_EXCHANGE = Exchange(("?",), ("?",), ("?",), sums=False, measured=True, heads=False)
"""The exchange of a user's own algorithm that does not run in the reference setting."""


def exchange(method: Method) -> Exchange:
    """Return what the clients of a federated method tell the server.

    It is measured on the algorithm, in a small reference setting. What changes with a client's numbers of
    samples tells these numbers. What changes with its batches tells what it learned.

    Args:
        method: A federated method.
    """
    return _exchange(
        tuple((ALGORITHMS[part.name], tuple(part.options().items())) for part in method.algorithm)
    )


@lru_cache(256)
def _exchange(parts: tuple[tuple[AlgorithmEntry, tuple[tuple[str, Any], ...]], ...]) -> Exchange:
    try:
        algorithm = in_reference_setting([(entry, dict(options)) for entry, options in parts], shared=2)
        assert algorithm.task is not None
        form, weights = algorithm.task.shapes(), algorithm.task.init(Key(0))
        few = {"samples": torch.ones(()), "label_counts": torch.ones(form.classes)}
        many = {"samples": torch.full((), 3.0), "label_counts": 1.0 + torch.arange(form.classes)}
        census = [run_once(algorithm.census, {}, {}, info)[0] for info in (few, many)]
        message = algorithm.address(algorithm.send(algorithm.init(weights, census[0], Key(0))), 0)
        memory = algorithm.memory(weights)

        def upload(client_info: Tree, label: int) -> Tree:
            batch = {"x": torch.full((2, *form.input), 0.5), "y": torch.full((2,), label)}
            carry = algorithm.client.start(message, memory, client_info, Key(0))
            return algorithm.client.finish(algorithm.client.step(carry, batch, Key(0)))[0]

        before, counts = (run_once(algorithm.client, message, memory, info)[0] for info in (few, many))
        counted = _changed(before, counts)
        trained = _changed(upload(few, 0), upload(few, 1)) - counted
        heads = _needs_heads_alone(algorithm, weights)
    except Exception:  # a user's own algorithm can raise anything
        return UNKNOWN_EXCHANGE
    return Exchange(
        tuple(sorted({path[-1] for path in _changed(*census)})),
        tuple(sorted({path[0] for path in trained})),
        tuple(sorted({path[-1] for path in counted})),
        set(algorithm.client.reductions.values()) == {"sum"},
        algorithm.same_form,
        heads,
    )


def _needs_heads_alone(algorithm: Algorithm, weights: Weights) -> bool:
    try:
        algorithm.init(weights, {"clients": torch.ones(())}, Key(0))
    except KeyError:
        return False
    return True


def _leaves(tree: Tree, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """Yield the tensors of a tree with their paths."""
    if not isinstance(tree, Mapping):
        yield above, tree
        return
    for name, part in tree.items():
        yield from _leaves(part, (*above, name))


def _changed(one: Tree, other: Tree) -> set[tuple[str, ...]]:
    """Return the paths of tensors that differ between two trees of one structure."""
    pairs = zip(_leaves(one), _leaves(other), strict=True)
    return {path for (path, value), (_, changed) in pairs if not torch.equal(value, changed)}


def releases(config: Config, noise: Mapping[str, Noise] | None = None) -> list[Release]:
    """Return all that a run computes from private data, in the order of its stages.

    Args:
        config: The config.
        noise: The noise of each method that was trained with it; None before training.
    """
    rows = [
        *_of_labels(config),
        *_of_generation(config),
        *_of_audit(config),
        *_of_pretraining(config),
        *_of_training(config, noise or {}),
        *_of_tests(config),
        *_of_measures(config),
        *_of_references(config),
        *_of_report(config),
    ]
    if config.federate.secure:
        rows = [_in_secure_sum(row) for row in rows]
    if _on_real_machines(config):
        rows = [row._replace(fix=NO_FIX if row.fix else "") for row in rows]
        if not config.federate.secure:
            rows = [_in_the_clear(row) for row in rows]
    known = set(config.privacy.public) if config.privacy else set()
    return [row._replace(public=_fact(row) in known) for row in _merged(rows)]


def _on_real_machines(config: Config) -> bool:
    """Return whether the clients run outside this process; see `genfl.live`."""
    return config.federate.engine == FLOWER


def _in_the_clear(row: Release) -> Release:
    """Return a row without a secure sum: the server receives what each client adds to a sum."""
    return row._replace(
        recipient="server" if row.recipient == "sum" else row.recipient,
        mechanism="exact" if row.mechanism == "secure_sum" else row.mechanism,
    )


def _in_secure_sum(row: Release) -> Release:
    """Return a row of uploads that a secure sum adds up."""
    summed = row.stage == "federate" and row.recipient == "sum" and row.mechanism == "exact"
    return row._replace(mechanism="secure_sum") if summed else row


def _merged(rows: Sequence[Release]) -> list[Release]:
    """Return the rows with those joined that differ in their methods alone, in the order of their first."""
    methods: dict[Release, tuple[str, ...]] = {}
    for row in rows:
        same = row._replace(methods=())
        methods[same] = (*methods.get(same, ()), *row.methods)
    return [row._replace(methods=names) for row, names in methods.items()]


_FACTS: dict[Topic, PublicFact] = {"labels": "labels", "sizes": "sizes", "test": "test"}


def _fact(row: Release) -> PublicFact | None:
    """Return what a config must declare as public for a release to reveal nothing; None if it cannot."""
    return _FACTS.get(row.topic) if row.mechanism in ("exact", "secure_sum") else None


def _of_labels(config: Config) -> Iterator[Release]:
    least = config.labels.min_holders
    names = "the label names" if least == 1 else f"the label names that {least} clients or more hold"
    single = _on_real_machines(config) and not config.federate.secure
    counts = "which clients hold each label" if single else "how many clients hold each label"
    if least > 1:
        counts += ", and how many hold a name of each hashed bin"
    public, source = "if they are public knowledge, add labels to privacy.public", "label names of clients"
    yield Release("label names", "labels", "labels", names, source, "sum", "secure_sum", fix=public)
    epsilon = config.labels.count_epsilon
    if epsilon is None:
        fix = f"set labels.count_epsilon or, {public}"
        yield Release("label holders", "labels", "labels", counts, source, "sum", "secure_sum", fix=fix)
        return
    privacy = config.privacy
    trusted = _noised_unit(privacy) == "user" and not _noise_is_shared(privacy)
    yield Release(
        "label holders before noise",
        "labels",
        "labels",
        f"{counts}, before the server adds the noise",
        source,
        "sum",
        "trusted" if trusted else "secure_sum",
        fix="" if trusted else public,
    )
    yield Release(
        "label holders",
        "labels",
        "labels",
        "how many clients hold each label, with noise",
        source,
        "readers",
        "discrete_laplace",
        pure_epsilon=epsilon,
    )


def _of_generation(config: Config) -> Iterator[Release]:
    if config.generates:
        asked = config.prompts.style in ASKED_STYLES
        source, recipient = "label names", _language_model(asked)
        yield Release("prompts", "prompts", "generated", "prompts", source, recipient, "derived")
        what = "samples that prompts alone make"
        yield Release("generated samples", "generate", "generated", what, source, "server", "derived")
    guided = {name: method for name, method in config.methods.items() if _guided(method)}
    if not guided:
        return
    yield Release(
        "guided samples",
        "guided",
        "guided",
        "samples that clients make from their own examples",
        "training data of clients",
        "nobody",
        "local",
        tuple(guided),
    )
    if isinstance(config.generator, TextGenerator) and config.generator.base_url:
        yield Release(
            "examples in queries",
            "guided",
            "guided",
            "real examples of clients, shown to a language model on a server",
            "training data of clients",
            "language model",
            "exact",
            tuple(guided),
            fix="set content.guidance to prompt, or name a model that runs at the clients",
        )


def _trains_on_public(method: Method) -> bool:
    """Return whether clients train on no private sample, and on none that private samples guide."""
    return method.data == "generated" and not _guided(method)


def _language_model(asked: bool) -> Recipient:
    return "language model" if asked else "server"


def _guided(method: Method) -> bool:
    return method.content is not None and method.content.guidance != "prompt"


def _of_audit(config: Config) -> Iterator[Release]:
    if config.audit.overlap != "ignore":
        yield Release(
            "near-duplicates",
            "audit",
            "examples",
            "counts and pairs of near-duplicates among training, test, generated and public examples",
            "training data of clients, test set",
            "readers",
            "exact",
            fix="set audit.overlap to ignore",
        )


def _of_pretraining(config: Config) -> Iterator[Release]:
    if config.data.tokenizer == GENERATED_TOKENIZER:
        what = "a tokenizer of the words of generated texts"
        yield Release("vocabulary", "vocabulary", "generated", what, "generated texts", "server", "derived")
        yield Release(
            "unknown words",
            "vocabulary",
            "test",
            "the share of the test set's words that the tokenizer lacks",
            "test set",
            "readers",
            "exact",
            fix="if the test set is public, add test to privacy.public",
        )
    sources = {"generated data": config.generates, "public data": config.pretrains_on_public}
    for source in (source for source, used in sources.items() if used):
        what = f"a model trained on {source} alone"
        yield Release("pre-trained model", "pretrain", "generated", what, source, "server", "derived")


def _federated(config: Config) -> dict[str, Method]:
    return {name: method for name, method in config.methods.items() if method.reference is None}


def _noised_unit(privacy: Privacy | None) -> PrivacyUnit | None:
    """Return what the noise on training protects; None without noise."""
    return None if privacy is None or privacy.noise_multiplier == 0 else privacy.unit


def _noise_is_shared(privacy: Privacy | None) -> bool:
    """Return whether each client adds its share of the noise, so that nobody has the sum without it."""
    return privacy is not None and _noised_unit(privacy) == "user" and privacy.noise == "distributed"


def _noises_generated(privacy: Privacy | None) -> bool:
    """Return whether the noise also hides what generated and public samples change."""
    unit = _noised_unit(privacy)
    return unit == "user" or (unit == "sample" and privacy is not None and privacy.generated == "protected")


def _of_training(config: Config, noise: Mapping[str, Noise]) -> Iterator[Release]:
    """Yield what clients tell the server: before round 1, in every round, and by generated samples."""
    unit = _noised_unit(config.privacy)
    noised, whole = unit is not None, unit == "user"  # an upload of a user is clipped as a whole
    covers_public = _noises_generated(config.privacy)
    shared = _noise_is_shared(config.privacy)
    sizes = "if they are public knowledge, add sizes to privacy.public"
    if unit == "sample":
        yield Release(
            "sampling rate",
            "federate",
            "sizes",
            "the rate at which samples are drawn, and delta if the config sets none, from their number",
            "numbers of samples of clients",
            "others",
            "exact",
            fix=sizes,
        )
    for name, method in _federated(config).items():
        told = exchange(method)
        if _trains_on_public(method) and not covers_public:
            yield from _of_content(name, method, protected=whole)
            what = _words((*told.trained, *told.counts), {**UPLOADS, **COUNTS})
            yield Release(
                "training on generated samples",
                "federate",
                "generated",
                f"{what}, of generated or public samples alone",
                "generated or public samples",
                "sum" if told.sums else "server",
                "derived",
                (name,),
            )
            continue
        if told.census and not (whole and told.heads):  # then the server asks for the number of clients alone
            yield Release(
                "census",
                "federate",
                "sizes",
                f"{_words(told.census, COUNTS)} of all clients together, before the first round",
                "numbers of samples of clients",
                "sum",
                "exact",
                (name,),
                fix=sizes,
            )
        yield from _of_content(name, method, protected=whole)
        counts = _words(told.counts, COUNTS)
        parts = _words(told.trained, UPLOADS) + (f", {counts}" if whole and counts else "")
        seen: Recipient = "sum" if told.sums else "server"
        if whole and not shared:
            what = "the sums of every round, before the server adds the noise"
            source = "training data of clients"
            yield Release("sums before noise", "federate", "training", what, source, seen, "trusted", (name,))
        yield Release(
            "training",
            "federate",
            "training",
            f"{parts}, in every round" + (f"; {_shares(config.privacy)}" if shared else ""),
            "training data of clients",
            "others" if whole else seen,
            ("discrete_gaussian" if shared else "gaussian") if noised else "exact",
            (name,),
            noise.get(name) if noised else None,
            fix="" if noised else "set privacy.noise_multiplier above 0",
        )
        if counts and not whole:
            yield Release(
                "sample counts",
                "federate",
                "sizes",
                f"{counts}, in every round",
                "numbers of samples of clients",
                seen,
                "exact",
                (name,),
                fix=sizes,
            )
        if _guided(method) and not whole and noised:
            yield Release(
                "influence of guides",
                "federate",
                "guided",
                "what a real example adds to training by the samples that it guides: each is protected, not"
                " all together",
                "training data of clients",
                seen,
                "exact",
                (name,),
                fix="set content.guidance to prompt, or privacy.unit to user",
            )


def _shares(privacy: Privacy | None) -> str:
    quorum = privacy.quorum if privacy else None
    enough = f"any {quorum} of them" if quorum else "all of them"
    return f"its clients add the noise, which is enough if {enough} finish"


def _of_content(name: str, method: Method, *, protected: bool) -> Iterator[Release]:
    """Yield what the division of generated samples tells of clients' numbers of samples.

    Args:
        name: The method's name in the config.
        method: The method.
        protected: Whether noise hides all that a client decides by its own data.
    """
    content = method.content
    if content is None or content.budget == "equal":
        return
    sent = content.by == "server" or content.budget == "inverse"
    if sent or not protected:
        yield Release(
            "shares of generated samples",
            "federate",
            "sizes",
            "how many generated samples of each label each client gets",
            "numbers of samples of clients",
            "server" if sent else "sum",
            "exact",
            (name,),
            fix="set content.budget to equal or, if they are public knowledge, add sizes to privacy.public",
        )


def _words(names: Sequence[str], words: Mapping[str, str]) -> str:
    """Return names in words, each once. The names of a user's own algorithm are shown as they are."""
    unknown = {"?": "unknown parts of uploads"}
    return ", ".join(dict.fromkeys(words.get(name) or unknown.get(name, name) for name in names))


def _of_tests(config: Config) -> Iterator[Release]:
    yield Release(
        "scores on the test set",
        "federate",
        "test",
        "accuracy, F1, recall and calibration of every model, and a digest of the test set",
        "test set",
        "readers",
        "exact",
        fix="if the test set is public, add test to privacy.public",
    )
    if config.data.partition.test:
        yield Release(
            "scores on clients",
            "federate",
            "clients",
            "accuracy of final models on the samples that clients hold back: of all, of the worst client, and"
            " quantiles",
            "held-back samples of clients",
            "readers",
            "exact",
            fix="leave data.partition.test out",
        )


def _of_measures(config: Config) -> Iterator[Release]:
    privacy, methods, unit = config.privacy, _federated(config), _noised_unit(config.privacy)
    users = unit == "user"
    strict = "set privacy.strict to true, which leaves them out"
    sizes = "if they are public knowledge, add sizes to privacy.public"
    measured = tuple(
        name
        for name, method in methods.items()
        if exchange(method).measured and not _trains_on_public(method)
    )
    if measured and measures_rounds(privacy) and not _on_real_machines(config):
        what = "gradient diversity of every round"
        if config.federate.heterogeneity:
            what += ", distance of local models from their mean, and their accuracy on the test set"
        yield Release(
            "measures of rounds",
            "federate",
            "measures",
            what,
            "models of single clients",
            "readers",
            "derived" if unit == "sample" else "exact",  # noised clients measure noised models
            measured,
            fix=strict if users else "",
        )
    covers_public = _noises_generated(privacy)
    noisy = tuple(name for name, method in methods.items() if covers_public or not _trains_on_public(method))
    if noisy and measures_noise(privacy):
        estimated = _noise_is_shared(privacy)
        yield Release(
            "figures of noise",
            "federate",
            "measures",
            "signal-to-noise ratio of every round, and cosine of the noised and the exact"
            f" {'sum' if users else 'gradients'}{', estimated from the noised sum' if estimated else ''}",
            "models of single clients" if users else "training data of clients",
            "readers",
            "derived" if estimated else "exact",
            noisy,
            fix="" if estimated else strict,
        )
    if users and privacy is not None and privacy.cohort_kind == "poisson":
        yield Release(
            "sizes of cohorts",
            "federate",
            "measures",
            "how many clients take part in a round, and how many bytes they send",
            "which clients there are",
            "readers",
            "exact",
            tuple(methods),
            fix="set privacy.cohorts to fixed or cyclic",
        )
    if config.federate.heterogeneity:
        yield Release(
            "similarity of clients",
            "federate",
            "measures",
            "similarity of clients' mean features, pair by pair",
            "training data of clients",
            "readers",
            "exact",
            fix="set federate.heterogeneity to false",
        )
    yield Release(
        "samples of rounds",
        "federate",
        "sizes",
        "how many samples the clients of a round train on",
        "numbers of samples of clients",
        "readers",
        "exact",
        tuple(methods),
        fix=sizes,
    )
    if _on_real_machines(config) and not config.federate.secure:
        yield Release(
            "samples of clients",
            "federate",
            "sizes",
            "how many samples each client trains on, in every round",
            "numbers of samples of clients",
            "server",
            "exact",
            tuple(methods),
            fix=sizes,
        )
    yield _rejected(config, methods)


def _rejected(config: Config, methods: Iterable[str]) -> Release:
    """Return what the count of rejected uploads reveals: with noise, nothing that the uploads do not."""
    return Release(
        "rejected uploads",
        "federate",
        "measures",
        "how many uploads are rejected, because they are not finite",
        "models of single clients",
        "readers",
        "exact" if config.privacy is None else "derived",
        tuple(methods),
        fix="" if config.privacy else "add a section privacy",
    )


def _of_references(config: Config) -> Iterator[Release]:
    """Yield what references reveal. They are no federation: a simulation alone can train them."""
    for name, method in config.methods.items():
        if method.reference is None:
            continue
        if method.reference != GENERATOR_REFERENCE:
            yield Release(
                "references",
                "federate",
                "references",
                "models and scores of training that is not federated, and has no noise",
                "training data of clients",
                "readers",
                "exact",
                (name,),
                fix="leave the references out",
            )
            continue
        remote = isinstance(config.generator, TextGenerator) and config.generator.base_url is not None
        if getattr(method.algorithm[0], "shots", 0) and isinstance(config.generator, TextGenerator):
            yield Release(
                "examples in queries",
                "federate",
                "references",
                "labelled examples of a client, shown to the language model that classifies",
                "training data of clients",
                "language model",
                "exact",
                (name,),
                fix="set shots to 0",
            )
        if remote:
            yield Release(
                "test texts in queries",
                "federate",
                "test",
                "all test texts, shown to a language model on a server",
                "test set",
                "language model",
                "exact",
                (name,),
                fix="leave the reference out or, if the test set is public, add test to privacy.public",
            )


def _of_report(config: Config) -> Iterator[Release]:
    if _on_real_machines(config):  # the report knows nothing of single clients
        what, source = "what clients keep between rounds, on their own disks", "training data of clients"
        yield Release("memories of clients", "federate", "training", what, source, "nobody", "local")
        return
    yield Release(
        "sizes in the report",
        "report",
        "sizes",
        "how many samples of each label each client holds, and notes on how the data was read",
        "numbers of samples of clients",
        "readers",
        "exact",
        fix="if they are public knowledge, add sizes to privacy.public",
    )
    shown = config.report.real_examples
    if DATASETS[config.data.name].public if shown is None else shown:
        yield Release(
            "real examples",
            "report",
            "examples",
            "real examples on the page",
            "training data of clients, test set",
            "readers",
            "exact",
            fix="set report.real_examples to false",
        )
    if shows_audits(config.privacy):
        yield Release(
            "audits",
            "report",
            "measures",
            "if genfl audit was run: how well attacks tell members, and what canaries prove",
            "training data of clients, test set",
            "readers",
            "exact",
            fix="set privacy.strict to true, which leaves them out",
        )
    yield Release(
        "run folder",
        "report",
        "training",
        "checkpoints with what clients keep between rounds, and digests of the data",
        "all private data",
        "nobody",
        "local",
    )


def ledger(config: Config, noise: Mapping[str, Noise]) -> Ledger:
    """Return the ledger of a run.

    Args:
        config: The config.
        noise: The noise of each method that was trained with it: that of the seed with the largest ε.
    """
    rows = releases(config, noise)
    guarantees = {}
    for name in _federated(config):
        of_method = [row for row in rows if not row.methods or name in row.methods]
        if (guarantee := _composed(config, of_method)) is not None:
            guarantees[name] = guarantee
    trained = any(row.mechanism in NOISED for row in rows)
    noised = trained or any(row.mechanism == "discrete_laplace" for row in rows)
    source = SEEDED if config.privacy is not None and config.privacy.repeatable else FROM_SECRET
    where = SIMULATED
    if _on_real_machines(config):
        where = SUMMED if config.federate.secure else IN_THE_CLEAR
    notes = (*([ONE_FEDERATION] if trained else []), *([source] if noised else []), where)
    return Ledger(rows, guarantees, notes)


def noise_in(reported: Mapping[str, Any] | None) -> Noise | None:
    """Return the noise that a finished trial reports; None if there is none.

    Args:
        reported: The trial's ``privacy``.
    """
    if reported is None or reported["epsilon"] is None:  # no noise bounds nothing
        return None
    unit: PrivacyUnit = reported["unit"]
    fields = {name: reported[name] for name in Noise._fields if name in reported and name != "neighbours"}
    zeroed = reported.get("neighbours") == "zero out"
    return Noise(neighbours=ZEROED_OUT if zeroed else NEIGHBOURING[unit], **fields)


def _composed(config: Config, rows: Sequence[Release]) -> Guarantee | None:
    """Return what the noised releases of one method guarantee together; None if none is noised."""
    noised = [row.noise for row in rows if row.noise is not None]
    if not noised or config.privacy is None:
        return None
    sums = compose([one.sums for one in noised])
    delta = noised[0].delta
    epsilon = epsilon_of(sums, delta, config.privacy.accountant)
    if config.privacy.unit == "user":  # basic composition: (ε, 0) and (ε', δ) are (ε + ε', δ)
        epsilon += sum(row.pure_epsilon for row in rows if row.pure_epsilon is not None)
    if not math.isfinite(epsilon):
        return None
    return Guarantee(
        config.privacy.unit, epsilon, delta, tuple(dict.fromkeys(row.name for row in rows if row.outside))
    )


def measures_noise(privacy: Privacy | None) -> bool:
    """Return whether a run measures what its noise leaves, which only a simulation sees.

    Args:
        privacy: The section of the config; None without differential privacy.
    """
    return privacy is not None and _noised_unit(privacy) is not None and not privacy.strict


def measures_rounds(privacy: Privacy | None) -> bool:
    """Return whether a run measures its rounds by what only a simulation sees: uploads without noise.

    A strict config with noise on sums does not. Clients that add noise themselves measure noised models.

    Args:
        privacy: The section of the config; None without differential privacy.
    """
    return privacy is None or not privacy.strict or privacy.unit == "sample"


def shows_audits(privacy: Privacy | None) -> bool:
    """Return whether the report of a run shows the audits beside it, which no guarantee covers.

    Args:
        privacy: The section of the config; None without differential privacy.
    """
    return privacy is None or not privacy.strict


def check_strict(config: Config) -> None:
    """Check that a config with ``privacy.strict`` releases nothing outside the guarantee.

    Args:
        config: The config.

    Raises:
        InputError: It does. A line names each release, and how to avoid it.
    """
    if config.privacy is None or not config.privacy.strict:
        return
    rows = [row for row in releases(config) if row.outside]
    if rows:
        raise InputError("\n".join(_refusal(row) for row in rows))


def _refusal(row: Release) -> str:
    of = f" (methods {', '.join(row.methods)})" if row.methods else ""
    return f"privacy.strict: true, but {row.name}{of} would be released without noise: {row.what}; {row.fix}"
