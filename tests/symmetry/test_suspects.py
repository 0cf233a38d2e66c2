"""Edits of a spec, looked for by what they leave of a change that is made up here."""

from flatjax.symmetry import _suspects as suspects
from flatjax.symmetry._factors import Factors
from flatjax.symmetry._spec import Spec


def _vector(group=None):
    return Factors((2,), (group,), (None,), (0,))


def _found(left):
    """The leaves of the edits, where `left` says what is left with some leaves moving along."""
    factors = {"kernel": _vector("h"), "a": _vector(), "b": _vector(), "c": _vector()}
    spec = Spec({path: f.names for path, f in factors.items()}, {"h": 2})

    def change(by_leaf):
        moved = "".join(path for path, f in by_leaf.items() if f.names[0] and path != "kernel")
        return left.get(moved, 1.0) if by_leaf["kernel"].names[0] else 1.0

    edits = suspects.search(factors, factors, "h", spec, change, 0.0)
    return {edit.path: edit.words for edit in edits}


def test_each_edit_is_the_one_that_leaves_least():
    found = _found({"a": 0.5, "b": 0.3, "ab": 0.2, "bc": 0.1, "abc": 0.0})
    assert found == {path: f"axis 0 of '{path}' moves with it" for path in "abc"}


def test_an_edit_that_the_later_ones_make_needless_is_dropped():
    assert _found({"a": 0.3, "b": 0.5, "ab": 0.2, "abc": 0.0, "bc": 0.0}).keys() == {"b", "c"}


def test_none_where_nothing_mends_it():
    assert _found({"a": 0.5, "ab": 0.2, "abc": 0.1}) == {}


def test_a_flattened_axis_has_its_units_last_or_first():
    flat = Factors((6,), (None,), (None,), (0,))
    ways = list(suspects._ways(flat, flat, 0, [0], "h", Spec({}, {"h": 2})))
    assert ways == [([3, 2], 1, None), ([2, 3], 0, None)]


def test_an_inner_group_lies_beside_its_blocks_or_flattened_with_them():
    spec = Spec({}, {"g": 3, "g/u": 2})
    apart = Factors((3, 2), ("g", None), (None, None), (0, 1))
    assert list(suspects._ways(apart, apart, 1, [1], "g/u", spec)) == [([2], 0, 0)]
    flat = Factors((6,), (None,), (None,), (0,))
    assert list(suspects._ways(flat, flat, 0, [0], "g/u", spec)) == [([3, 2], 1, "here")]


def test_blocks_are_found_again_behind_an_axis_that_is_unfolded():
    factors = Factors((6, 3, 2), (None, None, "g/u"), (None, None, 1), (0, 1, 2))
    found = suspects._refolded(factors, [0], [3, 2], 1, "h", None)
    assert found == Factors(
        (3, 2, 3, 2), (None, "h", None, "g/u"), (None, None, None, 2), (0, 0, 1, 2)
    )
    # The axis of the blocks itself stays as it is.
    assert suspects._refolded(factors, [1], [1, 3], 1, "h", None) is None
