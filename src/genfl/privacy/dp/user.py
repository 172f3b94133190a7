"""Privacy of users: noise on the sum of a round's uploads hides all that one client's data can change in it.

A client's whole upload is scaled down to a largest norm, over all its parts together. The server adds
Gaussian noise to the sum before it uses it. Source: McMahan et al., ICLR 2018 (arXiv 1710.06963), with its
estimator of a fixed denominator: sums are divided by the expected number of clients in a round.

The norm can follow a quantile of the clients' norms. Source: Andrew et al., NeurIPS 2021 (arXiv 1905.03871).

Clients can add the noise themselves, before a secure sum; see `genfl.privacy.dp.distributed`.

The noise of a round can cancel a part of that of earlier ones; see `genfl.privacy.dp.toeplitz`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import Algorithm, ClientInfo, ClientProgram, head_count, run_once, statistics
from genfl.errors import InputError
from genfl.learning.task import Batch, Task, Weights
from genfl.privacy.dp.distributed import ClientShare, Words
from genfl.privacy.dp.streams import noise_stream
from genfl.privacy.dp.toeplitz import BufferedToeplitz
from genfl.rng import Key, Stream
from genfl.trees import Tree

NORM_RATE = 0.2
"""The learning rate η of an adaptive norm, as in the paper."""

COUNT_NOISE = 1 / 20
"""Standard deviation of the noise on the count of an adaptive norm, divided by the cohort; the paper's."""

ROUNDING_MARGIN = 2**-20
"""The part of the norm that is kept free for rounding, so that no clipped upload exceeds the norm."""

CLIP_NORM, WITHIN = "clip_norm", "within_norm"
"""Names of an adaptive norm, in state and message, and of the upload that it follows."""

NOISED_WORDS, SHARE = "words", "share"
"""Names of the upload of a client that adds noise itself, and of what it drew for it, in its carry."""
BUFFERS, MATRIX = "noise_buffers", "noise_matrix"
"""Names, in state, of the buffers of correlated noise, and of the parameters of its matrix."""

SIGNAL_TO_NOISE, NOISED_COSINE = "signal_to_noise", "noised_cosine"
"""Names of the figures of a round."""


