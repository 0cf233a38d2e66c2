"""`import flatjax` has no side effect and needs none of the extras."""

import json
import subprocess
import sys

import pytest

import flatjax

PROGRAM = """
import json, sys
import jax
before = dict(jax.config.values)
import flatjax
changed = [name for name, value in jax.config.values.items() if before.get(name) != value]
# Only possible while no backend has been started.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 3)
modules = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"changed": changed, "devices": jax.device_count(), "modules": modules}))
"""


@pytest.fixture(scope="module")
def fresh_import():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # One line: the import itself printed nothing.
    return json.loads(done.stdout), done.stderr


def test_nothing_of_the_extras_is_imported(fresh_import):
    report, _ = fresh_import
    extras = {
        "flax",
        "orbax",
        "tensorflow",
        "tensorflow_datasets",
        "matplotlib",
        "chex",
        "sklearn",
        "grain",
        "equinox",
        "tyro",
        "rich",
    }
    assert not extras.intersection(report["modules"])


def test_no_configuration_is_changed(fresh_import):
    report, _ = fresh_import
    assert report["changed"] == []


def test_no_backend_is_started(fresh_import):
    report, _ = fresh_import
    assert report["devices"] == 3


def test_nothing_is_printed(fresh_import):
    _, errors = fresh_import
    assert errors == ""


def test_plots_are_imported_when_they_are_asked_for():
    assert flatjax.plots.plot_density.__module__.startswith("flatjax.plots")
    with pytest.raises(AttributeError, match="no attribute 'plot'"):
        _ = flatjax.plot
