"""What an installed wheel must do; `make test-dist` runs it where nothing else is installed."""

import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import optax

import flatjax
import flatjax.plots  # needs matplotlib only when it draws


def loss(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["in"]) @ params["out"] - targets) ** 2)


def main(version: str) -> None:
    package = pathlib.Path(flatjax.__file__).parent
    assert sys.prefix in str(package), f"not the installed package: {package}"
    assert flatjax.__version__ == version
    assert (package / "py.typed").exists()
    for name in ("tests", "experiments", "benchmarks", "flax", "matplotlib"):
        assert importlib.util.find_spec(name) is None, f"{name} came along"

    k = jax.random.split(jax.random.key(0), 4)
    params = {"in": jax.random.normal(k[0], (8, 32)), "out": jax.random.normal(k[1], (32, 1))}
    batch = jax.random.normal(k[2], (64, 8)), jax.random.normal(k[3], (64, 1))
    hessian = flatjax.hessian(loss, params, batch)
    values = jnp.linalg.eigvalsh(hessian.to_dense())
    top = flatjax.eigsh(hessian, 2, key=k[0])
    assert jnp.allclose(top.values, values[::-1][:2], rtol=1e-4), (top.values, values)
    total = flatjax.trace(hessian, key=k[1])
    assert abs(total.value - values.sum()) < 5 * total.standard_error, (total, values.sum())

    sam = optax.chain(flatjax.sam(rho=0.05), optax.sgd(0.05))
    state = sam.init(params)

    @jax.jit
    def step(params, state):
        def gradient(p):
            return jax.grad(loss)(p, batch)

        updates, state = sam.update(gradient(params), state, params, grad_fn=gradient)
        return optax.apply_updates(params, updates), state

    before = loss(params, batch)
    for _ in range(10):
        params, state = step(params, state)
    assert loss(params, batch) < 0.9 * before
    python = ".".join(map(str, sys.version_info[:2]))
    print(f"flatjax {version} works with Python {python} and JAX {jax.__version__}")


if __name__ == "__main__":
    main(sys.argv[1])