@dataclass(frozen=True)
class UserNoise:
    """The noise on the sums of a federation.

    Attributes:
        noise_multiplier: Standard deviation of the noise divided by the norm, by which ε is accounted. With
            an adaptive norm, it covers the noised sum and the noised count together.
        max_update_norm: The largest norm of an upload. If it is adaptive, the first one.
        cohort: The expected number of clients in a round.
        target_quantile: The share of clients whose uploads an adaptive norm leaves whole, in (0, 1). None
            keeps the norm fixed.
        stream: What distinguishes this federation's noise from that of others with the same seed; see
            `genfl.privacy.dp.streams.noise_stream`.
        quorum: The fewest uploads of which there is a sum, if clients add the noise. None if the server does.
        matrix: The matrix C that correlates the noise of the rounds to C⁻¹Z, Z being independent noise. None
            leaves it independent. It needs a fixed norm. It does not enter the noise multiplier.

    Raises:
        InputError: A number is out of range, or the cohort is too small for an adaptive norm.
    """

    noise_multiplier: float
    max_update_norm: float
    cohort: int
    target_quantile: float | None = None
    stream: str = ""
    quorum: int | None = None
    matrix: BufferedToeplitz | None = None

    def __post_init__(self) -> None:
        z, norm, quantile = self.noise_multiplier, self.max_update_norm, self.target_quantile
        if not 0 <= z < math.inf:
            raise InputError(f"noise_multiplier: {z} is out of range; give a finite number from 0")
        if not norm > 0 or (norm == math.inf and (z or self.quorum is not None)):
            raise InputError(f"max_update_norm: {norm} is out of range; give a finite number above 0")
        if quantile is not None and (not 0 < quantile < 1 or norm == math.inf):
            raise InputError(
                f"target_quantile: {quantile} with a norm of {norm} is out of range; give a number between 0"
                " and 1, and a finite norm"
            )
        if quantile is not None and self.matrix is not None:
            raise InputError("target_quantile: correlated noise needs a fixed norm; leave it out")
        if quantile is not None and z >= 2 * self.count_noise and z > 0:
            raise InputError(
                f"target_quantile: with a noise multiplier of {z:.4g}, it needs more than {10 * z:.4g}"
                f" clients in a round, and there are {self.cohort}; raise clients_per_round, or leave it out"
            )

    @property
    def count_noise(self) -> float:
        """Standard deviation σ_b of the noise on the count; 0 if nothing is noised."""
        return COUNT_NOISE * self.cohort if self.noise_multiplier else 0.0

    @property
    def sum_noise(self) -> float:
        """Standard deviation of the noise on the sums, divided by the norm.

        It is z_Δ = (z⁻² − (2σ_b)⁻²)^(−1/2) for an adaptive norm. A client changes the centred count by 1/2 at
        most. So the noised sum and the noised count together lose as much privacy as one sum with noise z.
        """
        z = self.noise_multiplier
        if self.target_quantile is None or z == 0:
            return z
        return float((z**-2 - (2 * self.count_noise) ** -2) ** -0.5)

    @property
    def at_server(self) -> bool:
        """Whether the server adds the noise."""
        return self.noise_multiplier > 0 and self.quorum is None

    def words(self, upload: Tree) -> Words:
        """Return how clients turn uploads into words, if they add the noise.

        Args:
            upload: A clipped upload, without a count.

        Raises:
            InputError: The quorum is out of range, or words are too small.
        """
        assert self.quorum is not None
        size = sum(leaf.numel() for leaf in trees.leaves(upload))
        count = None
        if self.target_quantile is not None:
            count = self.sum_noise / (2 * self.count_noise) if self.noise_multiplier else 1.0
        return Words(self.noise_multiplier, self.cohort, self.quorum, size, count)

    def next_norm(self, norm: Tensor, count: Tensor) -> Tensor:
        """Return the norm of the next round, C exp(−η (b − γ)).

        Args:
            norm: The norm C.
            count: The noised sum of b_k − 1/2 over the cohort. b_k is 1 if the norm of the upload of client k
                is at most C, else 0.
        """
        assert self.target_quantile is not None
        share = count / self.cohort + 0.5
        return norm * torch.exp(-NORM_RATE * (share - self.target_quantile))


