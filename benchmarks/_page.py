"""The text of ``docs/benchmarks.md`` and of the README's table, from the results alone."""

from typing import Any

from benchmarks import _sections, _texts, _user_sizes
from benchmarks._tables import TITLES, off_by, seconds, table, timed
from benchmarks.peers.errors import ALL_ROUND

Record = dict[str, Any]
QUANTITIES = {
    "top1 0.01": "largest, 1 %",
    "top1 0.001": "largest, 0.1 %",
    "top 0.01": "top 10, 1 %",
    "top 0.001": "top 10, 0.1 %",
    "bottom 0.01": "bottom 2, 1 %",
    "trace 0.01": "trace, 1 %",
    "trace 0.001": "trace, 0.1 %",
    "density 0.05": "density, 0.05",
    "density 0.01": "density, 0.01",
}
NAMES = {"top": "top 10", "bottom": "bottom 2", "trace": "trace", "density": "density"}
HEADLINE = ("pyhessian", "curvlinops")


def ratio(peer: dict[str, Any], own: dict[str, Any]) -> float | None:
    """How many times the peer's seconds are ours."""
    if not peer.get("seconds") or not own.get("seconds"):
        return None
    return peer["seconds"]["median"] / own["seconds"]["median"]


def alike(network: dict[str, Any], use: str, answer: dict[str, Any]) -> dict[str, Any]:
    """What flatjax takes for the quantities that a peer's answer has."""
    own = network["systems"]["flatjax"].get(use, {})
    if not answer["missing"]:
        return own.get("all", {})
    return own.get("parts", {}).get(",".join(q for q in NAMES if q not in answer["missing"]), {})


def missing(all_round: dict[str, Any]) -> str:
    """The quantities that a system does not reach."""
    return ", ".join(NAMES[q] for q in all_round["missing"]) or "none"


def networks(record: Record) -> dict[str, Any]:
    """The networks of the comparison."""
    return record["results"]


def headline(record: Record, use: str) -> str:
    """All at once, flatjax beside every other system."""
    rows = []
    for name, network in networks(record).items():
        title = f"{name} ({network['params']})"
        for system, found in network["systems"].items():
            answer = found.get(use, {}).get("all")
            if answer is None:
                rows.append([title, TITLES[system], failure(found), "", "", "", "", ""])
                continue
            own = alike(network, use, answer)
            factor = None if system == "flatjax" else ratio(answer, own)
            of_part = (
                f" of {seconds(own['seconds']['median'])}" if answer["missing"] and own else ""
            )
            rows.append(
                [
                    title,
                    TITLES[system],
                    timed(answer.get("seconds")),
                    "" if factor is None else f"{factor:.1f} x{of_part}",
                    *effort(answer),
                    missing(answer),
                    answer.get("method", ""),
                ]
            )
            if "plain" in found:
                plain = found["plain"]
                took, calls = timed(plain["seconds"]), plain["method"]
                rest = ", ".join(NAMES[q] for q in beyond(found)) or "none"
                rows.append([title, "flatjax", took, "", *effort(plain), rest, calls])
    head = ["network (params)", "system", "median (spread)", "over flatjax", "products", "errors"]
    return table([*head, "not reached", "calls"], rows)


def effort(answer: dict[str, Any]) -> list[str]:
    """Products spent and errors met."""
    if not answer.get("seconds"):
        return ["", ""]
    met = ", ".join(f"{answer['errors'][q]:.1e}" for q in NAMES if q in answer["errors"])
    return [f"{answer['products']:.0f}", met]


def calibrated(found: dict[str, Any], method: str) -> dict[str, Any]:
    """The cheapest rung of a method that was within all goals, or its only one."""
    rungs = [rung for rung in found["rungs"] if rung["method"] == method and "errors" in rung]
    good = [r for r in rungs if all(r["errors"][q] <= goal for q, goal in ALL_ROUND.items())]
    return min(good or rungs, key=lambda rung: rung["seconds"])


def beyond(found: dict[str, Any]) -> dict[str, float]:
    """The quantities that the call without options missed, with their errors when calibrated."""
    met = calibrated(found, found["plain"]["method"])["errors"]
    return {q: met[q] for q, goal in ALL_ROUND.items() if met[q] > goal}


