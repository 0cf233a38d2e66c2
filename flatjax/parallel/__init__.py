"""Meshes, the placement of batches and params on them, and a runner over devices.

On a mesh with Auto axes every kernel of this package is *global-view*: given a batch that is split
over the devices it computes what one device would, and the compiler places the collectives. The
functions here do the splitting; nothing else has to change.
"""

from flatjax.parallel._batches import ShardedBatch as ShardedBatch
from flatjax.parallel._batches import ShardedBatches as ShardedBatches
from flatjax.parallel._batches import shard_batch as shard_batch
from flatjax.parallel._batches import shard_batches as shard_batches
from flatjax.parallel._meshes import make_mesh as make_mesh
from flatjax.parallel._params import param_shardings as param_shardings
from flatjax.parallel._params import replicate as replicate
from flatjax.parallel._params import shard_params as shard_params
from flatjax.parallel._runner import data_parallel as data_parallel