def user_level(algorithm: Algorithm, task: Task, noise: UserNoise, name: str = "algorithm") -> Algorithm:
    """Return the algorithm whose server sees nothing of its clients but noised sums of clipped uploads.

    Uploads that count clients are not sent: the expected number of clients stands in for them. If the server
    adds the noise, it takes a step in every round, also if nobody takes part. If clients add it, they upload
    words, and a round without a quorum is skipped. With noise 0, an infinite norm and fixed cohorts, the
    results have the bits of the algorithm itself.

    Args:
        algorithm: What clients and server compute.
        task: What is learned.
        noise: The norm and the noise.
        name: The name of the algorithm, for messages.

    Raises:
        InputError: The algorithm or the model cannot be protected; see `check_algorithm`. Or words are too
            small for clients' noise.
    """
    upload = check_algorithm(algorithm, task, name)
    adaptive = noise.target_quantile is not None
    matrix = noise.matrix if noise.noise_multiplier else None
    algorithm = algorithm._replace(census=_least_census(algorithm, task))
    if adaptive:
        algorithm = _with_norm(algorithm, noise.max_update_norm)
    counts, client = algorithm.counts, algorithm.client
    parts = [part for part in client.reductions if part not in counts]

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        upload, memory = client.finish(carry)
        norm = carry[CLIP_NORM] if adaptive else noise.max_update_norm
        clipped, within = clip_upload({part: upload[part] for part in parts}, norm)
        if adaptive:  # centred, so that a client changes the sum by 1/2 at most
            clipped[WITHIN] = within.to(torch.get_default_dtype()) - 0.5
        return clipped, memory

    def norm_of(state: Tree) -> float:
        return float(state[CLIP_NORM]) if adaptive else noise.max_update_norm

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        state = algorithm.init(weights, census, key)
        if matrix is None:
            return state
        message = algorithm.address(algorithm.send(state), 0)
        info = {"samples": torch.ones(()), "label_counts": torch.ones(task.shapes().classes)}
        upload, _ = run_once(client, message, algorithm.memory(weights), info)
        buffers = matrix.no_noise({part: upload[part] for part in parts})
        return {**state, BUFFERS: buffers, MATRIX: torch.stack(matrix.parameters())}

    def send(state: Tree) -> Tree:
        return algorithm.send(_without(state, BUFFERS, MATRIX))

    def noise_and_buffers(state: Tree, sums: Tree, key: Key) -> tuple[Tree, Tree]:
        std = noise.sum_noise * norm_of(state)
        fresh = gaussian(sums, std, noise_stream(key, noise.stream).fold("sums"))
        if matrix is None:
            return fresh, {}
        if not torch.equal(state[MATRIX], torch.stack(matrix.parameters())):
            raise InputError(
                "privacy.mechanism: the checkpoint was written with another matrix, as other versions of"
                " libraries compute it, so its noise cannot be continued; train again with --fresh"
            )
        correlated, buffers = matrix.correlate(fresh, state[BUFFERS])
        return correlated, {BUFFERS: buffers, MATRIX: state[MATRIX]}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        sums: Tree = {part: aggregate[part] for part in parts}
        buffers: Tree = {}
        if noise.at_server:
            drawn, buffers = noise_and_buffers(state, sums, key)
            sums = trees.add(sums, drawn)
        expected = {part: torch.tensor(float(noise.cohort)) for part in counts}
        after = algorithm.server(_without(state, BUFFERS, MATRIX), {**sums, **expected}, key)
        if not adaptive:
            return {**after, **buffers}
        count = aggregate[WITHIN].double()
        if noise.at_server:
            count = count + gaussian(count, noise.count_noise, noise_stream(key, noise.stream).fold("count"))
        return {**after, CLIP_NORM: noise.next_norm(state[CLIP_NORM], count)}

    def observe(state: Tree, aggregate: Tree, key: Key) -> dict[str, float | None]:
        figures: dict[str, float | None] = {CLIP_NORM: norm_of(state)} if adaptive else {}
        if noise.at_server:
            sums = {part: aggregate[part] for part in parts}
            figures |= noise_figures(sums, noise_and_buffers(state, sums, key)[0])
        return figures

    sent = [*parts, WITHIN] if adaptive else parts
    protected = algorithm._replace(
        init=init,
        send=send,
        client=client._replace(finish=finish, reductions=dict.fromkeys(sent, "sum")),
        server=server,
        counts=(),
        steps_alone=True,
        observe=observe,
    )
    return protected if noise.quorum is None else _sealed(protected, noise, upload)


def _sealed(algorithm: Algorithm, noise: UserNoise, like: Tree) -> Algorithm:
    """Return the algorithm whose clients upload words with their share of the noise.

    Args:
        algorithm: An algorithm whose uploads are clipped.
        noise: The norm and the noise.
        like: A clipped upload, without a count.
    """
    client = algorithm.client
    words = noise.words(like)

    def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        share = words.draw(noise_stream(key, noise.stream))
        return {**client.start(message, memory, client_info, key), SHARE: share._asdict()}

    def step(carry: Tree, batch: Batch, key: Stream) -> Tree:
        return {**client.step(_without(carry, SHARE), batch, key), SHARE: carry[SHARE]}

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        upload, memory = client.finish(_without(carry, SHARE))
        within = upload[WITHIN] > 0 if WITHIN in upload else None
        norm = carry.get(CLIP_NORM, noise.max_update_norm)
        return {
            NOISED_WORDS: words.encode(_without(upload, WITHIN), within, norm, ClientShare(**carry[SHARE]))
        }, memory

    def opened(state: Tree, aggregate: Tree) -> Tree:
        norm = float(state.get(CLIP_NORM, noise.max_update_norm))
        sums, count = words.decode(aggregate[NOISED_WORDS], norm, like)
        return sums if count is None else {**sums, WITHIN: count}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        return algorithm.server(state, opened(state, aggregate), key)

    def observe(state: Tree, aggregate: Tree, key: Key) -> dict[str, float | None]:
        figures = algorithm.observe(state, opened(state, aggregate), key)
        if noise.noise_multiplier:
            numbers = aggregate[NOISED_WORDS].view(torch.int32)[: words.size].double()
            expected = noise.cohort * words.variance * words.size
            figures |= estimated_figures(float(numbers.square().sum()), expected)
        return figures

    return algorithm._replace(
        client=client._replace(start=start, step=step, finish=finish, reductions={NOISED_WORDS: "sum"}),
        server=server,
        steps_alone=False,
        observe=observe,
    )


