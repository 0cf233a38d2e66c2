"""Measure and shape the flatness of neural-network loss surfaces in JAX."""

from importlib import import_module as _import_module
from importlib.metadata import version as _version

from flatjax import ensembles as ensembles
from flatjax import landscape as landscape
from flatjax import linalg as linalg
from flatjax import loops as loops
from flatjax import losses as losses
from flatjax import measures as measures
from flatjax import operators as operators
from flatjax import optimizers as optimizers
from flatjax import parallel as parallel
from flatjax import paths as paths
from flatjax import preflight as preflight
from flatjax import symmetry as symmetry
from flatjax import transforms as transforms
from flatjax._spectrum import Spectrum as Spectrum
from flatjax._spectrum import SpectrumState as SpectrumState
from flatjax._spectrum import spectrum as spectrum
from flatjax._trackers import TrackState as TrackState
from flatjax._trackers import track as track
from flatjax.ensembles._calibration import CalibratedNLL as CalibratedNLL
from flatjax.ensembles._calibration import calibrated_nll as calibrated_nll
from flatjax.ensembles._memory_split import Split as Split
from flatjax.ensembles._memory_split import memory_split as memory_split
from flatjax.ensembles._power_laws import PowerLaw as PowerLaw
from flatjax.ensembles._power_laws import fit_power_law as fit_power_law
from flatjax.ensembles._schedules import cyclic_schedule as cyclic_schedule
from flatjax.landscape._directions import filter_normalize as filter_normalize
from flatjax.landscape._directions import filter_normalized_direction as filter_normalized_direction
from flatjax.landscape._lines import Barrier as Barrier
from flatjax.landscape._lines import Line as Line
from flatjax.landscape._lines import barrier as barrier
from flatjax.landscape._lines import loss_along as loss_along
from flatjax.landscape._planes import Plane as Plane
from flatjax.landscape._planes import Projection as Projection
from flatjax.landscape._planes import plane_through as plane_through
from flatjax.landscape._planes import project as project
from flatjax.landscape._principal import Principal as Principal
from flatjax.landscape._principal import principal_directions as principal_directions
from flatjax.landscape._random_directions import random_directions as random_directions
from flatjax.landscape._surfaces import Surface as Surface
from flatjax.landscape._surfaces import loss_surface as loss_surface
from flatjax.landscape._volume import LogVolume as LogVolume
from flatjax.landscape._volume import log_volume as log_volume
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
from flatjax.linalg.probing._estimate import Estimate as Estimate
from flatjax.linalg.probing._layers import LayerSpectrum as LayerSpectrum
from flatjax.linalg.probing._quadrature import SpectralDensity as SpectralDensity
from flatjax.losses._base import OutputLoss as OutputLoss
from flatjax.losses._mean import Mean as Mean
from flatjax.losses._standard import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from flatjax.losses._standard import softmax_cross_entropy as softmax_cross_entropy
from flatjax.losses._standard import squared_error as squared_error
from flatjax.measures._alignment import Alignment as Alignment
from flatjax.measures._alignment import alignment as alignment
from flatjax.measures._alignment import gradient_alignment as gradient_alignment
from flatjax.measures._average_sharpness import AverageSharpness as AverageSharpness
from flatjax.measures._average_sharpness import average_sharpness as average_sharpness
from flatjax.measures._batch_sharpness import batch_sharpness as batch_sharpness
from flatjax.measures._critical_sharpness import CriticalSharpness as CriticalSharpness
from flatjax.measures._critical_sharpness import critical_sharpness as critical_sharpness
from flatjax.measures._curvature_gradient import curvature_gradient as curvature_gradient
from flatjax.measures._directional_sharpness import directional_sharpness as directional_sharpness
from flatjax.measures._eps_sharpness import EpsSharpness as EpsSharpness
from flatjax.measures._eps_sharpness import eps_sharpness as eps_sharpness
from flatjax.measures._fisher_rao import FisherRaoNorm as FisherRaoNorm
from flatjax.measures._fisher_rao import fisher_rao_norm as fisher_rao_norm
from flatjax.measures._generalized_sharpness import GeneralizedSharpness as GeneralizedSharpness
from flatjax.measures._generalized_sharpness import generalized_sharpness as generalized_sharpness
from flatjax.measures._gradient_noise import GradientNoiseScale as GradientNoiseScale
from flatjax.measures._gradient_noise import gradient_noise_scale as gradient_noise_scale
from flatjax.measures._gradient_noise import (
    gradient_noise_scale_from_norms as gradient_noise_scale_from_norms,
)
from flatjax.measures._learning_coefficient import LearningCoefficient as LearningCoefficient
from flatjax.measures._learning_coefficient import (
    local_learning_coefficient as local_learning_coefficient,
)
from flatjax.measures._linear_stability import LinearStability as LinearStability
from flatjax.measures._linear_stability import linear_stability as linear_stability
from flatjax.measures._low_rank import LowRank as LowRank
from flatjax.measures._low_rank import low_rank as low_rank
from flatjax.measures._normalized_sharpness import NormalizedSharpness as NormalizedSharpness
from flatjax.measures._normalized_sharpness import normalized_sharpness as normalized_sharpness
from flatjax.measures._overlap import SubspaceOverlap as SubspaceOverlap
from flatjax.measures._overlap import subspace_overlap as subspace_overlap
from flatjax.measures._pac_bayes import PacBayesFlatness as PacBayesFlatness
from flatjax.measures._pac_bayes import pac_bayes_flatness as pac_bayes_flatness
from flatjax.measures._sam_sharpness import sam_sharpness as sam_sharpness
from flatjax.measures._scale_invariance import ScaleInvariantSharpness as ScaleInvariantSharpness
from flatjax.measures._scale_invariance import angular_update as angular_update
from flatjax.measures._scale_invariance import effective_learning_rate as effective_learning_rate
from flatjax.measures._scale_invariance import (
    scale_invariant_sharpness as scale_invariant_sharpness,
)
from flatjax.measures._sharpness import Sharpness as Sharpness
from flatjax.measures._sharpness import sharpness as sharpness
from flatjax.measures._stiffness import GradientConfusion as GradientConfusion
from flatjax.measures._stiffness import Stiffness as Stiffness
from flatjax.measures._stiffness import gradient_confusion as gradient_confusion
from flatjax.measures._stiffness import stiffness as stiffness
from flatjax.measures._worst_case import SamSharpness as SamSharpness
from flatjax.operators._base import Operator as Operator
from flatjax.operators._blocks import block_diagonal as block_diagonal
from flatjax.operators._blocks import blocks as blocks
from flatjax.operators._blocks import restrict as restrict
from flatjax.operators._covariance import gradient_covariance as gradient_covariance
from flatjax.operators._damping import damped as damped
from flatjax.operators._ggn import fisher as fisher
from flatjax.operators._ggn import ggn as ggn
from flatjax.operators._gram import gradient_gram as gradient_gram
from flatjax.operators._hessian import hessian as hessian
from flatjax.operators._inverse import inverse as inverse
from flatjax.operators._jacobian import jacobian as jacobian
from flatjax.operators._jacobian import ntk as ntk
from flatjax.operators._per_example import per_example_gradients as per_example_gradients
from flatjax.operators._precondition import preconditioned as preconditioned
from flatjax.operators._stream import over_batches as over_batches
from flatjax.optimizers._preconditioner import preconditioner as preconditioner
from flatjax.optimizers._stability_threshold import stability_threshold as stability_threshold
from flatjax.paths._curves import Curve as Curve
from flatjax.paths._curves import Simplex as Simplex
from flatjax.paths._fitting import CurveFit as CurveFit
from flatjax.paths._fitting import CurveSamples as CurveSamples
from flatjax.paths._fitting import curve_value_and_grad as curve_value_and_grad
from flatjax.paths._fitting import fit_curve as fit_curve
from flatjax.paths._making import bezier as bezier
from flatjax.paths._making import chain as chain
from flatjax.paths._making import simplex as simplex
from flatjax.paths._path_loss import PathLoss as PathLoss
from flatjax.paths._path_loss import loss_on_curve as loss_on_curve
from flatjax.preflight._determinism import Determinism as Determinism
from flatjax.preflight._determinism import check_deterministic as check_deterministic
from flatjax.preflight._plan import Plan as Plan
from flatjax.preflight._plan import plan as plan
from flatjax.symmetry._activations import match_activations as match_activations
from flatjax.symmetry._check import Check as Check
from flatjax.symmetry._check import check_symmetry as check_symmetry
from flatjax.symmetry._permutations import apply_permutation as apply_permutation
from flatjax.symmetry._permutations import random_permutations as random_permutations
from flatjax.symmetry._spec import Spec as Spec
from flatjax.symmetry._spec import spec_of as spec_of
from flatjax.symmetry._weights import Matching as Matching
from flatjax.symmetry._weights import match_weights as match_weights
from flatjax.transforms._ascent import Ascent as Ascent
from flatjax.transforms._averaging import averaged_params as averaged_params
from flatjax.transforms._averaging import ema_params as ema_params
from flatjax.transforms._batch_norm import (
    reestimate_batch_statistics as reestimate_batch_statistics,
)
from flatjax.transforms._entropy_sgd import entropy_sgd as entropy_sgd
from flatjax.transforms._entropy_sgd import entropy_sgd_eval_params as entropy_sgd_eval_params
from flatjax.transforms._friendly_sam import friendly_sam as friendly_sam
from flatjax.transforms._gradient_noise import gradient_noise as gradient_noise
from flatjax.transforms._gradient_norm_penalty import gradient_norm_penalty as gradient_norm_penalty
from flatjax.transforms._gradient_penalty import gradient_penalty as gradient_penalty
from flatjax.transforms._gsam import gsam as gsam
from flatjax.transforms._implicit import (
    implicit_gradient_regularization as implicit_gradient_regularization,
)
from flatjax.transforms._implicit import (
    stochastic_implicit_gradient_regularization as stochastic_implicit_gradient_regularization,
)
from flatjax.transforms._input_penalty import input_gradient_penalty as input_gradient_penalty
from flatjax.transforms._label_noise import label_noise as label_noise
from flatjax.transforms._label_penalties import fisher_penalty as fisher_penalty
from flatjax.transforms._label_penalties import (
    random_label_gradient_penalty as random_label_gradient_penalty,
)
from flatjax.transforms._langevin import langevin as langevin
from flatjax.transforms._looksam import looksam as looksam
from flatjax.transforms._momentum_sam import momentum_sam as momentum_sam
from flatjax.transforms._momentum_sam import momentum_sam_eval_params as momentum_sam_eval_params
from flatjax.transforms._sam import sam as sam
from flatjax.transforms._swa import swa as swa
from flatjax.transforms._swa import swag as swag
from flatjax.transforms._swa import swag_sample as swag_sample
from flatjax.transforms._train_state import ForwardExtraArgs as ForwardExtraArgs
from flatjax.transforms._value_and_grad import penalty_value_and_grad as penalty_value_and_grad
from flatjax.transforms._value_and_grad import sam_value_and_grad as sam_value_and_grad
from flatjax.transforms._wsam import wsam as wsam

__version__ = _version("flatjax")


def __getattr__(name: str):
    """``flatjax.plots``, imported when it is first asked for: it needs Matplotlib."""
    if name == "plots":
        return _import_module("flatjax.plots")
    raise AttributeError(f"module 'flatjax' has no attribute {name!r}")
