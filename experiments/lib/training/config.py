"""The configuration of a training run: its data, its network, its optimiser, its length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from experiments.lib.data.images import DataConfig
from experiments.lib.nets.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optax chain: sam, clipping, weight decay, optimiser with its learning-rate schedule."""

    name: Literal["sgd", "nesterov", "adam", "adamw", "rmsprop"] = "sgd"
    """sgd and nesterov take `momentum`; adamw decouples the weight decay."""

    learning_rate: float = 0.1
    """The peak learning rate."""

    momentum: float = 0.0
    """Momentum of sgd and nesterov."""

    b1: float = 0.9
    """First-moment decay of adam and adamw."""

    b2: float = 0.999
    """Second-moment decay of adam, adamw and rmsprop."""

    eps: float = 1e-8
    """Epsilon of adam, adamw and rmsprop."""

    weight_decay: float = 0.0
    """L2 penalty coefficient, added to the gradient; decoupled in adamw."""

    clip: float | None = None
    """Clip the gradient's global norm to this."""

    schedule: Literal["constant", "cosine", "steps"] = "constant"
    """cosine: to zero at the last step; steps: a tenth at 1/2 and again at 3/4 of the steps."""

    warmup_steps: int = 0
    """Linear warm-up from zero."""

    sam_rho: float | None = None
    """Radius of sharpness-aware minimisation (Foret et al., ICLR 2021); None is off."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained, measured and saved."""

    steps: int | None = 1000
    """Stop after this many updates ..."""

    epochs: float | None = None
    """... or after this many passes over the training set, whichever comes first ..."""

    stop_train_loss: float | None = None
    """... or as soon as an evaluation finds the whole training set's loss at or below this."""

    batch_size: int | None = 64
    """Examples an update; None for full batches."""

    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    """squared_error: half the squared distance to the one-hot label."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimiser."""

    reshuffle: bool = True
    """A new order each epoch, or the same one."""

    seed: int = 0
    """Seed of initialisation, shuffles, augmentation and dropout."""

    log_every: int = 10
    """Updates averaged in one row of training metrics."""

    eval_every: int = 100
    """Updates between evaluations."""

    eval_batch_size: int = field(default=512, metadata={"identity": False})
    """Examples evaluated at once."""

    eval_train_size: int | None = None
    """Evaluate the training loss on the first so many examples; default all."""

    checkpoint_every: int = field(default=100, metadata={"identity": False})
    """Updates between checkpoints."""

    keep_last: int = field(default=2, metadata={"identity": False})
    """Keep the last so many checkpoints ..."""

    keep_best: int = field(default=1, metadata={"identity": False})
    """... and the best so many of those taken at an evaluation."""

    best_metric: str = field(default="test_accuracy", metadata={"identity": False})
    """What makes a checkpoint the best: the highest, or for names ending in loss the lowest."""

    tensorboard: bool = field(default=True, metadata={"identity": False})
    """Write TensorBoard events."""

    def __post_init__(self):
        if self.steps is None and self.epochs is None:
            raise ValueError("give steps or epochs, or both")
        for name in ("log_every", "eval_every", "checkpoint_every", "eval_batch_size", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run: all that decides its result."""

    data: DataConfig = field(default_factory=DataConfig)
    """The data."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
