"""Loops over a model that are fast on every backend, convolutions on a CPU included."""

from flatjax._convolutions import canonical as canonical
from flatjax._loops import cond as cond
from flatjax._loops import device as device
from flatjax._loops import fori as fori
from flatjax._loops import is_traced as is_traced
from flatjax._loops import map_chunks as map_chunks
from flatjax._loops import on_device as on_device
from flatjax._loops import product as product
from flatjax._loops import scan as scan
from flatjax._loops import until as until
