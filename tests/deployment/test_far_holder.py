"""A holder behind a bad line: 200 ms there and back, and one packet in a hundred that is lost.

SuperLink, door and a holder are on one machine, another holder on a second one; nothing but IP
packets goes between the two. It takes two minutes, and took ten on cores that did other work.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deployment.far import Line, two_machines
from tests.deployment.fleet import Fleet, a_fleet
from tests.deployment.running import needs_nginx
from tests.deployment.test_federation_faults import begin, check_books

pytestmark = [needs_nginx, pytest.mark.slow, pytest.mark.timeout(1200)]

DELAY, LOSS = 0.1, 0.01  # seconds each way; share of packets
SEED = 5  # the 27th, 49th, 67th, 219th, 246th packet, and so on, are lost
NEAR, FAR = "holder-1", "holder-2"


@pytest.fixture(scope="module")
def apart() -> Iterator[tuple[Fleet, Line]]:
    with two_machines() as (here, there):
        line = Line(here, there, delay=DELAY, loss=LOSS, seed=SEED)
        try:
            places = {NEAR: here.inside, FAR: there.inside}
            with a_fleet(here.address, here.inside, places) as fleet:
                yield fleet, line
        finally:
            line.close()


def test_a_slow_line_that_loses_packets_slows_the_run_down_and_no_more(
    apart: tuple[Fleet, Line],
) -> None:
    fleet, line = apart
    before = line.carried, line.lost
    run = begin(fleet, "far", 2)
    try:
        folder = run.end(600)
    finally:
        run.stop()
    carried, lost = line.carried - before[0], line.lost - before[1]
    rounds = check_books(fleet, folder)
    assert [sorted(row["holder"] for row in one["accepted"]) for one in rounds] == [[NEAR, FAR]] * 2
    for holder in fleet.holders.values():
        booked = [(number, state) for number in (1, 2) for state in ("reserved", "released")]
        assert holder.booked(folder.name) == booked
    assert lost > 0
    times = [round(one["seconds"], 1) for one in rounds]
    print(f"a round at 200 ms and 1 % loss: {times} s; {carried} packets came over, {lost} did not")
