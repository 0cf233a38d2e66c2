"""Plots of spectra, training, the loss surface and ensembles; need matplotlib (``flatjax[plots]``).

Every function draws into one pair of axes, the current ones by default, and returns it. Colours are
those of Okabe and Ito, which colour-blind readers tell apart.
"""

from flatjax.plots._ensembles import plot_power_law as plot_power_law
from flatjax.plots._landscape import plot_line as plot_line
from flatjax.plots._landscape import plot_projection as plot_projection
from flatjax.plots._landscape import plot_radii as plot_radii
from flatjax.plots._landscape import plot_surface as plot_surface
from flatjax.plots._landscape import plot_surface_3d as plot_surface_3d
from flatjax.plots._spectra import plot_density as plot_density
from flatjax.plots._spectra import plot_layers as plot_layers
from flatjax.plots._spectra import plot_trajectories as plot_trajectories
