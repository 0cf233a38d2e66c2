r"""The bound of the paper's Theorem 2 on the loss over a distribution.

With probability $1 - \delta$ over the $n$ examples, for a loss in $[0, 1]$ that Gaussian noise on
the $k$ weights does not lower over the distribution,

$$L_D(w) \le \max_{|\epsilon|_2 \le \rho} L_S(w + \epsilon) + h, \qquad h^2 = \frac{k \log(1 +
(1 + \sqrt{\log(n) / k})^2 |w|^2 / \rho^2) + 4 \log(n / \delta) + 8 \log(6 n + 3 k)}{n - 1}.$$

The theorem has $\tilde O(1)$ in place of the last logarithm, which is that of its proof (appendix
A.1). Noise of standard deviation $\sigma$ stays within $\rho = \sigma (\sqrt k + \sqrt{\log n})$
with probability $1 - 1 / \sqrt n$; the divergence of that Gaussian from the best of a grid of
priors is at most $(1 + k \log(1 + |w|^2 / (k \sigma^2))) / 2$, and a union over the grid adds
$2 \log(6 n + 3 k)$. This gives $h / 2 + 1 / \sqrt n$, which the theorem rounds up to h.

It is vacuous unless there are many more examples than weights: a loss in $[0, 1]$ is at most 1, and
h is more where $k \log(1 + |w|^2 / \rho^2) \ge n - 1$. Losses here can be above 1, besides. So no
more can be compared than the order in which it puts networks with that of their test losses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

DELTA = 0.05


def complexity(
    norm: Any, *, weights: int, examples: int, rho: float, delta: float = DELTA
) -> np.ndarray:
    """The theorem's h for weights of this norm, a number for each."""
    spread = (1 + np.sqrt(np.log(examples) / weights)) ** 2
    divergence = weights * np.log1p((np.asarray(norm) / rho) ** 2 * spread)
    certainty = 4 * np.log(examples / delta) + 8 * np.log(6 * examples + 3 * weights)
    return np.sqrt((divergence + certainty) / (examples - 1))
