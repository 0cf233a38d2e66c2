r"""Output losses: value, closed-form output-Hessian product and label sampling.

An output loss maps the outputs of a model and the targets to one loss an example. It offers

- ``loss(outputs, targets) -> (n,)``, the per-example values;
- ``loss.mean(outputs, targets)``, their mean as a [`Mean`][], in which padding does not count;
- ``loss.hessian_product(outputs, targets, tangents)``, the product with the block-diagonal Hessian
  $\partial^2 \ell_i / \partial z_i^2$ with respect to the outputs;
- ``loss.sample(key, outputs)``, targets drawn from the model's own predictive distribution.

The three losses here are negative log-likelihoods of exponential families in their natural
parameter, so the output Hessian does not depend on the targets and the exact Fisher information
equals the generalised Gauss-Newton matrix (Martens 2020, JMLR 21(146)). A plain function
``(outputs, targets) -> (n,)`` works wherever sampling is not needed; to add a loss of your own,
subclass [`OutputLoss`][].
"""

from flatjax.losses._base import OutputLoss as OutputLoss
from flatjax.losses._linear_head import LinearHead as LinearHead
from flatjax.losses._mean import Mean as Mean
from flatjax.losses._standard import SigmoidBinaryCrossEntropy as SigmoidBinaryCrossEntropy
from flatjax.losses._standard import SoftmaxCrossEntropy as SoftmaxCrossEntropy
from flatjax.losses._standard import SquaredError as SquaredError
from flatjax.losses._standard import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from flatjax.losses._standard import softmax_cross_entropy as softmax_cross_entropy
from flatjax.losses._standard import squared_error as squared_error
