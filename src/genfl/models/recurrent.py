"""Recurrent networks for sound and text."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from genfl.models.base import Classifier
from genfl.models.layers import Channels, Norm, Projection, Units, at_least, norm_layer, projection_head


class FedAudio(Classifier):
    """FedAudio's keyword spotter: convolutions, a GRU, the mean over time, and two dense layers.

    The layers in order:

    - Two 1D convolutions of size 3 (64 and 128 channels), each with ReLU and pooling by 2.
    - A bidirectional GRU of 128 units each way.
    - The mean over all frames, including padded ones.
    - A hidden layer of 128 units. Its outputs are the features.
    - A linear head.

    It has 285,028 parameters for 36 classes and 128 mels, as in the paper.

    Source: Zhang et al., ICASSP 2023 (arXiv 2210.15707). Their public code has the same layers and kernels at
    half these widths, which gives fewer parameters than the paper states.

    Args:
        shape: The shape of an input, (time, mels): a log-mel spectrogram with at least 4 frames.
        classes: Number of classes.
        width: Channels of the second convolution, and units of the GRU and the hidden layer. A multiple of 4.
            The first convolution has half as many channels.
        dropout: Share of the convolutions' output that training zeroes, in [0, 1).
        norm: Kind of normalisation between a convolution and its ReLU. The paper has none. Group norm has 2
            and 4 groups.
        projection: Outputs of a projection head before the linear head, as MOON has; 0 for none.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        width: Channels = 128,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
        norm: Norm = "none",
        projection: Projection = 0,
    ) -> None:
        super().__init__()
        _, mels = at_least(shape, time=4, mels=1)
        half = width // 2
        self.conv = nn.Sequential(
            nn.Conv1d(mels, half, 3, padding=1),
            norm_layer(norm, half, groups=2),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(half, width, 3, padding=1),
            norm_layer(norm, width),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Dropout(dropout),
        )
        self.rnn = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(2 * width, width)
        self.projection, features = projection_head(width, projection)
        self.classifier = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the hidden layer's output [n, width], or its projection, of spectrograms [n, time, mels]."""
        states, _ = self.rnn(self.conv(x.mT).mT)
        z: Tensor = self.projection(self.hidden(states.mean(1)).relu())
        return z


class LSTM(Classifier):
    """A text classifier: embedding, two LSTM layers, their state at the last word, and a linear head.

    Token 0 is padding. A text ends at its last other token, and padding after it has no effect. Put padding
    at the end: a zero before a word counts as a word with a zero vector. Tokens may be floats (exact up to
    2²⁴); they are cast to integers.

    Source: Caldas et al., 2018 (arXiv 1812.01097), the Sent140 model of LEAF's public code. That model has
    another linear layer, without activation, before its head.

    Args:
        shape: The shape of an input, (length,), in tokens.
        classes: Number of classes.
        vocabulary: Number of tokens, including padding.
        embedding: Size of a token's vector.
        width: Units of each LSTM layer.
        pool: The features are the ``last`` state, or the ``mean`` over the text.
        projection: Outputs of a projection head before the linear head, as MOON has; 0 for none.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        vocabulary: Annotated[int, Ge(2)] = 10_000,
        embedding: Units = 100,
        width: Units = 100,
        pool: Literal["last", "mean"] = "last",
        projection: Projection = 0,
    ) -> None:
        super().__init__()
        at_least(shape, length=1)
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.rnn = nn.LSTM(embedding, width, num_layers=2, batch_first=True)
        self.projection, features = projection_head(width, projection)
        self.classifier = nn.Linear(features, classes)
        self.pool = pool

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled states [n, width], or their projection, of token ids [n, length]."""
        tokens = x.long()
        position = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        end = (position * (tokens != 0)).amax(1, keepdim=True).clamp(min=1)  # an empty text is one padding
        states, _ = self.rnn(self.embedding(tokens))
        inside = position == end if self.pool == "last" else position <= end
        share = inside.to(states.dtype)
        pooled = (states * (share / share.sum(1, keepdim=True)).unsqueeze(-1)).sum(1)
        z: Tensor = self.projection(pooled)
        return z
