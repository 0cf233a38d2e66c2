"""Certified spectral estimators of symmetric operators known by their products."""

from flatjax.linalg.density import spectral_density as spectral_density
from flatjax.linalg.diagonal import diagonal as diagonal
from flatjax.linalg.eigen import Eigenpairs as Eigenpairs
from flatjax.linalg.eigen import eigsh as eigsh
from flatjax.linalg.eigen import power_iteration as power_iteration
from flatjax.linalg.estimate import Estimate as Estimate
from flatjax.linalg.functions import frobenius_norm as frobenius_norm
from flatjax.linalg.functions import logdet as logdet
from flatjax.linalg.functions import trace_of_function as trace_of_function
from flatjax.linalg.lanczos import Lanczos as Lanczos
from flatjax.linalg.lanczos import extend as extend
from flatjax.linalg.lanczos import lanczos as lanczos
from flatjax.linalg.population import SplitEstimate as SplitEstimate
from flatjax.linalg.population import forms_over_batches as forms_over_batches
from flatjax.linalg.population import trace_over_batches as trace_over_batches
from flatjax.linalg.quadrature import SpectralDensity as SpectralDensity
from flatjax.linalg.trace import trace as trace
