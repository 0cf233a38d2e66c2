"""Verdicts as badges: HTML in Markdown, coloured by the documentation's style sheet."""

from __future__ import annotations

from collections.abc import Iterable

VERDICTS = ("reproduced", "not reproduced", "inconclusive", "void")


def badge(verdict: str, count: int | None = None) -> str:
    """One verdict, with how often it was found before it."""
    text = verdict if count is None else f"{count} {verdict}"
    return f'<span class="verdict {verdict.replace(" ", "-")}">{text}</span>'


def counted(verdicts: Iterable[str]) -> str:
    """A badge for every verdict that was found, with how often."""
    found = list(verdicts)
    return " ".join(badge(v, found.count(v)) for v in VERDICTS if v in found)
