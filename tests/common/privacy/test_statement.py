"""The sentences say what was computed, and never promise more."""

import math

import pytest

from confide.common.privacy.accountant import GaussianSteps
from confide.common.privacy.plan import Plan, Trust, Unit
from confide.common.privacy.statement import (
    COMPUTATIONAL,
    NOT_PRIVATE,
    attacks,
    claim,
    claim_of,
    delta_text,
    in_plain_words,
)

TWENTY = GaussianSteps(noise_multiplier=2.6854, sampling_rate=1.0, steps=20)


def test_the_claim_names_unit_adversary_numbers_and_neighbours() -> None:
    assert claim(epsilon=7.99, delta=1e-5) == (
        "Whether any single record of a holder was used changes what anyone, the coordinator"
        " included, can learn by at most epsilon = 7.99 at delta = 1 in 100,000"
        " (add or remove one record; local noise;"
        " computational differential privacy)."
    )


def test_the_claim_for_a_person_is_about_all_records_of_that_person_at_one_holder() -> None:
    assert claim(epsilon=7.99, delta=1e-5, unit=Unit.PERSON) == (
        "Whether the records of any single person at a holder were used changes what anyone, the"
        " coordinator included, can learn by at most epsilon = 7.99 at delta = 1 in 100,000"
        " (add or remove one person, all records of one person at one holder; local noise;"
        " computational differential privacy)."
    )
    assert "protects a person" in claim(epsilon=1.0, delta=1e-5, unit=Unit.PERSON, trust=Trust.OFF)


@pytest.mark.parametrize(
    ("epsilon", "shown"),
    [(7.991, "8.00"), (7.9949, "8.00"), (8.0, "8.00"), (2.01, "2.01"), (0.001234, "0.002")],
)
def test_epsilon_is_never_rounded_down(epsilon: float, shown: str) -> None:
    assert f"epsilon = {shown} at" in claim(epsilon=epsilon, delta=1e-5)


def test_without_noise_the_claim_is_that_there_is_none() -> None:
    assert claim(epsilon=1.0, delta=1e-5, trust=Trust.OFF).startswith(NOT_PRIVATE)
    assert claim(epsilon=math.inf, delta=1e-5).startswith(NOT_PRIVATE)


def test_a_plan_claims_what_was_spent_of_it() -> None:
    plan = Plan(
        clip_norm=1.0,
        noise_multiplier=2.0,
        sampling_rate=1.0,
        steps_per_round=1,
        max_rounds=9,
        delta=1e-6,
    )
    assert claim_of(plan, 3.5) == claim(epsilon=3.5, delta=1e-6)


def test_plain_words_give_the_best_attack_at_both_rates() -> None:
    words = in_plain_words([TWENTY])
    # The likelihood-ratio test against 20 Gaussians: 25.46 % and 50.81 %; the bounds lie above.
    assert "at most 25.5 %" in words
    assert "at most 50.9 %" in words
    assert "1%" in words
    assert "5%" in words
    assert "person" not in words


def test_a_person_is_as_hard_to_find_as_a_record_would_be() -> None:
    words = in_plain_words([TWENTY], unit=Unit.PERSON)
    assert "at most 25.5 % of those whose records were" in words
    assert "whether those of one particular person were used" in words
    assert "every other record" not in words


def test_plain_words_without_noise_are_blunt() -> None:
    bare = GaussianSteps(noise_multiplier=0.0, sampling_rate=1.0, steps=1)
    assert "with certainty" in in_plain_words([bare])


def test_the_promise_says_that_it_is_computational() -> None:
    assert "computational differential privacy" in claim(epsilon=1.0, delta=1e-5)
    assert "ChaCha20" in COMPUTATIONAL
    assert "256 bits" in COMPUTATIONAL


def test_a_claim_of_several_runs_says_so() -> None:
    assert "from all 3 runs on its text together" in claim(epsilon=1.0, delta=1e-5, runs=3)
    assert "runs" not in claim(epsilon=1.0, delta=1e-5)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_of_a_pair_an_attackers_success_is_the_most_that_it_allows(epsilon: float) -> None:
    """Held against the whole trade-off: any test with these errors breaks the pair."""
    for blind, best in attacks((), [(epsilon, 1e-5)]):
        assert best <= 1e-5 + math.exp(epsilon) * blind + 1e-12
        assert 1 - blind <= 1e-5 + math.exp(epsilon) * (1 - best) + 1e-12
        more = best + 1e-3
        breaks = more > 1e-5 + math.exp(epsilon) * blind
        assert breaks or 1 - blind > 1e-5 + math.exp(epsilon) * (1 - more) or more > 1


def test_the_worst_of_histories_and_pairs_is_told() -> None:
    steps = [GaussianSteps(noise_multiplier=2.0, sampling_rate=1.0, steps=1)]
    alone, pair = attacks([steps]), attacks((), [(4.0, 1e-5)])
    both = attacks([steps], [(4.0, 1e-5)])
    assert both == [max(one, other) for one, other in zip(alone, pair, strict=True)]
    assert attacks(()) == []


@pytest.mark.parametrize(
    ("delta", "words"),
    [
        (1e-5, "1 in 100,000"),
        (3e-5, "1 in 33,333"),
        (0.001, "1 in 1,000"),
        (1e-9, "1 in 1,000,000,000"),
    ],
)
def test_delta_is_written_for_people_and_never_smaller_than_it_is(delta: float, words: str) -> None:
    assert delta_text(delta) == words
    assert 1 / int(words.removeprefix("1 in ").replace(",", "")) >= delta * (1 - 1e-9)
