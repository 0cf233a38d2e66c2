"""The documentation's own extensions, which lie outside of all packages."""

import importlib.util

from tests.repository import ROOT


def load(name):
    """The module of that name in `docs/_extensions`."""
    path = ROOT / "docs" / "_extensions" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
