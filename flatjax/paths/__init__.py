"""Curves and simplexes of low loss between minima: made, trained and looked at."""

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
