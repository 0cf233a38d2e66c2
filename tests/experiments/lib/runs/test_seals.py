"""Seals: every change of a folder's files is seen, and what has no seal is let through."""

import pytest

from experiments.lib.runs import seals


@pytest.fixture
def sealed(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "a").write_bytes(b"12")
    (tmp_path / "b").write_bytes(b"")
    seals.seal(tmp_path)
    return tmp_path


def test_what_is_as_it_was_passes(sealed):
    seals.check(sealed)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "state" / "a").write_bytes(b"13"), "state/a"),
        (lambda folder: (folder / "state" / "a").write_bytes(b"1"), "state/a"),
        (lambda folder: (folder / "b").unlink(), "b"),
        (lambda folder: (folder / "state" / "c").write_bytes(b""), "state/c"),
    ],
)
def test_every_change_is_seen(sealed, change, named):
    change(sealed)
    with pytest.raises(ValueError, match=f"its file {named} is not as it was written"):
        seals.check(sealed)


def test_without_a_seal_nothing_is_known(sealed):
    (sealed / seals.NAME).unlink()
    (sealed / "b").unlink()
    seals.check(sealed)
