"""The identity, and what it adds."""

import jax.numpy as jnp
import numpy as np

from flatjax.operators._damping import damped, identity
from tests.operators import references
from tests.operators.test_inverse import DEFINITE, from_matrix


def test_identity_and_damping():
    params = {"a": jnp.ones(2), "b": jnp.ones((), jnp.bfloat16)}
    v = {"a": jnp.array([1.0, 2.0]), "b": jnp.float32(3.0)}
    product = identity(params) @ v
    assert product["b"].dtype == jnp.float32
    assert product["a"].tolist() == [1.0, 2.0]
    op = damped(from_matrix(np.float32(DEFINITE)), 0.5)
    expected = DEFINITE + 0.5 * np.eye(40)
    references.assert_close(op.to_dense(), expected, references.FLOAT32)
