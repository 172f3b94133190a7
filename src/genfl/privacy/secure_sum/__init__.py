"""Secure sums: masked uploads whose sum over all clients can be read, but nothing else.

Every pair of neighbouring clients agrees on a secret. From it, both derive the same pseudorandom mask. The
client with the lower id adds the mask to its upload, and the other one subtracts it. So the masks cancel in
the sum. Each client also adds a mask of its own. The secrets behind both masks are shared among the
neighbours, so that enough of them can open one of the two: the self mask of a client in the sum, or the
pairwise masks of one that dropped out. Never both.

Sources: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
Figure 4, in its version for active servers; Bell et al., "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", CCS 2020, section 3, for the neighbours in larger groups.

The protocol is made of pure functions, without a network, a clock or a source of randomness:

* `messages`: what is sent, and its bytes. The parameters of a sum are the first message.
* `client`: `advertise`, `share_keys`, `mask_input`, `confirm`, `reveal`, in this order.
* `server`: `open_sum`, then `receive` for each message and `end_phase` for each phase, and `unmask`.
* `fixed_point`, `uploads`: real numbers and trees of tensors as words.
* `one_process`: `SecureSum`, a simulation with the same masks, and without messages.

`docs/security.md` says what the protocol protects, from whom, and what it does not.
"""

from genfl.privacy.secure_sum.client import (
    ClientState,
    advertise,
    confirm,
    mask_input,
    reveal,
    share_keys,
    state_from_bytes,
    state_to_bytes,
)
from genfl.privacy.secure_sum.fixed_point import FixedPoint
from genfl.privacy.secure_sum.messages import (
    Advertisement,
    ClientMessage,
    Confirmation,
    Confirmations,
    Delivery,
    MaskedInput,
    Reveal,
    Roster,
    SealedShares,
    Segment,
    ServerMessage,
    SumParameters,
    Survivors,
    default_threshold,
    from_bytes,
    to_bytes,
)
from genfl.privacy.secure_sum.one_process import SecureSum
from genfl.privacy.secure_sum.primitives import NodeSigner, NodeVerifier, SecureSumError, Signer, Verifier
from genfl.privacy.secure_sum.server import ServerState, end_phase, open_sum, receive, unmask

__all__ = [
    "Advertisement",
    "ClientMessage",
    "ClientState",
    "Confirmation",
    "Confirmations",
    "Delivery",
    "FixedPoint",
    "MaskedInput",
    "NodeSigner",
    "NodeVerifier",
    "Reveal",
    "Roster",
    "SealedShares",
    "SecureSum",
    "SecureSumError",
    "Segment",
    "ServerMessage",
    "ServerState",
    "Signer",
    "SumParameters",
    "Survivors",
    "Verifier",
    "advertise",
    "confirm",
    "default_threshold",
    "end_phase",
    "from_bytes",
    "mask_input",
    "open_sum",
    "receive",
    "reveal",
    "share_keys",
    "state_from_bytes",
    "state_to_bytes",
    "to_bytes",
    "unmask",
]
