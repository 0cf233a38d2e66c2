"""Which network: the options of `experiments.lib.nets.models.make_model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, how large, how initialised. `None` stands for the network's own default."""

    name: Literal["mlp", "s2cnn", "cnn", "simple_cnn", "resnet", "wide_resnet", "transformer"] = (
        "cnn"
    )
    """mlp; s2cnn: two convolutions of stride 2 and a dense layer; cnn: VGG-like, convolutions and
    max pooling; simple_cnn: the same with a dense layer of 128 units, that of Jastrzebski et al.
    2020; resnet: He et al. 2016; wide_resnet: Zagoruyko and Komodakis 2016; transformer: pre-norm
    encoder over image patches or tokens."""

    width: int | None = None
    """mlp: hidden units (128); cnn, resnet: channels of the first stage (16); simple_cnn: likewise
    (32); wide_resnet: the widening factor k (2); transformer: the model dimension (64)."""

    depth: int | None = None
    """mlp: hidden layers (2); cnn: stages of two convolutions (2); resnet: 6n+2, or 18 and 34 in
    four stages (8); wide_resnet: 6n+4 (10); transformer: blocks (2)."""

    norm: Literal["none", "batch", "group", "layer"] | None = None
    """Normalisation. Default none for mlp and cnn, batch for the resnets, layer for the
    transformer."""

    activation: Literal["relu", "tanh", "gelu", "elu", "softplus", "identity"] | None = None
    """Default relu; gelu in the transformer."""

    skip: bool | None = None
    """Whether every block adds its input to its output. Default True for the resnets, which are
    plain networks without; False for the mlp, whose block is a layer between two of one width."""

    init_scale: float | None = None
    """s in W ~ N(0, s^2 / fan_in); biases are zero. Default sqrt(2) for relu (He et al. 2015), but
    1 in the last layer; else 1."""

    dropout: float = 0.0
    """Dropout rate, in every network before its last layer, and in the blocks of wide_resnet and
    transformer."""

    noise: float = 0.0
    """Standard deviation of the noise in training before every non-linearity."""

    patch: int = 2
    """transformer: images are cut into patches of this side."""

    heads: int = 4
    """transformer: attention heads."""

    vocabulary: int | None = None
    """transformer: number of token ids, for token inputs."""

    causal: bool = False
    """transformer: attend to the past only."""

    per_token: bool = False
    """transformer: logits for every token (n, length, classes), not for the mean over tokens."""
