"""The certified spectrum of a small language model: types of blocks, and Adam's edge.

A pre-norm decoder learns English text, bytes by default, by Adam. Where training ends: the ten
largest and two smallest eigenvalues of the Hessian with their residuals, its trace to 1 %, its
density, and trace and density of the diagonal block of every type of parameters. Wang et al. (ICML
2025, arXiv:2502.19002, "The sharpness disparity principle in transformers") order these by their
trace per parameter: embedding < query and key < MLP < value and output < norm; Zhang et al.
(NeurIPS 2024, arXiv:2402.16788, "Why transformers need Adam") find their spectra heterogeneous, for
which the measure here is a Wasserstein distance in decades in place of theirs (Jensen-Shannon).
Along training: the largest eigenvalue, that in Adam's geometry against 38 / eta (Cohen et al. 2022,
arXiv:2207.14484), and the critical sharpness (Kalra et al. 2026, arXiv:2601.16979), here along the
gradient over Adam's preconditioner. A second arm trains on the measured windows alone, all of them
in every batch: theory's setting of that edge.

    python -m experiments lm_spectrum                 # or --data book.txt, as bytes
    python -m experiments lm_spectrum --data tokens.npy --vocabulary 4096
    python -m experiments lm_spectrum --preset paper --data tokens.npy       # one GPU

Found: on bytes the order of the types is another one: MLP < query and key < norm < value and output
< embedding; of the paper's only MLP < value and output is reproduced. The embedding has 0.71 of the
trace, perhaps as a byte is used far more often than one of 50,000 tokens. Spectra of two types are
1.24 ± 0.05 times as far apart as those of a type at two seeds, less than the accepted 2; two probes
leave much to chance near zero, so this says little of the paper. Adam on full batches stands at
0.85 ± 0.08 of 38 / eta: left open, at 0.8 to 1.2 but for two seeds just after a jump of the loss;
on batches at 0.21 ± 0.01. The top ten and bottom two are certified, the trace to 0.95 %. With 6.5
million parameters the order is MLP < query and key < value and output < norm < embedding: of the
paper's all but the places of the embedding and of the MLP.

The text is on every machine: CPython's reference manual as `pydoc` shows it, 470 kB, a little other
in each version. So the network has 137,000 parameters only, and learns it to 1.7 nats per byte.
real: 6.5 million, on 820,000 bytes of the same text, three seeds, an hour of one processor. paper:
the shape of GPT-2 (124 million, 50,304 tokens, tied) on token ids from elsewhere, on one GPU of
140 GB; it was not run.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.progress import say
from experiments.lm_spectrum import figures, measuring, numbers, training
from experiments.lm_spectrum.numbers import (
    above,
    critical_share,
    follows,
    heterogeneity,
    homogeneous,
    last_half,
    of_end,
    total,
)


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: str = "pydoc"  # or a file of text, as bytes, or an .npy file of token ids
    vocabulary: int = 256  # tokens; 256 of bytes
    context: int = 64  # tokens in a window
    width: int = 64  # of the network ...
    layers: int = 2  # ... its blocks ...
    heads: int = 4  # ... and heads of attention
    tied: bool = False  # whether the last layer is the embedding
    learning_rate: float = 2e-3  # of Adam on the whole text
    full_rate: float = 1e-3  # of Adam on the measured windows alone
    b2: float = 0.99  # decay of Adam's second moment
    weight_decay: float = 0.0  # decoupled
    warm_up: int = 50  # updates until the learning rate is there
    batch_size: int = 16  # windows
    updates: int = 800  # on the whole text
    full_updates: int = 600  # on the measured windows alone
    every: int = 100  # updates between two measurements along training
    measured: int = 16  # windows of the training text, of which the loss is measured
    chunk_size: int | None = None  # of these at once in products of the Hessian; None: all
    remat: bool = False  # whether gradients compute blocks twice rather than keep them
    tol: float = 1e-2  # residual of an eigenvalue over its size
    max_steps: int = 160  # of Lanczos, each a vector of memory
    trace_products: int = 150  # at most, for the last digits of the trace
    block_probes: int = 2  # of the density of a block
    block_products: int = 40  # at most, for the last digits of its trace

    def __post_init__(self):
        if not 1 <= self.warm_up <= self.every <= min(self.updates, self.full_updates):
            raise ValueError("1 <= warm_up <= every <= updates and full_updates, please")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")


# fmt: off
lab = Lab(
    Config, "Wang et al. 2025",
    smoke={"seeds": 1, "context": 8, "width": 8, "layers": 1, "heads": 2, "batch_size": 2,
           "updates": 4, "full_updates": 4, "every": 2, "warm_up": 1, "measured": 2,
           "max_steps": 20, "trace_products": 4, "block_probes": 2, "block_products": 2},
    real={"seeds": 3, "width": 256, "layers": 8, "heads": 8, "learning_rate": 1e-3,
          "full_rate": 1e-3, "warm_up": 100, "full_updates": 400, "every": 200, "measured": 8,
          "trace_products": 100, "block_products": 20},
    # The shape of GPT-2 and the usual numbers of its training; batches and updates are fewer.
    paper={"seeds": 1, "data": "tokens.npy", "vocabulary": 50_304, "context": 1024, "width": 768,
           "layers": 12, "heads": 12, "tied": True, "learning_rate": 6e-4, "full_rate": 6e-4,
           "b2": 0.95, "weight_decay": 0.1, "warm_up": 500, "batch_size": 32, "updates": 6000,
           "full_updates": 1500, "every": 500, "measured": 64, "chunk_size": 8, "remat": True,
           "max_steps": 60},
)
# fmt: on
EXPERIMENT = lab.experiment


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of both arms, and under `end` the spectrum after the one on the whole text."""
    data = training.load(config)
    seeds = list(config.seed_range())
    found = shared(
        config, {s: functools.partial(one_seed, config, out / f"seed_{s}", s, data) for s in seeds}
    )
    rows = {part: [found[s][part] for s in seeds] for part in (*training.ARMS, "end")}
    return {
        part: {name: np.stack([row[name] for row in of]) for name in of[0]}
        for part, of in rows.items()
    }


