"""The table of mutants stays true while the code moves; `make mutants` tries them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutants.holder_table import HOLDER_MUTANTS
from tests.mutants.promise_table import PROMISE_MUTANTS
from tests.mutants.sum_table import SUM_MUTANTS
from tests.mutants.table import MUTANTS, Mutant
from tests.mutants.task_table import TASK_MUTANTS

ROOT = Path(__file__).resolve().parents[2]


EVERY = (*MUTANTS, *TASK_MUTANTS, *PROMISE_MUTANTS, *HOLDER_MUTANTS, *SUM_MUTANTS)


@pytest.mark.parametrize("mutant", EVERY, ids=[m.name for m in EVERY])
def test_a_mutant_stands_at_one_place_and_is_still_python(mutant: Mutant) -> None:
    whole = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert whole.count(mutant.old) == 1, "write down what the code says now"
    broken = whole.replace(mutant.old, mutant.new)
    assert broken != whole
    ast.parse(broken)
    assert mutant.tests
    assert all((ROOT / test.partition("::")[0]).is_file() for test in mutant.tests)


def test_each_mutant_has_a_name_of_its_own() -> None:
    names = [mutant.name for mutant in EVERY]
    assert len(set(names)) == len(names)
