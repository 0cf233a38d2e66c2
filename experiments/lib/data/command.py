"""The command `data`, which prepares data sets.

python -m experiments data fashion_mnist [--from FOLDER] [--data_dir FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.lib.runs.errors import ExperimentError


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m experiments data", description="Prepares a data set for all experiments."
    )
    parser.add_argument("name", choices=["fashion_mnist"], help="the data set")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FOLDER",
        help="where its IDX files lie (default: where Debian's package puts them)",
    )
    parser.add_argument(
        "--data_dir",
        "--data-dir",
        metavar="FOLDER",
        help="where to write it (default: $FLATJAX_DATA_DIR, else data)",
    )
    options = parser.parse_args(arguments)
    from experiments.lib.data import fashion_mnist

    try:
        print(fashion_mnist.prepare(options.source, options.data_dir))
    except ExperimentError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_status
    return 0
