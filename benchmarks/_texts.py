"""The words between the tables of the page."""

INTRODUCTION = """# Benchmarks

This page is written by `python -m benchmarks render` from the JSON files in `benchmarks/results/`;
`make bench` measures the short form anew, `make bench-full` everything.
"""
SIDE_BY_SIDE = """## Side by side

The same trained networks, with the same float32 weights and data, one process and one thread a
system, each pinned to the same core. Every system first climbs the ladder of options of each of
its methods until its true error (root mean square over five seeds, three of slow calls, against
the float64 truth below) has reached the target; then the cheapest calls that reached it run in
turn, five rounds with a new seed each. So each system is shown with the least effort that would
have been enough, which a user does not know beforehand; flatjax's own stopping rules are given no
advantage. Numbers are medians, warm, with what is compiled compiled before. "Not reached": by no
rung of any ladder; a ladder ends with the first rung that takes too long (more than {limit} s, by
the size of the network; four times that as long as the looser target is not met). The largest
eigenvalue, the ten largest, the two smallest (the worst of their relative errors counts), the
trace, and the density, by the Wasserstein distance to the true spectrum in standard deviations of
that spectrum.
"""
ALL_ROUND = """The goal that was set: 5 times as fast as PyHessian and 3 times as fast as curvlinops
on the MLP and the transformer, 1.5 times on the convolutional network; a convolution
on a CPU takes XLA about as long as PyTorch, so that there only fewer products help.
Top 10, bottom 2 and trace to 1 %, the density to a distance of 0.05: by one call of
`flatjax.spectrum`, by the cheapest set of documented calls of the others. A quantity
that a system does not reach is left out on both sides: the ratio is then over the
cheapest call of `spectrum` for the others (or over single estimators, where no pairs
at the top are among them), whose seconds stand behind it; a single quantity left is
not compared here. The errors are those met in the rounds: top 10, bottom 2, trace, density.
A second row of flatjax is the call without options, which decides by its own
certificates when to stop; what it had not reached when calibrated stands there, too.
"""
BEYOND = """The same when results may be read beyond what they are documented for: the Lanczos
nodes of PyHessian's and hessian-eigenthings' densities as eigenvalues and their mean as the trace,
and curvlinops' internal Lanczos run as a density.
"""
SINGLE = """Seconds and products of the cheapest documented call, the fastest in bold.
"""
WHY = """What differs, and may explain the rows above; none of it was profiled. matfree runs
a fixed number of Lanczos steps as one compiled program and looks at no residual; which
number is enough it was told by the calibration. `eigsh` looks at its residuals on the host,
more often the closer they are to the tolerance. The trace of `spectrum` waits for 16 probes before
it believes a standard error. Passes over the basis grow with the network as its
products do. The rungs of a ladder are coarse, and a system may need less than its first
one; those of `spectrum` were chosen on these networks.
"""
COLD = """From the start of a fresh process to the first all-round answer (the trace of traceax),
by the documented calls above. The cache is JAX's persistent compilation cache, filled by an earlier
process. Memory is the largest resident set.
"""
ACCURACY = """Root mean square errors over five seeds on known spectra of 1024 eigenvalues: relative
errors, for densities the distance above, for the diagonal the relative 2-norm. An estimator of your
own is set beside these by `python -m benchmarks accuracy --estimator my_package.module:function`;
the contributing guide says what it is called with.

![Errors of the traces](_static/benchmarks_accuracy.png)
"""
PRODUCTS = """Products until the k largest eigenvalues have a residual of `tol` times the value,
mean over start vectors and standard error; five spectra of 1,000 eigenvalues. ARPACK is
SciPy's `eigsh`, with the better of the default `ncv` and 2k + 1. The products of flatjax's `eigsh`
are all that it spends: Lanczos steps and one product for the certificate (which ARPACK has not),
and by default the search for missed pairs; `complete` counts the starts after which it is true. A
single pair is not searched for. `off` is how far the worst value of all starts is from the one that
its place in the list says, in tolerances: of ARPACK, without and with the search. Where the
eigenvalues lie close (the uniform spectrum, the bulk of the semicircle) a list of small residuals
at a loose tolerance has skipped some. By default `eigsh` then goes on until the weights of its
start vector agree with the list; where no single further copy would move a value by its tolerance,
it does not search for one, and `complete` is `None`.
"""
ESTIMATES = """The trace to 1 % of the sum of magnitudes, the density to a distance of 0.05 (above);
"all" is both and the five largest eigenvalues to 1 %: one call of `spectrum`, and beside it the sum
of ARPACK's products and the formulas'. Products of the first of two rungs of a ladder in turn that
are as good; 1,000, the dimension, where none is. flatjax: `trace` by the best of three methods,
`spectral_density` with a third of the products for its pairs, `spectrum` with half of them. The
formulas are the textbook's, in NumPy: Hutchinson's mean over Rademacher probes, stochastic Lanczos
quadrature with the best of four depths.
"""
GROWTH = """The slope of the cost in a doubly logarithmic plot.
"""
BASIS_PARTS = """26 steps of Lanczos in 32 rows, as `eigsh` takes them, without products.
The basis is whole, of which empty rows are read like others, or in parts of 8 rows, as it is above
2^20 numbers. The processor's seconds, the least of three runs taken in turn.
"""
COSTS = """Over one gradient of the same network, by the compiler's analysis and by the clock:
operations with their bound and goal, bytes, temporary memory, what a linearised product keeps,
programs compiled for a first product and for one with new values. Then solvers beside their
products.
"""
TRANSFORMS = """A step (gradient and update) over the gradient alone: operations and temporary
memory of the compiled programs, and the time, the least of several runs. Below them
`optax.contrib.sam` and the double backward that one would write.
"""
LANDSCAPE = """A surface of 51 x 51 points beside 2,601 calls of the jitted loss, and a step along a
Bezier curve beside a gradient step of one network, both of a pair run in turn in one process: the
least of three runs (in the short form one of the surface) by the wall's clock, and by the
processor's, which other work on the machine disturbs less. Programs are those that the first
surface compiles; points are counted, on one device and on four of a CPU that hold params and data
whole. Of the small perceptron the host's work for every point and step is what remains.
"""
CONVOLUTIONS = """Milliseconds of one operation as XLA's CPU backend does it at the entry of a
program, and how many times faster flatjax's form of it is where it has one; both timed in turn, the
least of the repetitions. The form is chosen by shape, from this table.
"""
FIGURE = "![{text}](_static/{name}.png)\n"
ALL_ROUND_FIGURE = FIGURE.format(
    name="benchmarks_all_round", text="Seconds of one all-round answer"
)

