"""Pictures of the loss surface: directions through it, and the loss along them."""

from flatjax.landscape._directions import filter_normalize as filter_normalize
from flatjax.landscape._directions import filter_normalized_direction as filter_normalized_direction
from flatjax.landscape._lines import Line as Line
from flatjax.landscape._lines import loss_along as loss_along
