"""Certified spectral estimators of symmetric operators known by their products."""

from flatjax.linalg._density import spectral_density as spectral_density
from flatjax.linalg._diagonal import diagonal as diagonal
from flatjax.linalg._eigsh import eigsh as eigsh
from flatjax.linalg._functions import frobenius_norm as frobenius_norm
from flatjax.linalg._functions import logdet as logdet
from flatjax.linalg._functions import trace_of_function as trace_of_function
from flatjax.linalg._gram_eigh import GramSpectrum as GramSpectrum
from flatjax.linalg._gram_eigh import gram_eigh as gram_eigh
from flatjax.linalg._lanczos import Lanczos as Lanczos
from flatjax.linalg._lanczos import lanczos as lanczos
from flatjax.linalg._over_batches import SplitEstimate as SplitEstimate
from flatjax.linalg._over_batches import forms_over_batches as forms_over_batches
from flatjax.linalg._over_batches import trace_over_batches as trace_over_batches
from flatjax.linalg._power_iteration import power_iteration as power_iteration
from flatjax.linalg._trace import trace as trace
from flatjax.linalg.krylov._certificates import Eigenpairs as Eigenpairs
from flatjax.linalg.krylov._saved import EigshState as EigshState
from flatjax.linalg.probing._estimate import Estimate as Estimate
from flatjax.linalg.probing._quadrature import SpectralDensity as SpectralDensity
