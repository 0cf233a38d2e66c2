"""traceax: trace estimators on lineax operators."""

from benchmarks.peers.adapter import Adapter, Answer, Method


class Traceax(Adapter):
    """Its estimators, compiled; it answers the trace alone."""

    package = "traceax"
    module = "traceax"
    framework = "jax"
    note = "The product is `jax.linearize` of the gradient, passed as an argument."

    def setup(self, task):
        """The product on flat vectors, with the residuals of one gradient."""
        import equinox
        import jax
        import lineax
        import traceax

        from benchmarks.peers import jax_model

        self.jax = jax
        model_fn, params, batch = jax_model.model_of(task)
        flat, unravel = jax.flatten_util.ravel_pytree(params)

        def gradient(flat, batch):
            loss = lambda f: jax_model.mean_loss(model_fn, unravel(f), batch)  # noqa: E731
            return jax.grad(loss)(flat)

        linear = jax.jit(lambda f, b: jax.linearize(lambda p: gradient(p, b), f)[1])
        self.linear = linear(flat, batch)
        # Its default probes are integers, which an operator on float32 vectors refuses.
        signs = traceax.RademacherSampler(dtype=flat.dtype)
        self.estimators = {
            "HutchinsonEstimator": traceax.HutchinsonEstimator(signs),
            "HutchPlusPlusEstimator": traceax.HutchPlusPlusEstimator(signs),
            "XTraceEstimator": traceax.XTraceEstimator(),
        }
        like = jax.ShapeDtypeStruct(flat.shape, flat.dtype)

        def run(linear, key, name, k):
            tags = lineax.symmetric_tag
            operator = lineax.FunctionLinearOperator(linear, like, tags)
            return self.estimators[name].estimate(key, operator, k)[0]

        self.run = equinox.filter_jit(run)

    def product(self, vector):
        """One product."""
        return self.linear(vector)

    def methods(self):
        """Its three estimators for symmetric operators."""
        counts = [{"k": 12 * 2**i} for i in range(6)]
        return {name: Method(self._trace(name), counts, ("trace",)) for name in self.estimators}

    def _trace(self, name):
        def call(options, seed):
            value = self.run(self.linear, self.jax.random.key(seed), name, options["k"])
            return Answer(options["k"], trace=float(value))

        return call


def adapter() -> Adapter:
    """The adapter."""
    return Traceax()
