"""The sections of the page that come from one benchmark each."""

import statistics
from typing import Any

from benchmarks import _texts
from benchmarks._tables import TITLES, mean_and_error, megabytes, seconds, table

Record = dict[str, Any]


def colds(record: Record) -> str:
    """Cold start and memory."""
    rows = []
    for name, systems in record["results"].items():
        for system, row in systems.items():
            if "failure" in row:
                rows.append([name, TITLES[system], row["failure"][:60], "", "", "", "", "", ""])
                continue
            times = [seconds(row[k]) for k in ("import", "setup", "first", "second", "total")]
            cached = seconds(row["cached_total"]) if "cached_total" in row else "-"
            memory = [megabytes(row[k]) for k in ("imported_bytes", "peak_bytes")]
            rows.append([name, TITLES[system], *times, cached, *memory])
    head = ["network", "system", "import", "setup", "first answer", "second answer", "cold total"]
    return table([*head, "total with cache", "memory after import", "peak"], rows)


def accuracies(record: Record) -> str:
    """Errors at rising numbers of products."""
    parts = []
    for name, found in record["results"].items():
        counts = [p["products"] for p in next(iter(found.values()))]
        rows = [[e, *(f"{p['error']:.1e}" for p in points)] for e, points in found.items()]
        head = [name, *(f"{count} products" for count in counts)]
        parts.append(table(head, rows))
    return "\n".join(parts)


def growths(record: Record) -> str:
    """Exponents."""
    rows = [
        [
            f["cost"],
            f["against"],
            f"{f['span'][0]} to {f['span'][1]}",
            f"{f['fit']:.2f}",
            f["expected"],
        ]
        for f in record["results"]["fits"]
    ]
    return table(["cost", "against", "from, to", "fitted exponent", "expected"], rows)


def basis_parts(record: Record) -> str:
    """Steps in a whole basis and in one in parts."""
    rows = []
    for size, kinds in record["results"].items():
        whole, parts = kinds["whole"], kinds["parts"]
        ratio = f"{parts['seconds'] / whole['seconds']:.2f}"
        spent = [seconds(kind[what]) for what in ("seconds", "compile") for kind in (whole, parts)]
        held = f"{whole['vectors']:.1f}, {parts['vectors']:.1f}"
        rows.append([f"{int(size):,}", *spent[:2], ratio, *spent[2:], held])
    head = ["numbers", "whole", "in parts", "ratio", "compile, whole", "compile, in parts"]
    return table([*head, "temporary vectors"], rows)


def products(record: Record) -> str:
    """Products of `eigsh` beside ARPACK's, their sums last; and of the estimates."""
    found, body = record["results"]["pairs"], []

    def picks(row: Record) -> list[str]:
        best = min(("arpack", "arpack 2k+1"), key=lambda name: sum(row[name]))
        return [best, "eigsh", "eigsh verified"]

    for name, rows in found.items():
        for row in rows:
            said = row["complete"]
            complete = "" if row["k"] == 1 else f"{said.count('True')} of {len(said)}"
            cells = [mean_and_error(row[pick]) for pick in picks(row)]
            off = [f"{max(row['off'][pick]):.1f}" for pick in picks(row)]
            body.append([name, str(row["k"]), f"{row['tol']:g}", *cells, ", ".join(off), complete])
    counts = ([row[pick] for pick in picks(row)] for rows in found.values() for row in rows)
    sums = [[sum(s) for s in zip(*column, strict=True)] for column in zip(*counts, strict=True)]
    totals = (f"**{mean_and_error(column)}**" for column in sums)
    body.append(["**sum**", "", "", *totals, "", ""])
    best = statistics.mean(sums[0])
    ratios = [f"{statistics.mean(column) / best:.2f}" for column in sums]
    body.append(["over ARPACK", "", "", *ratios, "", ""])
    head = ["spectrum", "k", "tol", "ARPACK", "eigsh, verify=False", "eigsh", "off", "complete"]
    return "\n".join([table(head, body), _texts.ESTIMATES, estimates(record)])


def estimates(record: Record) -> str:
    """Products until traces, densities and whole spectra are as good as stated."""
    found = record["results"]["estimates"]
    quantities = list(next(iter(found.values())))
    rows = [
        [name, *(mean_and_error(c) for q in quantities for c in cell[q].values())]
        for name, cell in found.items()
    ]
    head = [f"{q}: {method}" for q in quantities for method in next(iter(found.values()))[q]]
    return table(["spectrum", *head], rows)


def transforms(record: Record) -> str:
    """Steps over a plain gradient step."""
    rows = []
    networks = record["results"]
    for name in next(iter(networks.values())):
        cells = [name]
        for found in networks.values():
            cost = found[name]
            cells += [f"{cost['gradients']:.2f}", f"{cost['memory_ratio']:.2f}"]
            if "time_ratio" in next(iter(found.values())):
                cells.append(f"{cost.get('time_ratio', float('nan')):.2f}")
        rows.append(cells)
    head = [""]
    for name, found in networks.items():
        head += [f"{name}: operations", "memory"]
        if "time_ratio" in next(iter(found.values())):
            head.append("time")
    return table(head, rows)


def landscape(record: Record) -> str:
    """A surface over its forward passes, a curve's step over a gradient step."""
    networks = record["results"]
    rows = [
        [name, *(f"{found[name]:.4g}" for found in networks.values())]
        for name in next(iter(networks.values()))
    ]
    return table(["", *networks], rows)


def costs(record: Record) -> str:
    """Products beside a gradient, solvers beside their products."""
    parts = []
    for name, rows in record["results"].items():
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        body = [
            [row, *(f"{cost[c]:.3g}" if c in cost else "" for c in columns)]
            for row, cost in rows.items()
        ]
        parts.append(table([name, *columns], body))
    return "\n".join(parts)


def convolutions(record: Record) -> str:
    """XLA's own convolutions and those of the rule, on one core and on two."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for row in record["results"]:
        images, side, inputs, outputs, window, stride, groups = row["case"]
        shape = f"{images} x {side} x {side} x {inputs} to {outputs}, {window} x {window}"
        shape += f", stride {stride}" * (stride > 1) + f", {groups} groups" * (groups > 1)
        own, chosen = row["seconds"]["XLA"], row["chosen"]
        cells = rows.setdefault((shape, row["operation"], chosen or "XLA's own"), [])
        cells.append(f"{1e3 * own:.2f} ms")
        cells.append("" if chosen is None else f"{own / row['seconds'][chosen]:.1f} x")
    head = ["images and channels, window", "operation", "form", "XLA, one core", "gain"]
    return table([*head, "XLA, two cores", "gain"], [[*key, *found] for key, found in rows.items()])


def large_vocabularies(record: Record) -> str:
    """A head with and without its logits."""
    rows = [
        [
            name,
            *(megabytes(row["temporary"][form]) for form in ("logits", "head")),
            *(seconds(row["seconds"][form]) for form in ("logits", "head")),
            f"{row['ratio']:.2f}",
        ]
        for name, row in record["results"].items()
    ]
    head = ["", "temporaries, logits", "LinearHead", "time, logits", "LinearHead", "ratio"]
    return table(head, rows)
