"""The plots of ``docs/benchmarks.md``, in colours that colour-blind readers tell apart."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.patches
import matplotlib.pyplot as plt
import matplotlib.ticker

from benchmarks import _page

COLOURS = {
    "flatjax": "#0072B2",
    "pyhessian": "#D55E00",
    "curvlinops": "#009E73",
    "eigenthings": "#CC79A7",
    "matfree": "#E69F00",
    "traceax": "#56B4E9",
}
HATCHES = {
    "flatjax": "",
    "pyhessian": "//",
    "curvlinops": "..",
    "eigenthings": "xx",
    "matfree": "--",
}


def draw(found, folder: pathlib.Path) -> None:
    """All plots for which there are results."""
    folder.mkdir(parents=True, exist_ok=True)
    if "side_by_side" in found:
        all_round(found["side_by_side"], folder / "benchmarks_all_round.png")
        networks(found["side_by_side"], folder / "benchmarks_networks.png")
    if "accuracy" in found:
        accuracy(found["accuracy"], folder / "benchmarks_accuracy.png")


def networks(record, path: pathlib.Path) -> None:
    """On the networks: the error of the trace against products, the best method of each system."""
    chosen = _page.networks(record)
    figure, all_axes = plt.subplots(
        1, len(chosen), figsize=(2.4 * len(chosen), 2.6), layout="constrained", sharey=True
    )
    for axes, (name, network) in zip(all_axes, chosen.items(), strict=True):
        for (system, colour), marker in zip(COLOURS.items(), "osD^vP", strict=True):
            rungs = network["systems"][system].get("rungs", [])
            points = sorted(
                (r["products"], r["errors"]["trace"]) for r in rungs if "trace" in r["errors"]
            )
            # The lower envelope: less error than everything that takes fewer products.
            best, kept = float("inf"), []
            for products, error in points:
                if error < best:
                    best = error
                    kept.append((products, error))
            if kept:
                axes.loglog(
                    *zip(*kept, strict=True),
                    marker=marker,
                    ms=3,
                    lw=1,
                    color=colour,
                    label=_page.TITLES[system],
                )
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("products", fontsize=8)
        axes.tick_params(labelsize=7)
    all_axes[0].set_ylabel("relative error of the trace", fontsize=8)
    all_axes[0].legend(fontsize=6, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def all_round(record, path: pathlib.Path) -> None:
    """Bars of seconds, a group for every network; lighter where something is not reached."""
    networks = _page.networks(record)
    systems = [s for s in HATCHES if any(s in n["systems"] for n in networks.values())]
    figure, axes = plt.subplots(figsize=(7.2, 3), layout="constrained")
    width = 0.8 / len(systems)
    for j, system in enumerate(systems):
        for i, network in enumerate(networks.values()):
            answer = network["systems"][system].get("documented", {}).get("all", {})
            if not answer.get("seconds"):
                continue
            spread = answer["seconds"]
            median = spread["median"]
            axes.bar(
                i + (j - (len(systems) - 1) / 2) * width,
                median,
                width,
                yerr=[[median - spread["low"]], [spread["high"] - median]],
                color=COLOURS[system],
                hatch=HATCHES[system],
                edgecolor="white",
                alpha=0.45 if answer["missing"] else 1,
                error_kw={"lw": 0.8},
            )
    axes.set_yscale("log")
    axes.set_ylabel("seconds, all-round answer")
    axes.set_xticks(range(len(networks)), list(networks), fontsize=8)
    shown = [
        matplotlib.patches.Patch(facecolor=COLOURS[s], hatch=HATCHES[s], edgecolor="white")
        for s in systems
    ]
    axes.legend(shown, [_page.TITLES[s] for s in systems], fontsize=7, ncols=3, frameon=False)
    axes.set_title("pale: some quantity not reached", fontsize=8, loc="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def accuracy(record, path: pathlib.Path) -> None:
    """Trace estimators, one pair of axes a spectrum."""
    results = record["results"]
    names = dict.fromkeys(e for found in results.values() for e in found if e.startswith("trace"))
    styles = dict(zip(names, zip(COLOURS.values(), "osD^vP", strict=True), strict=False))
    figure, all_axes = plt.subplots(
        1, len(results), figsize=(9, 2.6), layout="constrained", sharey=True
    )
    for axes, (name, found) in zip(all_axes, results.items(), strict=True):
        for estimator, (colour, marker) in styles.items():
            if estimator not in found:
                continue
            points = found[estimator]
            axes.loglog(
                [p["products"] for p in points],
                [max(p["error"], 1e-8) for p in points],
                marker=marker,
                ms=3,
                lw=1,
                color=colour,
                label=estimator.removeprefix("trace: "),
            )
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("products", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    all_axes[0].set_ylabel("relative error of the trace", fontsize=8)
    all_axes[0].legend(fontsize=6, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
