"""The live display shows what the events say."""

from __future__ import annotations

import io

from rich.console import Console

from confide.simulations.display import Display


def test_the_display_shows_round_holders_loss_and_epsilon() -> None:
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=True)
    row = {"holder": "holder-00", "bytes_up": 1, "receipt": {"epsilon": 3.21}}
    with Display(console, rounds=4, epsilon=8.0) as display:
        display.show({"event": "start"})
        display.show({"event": "evaluation", "round": 0, "accuracy": 0.5, "loss": 0.69})
        for number in (1, 2):
            left = [{"holder": "holder-01", "code": "x"}]
            display.show({"event": "round", "round": number, "accepted": [row], "left_out": left})
        display.show({"event": "evaluation", "round": 2, "accuracy": 0.75, "loss": 0.51})
        display.show({"event": "end", "status": "finished"})
    shown = out.getvalue()
    for fact in (
        "accuracy 0.750",
        "loss 0.510",
        "1 holders, 1 left out",
        "3.21 of 8",
        "2/4",
        "left",
    ):
        assert fact in shown, fact


def test_a_run_without_privacy_is_shown_to_its_end() -> None:
    """FAULTS F14: it ended in a TypeError once two updates were there, and the run was lost."""
    out = io.StringIO()
    row = {"holder": "h", "bytes_up": 1, "receipt": {"epsilon": None}}
    private = {"holder": "i", "bytes_up": 1, "receipt": {"epsilon": 2.5}}
    with Display(Console(file=out, width=160, force_terminal=True), 2, 8.0) as display:
        display.show({"event": "round", "round": 1, "accepted": [row, row], "left_out": []})
        display.show({"event": "round", "round": 2, "accepted": [row, private], "left_out": []})
    assert "2 holders" in out.getvalue()
    assert "2.50 of 8" in out.getvalue()


def test_a_round_without_any_holder_is_shown_without_an_epsilon() -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=160, force_terminal=True), 2, 8.0) as display:
        display.show({"event": "round", "round": 1, "accepted": [], "left_out": []})
    assert "0 holders" in out.getvalue()


def test_what_a_run_warns_of_is_shown() -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=160, force_terminal=True), 2, 8.0) as display:
        display.show({"event": "start", "warnings": ["aggregate.method = 'lora' [both]"]})
    assert "warning: aggregate.method = 'lora' [both]" in out.getvalue()
