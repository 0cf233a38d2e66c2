"""``python -m benchmarks [NAME ...]``: run the benchmarks, all of them or those named.

A benchmark is a module of this folder with a function ``main() -> dict``; it may take ``short``,
whether to measure the short form, and ``rows``, which keeps every finished measurement. Its
docstring says what is measured; what it returns goes to ``runs/benchmarks/NAME.json`` with the
versions and the machine, and ``--list`` shows the names. A run that was stopped goes on where it
was; ``--again`` measures anew. ``python -m benchmarks render`` writes ``docs/benchmarks.md`` and
the table of the README from ``benchmarks/results/``; ``compare BEFORE AFTER`` compares the folders
of two versions; ``accuracy --estimator my_package.module:function`` sets your own estimator beside
ours.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
import pathlib
import platform
import shutil
import sys
import time

import jax

import flatjax
from benchmarks import _compare, _guests, _render, _rows

FOLDER = pathlib.Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "optax", "torch", "matfree", "traceax")


def environment() -> dict[str, object]:
    """What a number depends on besides the code."""
    return {
        "flatjax": flatjax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": [device.device_kind for device in jax.devices()],
        "cores": os.cpu_count(),
        "processor": processor(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def processor() -> str:
    """The processor's name."""
    path = pathlib.Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """The installed version, or ``None``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure(name: str, module, rows: _rows.Rows, **options) -> dict[str, object]:
    """The results of one benchmark, with those of the options that it takes."""
    taken = inspect.signature(module.main).parameters
    options["rows"] = rows.room(name)
    passed = {key: value for key, value in options.items() if key in taken}
    if "rows" in taken:
        return module.main(**passed)
    return rows.get(name, lambda: module.main(**passed))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--list", action="store_true", help="show the names and stop")
    parser.add_argument("--short", action="store_true", help="the short form")
    parser.add_argument("--again", action="store_true", help="forget the finished measurements")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/benchmarks"))
    parser.add_argument(
        "--networks", default="", help="of side_by_side: only these, such as mlp-small,cnn-large"
    )
    parser.add_argument(
        "--estimator",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="of accuracy: an estimator of your own beside ours, see CONTRIBUTING.md",
    )
    options = parser.parse_args()
    networks = [name for name in options.networks.split(",") if name]
    if options.names == ["render"]:
        _render.main()
        return 0
    if options.names[:1] == ["compare"]:
        if len(options.names) != 3:
            parser.error("compare takes two folders of results: before and after")
        print("\n".join(_compare.report(*map(pathlib.Path, options.names[1:]))))
        return 0
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    modules = {
        name: importlib.import_module(f"benchmarks.{name}") for name in options.names or NAMES
    }
    if options.list:
        for name, module in modules.items():
            print(f"{name:12} {(module.__doc__ or '').splitlines()[0]}")
        return 0
    if options.estimator and options.names != ["accuracy"]:
        parser.error(
            "--estimator belongs to accuracy: python -m benchmarks accuracy --estimator ..."
        )
    try:
        for name in options.estimator:
            _guests.load(name)
    except ValueError as error:
        parser.error(str(error))
    # Measurements of other versions or of the other form are other measurements.
    where = environment()
    form = "short" if options.short else "full"
    mark = hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()[:8]
    rows = _rows.Rows(options.output / ".rows" / f"{form}-{mark}")
    if options.again:
        shutil.rmtree(rows.folder, ignore_errors=True)
    for name, module in modules.items():
        print(f"== {name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
        begin, load = time.perf_counter(), os.getloadavg()[0]
        results = measure(
            name,
            module,
            rows,
            short=options.short,
            networks=networks,
            guests=options.estimator,
        )
        run = {"form": form, "load": [round(load, 2), round(os.getloadavg()[0], 2)]}
        record = {"environment": {**where, **run}, "results": results}
        options.output.mkdir(parents=True, exist_ok=True)
        # The table of a guest is one of its own.
        path = options.output / f"{name}{'-beside' if options.estimator else ''}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"   {path}, {time.perf_counter() - begin:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
