"""PyHessian: power iteration with deflation, Hutchinson, stochastic Lanczos quadrature."""

from benchmarks.peers.adapter import Adapter, Answer, Method, ends, quadrature


class PyHessian(Adapter):
    """The three methods of its class ``hessian``, on one batch."""

    package = "pyhessian"
    module = "pyhessian"
    framework = "torch"
    note = (
        "`density` calls `torch.eig`, which PyTorch has dropped; here a function of that name over "
        "`torch.linalg.eigh` stands in. Its Lanczos nodes are also read as eigenvalues."
    )

    def setup(self, task):
        """The class keeps the graph of the gradient of the one batch."""
        import torch
        from pyhessian import hessian

        from benchmarks.peers import torch_model

        with_eig(torch)
        self.torch, self.task = torch, task
        model, inputs, labels = torch_model.model_of(task)
        loss = torch.nn.CrossEntropyLoss()
        self.lib = hessian(model, loss, data=(inputs, labels), cuda=False)

    def product(self, vector):
        """One product."""
        from pyhessian.utils import hessian_vector_product

        from benchmarks.peers import torch_model

        v = torch_model.split(self.task, vector)
        product = hessian_vector_product(self.lib.gradsH, self.lib.params, v)
        return torch_model.join(self.task, product)

    def methods(self):
        """Its three functions."""
        iterations = [{"maxIter": i, "tol": t} for i, t in ((100, 1e-3), (100, 1e-4), (400, 1e-6))]
        runs = [(20, 1), (30, 1), (40, 1), (60, 1), (80, 1), (80, 2), (80, 4), (80, 8), (80, 16)]
        ladder = [{"iter": m, "n_v": v} for m, v in runs]
        probes = [10 * 2**i for i in range(13)]
        return {
            "eigenvalues(top_n=1)": Method(self._one, iterations, ("top1",)),
            "eigenvalues(top_n=10)": Method(self._ten, iterations, ("top",)),
            "trace": Method(self._trace, [{"maxIter": n} for n in probes], ("trace",)),
            "density": Method(
                self._density, ladder, ("top1", "top", "bottom", "trace", "density"), ("density",)
            ),
        }

    def _eigenvalues(self, count, options, seed):
        self.torch.manual_seed(seed)
        with _counted() as spent:
            values, _ = self.lib.eigenvalues(top_n=count, **options)
        return Answer(spent[0], top=ends(values)[0])

    def _one(self, options, seed):
        return self._eigenvalues(1, options, seed)

    def _ten(self, options, seed):
        return self._eigenvalues(10, options, seed)

    def _trace(self, options, seed):
        self.torch.manual_seed(seed)
        values = self.lib.trace(tol=0, **options)  # its stopping rule compares two running means
        return Answer(len(values), trace=sum(values) / len(values))

    def _density(self, options, seed):
        self.torch.manual_seed(seed)
        nodes, weights = self.lib.density(**options)
        size = sum(p.numel() for p in self.lib.params)
        points, shares = quadrature(nodes, weights)
        top, bottom = ends(nodes[0])
        spent = options["iter"] * options["n_v"]
        return Answer(spent, top, bottom, size * float(points @ shares), points, shares)


class _counted:
    """Counts the products spent inside."""

    def __enter__(self):
        import sys

        import pyhessian.hessian  # the class of this name hides the module in its package

        del pyhessian
        module = sys.modules["pyhessian.hessian"]
        self.module, self.original, count = module, module.hessian_vector_product, [0]

        def product(*args):
            count[0] += 1
            return self.original(*args)

        module.hessian_vector_product = product
        return count

    def __exit__(self, *_):
        self.module.hessian_vector_product = self.original


def with_eig(torch):
    """Give PyTorch the function that it has dropped, if it has."""
    if not _has_eig(torch):
        torch.eig = _eig


def _has_eig(torch):
    try:
        torch.eig(torch.eye(2), eigenvectors=True)
    except (AttributeError, RuntimeError):
        return False
    return True


def _eig(matrix, eigenvectors):
    """The symmetric case of the function that was: values with a zero imaginary part, vectors."""
    import torch

    del eigenvectors
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


def adapter() -> Adapter:
    """The adapter."""
    return PyHessian()
