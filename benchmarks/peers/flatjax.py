"""flatjax itself."""

from benchmarks.peers.adapter import Adapter, Answer, Method, ends


class Flatjax(Adapter):
    """`flatjax.spectrum` for all at once, and the single estimators."""

    package = "flatjax"
    module = "flatjax"
    framework = "jax"

    def setup(self, task):
        """The linearised Hessian of the mean loss."""
        import jax

        import flatjax
        from benchmarks.peers import jax_model

        self.lib, self.jax, self.task = flatjax, jax, task
        model_fn, self.params, batch = jax_model.model_of(task)

        def loss_fn(params, batch):
            return jax_model.mean_loss(model_fn, params, batch)

        self.hessian = flatjax.hessian(loss_fn, self.params, batch).linearize()

    def product(self, vector):
        """One product."""
        flat, unravel = self.jax.flatten_util.ravel_pytree(self.params)
        del flat
        return self.jax.flatten_util.ravel_pytree(self.hessian @ unravel(vector))[0]

    def methods(self):
        """All at once, and one by one."""
        depths = ((16, 1), (24, 2), (32, 2), (48, 2), (64, 4), (96, 8), (128, 16))
        everything = ("top1", "top", "bottom", "trace", "density")
        effort = (
            (0.1, 2, 1, 0.009),
            (0.05, 2, 1, 0.008),
            (0.03, 2, 1, 0.008),
            (0.02, 2, 1, 0.007),
            (0.01, 2, 1, 0.007),
            (0.01, 2, 8, 0.006),
            (0.01, 2, 24, 0.006),
            (0.01, 2, 48, 0.006),
            (0.01, 4, 64, 0.005),
            (0.01, 8, 96, 0.004),
        )
        names = ("tol", "num_probes", "probe_steps", "trace_rtol")
        ladder = [dict(zip(names, numbers, strict=True)) for numbers in effort]
        least = {"k": 1, "num_bottom": 0, "num_probes": 2, "probe_steps": 1}
        few = ((16, 0.012), (24, 0.012), (24, 0.008), (32, 0.008), (48, 0.007), (64, 0.006))
        largest = [{**least, "num_steps": m, "trace_rtol": tol} for m, tol in few]
        shared = [{"num_products": 24 * 2**i} for i in range(7)]
        return {
            "spectrum": Method(self._spectrum, ladder, everything),
            "spectrum without options": Method(self._spectrum, [{}], everything),
            "spectrum without the smallest": Method(
                self._spectrum,
                [{**options, "num_bottom": 0} for options in ladder],
                ("top1", "top", "trace", "density"),
            ),
            "spectrum of the largest": Method(
                self._spectrum,
                largest,
                ("top1", "trace", "density"),
            ),
            "eigsh, k=1": Method(
                self._eigsh_one, [{"tol": t} for t in (0.3, 0.1, 1e-2)], ("top1",)
            ),
            "eigsh, k=10": Method(self._eigsh, [{"tol": t} for t in (0.3, 0.1, 1e-2)], ("top",)),
            "eigsh, smallest 2": Method(
                self._bottom, [{"tol": t} for t in (0.3, 0.1, 1e-2)], ("bottom",)
            ),
            "trace, deflated": Method(self._deflated, shared, ("trace",)),
            "trace, hutch++": Method(self._hutchpp, shared, ("trace",)),
            "trace, xtrace": Method(self._xtrace, shared, ("trace",)),
            "trace, hutchinson": Method(
                self._hutchinson,
                [{"num_products": 16 * 2**i} for i in range(12)],
                ("trace",),
            ),
            "spectral_density": Method(
                self._density,
                [{"num_probes": p, "num_steps": m, "deflation_steps": m} for m, p in depths],
                ("density",),
            ),
        }

    def _key(self, seed):
        return self.jax.random.key(seed)

    def _spectrum(self, options, seed):
        found = self.lib.spectrum(self.hessian, key=self._key(seed), **options)
        top, bottom, total, density = self.jax.device_get(
            (found.top.values, found.bottom.values, found.trace.value, found.density)
        )
        nodes, weights = density.atoms, density.weights
        smallest = bottom[::-1] if len(bottom) else None
        return Answer(found.num_products, top, smallest, total, nodes, weights)

    def _eigsh_one(self, options, seed):
        found = self.lib.eigsh(self.hessian, 1, key=self._key(seed), verify=False, **options)
        return Answer(found.num_products, top=self.jax.device_get(found.values))

    def _eigsh(self, options, seed):
        found = self.lib.eigsh(self.hessian, 10, key=self._key(seed), verify=False, **options)
        return Answer(found.num_products, top=self.jax.device_get(found.values))

    def _bottom(self, options, seed):
        found = self.lib.eigsh(
            self.hessian, 2, which="SA", key=self._key(seed), verify=False, **options
        )
        return Answer(found.num_products, bottom=ends(self.jax.device_get(found.values))[1])

    def _trace(self, method, options, seed):
        found = self.lib.trace(self.hessian, key=self._key(seed), method=method, **options)
        return Answer(found.num_products, trace=float(found.value))

    def _deflated(self, options, seed):
        return self._trace("deflated", options, seed)

    def _hutchpp(self, options, seed):
        return self._trace("hutch++", options, seed)

    def _xtrace(self, options, seed):
        return self._trace("xtrace", options, seed)

    def _hutchinson(self, options, seed):
        return self._trace("hutchinson", options, seed)

    def _density(self, options, seed):
        found = self.jax.device_get(
            self.lib.spectral_density(self.hessian, key=self._key(seed), **options)
        )
        spent = options["deflation_steps"] + options["num_probes"] * options["num_steps"]
        return Answer(spent, nodes=found.atoms, weights=found.weights)


def adapter() -> Adapter:
    """The adapter."""
    return Flatjax()
