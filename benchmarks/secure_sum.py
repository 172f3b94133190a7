"""How long a secure sum of a model takes, and how many bytes it sends, beside Flower's SecAgg+.

Run ``python benchmarks/secure_sum.py``. Its defaults give the figures of ``docs/results/secure_sum.md``.
Ten clients share keys. One of them drops out before its upload. Flower's figures are those of its functions,
called as its client and server call them, without messages.
"""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from genfl.privacy import secure_sum as ss
from genfl.privacy.secure_sum.fixed_point import SumRange
from genfl.privacy.secure_sum.uploads import UploadCodec

T = TypeVar("T")


class Taken(NamedTuple):
    """Seconds of an action: wall clock, and of the processor."""

    wall: float
    cpu: float

    @classmethod
    def middle(cls, taken: list["Taken"]) -> "Taken":
        """Return the medians."""
        return cls(*(median(column) for column in zip(*taken, strict=True)))

    def __str__(self) -> str:
        return f"{self.cpu:.2f} ({self.wall:.1f})"


class Figures(NamedTuple):
    """A line of the table."""

    name: str
    encode: Taken
    mask: Taken
    server_add: Taken
    unmask: Taken
    upload: float
    error: float


class Unsigned:
    """No signatures: what they cost does not depend on the model."""

    def sign(self, message: bytes) -> bytes:
        """Return a signature that stands for any."""
        return b"-"

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Accept any signature."""
        return True


def timed(action: Callable[[], T]) -> tuple[T, Taken]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    return result, Taken(time.perf_counter() - wall, time.process_time() - cpu)


def update(client: int, size: int) -> torch.Tensor:
    return 0.01 * torch.randn(size, generator=torch.Generator().manual_seed(client))


def ours(bits: int, clients: int, size: int) -> Figures:
    """Run the protocol, with words of some bits."""
    like = {"delta": torch.zeros(size)}
    codec = UploadCodec(like, clients, SumRange(8.0 if bits == 32 else 2.0**20, 2.0**-20))
    assert [segment.bits for segment in codec.segments] == [bits]
    everybody = range(clients)
    parameters = ss.SumParameters(b"benchmark", tuple(everybody), clients // 2 + 1, codec.segments)
    signer = Unsigned()
    verifiers = dict.fromkeys(everybody, signer)
    server = ss.open_sum(parameters)
    states = {}
    for client in everybody:
        states[client], message = ss.advertise(parameters, client, os.urandom(32), signer)
        server = ss.receive(server, message, verifiers)
    server, inbox = ss.end_phase(server)
    for client in everybody:
        states[client], message = ss.share_keys(states[client], inbox[client], verifiers)
        server = ss.receive(server, message, verifiers)
    server, inbox = ss.end_phase(server)
    encode, mask, add = [], [], []
    exact = np.zeros(size)
    for client in everybody[:-1]:
        upload = {"delta": update(client, size)}
        exact += upload["delta"].numpy()
        words, taken = timed(lambda: codec.encode(upload))  # noqa: B023
        encode.append(taken)
        (states[client], message), taken = timed(
            lambda: ss.mask_input(states[client], inbox[client], words)  # noqa: B023
        )
        mask.append(taken)
        data = ss.to_bytes(message)
        message = ss.from_bytes(data, ss.MaskedInput)
        server, taken = timed(lambda: ss.receive(server, message, verifiers))  # noqa: B023
        add.append(taken)
    server, inbox = ss.end_phase(server)
    for step in (ss.confirm, ss.reveal):
        for client in everybody[:-1]:
            states[client], message = step(
                states[client], inbox[client], signer if step is ss.confirm else verifiers
            )
            server = ss.receive(server, message, verifiers)
        if step is ss.confirm:
            server, inbox = ss.end_phase(server)
    total, unmask = timed(lambda: ss.unmask(server))
    error = float(np.abs(codec.decode(total)["delta"].double().numpy() - exact).max())
    return Figures(
        f"genfl, {bits} bits",
        *(Taken.middle(taken) for taken in (encode, mask, add)),
        unmask,
        len(data) / (4 * size),
        error,
    )


def flower(clients: int, size: int, clipping: float = 8.0, target: int = 2**22) -> Figures:
    """Call what Flower's client and workflow call, with its default ranges."""
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        factor_combine,
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.quantization import dequantize, quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    modulus = 2**32
    seeds = [os.urandom(32) for _ in range(clients)]
    encode, mask = [], []
    for client in range(2):
        values = [update(client, size).numpy()]
        quantized, taken = timed(lambda: factor_combine(target, quantize(values, clipping, target)))  # noqa: B023
        encode.append(taken)
        shapes = [array.shape for array in quantized]

        def masked(vector, shapes=shapes):
            for seed in seeds:  # one's own, and of nine neighbours
                vector = parameters_addition(vector, pseudo_rand_gen(seed, modulus, shapes))
            return parameters_mod(vector, modulus)

        upload, taken = timed(lambda: masked(quantized))  # noqa: B023
        mask.append(taken)
    _, add = timed(lambda: parameters_mod(parameters_addition(upload, upload), modulus))

    def unmask():
        vector = upload
        for seed in [*seeds[1:], *seeds[1:]]:  # nine self masks, and nine pairwise ones of the lost client
            vector = parameters_subtraction(vector, pseudo_rand_gen(seed, modulus, shapes))
        return parameters_mod(vector, modulus)

    _, unmasked = timed(unmask)
    total, exact = np.zeros(size), np.zeros(size)
    for client in range(clients - 1):
        value = update(client, size).numpy()
        total += dequantize(quantize([value], clipping, target), clipping, target)[0]
        exact += value
    return Figures(
        "Flower's SecAgg+",
        Taken.middle(encode),
        Taken.middle(mask),
        add,
        unmasked,
        sum(array.nbytes for array in upload) / (4 * size),
        float(np.abs(total - exact).max()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10, help="clients that share keys (default 10)")
    parser.add_argument(
        "--size", type=int, default=11_200_000, help="parameters of the model (default 11.2 M)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [ours(bits, arguments.clients, arguments.size) for bits in (32, 64)]
    lines.append(flower(arguments.clients, arguments.size))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; CPU seconds (wall-clock seconds)")
    print("| | encode | mask | server: add one | server: unmask | upload / float32 | largest error |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for line in lines:
        print(
            f"| {line.name} | {line.encode} | {line.mask} | {line.server_add} | {line.unmask}"
            f" | {line.upload:.4f} | {line.error:.1e} |"
        )


if __name__ == "__main__":
    main()