def one_seed(config: Config, folder: Path, seed: int, data: training.Data) -> Runs:
    """What is recorded of one seed."""
    say(f"seed {seed}", enabled=not config.quiet)
    found = {}
    for arm in training.ARMS[::-1]:  # the parameters of the last one are kept for the spectrum
        place = folder / arm.replace(" ", "_")
        found[arm], params = training.train(place, config, arm, seed, data)
    end = kept_arrays(
        folder / "spectrum.npz", lambda: measuring.spectrum(config, seed, params, data)
    )
    return found | {"end": end}


# fmt: off
ORDER = (("embedding", "query/key"), ("query/key", "MLP"), ("MLP", "value/output"),
         ("value/output", "norm"))
for _lower, _upper in ORDER:
    lab.claim(f"{_lower}-below-{_upper}".replace("/", "-").lower(),
              f"Trace of the Hessian per parameter of {_upper} less that of {_lower}, over their "
              "sum.", above(_lower, _upper), low=0, source="sign",
              reason="the order of the paper; null: parameters dealt to the types at random",
              null=above(_lower, _upper, "dealt"))
lab.claim("spectra-differ", "Mean Wasserstein distance between the spectra of two types of blocks, "
          "in decades, over that between two seeds of a type.", heterogeneity, low=2,
          source="margin", reason="twice what seeds differ by; null: another seed in place of "
          "another type", paper="Zhang et al. 2024", null=homogeneous)
COHEN = "Cohen et al. 2022"
lab.claim("full-batch-at-the-edge", "Preconditioned sharpness over 38 / eta, mean over the last "
          "half of training on the measured windows alone.", last_half("full batch",
          "preconditioned"), low=0.9, high=1.1, source="margin", paper=COHEN,
          reason="1 within a tenth; null: the Hessian's own largest eigenvalue",
          null=last_half("full batch", "plain_ratio"))
lab.claim("batches-stay-below", "The same on batches of the whole text.", last_half("batches",
          "preconditioned"), high=0.9, source="margin", paper=COHEN, reason="below what is "
          "accepted of full batches; null: these", null=last_half("full batch", "preconditioned"))
KALRA = "Kalra et al. 2026"
lab.claim("critical-is-below", "Critical over preconditioned sharpness, geometric mean over both "
          "arms.", critical_share("preconditioned"), high=1, source="theory", paper=KALRA,
          reason="to second order a Rayleigh quotient; null: over the Hessian's own largest "
          "eigenvalue", null=critical_share("plain_ratio"))
lab.claim("critical-follows", "Rank correlation along training of critical and preconditioned "
          "sharpness, mean over both arms.", follows(slice(None)), low=0, source="sign",
          paper=KALRA, reason="null: the one in reversed order",
          null=follows(slice(None, None, -1)))
OURS = "this laboratory"
lab.claim("top-and-bottom-are-certified", "Share of the ten largest and two smallest eigenvalues "
          "whose residual is at most 1 % of their size, none skipped.",
          lambda runs, config: runs["end"]["converged"], low=1, source="theory", paper=OURS,
          reason="all; null: the ten largest after 20 products",
          null=lambda runs, config: runs["end"]["short"])
lab.claim("trace-to-a-per-cent", "Standard error of the trace over the trace.",
          of_end("trace_error", "trace"), high=0.01, source="theory", paper=OURS,
          reason="what was asked for; null: of the traces of all blocks together",
          null=lambda runs, config: np.linalg.norm(runs["end"]["trace_errors"], axis=1)
          / runs["end"]["trace"])
lab.claim("blocks-add-up", "Sum of the traces of all blocks over that of the whole.",
          total(slice(None)), low=0.95, high=1.05, source="theory", paper=OURS,
          reason="1 within the errors asked for, 3 % of a block and 1 % of the whole; null: "
          "without the embedding", null=total(slice(1, None)))
# fmt: on

lab.figure(
    "Along training, on the whole text and on the measured windows alone; means over seeds, two "
    "standard errors. Left: the loss. Middle: preconditioned and critical sharpness over 38 / eta. "
    "Right: the Hessian's largest eigenvalue.", columns=3,
)(figures.training)  # fmt: skip
lab.figure(
    "Where training on the whole text ends. Left: the trace of the Hessian per parameter by type "
    "of block, every seed. Right: of the first seed, the share of the eigenvalues of every type's "
    "block that lie below.", columns=2,
)(figures.blocks)  # fmt: skip
lab.table(figures.types)
lab.extra(numbers.kept)