def passed_over(record: Record) -> str:
    """Why a call without options that is faster is not the answer."""
    lines = []
    for name, network in networks(record).items():
        found = network["systems"]["flatjax"]
        answer, plain = found.get("documented", {}).get("all", {}), found.get("plain")
        if not plain or not answer.get("seconds"):
            continue
        if plain["seconds"]["median"] >= answer["seconds"]["median"]:
            continue
        off = " and ".join(
            f"the {NAMES[q]} off by {error:.3f} where the goal is {ALL_ROUND[q]:g}"
            for q, error in beyond(found).items()
        )
        own, spent = (calibrated(found, x["method"].split(" (")[0]) for x in (plain, answer))
        lines.append(
            f"On {name} the call without options is faster ({seconds(plain['seconds']['median'])} "
            f"against {seconds(answer['seconds']['median'])}) and still not the answer: when "
            f"calibrated it left {off}, with {own['products']:.0f} products. The cheapest rung of "
            f"the ladder within all goals spends {spent['products']:.0f}."
        )
    return "\n".join(lines) + "\n" if lines else ""


def failure(found: dict[str, Any]) -> str:
    """Why there is no number."""
    why = str(found.get("failure") or "no method ran")[:80].replace("|", "/")
    return why if why.startswith("not measured") else f"did not run: {why}"


def singles(record: Record, use: str) -> str:
    """Every quantity and target alone: seconds and products."""
    parts = []
    for name, network in networks(record).items():
        systems = [s for s, found in network["systems"].items() if use in found]
        rows = []
        for key, title in QUANTITIES.items():
            if not any(key in network["systems"][s][use]["single"] for s in systems):
                continue  # the short form does not look for all
            cells = []
            for system in systems:
                found = network["systems"][system][use]["single"].get(key)
                if found is None:
                    cells.append("not reached")
                else:
                    median = seconds(found["seconds"]["median"])
                    cells.append(f"{median}, {found['products']:.0f}")
            rows.append([title, *mark(cells, network, systems, use, key)])
        parts.append(f"**{name}**\n\n" + table(["", *(TITLES[s] for s in systems)], rows))
    return "\n".join(parts)


def mark(cells, network, systems, use, key):
    """The cells with the fastest in bold."""
    medians = {}
    for i, system in enumerate(systems):
        found = network["systems"][system][use]["single"].get(key)
        if found is not None:
            medians[i] = found["seconds"]["median"]
    if not medians:
        return cells
    fastest = min(medians, key=lambda i: medians[i])
    return [f"**{cell}**" if i == fastest else cell for i, cell in enumerate(cells)]


def wins(record: Record, use: str) -> str:
    """Where a peer is faster than flatjax, in one line each."""
    lines = []
    for name, network in networks(record).items():
        own = network["systems"]["flatjax"].get(use, {}).get("single", {})
        for key, title in QUANTITIES.items():
            mine = own.get(key)
            for system, found in network["systems"].items():
                theirs = found.get(use, {}).get("single", {}).get(key)
                if system == "flatjax" or theirs is None:
                    continue
                if mine is None:
                    lines.append(f"- {name}, {title}: {TITLES[system]} reaches it, flatjax not.")
                elif theirs["seconds"]["median"] < mine["seconds"]["median"]:
                    factor = mine["seconds"]["median"] / theirs["seconds"]["median"]
                    count = f"{theirs['products']:.0f} products against {mine['products']:.0f}"
                    lines.append(
                        f"- {name}, {title}: {TITLES[system]} by {theirs['method'].split(' (')[0]},"
                        f" {factor:.1f} x ({count})."
                    )
    return "\n".join(lines) + "\n" if lines else "None.\n"


def truths(record: Record) -> str:
    """The reference and its own error."""
    rows = []
    for name, network in networks(record).items():
        truth = network["truth"]
        kind = "dense" if truth["dense"] else "eigsh to 1e-10, quadrature"
        numbers = [f"{truth[k]:.0e}" for k in ("eigenvalue_error", "trace_error", "density_error")]
        rows.append([name, str(network["params"]), kind, *numbers])
    return table(
        ["network", "params", "float64 reference", "eigenvalues", "trace", "density"], rows
    )


