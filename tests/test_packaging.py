"""The facts that stand in several files agree."""

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import flatjax
from tests.repository import PACKAGE, PYPROJECT, ROOT, tracked_files

PROJECT = PYPROJECT["project"]
README = (ROOT / "README.md").read_text()
LOCK = (ROOT / "requirements" / "dev.txt").read_text()


def lower_bound(specifier: str) -> str:
    (bound,) = [s.version for s in SpecifierSet(specifier) if s.operator == ">="]
    return bound


def jax_bound() -> str:
    (jax,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "jax"]
    return lower_bound(str(jax.specifier))


def test_version_is_the_one_of_the_metadata():
    assert flatjax.__version__ == importlib.metadata.version("flatjax") == PROJECT["version"]


def test_citation_has_the_version_and_the_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == flatjax.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["title"].startswith("flatjax")


def test_changelog_has_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[?{re.escape(flatjax.__version__)}\b", changelog, re.MULTILINE)
    assert re.search(r"^## \[?Unreleased\b", changelog, re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_pages_name_the_supported_python(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"Python (3\.\d+)", text))
    assert lower_bound(PROJECT["requires-python"]) in named
    classifiers = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python :: 3." in c}
    assert named <= classifiers


def test_readme_names_the_supported_jax():
    (named,) = set(re.findall(r"JAX (\d+\.\d+) or newer", README))
    assert named == jax_bound()


def test_readme_has_the_two_commands():
    lines = README.splitlines()
    assert any(line.split("#")[0].strip() == "make demo" for line in lines)
    assert any(line.split("#")[0].strip() == "make test" for line in lines)


def test_readme_names_only_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    pages = README + (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)\b(?=`|\s*$|\s*#)", pages, re.M)) <= targets


def test_readme_links_to_files_that_exist():
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").exists()


def test_wheel_contains_the_package_alone(tmp_path):
    hatch = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(hatch, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    version = flatjax.__version__
    assert tops == {"flatjax", f"flatjax-{version}.dist-info"}


def test_sdist_is_the_repository(tmp_path):
    hatch = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(hatch, cwd=ROOT, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as files:
        packed = {name.partition("/")[2] for name in files.getnames()}
    tracked = {str(path.relative_to(ROOT)) for path in tracked_files()}
    assert tracked <= packed, "add it to the sdist's include in pyproject.toml"
    # Nothing that was made here: environments, runs, caches, built pages.
    made = re.compile(
        r"(\.venv|runs|dist|data|build|docs/_build|docs/api)\b|.*(__pycache__|\.egg-info)"
    )
    assert not [name for name in packed if made.match(name)]


def test_lock_pins_with_hashes_and_without_addresses():
    entries = re.split(r"\n(?=[a-zA-Z0-9])", LOCK)
    pinned = [entry for entry in entries if not entry.startswith("#")]
    assert len(pinned) > 50
    for entry in pinned:
        assert re.match(r"[\w.-]+==\S+", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
    assert "://" not in LOCK
    assert " @ " not in LOCK


def wanted_requirements() -> list[str]:
    """What `make lock` resolves."""
    groups = [*PYPROJECT["dependency-groups"].values()]
    extras = [PROJECT["optional-dependencies"][extra] for extra in ("experiments", "plots")]
    return sorted({*PROJECT["dependencies"], *(r for group in groups + extras for r in group)})


@pytest.mark.parametrize("wanted", wanted_requirements())
def test_lock_meets_every_requirement(wanted):
    requirement = Requirement(wanted)
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    versions = re.findall(rf"^{re.escape(name)}==(\S+)", LOCK, re.MULTILINE)
    assert versions, f"{name} is not locked: run `make lock`"
    assert all(requirement.specifier.contains(v, prereleases=True) for v in versions)
    assert importlib.metadata.version(name) in versions
