"""The API reference: every public name stands on one page, and every room has one."""

import pkgutil
import re

import pytest

import flatjax
from tests.docs.extensions import load
from tests.repository import public_names

api_pages = load("api_pages")
GROUPED = api_pages.grouped_names()
ENTRY = re.compile(
    r"^\.\. (?:auto(?:function|class):: (?P<name>\S+)"
    r"|py:data:: (?P<short>\S+)\n   :module: (?P<module>\S+))$",
    re.MULTILINE,
)


def entries(room):
    """The names that the page of a room documents."""
    text = api_pages.page(room, GROUPED[room])
    return [m["name"] or f"{m['module']}.{m['short']}" for m in ENTRY.finditer(text)]


def test_every_public_name_has_one_entry():
    found = [name for room in api_pages.PAGES for name in entries(room)]
    assert sorted(found) == [item.name for item in public_names()]


def test_every_room_has_a_page():
    modules = {module.name for module in pkgutil.iter_modules(flatjax.__path__)}
    assert {name for name in modules if not name.startswith("_")} == set(api_pages.ROOMS)
    assert set(GROUPED) == set(api_pages.PAGES)


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("flatjax.eigsh", "linalg"),
        ("flatjax.plots.plot_density", "plots"),
        ("flatjax.parallel.shard_batch", "parallel"),
        ("flatjax.spectrum", "spectrum"),
        ("flatjax.squared_error", "losses"),
    ],
)
def test_a_name_stands_on_the_page_of_its_room(name, room):
    assert name in entries(room)


def test_functions_come_first_by_their_bare_names():
    names = [name.rpartition(".")[2] for name in entries("linalg")]
    first = names.index("Eigenpairs")
    assert names == sorted(names[:first]) + sorted(names[first:])
    assert "trace" in names[:first]


def test_an_instance_names_its_public_class():
    text = "\n".join(api_pages.directive("flatjax.squared_error", flatjax.squared_error))
    assert ":type: flatjax.losses.SquaredError\n" in text
