"""One of several processes: operators over a batch of which every process has its own part.

Run by test_processes.py with the coordinator's address, the number of processes, the index of this
one and a folder, into which every process writes the numbers it got, and all together params that
are split over them.
"""

import pathlib
import sys

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from tests.parallel import library


def main(address, processes, index, folder):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(address, int(processes), int(index))
    assert jax.device_count() == 2 * int(processes)
    results = library.over_processes(int(processes), int(index))
    ocp.save(pathlib.Path(folder, "params"), library.sharded_params())
    flat = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(results)
    }
    np.savez(pathlib.Path(folder, f"{index}.npz"), **flat)


if __name__ == "__main__":
    main(*sys.argv[1:])
