"""The demo's own model and text over real processes: the adapter is that of the simulation.

Scenario nyt with MiniLM at three holders, as ``confide simulate`` prepares it, but with a small
part of the sentences, three rounds, every sentence in every step and no noise, so that nothing is
drawn.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from safetensors.torch import load_file

from confide.common.settings import Scalar
from confide.server.run import run as run_here
from confide.server.run_folder import by_room
from confide.simulations.inprocess import federation as in_process
from confide.simulations.scenario import load_scenario, prepare, run_config
from tests.deployment.fleet import HOLDERS, Run, a_fleet, rounds_of
from tests.deployment.running import needs_nginx

pytestmark = [needs_nginx, pytest.mark.slow, pytest.mark.timeout(3600)]

RECORDS, PUBLIC = 600, 200


@pytest.fixture
def place(real_cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache with the demo's model, which the holders' users can read, as the machine's own may
    lie where they cannot; its text; and federations of the test's own."""
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        model = Path("models", str(load_scenario("nyt").config["model.name"]))
        shutil.copytree(real_cache_dir / model, made / model)
        for path in (made, *made.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (made / "text").symlink_to(real_cache_dir / "text")
        monkeypatch.setenv("CONFIDE_CACHE", name)
        yield made


def write_nyt(path: Path) -> Path:
    """The scenario as it comes with confide, with fewer of everything."""
    nyt = load_scenario("nyt")
    config: dict[str, Scalar] = {**nyt.config, "round.count": 3, "round.min-holders": 3}
    config["privacy.trust"] = "off"
    config |= {"federation.holders": 3, "federation.limit": RECORDS}
    config["federation.public-limit"] = PUBLIC
    path.write_text(tomli_w.dumps(by_room(config)))
    return path


def test_the_demos_adapter_is_that_of_the_simulation_bit_for_bit(place: Path) -> None:
    path = write_nyt(place / "nyt.toml")
    prepared = prepare(load_scenario(str(path)))
    files = sorted(prepared.glob("holder-*.jsonl"))
    config = run_config(load_scenario(str(path)))
    sizes = [len(file.read_text(encoding="utf-8").splitlines()) for file in files]
    assert sum(sizes) == RECORDS
    assert max(sizes) <= int(config["train.batch"]), "every sentence is in every step"

    model = str(config["model.name"])
    with a_fleet(model=model, texts=dict(zip(HOLDERS, files, strict=True))) as fleet:
        run = Run(fleet.place, fleet.fed, "nyt", path)
        try:
            folder = run.end(1800)
            rounds = rounds_of(folder)
            deployed = load_file(folder / "adapter" / "adapter_model.safetensors")
        finally:
            run.stop()
    out = place / "simulated"
    simulated = run_here({**config, "run.out": str(out)}, in_process(files, out / "ledgers"))
    assert [len(one["accepted"]) for one in rounds] == [3] * 3
    wanted = load_file(simulated.path / "adapter" / "adapter_model.safetensors")
    assert deployed.keys() == wanted.keys()
    for name, values in wanted.items():
        assert deployed[name].equal(values), name
    assert any(values.abs().sum() > 0 for name, values in deployed.items() if "lora_B" in name)
    print("rounds of the demo's model, seconds:", [round(one["seconds"], 1) for one in rounds])
