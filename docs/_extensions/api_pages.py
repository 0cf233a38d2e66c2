"""Write one API page a room, from the public names themselves.

A name that ``flatjax/__init__.py`` re-exports appears on the page of the room that defines it; the
room's own docstring is the introduction. Nothing is listed by hand, so nothing can be forgotten.
"""

import importlib
import inspect
import pathlib
import re
import types

import flatjax

# In the order of the pages; the rooms of the house and the modules of names in no room.
GROUPS = {
    "Curvature": ["operators", "losses", "linalg", "spectrum", "trackers"],
    "The loss surface": ["measures", "landscape", "paths", "symmetry", "ensembles"],
    "Training": ["transforms", "optimizers"],
    "Running": ["preflight", "parallel", "loops"],
    "Pictures": ["plots"],
}
OWN_PAGES = {"_spectrum": "spectrum", "_trackers": "trackers"}  # modules of names in no room
PAGES = [page for pages in GROUPS.values() for page in pages]
ROOMS = [page for page in PAGES if page not in OWN_PAGES.values()]


def grouped_names() -> dict[str, dict[str, object]]:
    """Public names by room: ``{"operators": {"flatjax.hessian": <function>, ...}, ...}``."""
    rooms: dict[str, dict[str, object]] = {room: {} for room in ROOMS}
    seen = set()
    for room in ROOMS:
        module = importlib.import_module(f"flatjax.{room}")
        for name, value in vars(module).items():
            # Functions, classes, and instances of these classes (the losses are instances).
            origin = getattr(value, "__module__", None) or ""
            foreign = not origin.startswith("flatjax.")
            if name.startswith("_") or foreign or name in seen:  # plots imports what it draws
                continue
            short = getattr(flatjax, name, None) is value
            rooms[room][f"flatjax.{name}" if short else f"{module.__name__}.{name}"] = value
            seen.add(name)
    for name, value in vars(flatjax).items():
        if name.startswith("_") or name in seen or isinstance(value, types.ModuleType):
            continue
        origin = value.__module__.split(".")[1]
        rooms.setdefault(OWN_PAGES.get(origin, origin), {})[f"flatjax.{name}"] = value
    if set(rooms) != set(PAGES):
        raise ValueError(f"a page stands in no group: {set(rooms) ^ set(PAGES)}.")
    return rooms


def directive(name: str, value: object) -> list[str]:
    if inspect.isclass(value):
        return [f".. autoclass:: {name}", "   :members:", ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {name}", ""]
    module, _, short = name.rpartition(".")
    kind = type(value)
    room = ".".join(part for part in kind.__module__.split(".") if not part.startswith("_"))
    return [
        f".. py:data:: {short}",
        f"   :module: {module}",
        f"   :type: {room}.{kind.__name__}",
        "",
        f"   An instance of :class:`~{room}.{kind.__name__}`.",
        "",
    ]


def summarised(value: object) -> bool:
    """An instance has no docstring of its own to take a first line from."""
    return inspect.isclass(value) or inspect.isroutine(value)


def page(room: str, names: dict[str, object]) -> str:
    """The page as reStructuredText."""
    title = f"flatjax.{room}"
    modules = {page: module for module, page in OWN_PAGES.items()}
    lines = [title, "=" * len(title), ""]
    lines += [f".. automodule:: flatjax.{modules.get(room, room)}", "   :no-index:", ""]
    lines += [".. autosummary::", "   :nosignatures:", ""]
    # Functions first, then the types they return. The tilde shows the bare name.
    ordered = sorted(
        names, key=lambda name: (inspect.isclass(names[name]), name.rpartition(".")[2].lower())
    )
    relative = {name: name.removeprefix(f"{title}.") for name in ordered}
    lines += [
        f"   {relative[name]}" if relative[name] != name else f"   ~{name}"
        for name in ordered
        if summarised(names[name])
    ]
    lines += [""]
    for name in ordered:
        lines += directive(name, names[name])
    return "\n".join(lines)


def write_pages(app) -> None:
    folder = pathlib.Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    rooms = grouped_names()
    index = ["API reference", "=============", ""]
    for group, members in GROUPS.items():
        index += [".. toctree::", f"   :caption: {group}", "", *(f"   {m}" for m in members), ""]
    pages = {"index": "\n".join(index) + "\n"}
    pages |= {room: page(room, names) for room, names in rooms.items()}
    for old in folder.glob("*.rst"):
        if old.stem not in pages:
            old.unlink()
    for stem, text in pages.items():
        path = folder / f"{stem}.rst"
        # An unchanged page keeps its time, so that a second build is quick.
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def drop_empty_patterns(app, docname: str, source: list[str]) -> None:
    """Leave out the toctree patterns of the index that match no page yet."""
    if docname != "index":
        return
    root = pathlib.Path(app.srcdir)
    lines = source[0].splitlines()
    kept = [
        line
        for line in lines
        if not re.fullmatch(r"[\w/-]+\*", line) or any(root.glob(line + ".md"))
    ]
    source[0] = "\n".join(kept) + "\n"


def skip_member(app, what, name, obj, skip, options):
    """Leave out the fields of a NamedTuple: its docstring documents them one by one."""
    if type(obj).__name__ == "_tuplegetter":
        return True
    return None


def setup(app):
    app.connect("builder-inited", write_pages)
    app.connect("source-read", drop_empty_patterns)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
