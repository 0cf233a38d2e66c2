"""What is measured of a point of the loss surface: sharpness, noise, alignment, degeneracy."""

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
from flatjax.measures._linear_stability import hessian_variance as hessian_variance
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
from flatjax.measures._stiffness import PairStatistic as PairStatistic
from flatjax.measures._stiffness import Stiffness as Stiffness
from flatjax.measures._stiffness import gradient_confusion as gradient_confusion
from flatjax.measures._stiffness import stiffness as stiffness
from flatjax.measures._worst_case import SamSharpness as SamSharpness