def _with_norm(algorithm: Algorithm, first: float) -> Algorithm:
    """Return the algorithm whose server state, messages and carries also hold a norm.

    Args:
        algorithm: What clients and server compute. They do not see the norm.
        first: The norm of the first round. The server leaves it as it is.
    """
    client = algorithm.client

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        norm = torch.tensor(first, dtype=torch.float64)
        return {**algorithm.init(weights, census, key), CLIP_NORM: norm}

    def send(state: Tree) -> Tree:
        return {**algorithm.send(_without(state, CLIP_NORM)), CLIP_NORM: state[CLIP_NORM]}

    def address(message: Tree, number: int) -> Tree:
        part = algorithm.address(message, number)  # most often the message itself, one for all clients
        return part if CLIP_NORM in part else {**part, CLIP_NORM: message[CLIP_NORM]}

    def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        carry = client.start(_without(message, CLIP_NORM), memory, client_info, key)
        return {**carry, CLIP_NORM: message[CLIP_NORM]}

    def step(carry: Tree, batch: Batch, key: Stream) -> Tree:
        return {**client.step(_without(carry, CLIP_NORM), batch, key), CLIP_NORM: carry[CLIP_NORM]}

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        return client.finish(_without(carry, CLIP_NORM))

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        return {**algorithm.server(_without(state, CLIP_NORM), aggregate, key), CLIP_NORM: state[CLIP_NORM]}

    return algorithm._replace(
        init=init,
        send=send,
        address=address,
        client=client._replace(start=start, step=step, finish=finish),
        server=server,
    )


def clip_upload(upload: Tree, norm: float | Tensor) -> tuple[Tree, Tensor]:
    """Scale an upload down to a norm over all its parts together, and return whether it was within it.

    Args:
        upload: A client's upload. One with NaN or infinite values becomes zeros: if the server rejected it,
            all would see that somebody sent it.
        norm: The largest Euclidean norm, positive; infinity changes nothing.

    Returns:
        The upload, and a boolean scalar.
    """
    size = trees.square_norm(trees.map(Tensor.double, upload)).sqrt()
    within = size <= norm
    factor = torch.where(within, torch.ones_like(size), (1 - ROUNDING_MARGIN) * norm / size)
    finite = size.isfinite()
    clipped = trees.map(
        lambda leaf: torch.where(finite, leaf * factor.to(leaf.dtype), torch.zeros_like(leaf)), upload
    )
    return clipped, within


def gaussian(like: Tree, std: float, key: Key) -> Tree:
    """Draw Gaussian noise for every entry of a tree, each tensor from a stream of its own.

    The streams are numbered in the alphabetical order of names: a state that was read from a file may have
    its names in another order.

    Args:
        like: The tree.
        std: The standard deviation.
        key: The random stream.
    """
    if type(like) is dict:
        numbers = {name: number for number, name in enumerate(sorted(like))}
        return {name: gaussian(branch, std, key.fold(numbers[name])) for name, branch in like.items()}
    return std * torch.randn(like.shape, dtype=like.dtype, generator=key.torch())


def noise_figures(clean: Tree, noise: Tree) -> dict[str, float | None]:
    """Return how much of a sum is left under its noise.

    Args:
        clean: The sum of clipped uploads.
        noise: Its noise.

    Returns:
        The norm of the sum divided by that of the noise, and the cosine of the noised sum and the sum; None
        without a sum.
    """
    signal, error = (trees.map(Tensor.double, tree) for tree in (clean, noise))
    noised = trees.add(signal, error)
    sizes = [float(trees.square_norm(tree).sqrt()) for tree in (signal, error, noised)]
    if 0 in sizes or not all(map(math.isfinite, sizes)):
        return {SIGNAL_TO_NOISE: None, NOISED_COSINE: None}
    cosine = float(trees.dot(signal, noised)) / (sizes[0] * sizes[2])
    return {SIGNAL_TO_NOISE: sizes[0] / sizes[1], NOISED_COSINE: cosine}


