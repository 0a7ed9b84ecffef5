"""What every test stands on: no network, no writing into the user's folders, one thread.

The environment is set before any test module, and so before torch, is imported.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from confide.common.machine.paths import cache_dir
from tests import tiny, told

ROOT = Path(__file__).resolve().parent.parent
# A worker of pytest-xdist inherits the scratch folders of the process that started it, and with
# them the word of where the user's own cache is.
REAL_CACHE = Path(os.environ.setdefault("CONFIDE_TEST_REAL_CACHE", str(cache_dir())))
SCRATCH = pytest.StashKey[str]()

# Tiny models gain nothing by a second thread. Where it finds no core for itself, it waits for the
# first one at full speed: with two threads in each of two workers, tests take three times as long.
THREADS = "1"


def pytest_configure(config: pytest.Config) -> None:
    scratch = tempfile.mkdtemp(prefix="confide-tests-")
    config.stash[SCRATCH] = scratch
    os.environ.update(
        CONFIDE_CACHE=f"{scratch}/confide",
        FLWR_HOME=f"{scratch}/flwr",
        HF_HOME=f"{scratch}/huggingface",
        HF_HUB_OFFLINE="1",
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_TELEMETRY_ENABLED="0",
        RAY_USAGE_STATS_ENABLED="0",
        TOKENIZERS_PARALLELISM="false",
    )
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, THREADS)
    os.environ.pop("CONFIDE_DEBUG", None)
    told.begin(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[SCRATCH], ignore_errors=True)


# Modules that wait for processes of their own: begun last, one of them would run by itself.
FIRST = (
    "deployment/test_deploy_page.py",
    "simulations/test_flower.py",
    "deployment/test_gateway.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where workers share the tests, each of them has these modules first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {ROOT / "tests" / name: place for place, name in enumerate(FIRST)}
        items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_cache_dir() -> Path:
    """The user's own cache, filled by ``make assets``; to be read only."""
    if not REAL_CACHE.is_dir():
        pytest.fail(f"{REAL_CACHE} is missing: run `make assets` once")
    return REAL_CACHE


@pytest.fixture
def real_cache(real_cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For one test, confide finds models and text in the user's own cache."""
    monkeypatch.setenv("CONFIDE_CACHE", str(real_cache_dir))
    return real_cache_dir


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT in a folder."""
    return tiny.save_model(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def tiny_federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three holders with 24 records each, and a public file."""
    return tiny.save_federation(tmp_path_factory.mktemp("tiny-federation"))


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder that no disk slows down, where there is one: for thousands of commits."""
    memory = Path("/dev/shm")  # noqa: S108 - nothing secret is in it
    place = tempfile.mkdtemp(prefix="confide-tests-", dir=memory if memory.is_dir() else None)
    yield Path(place)
    shutil.rmtree(place)