def machine(record: Record) -> str:
    """Versions and hardware of a run."""
    e = record["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in e.get("packages", {}).items() if v)
    load = " to ".join(str(x) for x in e.get("load", [])) or "not recorded (other work ran beside)"
    return (
        f"{e.get('processor', '')}, {e['cores']} cores, Python {e['python']}, flatjax "
        f"{e['flatjax']}, {packages}; {e.get('form', 'full')} form, load average {load}."
    )


def versions(record: Record) -> str:
    """The peers that ran."""
    network = next(iter(networks(record).values()))
    rows = []
    for system, found in network["systems"].items():
        ran = found.get("version") or failure(found)
        rows.append(
            [
                TITLES[system],
                str(ran),
                str(found.get("framework_version") or ""),
                str(found.get("note") or ""),
            ]
        )
    return table(["system", "version", "PyTorch or JAX", "note"], rows)


def unfinished(record: Record) -> str:
    """Calls that raised or took too long."""
    lines = [
        f"- {name}, {TITLES[system]}: {note[:160]}"
        for name, network in networks(record).items()
        for system, found in network["systems"].items()
        for note in found.get("notes") or ()
    ]
    return "Calls that did not finish:\n\n" + "\n".join(lines) + "\n" if lines else ""


def page(found: dict[str, Record]) -> str:
    """The whole page."""
    parts = [_texts.INTRODUCTION]
    if "side_by_side" in found:
        record = found["side_by_side"]
        allowed = sorted({found["seconds_allowed"] for found in networks(record).values()})
        limit = ", ".join(f"{seconds:g}" for seconds in allowed)
        parts += [
            _texts.SIDE_BY_SIDE.format(limit=limit),
            versions(record),
            unfinished(record),
            "### One all-round answer\n",
            _texts.ALL_ROUND,
            headline(record, "documented"),
            passed_over(record),
            _texts.ALL_ROUND_FIGURE,
            _texts.BEYOND,
            headline(record, "any"),
            "### Every quantity alone\n",
            _texts.SINGLE,
            singles(record, "documented"),
            _texts.FIGURE.format(
                name="benchmarks_networks", text="Error of the trace against products, by system"
            ),
            "### Where a peer is faster\n",
            wins(record, "documented"),
            _texts.WHY,
            "### The truth\n",
            truths(record),
            machine(record) + "\n",
        ]
    sections = (
        ("cold_start", "## Cold start and memory\n", _texts.COLD, _sections.colds),
        ("accuracy", "## Accuracy against products\n", _texts.ACCURACY, _sections.accuracies),
        (
            "products",
            "## Products until an answer is as good as stated\n",
            _texts.PRODUCTS,
            _sections.products,
        ),
        ("growth", "## Growth\n", _texts.GROWTH, _sections.growths),
        ("basis_parts", "## A basis in parts\n", _texts.BASIS_PARTS, _sections.basis_parts),
        ("costs", "## Products and solvers\n", _texts.COSTS, _sections.costs),
        ("transforms", "## The transforms\n", _texts.TRANSFORMS, _sections.transforms),
        ("landscape", "## Pictures of the loss surface\n", _texts.LANDSCAPE, _sections.landscape),
        ("convolutions", "## Convolutions on a CPU\n", _texts.CONVOLUTIONS, _sections.convolutions),
        ("user_size", "## At user size\n", _texts.USER_SIZE, _user_sizes.section),
        (
            "large_vocabulary",
            "## A large vocabulary\n",
            _texts.LARGE_VOCABULARY,
            _sections.large_vocabularies,
        ),
        (
            "large_spectrum",
            "## A spectrum within bytes\n",
            _texts.LARGE_SPECTRUM,
            _user_sizes.large_spectrum,
        ),
    )
    for name, title, text, write in sections:
        if name in found:
            parts += [title, text, write(found[name]), machine(found[name]) + "\n"]
    return "\n".join(parts)


def readme(found: dict[str, Record]) -> str:
    """The short table: what a call without options takes, and every system at its least effort."""
    if "side_by_side" not in found:
        return ""
    record = found["side_by_side"]
    rows = []
    for name, network in networks(record).items():
        systems = network["systems"]
        own, plain = systems["flatjax"].get("documented", {}), systems["flatjax"].get("plain", {})
        cells = [f"{name} ({network['params']:,})"]
        cells.append(timed(plain.get("seconds")).split(" (")[0])
        cells.append(off_by(plain["errors"]) if plain else "")
        cells.append(timed(own.get("all", {}).get("seconds")).split(" (")[0])
        for system in HEADLINE:
            answer = systems[system].get("documented", {}).get("all", {})
            factor = ratio(answer, alike(network, "documented", answer)) if answer else None
            if factor is None:
                cells.append("did not run")
                continue
            without = f", without {missing(answer)}" if answer["missing"] else ""
            cells.append(f"{seconds(answer['seconds']['median'])} ({factor:.1f} x{without})")
        rows.append(cells)
    head = ["network (parameters)", "`spectrum(H, key=key)`", "off by", "flatjax, tuned"]
    return table([*head, *(f"{TITLES[s]}, tuned" for s in HEADLINE)], rows)
