"""Plays become speeches with their roles."""

from __future__ import annotations

from pathlib import Path

from confide.common.text.readers import Record
from confide.simulations.sources.plays import FEWEST_SPEECHES, parse_play, read_plays

PLAY = """THE BAKERS

DRAMATIS PERSONAE

ANNA, a baker.

ACT I.
SCENE I. A shop.

[Enter ANNA and PAUL.]

ANNA.
The bread is warm,
and here it is.
Act now, say I.

Or all is lost!

Paul.
I see no bread. [Aside.] Nor any
[He looks about
him] flour.
Enter a Customer

ANNA.
Yes.
SCENE II. The street.

ANNA.
[Exit.]

Scene III. The mill.

It was short.
"""


def test_a_speech_ends_where_the_next_or_a_scene_begins() -> None:
    assert parse_play(PLAY.replace("\n", "\r\n"), "bakers") == [
        Record(
            "The bread is warm, and here it is. Act now, say I. Or all is lost!",
            None,
            "bakers/ANNA",
        ),
        Record("I see no bread. Nor any flour.", None, "bakers/PAUL"),
        Record("Yes.", None, "bakers/ANNA"),
    ]


def test_roles_that_hardly_speak_are_left_out(tmp_path: Path) -> None:
    often = "\n".join(f"ANNA.\nLine {n}.\n" for n in range(FEWEST_SPEECHES))
    seldom = "\n".join(f"PAUL.\nLine {n}.\n" for n in range(FEWEST_SPEECHES - 1))
    (tmp_path / "one_gut.txt").write_bytes(f"{often}\n{seldom}".encode("latin-1"))
    # The same name in another play is another role.
    (tmp_path / "two_gut.txt").write_bytes("PAUL.\nD\u00e9j\u00e0.\n".encode("latin-1"))
    training, test = read_plays(tmp_path)
    assert test == []
    assert {record.person for record in training} == {"one/ANNA"}
    assert len(training) == FEWEST_SPEECHES
