"""matfree: Lanczos and trace estimators for a matrix-vector product that one brings along."""

import numpy as np

from benchmarks.peers.adapter import Adapter, Answer, Method, ends, quadrature

BLOCK = 32  # probes at once: it maps over all of them, and memory grows with their number


class Matfree(Adapter):
    """Its algorithms on a linearised product, each compiled as a whole."""

    package = "matfree"
    module = "matfree"
    framework = "jax"
    note = "The product is `jax.linearize` of the gradient, passed as an argument."

    def setup(self, task):
        """The product on flat vectors, with the residuals of one gradient."""
        import jax
        from matfree import decomp, eig, stochtrace

        from benchmarks.peers import jax_model

        self.jax, self.decomp, self.eig, self.stochtrace = jax, decomp, eig, stochtrace
        model_fn, params, batch = jax_model.model_of(task)
        flat, unravel = jax.flatten_util.ravel_pytree(params)

        def gradient(flat, batch):
            loss = lambda f: jax_model.mean_loss(model_fn, unravel(f), batch)  # noqa: E731
            return jax.grad(loss)(flat)

        linear = jax.jit(lambda f, b: jax.linearize(lambda p: gradient(p, b), f)[1])
        self.linear = linear(flat, batch)
        self.like, self.compiled = flat, {}

    def product(self, vector):
        """One product."""
        return self.linear(vector)

    def methods(self):
        """Lanczos runs, Hutchinson, XTrace."""
        runs = [(20, 1), (30, 1), (40, 1), (60, 1), (80, 1), (80, 4), (80, 8), (80, 16)]
        return {
            "tridiag_sym": Method(
                self._lanczos,
                [{"num_matvecs": m, "num_probes": p} for m, p in runs],
                ("top1", "top", "bottom", "trace", "density"),
            ),
            "monte_carlo_trace": Method(
                self._hutchinson, [{"num": BLOCK * 2**i} for i in range(11)], ("trace",)
            ),
            "leave_one_out_xtrace": Method(
                self._xtrace, [{"num": n} for n in (10, 20, 40, 80, 160, 320)], ("trace",)
            ),
        }

    def _program(self, name, make):
        if name not in self.compiled:
            self.compiled[name] = self.jax.jit(make())
        return self.compiled[name]

    def _lanczos(self, options, seed):
        import jax.numpy as jnp

        steps = options["num_matvecs"]

        def make():
            tridiag = self.decomp.tridiag_sym(steps, reortho="full", custom_vjp=False)

            def run(linear, v):
                found = tridiag(linear, v)
                values, vectors = jnp.linalg.eigh(found.J_small)
                return values, vectors[0] ** 2

            return run

        program = self._program(("lanczos", steps), make)
        keys = self.jax.random.split(self.jax.random.key(seed), options["num_probes"])
        found = []
        for key in keys:
            v = self.jax.random.rademacher(key, self.like.shape, self.like.dtype)
            found.append(self.jax.device_get(program(self.linear, v / self.like.size**0.5)))
        nodes, weights = (np.stack([f[j] for f in found]) for j in range(2))
        points, shares = quadrature(nodes, weights)
        top, bottom = ends(nodes[0])
        total = self.like.size * float(points @ shares)
        return Answer(steps * len(keys), top, bottom, total, points, shares)

    def _hutchinson(self, options, seed):
        def make():
            sampler = self.stochtrace.sampler_signs(self.like, num=BLOCK)
            integrand = self.stochtrace.monte_carlo_trace()
            estimate = self.stochtrace.estimator_monte_carlo(integrand, sampler)
            return lambda linear, key: estimate(linear, key)

        program = self._program("hutchinson", make)
        keys = self.jax.random.split(self.jax.random.key(seed), options["num"] // BLOCK)
        values = self.jax.device_get([program(self.linear, key) for key in keys])
        return Answer(options["num"], trace=float(np.mean(values)))

    def _xtrace(self, options, seed):
        def make():
            sampler = self.stochtrace.sampler_normal(self.like, num=options["num"])
            integrand = self.stochtrace.leave_one_out_xtrace()
            estimate = self.stochtrace.estimator_leave_one_out(integrand, sampler)
            return lambda linear, key: estimate(linear, key)

        program = self._program(("xtrace", options["num"]), make)
        value = program(self.linear, self.jax.random.key(seed))
        return Answer(2 * options["num"], trace=float(np.mean(value)))


def adapter() -> Adapter:
    """The adapter."""
    return Matfree()
