"""Pictures of the loss surface: directions, lines, planes, surfaces, barriers and volumes."""

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
