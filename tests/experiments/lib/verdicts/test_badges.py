"""Verdicts as badges."""

from experiments.lib.verdicts.badges import badge, counted


def test_a_badge_has_the_verdict_as_its_class_and_text():
    assert badge("void") == '<span class="verdict void">void</span>'
    assert badge("not reproduced") == '<span class="verdict not-reproduced">not reproduced</span>'


def test_verdicts_are_counted_in_their_order():
    assert counted(["void", "reproduced", "void"]) == f"{badge('reproduced', 1)} {badge('void', 2)}"
    assert '">2 void<' in counted(["void", "void"])