LARGE_VOCABULARY = """\
A layer of 256, a vocabulary of 50,304 and 4 sequences of 512 tokens: the logits formed, and
`flatjax.losses.LinearHead` in their place, in blocks of 128 tokens. Temporary memory by the
compiler's account; the processor's seconds, the least of three runs taken in turn. In matrix
products of the head a gradient takes 3 either way, a value with its gradient 3 and 4, a product
with the Gauss-Newton matrix 5 either way, a linearised one 4 and 5.
"""

LARGE_SPECTRUM = """\
`spectrum(k=5, num_bottom=2, basis_bytes=...)` of the Hessian of a decoder of eight layers of 512
before training, on one sequence of 64 tokens, in a process of its own that is to hold 12 GB:
`plan(op).basis_bytes` is what these leave beside the parameters and a product. Then the same
network of 1.05 million parameters in float32, and in float64 with tolerances a thousandth as large
and other probes. A certificate holds where the interval that it gives meets that of float64; of
the distribution function, at 95 of 100 points at least.
"""

USER_SIZE = """\
ResNet-18 with group norm and 32 images of 32 x 32; a GPT of width 256 with 4 layers, a vocabulary
of 8,192 and 8 sequences of 128 tokens; ViT-Tiny with patches of 4 x 4 and the images. All have
taken 20 steps of Adam on their batch, so that the spectra have outliers, and are beside the same
networks in PyTorch, in one process of one thread: the processor's seconds, the least of the
repetitions taken in turn, then how many gradients of the same system that is. "Kept": with the
residuals of the primal pass, or PyTorch's graph. "Canonical": through `flatjax.loops.canonical`, as
every product is, which makes products of two matrices of those of stacked ones.
"""
FIRST_ANSWERS = """\
First answers about them, each in a fresh process of one thread, from `import` on and with all that
is compiled: flatjax's `eigsh(5, tol=1e-2)`, `trace(rtol=5e-2)` and `spectral_density` of 30 steps,
of the linearised operator, each as it is by default; PyHessian's `eigenvalues(top_n=5)`, its
`trace` with probes added until their standard error is 5 %, after 8 at the earliest, and
`density(iter=30, n_v=1)`; curvlinops' operators with SciPy's `eigsh` of the same tolerance, its
`hutchinson_trace` likewise, and `lanczos_approximate_spectrum(ncv=30)`. A process may take 600 s of
the processor, for a trace 400 and for a density 200. "Off by": the worst of the five eigenvalues
against flatjax's own from the same start vector to a hundredth of the tolerance, with certificates;
of the trace the value and its standard error. PyHessian's power iteration orders by magnitude,
which here is the same five. By default flatjax's products have those that look for missed pairs,
which the others do not, and one for the certificate; `verify=False` leaves the former out.
"""
GOALS = """\
The goals that were set: the five eigenvalues at least 3 times sooner than PyHessian; of the
Gauss-Newton matrix 1.5 times sooner than curvlinops, of the Hessian no later; no more memory than
either. Factors are theirs over flatjax's, of the processor's seconds and of the most resident
memory; by default, and without the look for missed pairs.
"""
