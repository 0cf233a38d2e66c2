"""Imports inside the package point down only: a room never knows what stands above it."""

import ast
import graphlib
import importlib
import inspect
import pathlib

import pytest

from tests.repository import PACKAGE, ROOT

FLOORS = {
    "_checks": 0,
    "_balls": 0,
    "_collectives": 0,
    "_convolutions": 0,
    "_fingerprints": 0,
    "_functions": 0,
    "_layouts": 0,
    "_loops": 0,
    "_programs": 0,
    "_progress": 0,
    "_nodes": 0,
    "_reading": 0,
    "_matrix_products": 0,
    "_shifted_products": 0,
    "_sketches": 0,
    "_texts": 0,
    "_trees": 0,
    "_watching": 0,
    "loops": 0,
    "losses": 0,
    "operators": 1,
    "linalg": 2,
    "optimizers": 2,
    "preflight": 2,
    "transforms": 2,
    "_spectrum": 3,
    "_trackers": 3,
    "ensembles": 3,
    "landscape": 3,
    "measures": 3,
    "symmetry": 3,
    "parallel": 4,
    "paths": 4,
    "plots": 4,
}
# Behind the doors of linear algebra: each wing imports from itself and from those after it.
WINGS = ["probing", "krylov", "vectors"]
PUBLIC_FILES = {"__init__", "loops", "plots"}
# Imported by `experiments/`, never by the library.
FOREIGN = {
    "flax",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "matplotlib",
    "sklearn",
    "scipy",
    "grain",
    "tyro",
    "rich",
    "experiments",
    "benchmarks",
    "tests",
}
# scipy is JAX's own dependency: an operator hands it a LinearOperator on demand, it has the
# quantiles of Student's t, it minimises a function of one number, and it solves assignments.
ALLOWED = {
    ("operators", "scipy"),
    ("linalg", "scipy"),
    ("ensembles", "scipy"),
    ("symmetry", "scipy"),
    ("plots", "matplotlib"),
    ("_progress", "rich"),  # where it is installed
}


def imports(path: pathlib.Path) -> list[str]:
    """Every module that a file imports, at its top or inside a function, by its full name."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in PACKAGE.rglob("*.py")}
INSIDE = {module: path for module, path in FILES.items() if module != "flatjax"}


def room_of(module: str) -> str:
    return module.split(".")[1]


def internal_imports(module: str) -> set[str]:
    """The modules of the package that ``module`` imports."""
    found = set()
    for name in imports(FILES[module]):
        if name.split(".")[0] == "flatjax":
            # `from flatjax.x import y` imports the module x.y or the name y of the module x.
            target = name if name in FILES else name.rpartition(".")[0]
            found.add(target)
    return found


@pytest.mark.parametrize("module", sorted(INSIDE))
def test_imports_point_down(module):
    room = room_of(module)
    assert room in FLOORS, f"{module}: give the new room a floor in FLOORS"
    for target in internal_imports(module):
        assert target != "flatjax", f"{module} imports from the package's face; name the module"
        below = FLOORS[room_of(target)] <= FLOORS[room]
        assert below, f"{module} (floor {FLOORS[room]}) imports {target}, which stands above it"


@pytest.mark.parametrize("module", sorted(INSIDE))
def test_the_library_imports_nothing_of_the_experiments(module):
    for name in imports(FILES[module]):
        top = name.split(".")[0]
        assert top not in FOREIGN or (room_of(module), top) in ALLOWED, f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(m for m in INSIDE if room_of(m) == "linalg"))
def test_linear_algebra_never_knows_a_loss(module):
    rooms = {room_of(target) for target in internal_imports(module)}
    assert "losses" not in rooms
    operators = {t for t in internal_imports(module) if room_of(t) == "operators"}
    # The Gram matrix of the gradients is what `gram_eigh` solves.
    own = {"flatjax.operators._gram"} if module.endswith("._gram_eigh") else set()
    assert operators <= {"flatjax.operators._base"} | own


def wing_of(module: str) -> int:
    """The place of a module of linear algebra: 0 is a door, then the wings in their order."""
    parts = module.split(".")
    return 1 + WINGS.index(parts[2]) if parts[2] in WINGS else 0


@pytest.mark.parametrize("module", sorted(m for m in INSIDE if m.startswith("flatjax.linalg.")))
def test_the_wings_of_linear_algebra_have_one_order(module):
    for target in internal_imports(module):
        if target.startswith("flatjax.linalg."):
            assert wing_of(target) >= wing_of(module), f"{module} imports {target}"


def test_modules_are_private():
    for path in INSIDE.values():
        assert path.stem in PUBLIC_FILES or path.stem.startswith("_"), f"{path} needs an underscore"


def test_no_module_is_hidden_by_a_name():
    for module in INSIDE:
        package, _, name = module.rpartition(".")
        importlib.import_module(module)
        found = getattr(importlib.import_module(package), name)
        # By its name: after doctests the object may be a second one of the same module.
        same = inspect.ismodule(found) and found.__name__ == module
        assert same, f"{package}.{name} hides the module {module}"


def test_no_cycles():
    graph = {module: internal_imports(module) - {module} for module in INSIDE}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(INSIDE) <= set(order)


# The laboratory of the experiments: each wing imports from itself and from the wings named here.
LABORATORY = {
    "runs": set(),
    "nets": {"runs"},
    "data": {"runs"},
    "training": {"data", "nets", "runs"},
    "verdicts": {"runs"},
}
LAB_FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (ROOT / "experiments" / "lib").glob("*/*.py")
}


def lab_imports(module: str) -> set[str]:
    """The modules of the laboratory that one of them imports."""
    found = set()
    for name in imports(LAB_FILES[module]):
        if name.startswith("experiments.lib."):
            found.add(name if name in LAB_FILES else name.rpartition(".")[0])
    return found


@pytest.mark.parametrize("module", sorted(LAB_FILES))
def test_the_wings_of_the_laboratory_know_only_those_below(module):
    wing = module.split(".")[2]
    for target in lab_imports(module):
        assert target in LAB_FILES, f"{module} imports {target}, which is no module of a wing"
        assert target.split(".")[2] in {wing} | LABORATORY[wing], f"{module} imports {target}"


def test_the_laboratory_has_no_cycles():
    graph = {module: lab_imports(module) - {module} for module in LAB_FILES}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(LAB_FILES) == set(order)
