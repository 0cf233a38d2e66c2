"""What makes a run the run it is."""

from dataclasses import dataclass, field

from experiments.lib.runs.identity import differences, identity


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    keep: int = field(default=2, metadata={"identity": False})


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    sizes: tuple[int, ...] = (3, 4)
    out: str | None = field(default=None, metadata={"identity": False})


def test_identity_leaves_out_what_does_not_decide_the_result():
    assert identity(Outer()) == {"inner": {"rate": 0.1}, "sizes": [3, 4]}
    assert identity(Outer()) == identity(Outer(Inner(keep=7), out="here"))


def test_differences_have_the_path_and_both_values():
    old, new = identity(Outer()), identity(Outer(Inner(rate=0.2), sizes=()))
    assert differences(old, new) == ["inner.rate: 0.1 -> 0.2", "sizes: [3, 4] -> []"]
    assert differences(old, {"inner": old["inner"]}) == ["sizes: [3, 4] -> null"]