def estimated_figures(noised: float, noise: float) -> dict[str, float | None]:
    """Return how much of a sum is left under its noise, as far as the noised sum tells.

    Sum and noise are almost orthogonal, so their squares add up. Nothing but the noised sum is used, which is
    released anyway.

    Args:
        noised: The squared norm of the noised sum.
        noise: The expected squared norm of the noise, positive.

    Returns:
        The estimates of what `noise_figures` returns: 0 where the sum is too small to be seen.
    """
    signal = max(0.0, noised / noise - 1)
    return {SIGNAL_TO_NOISE: math.sqrt(signal), NOISED_COSINE: math.sqrt(signal / (1 + signal))}


def exact_census(algorithm: Algorithm) -> list[str]:
    """Return the sums over all clients' data that the server gets before round 0 without noise, by name.

    The number of clients counts as public.

    Args:
        algorithm: What `user_level` returned.
    """
    return [name for name in algorithm.census.reductions if name != "clients"]


def _least_census(algorithm: Algorithm, task: Task) -> ClientProgram:
    """Return the census; if the algorithm uses the number of clients alone, one without anything else."""
    if algorithm.census is not head_count:
        return algorithm.census
    clients = statistics({"clients": lambda client_info: torch.ones_like(client_info["samples"])})
    try:
        algorithm.init(task.init(Key(0)), {"clients": torch.ones(())}, Key(0))
    except KeyError:
        return algorithm.census
    return clients


def check_algorithm(algorithm: Algorithm, task: Task, name: str) -> Tree:
    """Check that noise on the sums of uploads can protect clients.

    Args:
        algorithm: What clients and server compute.
        task: What is learned.
        name: The name of the algorithm, for messages.

    Returns:
        An upload, without the parts that count clients.

    Raises:
        InputError: The server sees single uploads, clients have unequal weights, or the model has buffers.
    """
    each = [upload for upload, kind in algorithm.client.reductions.items() if kind == "each"]
    if each:
        raise InputError(
            f"{name}: its server sees {', '.join(each)} of every client, which noise on sums does not"
            " protect; use an algorithm whose server sees sums alone, such as {name: fedavg, weighting:"
            " uniform}"
        )
    weights = task.init(Key(0))
    if weights["buffers"]:
        raise InputError(
            f"{name}: the model averages running statistics, such as {next(iter(weights['buffers']))}, which"
            " are not protected; use a model without batch norm, as with model.norm: group"
        )
    one, other = _two_uploads(algorithm, task, weights)
    weighed = [upload for upload in one if not _same(one[upload], other[upload])]
    if weighed:
        raise InputError(
            f"{name}: clients weigh their uploads by what they hold ({', '.join(weighed)}), and privacy of"
            " users needs equal weights; set weighting: uniform, as in [{name: fedavg, weighting: uniform},"
            " fedprox], or use scaffold, feddyn or dsfl"
        )
    if wrong := [upload for upload in algorithm.counts if not _same(one[upload], torch.ones(()))]:
        raise InputError(f"{name}: its upload {wrong[0]} counts clients, but it is not 1; send 1")
    return {part: one[part] for part in algorithm.client.reductions if part not in algorithm.counts}


def _two_uploads(algorithm: Algorithm, task: Task, weights: Weights) -> list[Tree]:
    """Return the uploads of two clients that take no steps and hold different data."""
    classes = task.shapes().classes
    balanced = {"samples": torch.tensor(float(classes)), "label_counts": torch.ones(classes)}
    single = {"samples": torch.ones(()), "label_counts": torch.eye(classes)[0]}
    sums = trees.add(*(run_once(algorithm.census, {}, {}, info)[0] for info in (balanced, single)))
    message = algorithm.address(algorithm.send(algorithm.init(weights, sums, Key(0))), 0)
    memory = algorithm.memory(weights)
    return [run_once(algorithm.client, message, memory, info)[0] for info in (balanced, single)]


def _same(a: Tree, b: Tree) -> bool:
    return trees.mismatch(a, b) is None and all(map(torch.equal, trees.leaves(a), trees.leaves(b)))


def _without(tree: Tree, *names: str) -> Tree:
    return {name: branch for name, branch in tree.items() if name not in names}
