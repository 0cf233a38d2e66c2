"""curvlinops: a Hessian operator, SciPy's eigsh on it, trace estimators, Papyan's density."""

import numpy as np

from benchmarks.peers.adapter import Adapter, Answer, Method, quadrature


class Curvlinops(Adapter):
    """The Hessian as a linear operator, as in its examples."""

    package = "curvlinops-for-pytorch"
    module = "curvlinops"
    framework = "torch"
    note = (
        "The nodes of its Lanczos run are also taken as they are: the density that it returns is "
        "smoothed by a width that more than covers the bulk."
    )

    def setup(self, task):
        """The operator."""
        import curvlinops
        import torch

        from benchmarks.peers import torch_model

        self.lib, self.torch, self.task = curvlinops, torch, task
        model, inputs, labels = torch_model.model_of(task)
        params = [p for p in model.parameters() if p.requires_grad]
        loss = torch.nn.CrossEntropyLoss()
        self.hessian = curvlinops.HessianLinearOperator(
            model, loss, params, [(inputs, labels)], check_deterministic=False
        )
        self.size = self.hessian.shape[0]

    def product(self, vector):
        """One product."""
        from benchmarks.peers import torch_model

        v = self.torch.cat([p.flatten() for p in torch_model.split(self.task, vector)])
        flat = (self.hessian @ v).detach().numpy()
        shapes = [torch_model.to_torch(self.task.kind, n, x) for n, x in self.task.params.items()]
        ends_at = np.cumsum([s.size for s in shapes])[:-1]
        pieces = [
            self.torch.from_numpy(np.ascontiguousarray(piece.reshape(s.shape)))
            for piece, s in zip(np.split(flat, ends_at), shapes, strict=True)
        ]
        return torch_model.join(self.task, pieces)

    def methods(self):
        """SciPy for the ends, four traces, two readings of the density."""
        tols = [{"tol": t} for t in (0.3, 0.1, 1e-2, 1e-3)]
        counts = [6 * 2**i for i in range(1, 13) if 6 * 2**i < self.size]
        few = [n for n in counts if n <= 1600]
        runs = [(20, 1), (40, 1), (40, 2), (40, 4), (80, 4), (80, 8), (80, 16)]
        wide = [{"ncv": m, "num_repeats": r} for m, r in ((80, 4), (160, 8), (320, 8))]
        return {
            "eigsh, k=1": Method(self._eigsh(1, "LA"), tols, ("top1",)),
            "eigsh, k=10": Method(self._eigsh(10, "LA"), tols, ("top",)),
            "eigsh, smallest 2": Method(self._eigsh(2, "SA"), tols, ("bottom",)),
            "hutchinson_trace": Method(
                self._trace("hutchinson_trace"), [{"num_matvecs": n} for n in counts], ("trace",)
            ),
            "hutchpp_trace": Method(
                self._trace("hutchpp_trace"), [{"num_matvecs": n} for n in few], ("trace",)
            ),
            "xtrace": Method(self._trace("xtrace"), [{"num_matvecs": n} for n in few], ("trace",)),
            "fast_lanczos": Method(
                self._lanczos, [{"ncv": m, "num_repeats": r} for m, r in runs], ("density",), ()
            ),
            "lanczos_approximate_spectrum": Method(self._density, wide, ("density",)),
        }

    def _eigsh(self, k, which):
        def call(options, seed):
            from scipy.sparse.linalg import LinearOperator, eigsh

            inner, count = self.hessian.to_scipy(dtype=np.float32), [0]

            def matvec(v):
                count[0] += 1
                return inner @ v

            counted = LinearOperator(inner.shape, matvec=matvec, dtype=np.float32)
            start = np.random.default_rng(seed).normal(size=self.size).astype(np.float32)
            values = np.sort(
                eigsh(
                    counted, k=k, which=which, v0=start, return_eigenvectors=False, **options
                ).astype(np.float64)
            )
            if which == "LA":
                return Answer(count[0], top=values[::-1])
            return Answer(count[0], bottom=values)

        return call

    def _trace(self, name):
        def call(options, seed):
            self.torch.manual_seed(seed)
            value = getattr(self.lib, name)(self.hessian, **options)
            return Answer(options["num_matvecs"], trace=float(value))

        return call

    def _lanczos(self, options, seed):
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        self.torch.manual_seed(seed)
        runs = [fast_lanczos(self.hessian, options["ncv"]) for _ in range(options["num_repeats"])]
        nodes = [values.numpy() for values, _ in runs]
        points, shares = quadrature(nodes, [vectors[0].numpy() ** 2 for _, vectors in runs])
        return Answer(options["ncv"] * options["num_repeats"], nodes=points, weights=shares)

    def _density(self, options, seed):
        self.torch.manual_seed(seed)
        grid, density = self.lib.lanczos_approximate_spectrum(self.hessian, **options)
        weights = density.numpy().astype(np.float64)
        spent = options["ncv"] * options["num_repeats"] + 20  # and eigsh for the boundaries
        return Answer(spent, nodes=grid.numpy(), weights=weights / weights.sum())


def adapter() -> Adapter:
    """The adapter."""
    return Curvlinops()
