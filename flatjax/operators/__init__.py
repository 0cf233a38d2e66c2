"""What is multiplied: curvature matrices as products on pytrees."""

from flatjax.operators._base import Operator as Operator
from flatjax.operators._base import as_operator as as_operator
from flatjax.operators._blocks import block_diagonal as block_diagonal
from flatjax.operators._blocks import blocks as blocks
from flatjax.operators._blocks import restrict as restrict
from flatjax.operators._covariance import gradient_covariance as gradient_covariance
from flatjax.operators._damping import damped as damped
from flatjax.operators._damping import identity as identity
from flatjax.operators._ggn import fisher as fisher
from flatjax.operators._ggn import ggn as ggn
from flatjax.operators._gram import gradient_gram as gradient_gram
from flatjax.operators._hessian import hessian as hessian
from flatjax.operators._inverse import Solution as Solution
from flatjax.operators._inverse import inverse as inverse
from flatjax.operators._jacobian import jacobian as jacobian
from flatjax.operators._jacobian import ntk as ntk
from flatjax.operators._per_example import per_example_gradients as per_example_gradients
from flatjax.operators._precondition import preconditioned as preconditioned
from flatjax.operators._selection import embed as embed
from flatjax.operators._selection import select as select
from flatjax.operators._stream import over_batches as over_batches
