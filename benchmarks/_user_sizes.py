"""The section of the page on networks of user size."""

from typing import Any

from benchmarks import _texts
from benchmarks._tables import megabytes, seconds, table
from benchmarks.peers.first_answers import UNVERIFIED

Record = dict[str, Any]
NAMES = {"resnet": "ResNet-18", "gpt": "GPT", "vit": "ViT-Tiny"}
# Of the five eigenvalues: how many times sooner than whom.
GOALS = (("ggn", "curvlinops", 1.5), ("hessian", "PyHessian", 3.0), ("hessian", "curvlinops", 1.0))
RIGHT = 1e-2
QUESTIONS = {"top": "top 5, 1 %", "trace": "trace, 5 %", "density": "density"}


def section(record: Record) -> str:
    """Products, then first answers."""
    results = record["results"]
    parts = [products(results)]
    if results["answers"]:
        parts += [_texts.FIRST_ANSWERS, answers(results), _texts.GOALS, goals(results)]
    return "\n".join(parts)


def products(results: Record) -> str:
    """Seconds beside PyTorch, and over the gradient of the same system."""
    rows = []
    for name, found in results["products"].items():
        size = f"{NAMES[name]}, {found['params'] / 1e6:.1f} M"
        for what, row in found.items():
            if what == "params":
                continue
            own, other = (row["seconds"].get(system) for system in ("flatjax", "PyTorch"))
            gradients = [
                f"{value / found['gradient']['seconds'][system]:.2f}" if value else ""
                for system, value in (("flatjax", own), ("PyTorch", other))
            ]
            shown = seconds(other) if other else ""
            ratio = f"{own / other:.2f}" if other else ""
            rows.append([size, what, seconds(own), shown, ratio, *gradients])
            size = ""
    head = ["", "", "flatjax", "PyTorch", "ratio", "gradients, flatjax", "gradients, PyTorch"]
    return table(head, rows)


def answers(results: Record) -> str:
    """What each system spent on a question; factors are over flatjax."""
    rows = []
    for name, matrices in results["answers"].items():
        for matrix, questions in matrices.items():
            for question, systems in questions.items():
                label = f"{NAMES[name]}, {matrix}, {QUESTIONS[question]}"
                for system, row in systems.items():
                    if system != "reference":
                        rows.append([label, system, *cells(row, systems["flatjax"])])
                        label = ""
    head = ["", "system", "products", "s per product", "processor", "over flatjax", "wall"]
    return table([*head, "peak", "over flatjax", "off by"], rows)


def goals(results: Record) -> str:
    """Whether the five eigenvalues come as soon as was set, and with no more memory."""
    rows = []
    for name, matrices in results["answers"].items():
        for matrix, peer, goal in GOALS:
            systems = matrices.get(matrix, {}).get("top", {})
            row = systems.get(peer)
            if not row or "failure" in row:
                continue
            label = f"{NAMES[name]}, {matrix}, beside {peer}"
            for system in ("flatjax", UNVERIFIED):
                if own := systems.get(system):
                    rows.append([label, system, *verdicts(own, row, goal)])
                    label = ""
    return table(["", "", "sooner", "", "memory", ""], rows)


def verdicts(own: Record, row: Record, goal: float) -> list[str]:
    """Factors of time and memory over a peer's, and whether they reach what was set."""
    sooner = row["processor_seconds"] / own["processor_seconds"]
    memory = row["peak_bytes"] / own["peak_bytes"]
    out = []
    for factor, least in ((sooner, goal), (memory, 1)):
        out += [f"{factor:.2f} of {least:g}", "reached" if factor >= least else "not reached"]
    if not own.get("error", 0) <= RIGHT:  # no answer is soon that is wrong
        out[1] = "a wrong answer"
    return out


def cells(row: Record, own: Record) -> list[str]:
    """The numbers of one answer."""
    if "failure" in row:
        return ["", "", "did not run", "", "", "", "", row["failure"]]
    spent, memory = row["processor_seconds"], row["peak_bytes"]
    done = row["within"]
    mark = "" if done else "> "
    return [
        f"{row['products']}",
        f"{spent / max(row['products'], 1):.2f}",
        seconds(spent) if done else f"not within {spent:.0f} s",
        f"{mark}{spent / own['processor_seconds']:.2f}",
        seconds(row["seconds"]),
        megabytes(memory),
        f"{memory / own['peak_bytes']:.2f}",
        off_by(row),
    ]


def off_by(row: Record) -> str:
    """The error of the eigenvalues, the standard error of a trace."""
    if "error" in row:
        return f"{100 * row['error']:.2g} %"
    if "standard_error" in row:
        return f"{row['value']:.4g} ± {row['standard_error']:.2g}"
    if "found" in row:
        return f"{row['found']} of 5 found"
    return ""


def large_spectrum(record: Record) -> str:
    """What the runs cost and say, and which certificates of the small one hold."""
    results, rows = record["results"], []
    for name in ("large", "float32", "float64"):
        run = results[name]
        certified = [*run["top"]["converged"], *run["bottom"]["converged"]]
        value, low, high = run["trace"]
        rows.append(
            [
                f"{run['size'] / 1e6:.2f} M, {'float32' if name == 'large' else name}",
                f"{run['steps']}",
                f"{run['products']}",
                seconds(run["seconds"]),
                megabytes(run["bytes"]),
                f"{sum(certified)} of {len(certified)}",
                f"{run['top']['values'][0]:.6g}",
                f"{value:.5g} ({low:.5g} to {high:.5g})",
            ]
        )
    head = ["", "steps", "products", "processor", "peak", "converged", "largest", "trace (95 %)"]
    names = {"top": "5 largest", "bottom": "2 smallest", "frobenius_norm": "Frobenius norm"}
    names["density"] = "distribution function"
    held = [names.get(name, name) for name, holds in results["holds"].items() if holds]
    lost = [names.get(name, name) for name, holds in results["holds"].items() if not holds]
    lines = [f"Of 1.05 million parameters hold: {', '.join(held) or 'none'}."]
    lines += [f"Do not hold: {', '.join(lost)}."] if lost else []
    return "\n".join([table(head, rows), " ".join(lines), ""])
