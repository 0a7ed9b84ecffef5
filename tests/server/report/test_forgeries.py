"""Promise 33: forgeries of report, page, card, adapter, settings, metrics and ledgers, all named.

A forger of report.json draws the page and the card anew, so that they show what it says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.privacy.ledger import Ledger
from confide.server.report.build import shown_by, write_report
from confide.server.report.verify import verify_run
from tests.server.report.conftest import DELTA, RUN, events_of, plan, reseal, write_events

Report = dict[str, Any]
FEWEST = 60


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory, pattern: Callable[..., Path]) -> Path:
    from tests.server.report.conftest import ROUNDS, config

    folder = tmp_path_factory.mktemp("forged") / RUN
    shutil.copytree(pattern("record", ROUNDS, "", None), folder)
    (folder / "config.toml").write_text(config(), encoding="utf-8")
    reseal(folder)
    write_report(folder, prv=False)
    return folder


@pytest.fixture
def forged(reported: Path, tmp_path: Path) -> Path:
    folder = tmp_path / RUN
    shutil.copytree(reported, folder)
    return folder


def holder(report: Report, name: str) -> Report:
    return next(row for row in report["holders"] if row["name"] == name)


def check(report: Report, word: str) -> Report:
    return next(row for row in report["checks"] if word in row["name"])


# The part of a report that is forged, and where it is named.
Change = Callable[[Report], object]
IN_THE_REPORT: list[tuple[str, Change]] = [
    ("claim / epsilon", lambda r: r["claim"].update(epsilon=0.5)),
    ("claim / epsilon", lambda r: r["claim"].update(epsilon=7.99)),
    ("claim / delta", lambda r: r["claim"].update(delta=1e-9)),
    ("claim / unit", lambda r: r["claim"].update(unit="person")),
    ("claim / neighbouring", lambda r: r["claim"].update(neighbouring="replace-one")),
    ("claim / adversary", lambda r: r["claim"].update(adversary="everyone, whatever it computes")),
    ("claim / computational", lambda r: r["claim"].update(computational="")),
    ("claim / sentence", lambda r: r["claim"].update(sentence="Nothing can be learnt.")),
    ("claim / in_plain_words", lambda r: r["claim"].update(in_plain_words="Nobody is found.")),
    ("claim / planned_epsilon", lambda r: r["claim"].update(planned_epsilon=2.0)),
    ("claim / this_run / spent", lambda r: r["claim"]["this_run"].update(spent=1.0)),
    ("claim / this_run / planned", lambda r: r["claim"]["this_run"].update(planned=1.0)),
    ("claim / all_runs_by_pld", lambda r: r["claim"].update(all_runs_by_pld=1.0)),
    ("claim / runs", lambda r: r["claim"].update(runs=0)),
    ("claim / proven_by", lambda r: r["claim"].update(proven_by=[])),
    ("claim / attacker", lambda r: r["claim"]["attacker"][0].update(true_positive_rate=0.02)),
    ("claim / attacker", lambda r: r["claim"].update(attacker=[])),
    ("claim / groups", lambda r: r["claim"]["groups"][1].update(epsilon=9.0)),
    ("claim / groups", lambda r: r["claim"].update(groups=[])),
    ("claim / curve", lambda r: r["claim"]["curve"][0].__setitem__(1, 1.0)),
    ("claim / curve", lambda r: r["claim"]["curve"].pop()),
    ("claim / private", lambda r: r["claim"].update(private=False)),
    ("claim / more", lambda r: r["claim"].update(more="certified")),
    ("holders / holder-00 / epsilon_pld", lambda r: holder(r, "holder-00").update(epsilon_pld=1.0)),
    ("holders / holder-05 / epsilon_pld", lambda r: holder(r, "holder-05").update(epsilon_pld=1.0)),
    ("holders / holder-01 / epsilon_rdp", lambda r: holder(r, "holder-01").update(epsilon_rdp=1.0)),
    ("holder-00 / epsilon_prv", lambda r: holder(r, "holder-00").update(epsilon_prv=7.5)),
    ("holder-03 / epsilon_proven", lambda r: holder(r, "holder-03").update(epsilon_proven=1.0)),
    ("holder-03 / epsilon_planned", lambda r: holder(r, "holder-03").update(epsilon_planned=1.0)),
    ("holder-03 / epsilon_all_runs", lambda r: holder(r, "holder-03").update(epsilon_all_runs=1.0)),
    ("holder-03 / own_limit", lambda r: holder(r, "holder-03").update(own_limit=1.0)),
    ("holder-03 / runs", lambda r: holder(r, "holder-03").update(runs=5)),
    ("holder-03 / rounds", lambda r: holder(r, "holder-03").update(rounds=21)),
    ("holder-03 / basis", lambda r: holder(r, "holder-03").update(basis="ledger")),
    ("holder-00 / basis", lambda r: holder(r, "holder-00").update(ledger=None)),
    ("holder-00 / events", lambda r: holder(r, "holder-00")["events"][0].update(steps=3)),
    (
        "holder-00 / events",
        lambda r: holder(r, "holder-00")["events"][0].update(noise_multiplier=9.0),
    ),
    ("holder-04 / receipt / head", lambda r: holder(r, "holder-04")["receipt"].update(head="0")),
    ("holder-04 / receipt", lambda r: holder(r, "holder-04").update(receipt=None)),
    (
        "holder-00 / epsilon_rounds",
        lambda r: holder(r, "holder-00")["epsilon_rounds"][3].__setitem__(1, 0.5),
    ),
    ("holders / holder-00", lambda r: r["holders"].pop(0)),
    (
        "holders / holder-99",
        lambda r: r["holders"].append({**r["holders"][0], "name": "holder-99"}),
    ),
    ("checks", lambda r: r.update(checks=[])),
    ("checks / Ledgers agree", lambda r: check(r, "Ledgers agree").update(state="passed")),
    ("checks / Receipts chain", lambda r: check(r, "Receipts chain").update(detail="Certified.")),
    ("checks", lambda r: r["checks"].pop()),
    ("not_protected", lambda r: r.update(not_protected=[])),
    ("not_protected", lambda r: r["not_protected"].pop(0)),
    ("released / not_accounted", lambda r: r["released"].update(not_accounted=[])),
    ("released / accounted", lambda r: r["released"]["accounted"][0].update(why="encrypted")),
    ("faults", lambda r: r.update(faults=[])),
    ("run / rounds", lambda r: r["run"].update(rounds=200)),
    ("run / status", lambda r: r["run"].update(status="certified")),
    ("run / holders", lambda r: r["run"].update(holders=1000)),
    ("run / name", lambda r: r["run"].update(name="another run")),
    ("utility / after / accuracy", lambda r: r["utility"]["after"].update(accuracy=0.99)),
    ("utility / yardsticks", lambda r: r["utility"].update(yardsticks=[])),
    ("costs / seconds", lambda r: r["costs"].update(seconds=1.0)),
    ("settings / privacy.epsilon", lambda r: r["settings"].update({"privacy.epsilon": 1.0})),
    ("settings / privacy.trust", lambda r: r["settings"].update({"privacy.trust": "off"})),
    ("software / torch", lambda r: r["software"].update(torch="0")),
    ("software / confide", lambda r: r["software"].update(confide="9.9.9")),
    ("outsider", lambda r: r.update(outsider={"epsilon": 0.1})),
]


@pytest.mark.parametrize(("named", "change"), IN_THE_REPORT)
def test_a_forged_report_is_named_though_page_and_card_show_it(
    forged: Path, named: str, change: Change
) -> None:
    path = forged / "report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))
    for name, text in shown_by(forged, report).items():
        (forged / name).write_text(text, encoding="utf-8")
    found = verify_run(forged)
    assert found.status == 1
    assert any(named in text for text in found.differences), found.differences


def rewrite(name: str, old: str, new: str) -> Callable[[Path], None]:
    def forge(folder: Path) -> None:
        path = folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    return forge


def gone(name: str) -> Callable[[Path], None]:
    def forge(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return forge


def lines(
    change: Callable[[list[Report]], object], *, sealed: bool = False
) -> Callable[[Path], None]:
    """metrics.jsonl rewritten; ``sealed`` by a forger who knows how its last line is made."""

    def forge(folder: Path) -> None:
        events = events_of(folder)
        change(events)
        if sealed:
            write_events(folder, events)
        else:
            text = "".join(json.dumps(event) + "\n" for event in events)
            (folder / "metrics.jsonl").write_text(text)

    return forge


def rounds(events: list[Report]) -> list[Report]:
    return [event for event in events if event["event"] == "round"]


def another_adapter(folder: Path) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x3e")


def one_file_more(folder: Path) -> None:
    (folder / "adapter" / "more.safetensors").write_bytes(b"")


def rolled_back(folder: Path) -> None:
    """A ledger made anew, with fewer charges."""
    path = folder / "holders" / "holder-00" / "ledger.sqlite"
    path.unlink()
    from confide.common.privacy.ledger import Charge

    with Ledger.open(path) as ledger:
        charge = Charge(run=RUN, round=1, task_hash=f"{1:064x}", plan=plan())
        ledger.charge(charge, None)
        ledger.release(charge.task_hash, b"an update")


def flipped(folder: Path) -> None:
    path = folder / "holders" / "holder-01" / "ledger.sqlite"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"round":7', b'"round":8', 1))


def swapped(folder: Path) -> None:
    one, other = (
        folder / "holders" / name / "ledger.sqlite" for name in ("holder-00", "holder-01")
    )
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def quieter(events: list[Report]) -> None:
    """Every receipt tells of more noise."""
    for event in rounds(events):
        for update in event["accepted"]:
            for step in update["receipt"]["steps_run"]:
                step["noise_multiplier"] *= 2


def drop_a_round(events: list[Report]) -> None:
    del events[-3:-1]


def forget_a_holder(events: list[Report]) -> None:
    for event in rounds(events):
        event["accepted"] = [u for u in event["accepted"] if u["holder"] != "holder-00"]


IN_THE_FOLDER: list[tuple[str, str, Callable[[Path], None]]] = [
    ("page rewritten", "report.html", rewrite("report.html", "at most epsilon = ", "at most 0.")),
    ("page gone", "report.html: it is gone", gone("report.html")),
    ("card rewritten", "adapter/README.md", rewrite("adapter/README.md", "epsilon", "no epsilon")),
    ("card gone", "adapter/README.md: it is gone", gone("adapter/README.md")),
    ("another adapter", "is not what the run left", another_adapter),
    ("a file more in the adapter", "adapter/more.safetensors", one_file_more),
    ("the adapter gone", "adapter: it is gone", gone("adapter")),
    ("settings rewritten", "settings / privacy.epsilon", rewrite("config.toml", "8.0", "4.0")),
    ("settings gone", "report.config", gone("config.toml")),
    ("metrics cut", "the report", lines(lambda e: e.pop())),
    ("metrics cut at a round", "metrics.jsonl", lines(lambda e: e.__delitem__(slice(20, -1)))),
    ("a line dropped", "metrics.jsonl", lines(lambda e: e.pop(5))),
    ("a line edited", "metrics.jsonl", lines(lambda e: e[4].update(seconds=0.1))),
    ("lines behind the end", "goes on after", lines(lambda e: e.append({"event": "resume"}))),
    ("metrics without a start", "report.metrics", lines(lambda e: e.pop(0))),
    ("a holder dropped and sealed", "holder-00", lines(forget_a_holder, sealed=True)),
    ("more noise told and sealed", "holder-00", lines(quieter, sealed=True)),
    ("a round dropped and sealed", "the report", lines(drop_a_round, sealed=True)),
    ("yardsticks rewritten", "yardsticks", rewrite("yardsticks.json", "0.846", "0.5")),
    ("a ledger gone", "its ledger is gone", gone("holders/holder-00")),
    ("all ledgers gone", "its ledger is gone", gone("holders")),
    ("a ledger made anew", "holder-00: the receipt", rolled_back),
    ("an entry rewritten", "cannot be relied on", flipped),
    ("ledgers swapped", "the receipt is of another ledger", swapped),
]  # fmt: skip


@pytest.mark.parametrize(
    ("named", "forge"), [row[1:] for row in IN_THE_FOLDER], ids=[row[0] for row in IN_THE_FOLDER]
)
def test_a_forged_folder_is_named(forged: Path, named: str, forge: Callable[[Path], None]) -> None:
    forge(forged)
    found = verify_run(forged)
    assert found.status == 1
    assert any(named in text for text in found.differences), found.differences


def test_every_forgery_is_named(forged: Path) -> None:
    """The two lists above are what is named; here they are counted, with the honest folder."""
    count = len(IN_THE_REPORT) + len(IN_THE_FOLDER)
    print(f"{count} forgeries")
    assert count >= FEWEST
    assert verify_run(forged).differences == ()


def test_another_version_of_confide_is_not_checked_and_never_passed(
    forged: Path, reported: Path
) -> None:
    """Whoever changes the version everywhere, page and seal included, gets no pass for it."""
    events = events_of(forged)
    events[0]["software"]["confide"] = "9.9.9"
    write_events(forged, events)
    path = forged / "report.json"
    report = json.loads(path.read_text())
    report["software"]["confide"] = "9.9.9"
    report["claim"]["sentence"] = "Nothing can be learnt."
    path.write_text(json.dumps(report))
    found = verify_run(forged)
    assert found.status == 3
    assert any("another version of confide (9.9.9)" in text for text in found.not_checked)
    report["claim"]["epsilon"] = 0.1
    path.write_text(json.dumps(report))
    assert verify_run(forged).status == 1


@pytest.mark.parametrize("text", ["[]", "{}", "null"])
def test_what_is_no_report_is_refused_or_named(forged: Path, text: str) -> None:
    (forged / "report.json").write_text(text)
    with pytest.raises(ConfideError) as caught:
        verify_run(forged)
    assert caught.value.code == "report.schema"
    assert caught.value.hint


def test_an_empty_report_is_a_difference_in_every_part(forged: Path) -> None:
    (forged / "report.json").write_text('{"schema": "confide-report/2"}')
    found = verify_run(forged)
    assert found.status == 1
    assert any(text.startswith("claim: ") for text in found.differences)
    assert any("lacks what a page needs" in text for text in found.differences)


def test_a_difference_is_told_without_control_characters(forged: Path) -> None:
    path = forged / "report.json"
    report = json.loads(path.read_text())
    report["run"]["name"] = "\x1b[2Jgone\u202e"
    path.write_text(json.dumps(report))
    told = "".join(verify_run(forged).differences)
    assert "\x1b" not in told
    assert "\u202e" not in told


def test_numbers_are_held_to_the_accountants_own_tolerance(forged: Path) -> None:
    path = forged / "report.json"
    report = json.loads(path.read_text())
    assert report["claim"]["delta"] == DELTA
    report["claim"]["epsilon"] *= 1 + 1e-5
    path.write_text(json.dumps(report))
    assert any("claim / epsilon" in text for text in verify_run(forged).differences)
