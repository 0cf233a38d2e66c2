"""Flatness-seeking optax gradient transformations and oracles."""

from flatjax.transforms._ascent import Ascent as Ascent
from flatjax.transforms._averaging import EMAState as EMAState
from flatjax.transforms._averaging import averaged_params as averaged_params
from flatjax.transforms._averaging import ema_params as ema_params
from flatjax.transforms._batch_norm import (
    reestimate_batch_statistics as reestimate_batch_statistics,
)
from flatjax.transforms._composition import drop_extra_args as drop_extra_args
from flatjax.transforms._entropy_sgd import EntropySGDState as EntropySGDState
from flatjax.transforms._entropy_sgd import entropy_sgd as entropy_sgd
from flatjax.transforms._entropy_sgd import entropy_sgd_eval_params as entropy_sgd_eval_params
from flatjax.transforms._friendly_sam import FriendlySAMState as FriendlySAMState
from flatjax.transforms._friendly_sam import friendly_sam as friendly_sam
from flatjax.transforms._gradient_noise import NoiseState as NoiseState
from flatjax.transforms._gradient_noise import gradient_noise as gradient_noise
from flatjax.transforms._gradient_norm_penalty import gradient_norm_penalty as gradient_norm_penalty
from flatjax.transforms._gradient_penalty import gradient_penalty as gradient_penalty
from flatjax.transforms._gsam import gsam as gsam
from flatjax.transforms._gsam import proportional_schedule as proportional_schedule
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
from flatjax.transforms._langevin import LangevinState as LangevinState
from flatjax.transforms._langevin import langevin as langevin
from flatjax.transforms._looksam import LookSAMState as LookSAMState
from flatjax.transforms._looksam import looksam as looksam
from flatjax.transforms._momentum_sam import MomentumSAMState as MomentumSAMState
from flatjax.transforms._momentum_sam import momentum_sam as momentum_sam
from flatjax.transforms._momentum_sam import momentum_sam_eval_params as momentum_sam_eval_params
from flatjax.transforms._penalty_transform import PenaltyState as PenaltyState
from flatjax.transforms._sam import sam as sam
from flatjax.transforms._sharpness_aware import SAMState as SAMState
from flatjax.transforms._sharpness_aware import SharpnessMetrics as SharpnessMetrics
from flatjax.transforms._swa import SWAGState as SWAGState
from flatjax.transforms._swa import SWAState as SWAState
from flatjax.transforms._swa import swa as swa
from flatjax.transforms._swa import swag as swag
from flatjax.transforms._swa import swag_sample as swag_sample
from flatjax.transforms._train_state import ForwardExtraArgs as ForwardExtraArgs
from flatjax.transforms._value_and_grad import penalty_value_and_grad as penalty_value_and_grad
from flatjax.transforms._value_and_grad import sam_value_and_grad as sam_value_and_grad
from flatjax.transforms._wsam import WSAMState as WSAMState
from flatjax.transforms._wsam import wsam as wsam
