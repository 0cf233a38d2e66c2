"""hessian-eigenthings 1.0: Lanczos, Hutch++ and stochastic Lanczos quadrature."""

import numpy as np

from benchmarks.peers.adapter import Adapter, Answer, Method, ends, quadrature


class Eigenthings(Adapter):
    """Its operator of one batch and its algorithms."""

    package = "hessian-eigenthings"
    module = "hessian_eigenthings"
    framework = "torch"

    def setup(self, task):
        """The operator."""
        import hessian_eigenthings
        import torch

        from benchmarks.peers import torch_model

        self.lib, self.torch, self.task = hessian_eigenthings, torch, task
        model, inputs, labels = torch_model.model_of(task)
        loss_fn = hessian_eigenthings.supervised_loss(torch.nn.functional.cross_entropy)
        self.hessian = hessian_eigenthings.HessianOperator(model, [(inputs, labels)], loss_fn)

    def product(self, vector):
        """One product."""
        from benchmarks.peers import torch_model

        split = torch_model.split(self.task, vector)
        flat = self.hessian.matvec(self.torch.cat([p.flatten() for p in split]))
        sizes = [p.numel() for p in split]
        parts = [a.reshape(p.shape) for a, p in zip(flat.split(sizes), split, strict=True)]
        return torch_model.join(self.task, parts)

    def methods(self):
        """Lanczos with reorthogonalisation, which its documentation advises to turn on."""
        steps = [{"max_iter": m} for m in (12, 16, 24, 32, 48, 64, 96, 128)]
        counts = [6 * 2**i for i in range(1, 9) if 6 * 2**i < self.hessian.size]
        runs = [(20, 1), (30, 1), (40, 1), (60, 1), (80, 1), (80, 2), (80, 4), (80, 8), (80, 16)]
        ladder = [{"lanczos_steps": m, "num_runs": r} for m, r in runs]
        many = [{"num_matvecs": 10 * 2**i, "method": "hutchinson"} for i in range(13)]
        return {
            "lanczos, k=1": Method(self._lanczos(1, "LA"), steps, ("top1",)),
            "lanczos, k=10": Method(self._lanczos(10, "LA"), steps, ("top",)),
            "lanczos, smallest 2": Method(self._lanczos(2, "SA"), steps, ("bottom",)),
            "trace, hutch++": Method(self._trace, [{"num_matvecs": n} for n in counts], ("trace",)),
            "trace, hutchinson": Method(self._trace, many, ("trace",)),
            "spectral_density": Method(
                self._density, ladder, ("top1", "top", "bottom", "trace", "density"), ("density",)
            ),
        }

    def _lanczos(self, k, which):
        def call(options, seed):
            found = self.lib.lanczos(
                self.hessian, k=k, which=which, seed=seed, reorthogonalize=True, **options
            )
            top, bottom = ends(found.eigenvalues.numpy())
            return Answer(
                found.iterations, **({"top": top} if which == "LA" else {"bottom": bottom})
            )

        return call

    def _trace(self, options, seed):
        found = self.lib.trace(self.hessian, seed=seed, **options)
        return Answer(options["num_matvecs"], trace=found.estimate)

    def _density(self, options, seed):
        found = self.lib.spectral_density(self.hessian, seed=1000 * seed, **options)
        nodes = np.nan_to_num(found.raw_eigenvalues.numpy().astype(np.float64))
        points, shares = quadrature(nodes, found.raw_weights.numpy())
        top, bottom = ends(nodes[0])
        spent = options["lanczos_steps"] * options["num_runs"]
        trace = self.hessian.size * float(points @ shares)
        return Answer(spent, top, bottom, trace, points, shares)


def adapter() -> Adapter:
    """The adapter."""
    return Eigenthings()
