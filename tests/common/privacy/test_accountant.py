"""The accountant against known answers, closed forms and two other people's accountants."""

import itertools
import math
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from opacus.accountants.analysis import rdp as opacus_rdp

import confide
from confide.common.errors import ConfideError
from confide.common.privacy import accountant, renyi
from confide.common.privacy.accountant import GaussianSteps
from tests.common.privacy.figures import DP_ACCOUNTINGS

DELTA = 1e-5
LAST_DIGIT = 5e-5  # the known answers are given to four decimals
CROSS_CHECK = 0.02  # PLD and PRV are two discretisations of one number
ROOT = Path(confide.__file__).resolve().parent.parent


def taken(noise_multiplier: float, sampling_rate: float, steps: int) -> list[GaussianSteps]:
    return [
        GaussianSteps(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)
    ]


def dp_event(noise_multiplier: float, sampling_rate: float, steps: int) -> dp_accounting.DpEvent:
    step = dp_accounting.GaussianDpEvent(noise_multiplier)
    if sampling_rate < 1:
        step = dp_accounting.PoissonSampledDpEvent(sampling_rate, step)
    return dp_accounting.SelfComposedDpEvent(step, steps)


@pytest.mark.parametrize(
    ("steps", "epsilon"), [(32, 1.4185), (96, 2.0515), (320, 3.4409), (960, 5.9825)]
)
def test_pld_gives_the_known_answers(steps: int, epsilon: float) -> None:
    assert accountant.epsilon_pld(taken(1.025, 1 / 32, steps), DELTA) == pytest.approx(
        epsilon, abs=LAST_DIGIT
    )


def test_rdp_gives_the_known_answer() -> None:
    epsilon = accountant.epsilon_rdp(taken(1.5, 0.04, 2250), DELTA)
    assert epsilon == pytest.approx(7.32911117143, rel=1e-6)


SETTINGS = list(
    itertools.product((0.7, 1.0, 1.5, 2.0, 4.0), (0.004, 1 / 32, 0.3, 1.0), (1, 20, 300))
)


def test_there_are_sixty_settings() -> None:
    assert len(set(SETTINGS)) == 60


@pytest.mark.parametrize(("noise", "rate", "steps"), SETTINGS)
def test_pld_is_dp_accountings(noise: float, rate: float, steps: int) -> None:
    ours = accountant.epsilon_pld(taken(noise, rate, steps), DELTA)
    conservative = accountant.epsilon_rdp(taken(noise, rate, steps), DELTA)
    theirs = DP_ACCOUNTINGS[noise, rate, steps]
    if theirs is None:
        assert ours == conservative > 200
        return
    rounding = 1e-7 * max(1.0, theirs)
    assert theirs - rounding <= ours <= theirs + rounding
    assert conservative >= theirs - rounding


def asked_now(noise: float, rate: float, steps: int) -> None:
    kept = DP_ACCOUNTINGS[noise, rate, steps]
    if accountant.epsilon_rdp(taken(noise, rate, steps), DELTA) > 200:
        assert kept is None
        return
    theirs = PLDAccountant().compose(dp_event(noise, rate, steps)).get_epsilon(DELTA)
    assert kept == pytest.approx(theirs, rel=1e-9)


def test_kept_figures_are_what_dp_accounting_says() -> None:
    assert DP_ACCOUNTINGS.keys() == set(SETTINGS)
    for noise, rate in itertools.product((2.0, 4.0), (0.004, 1 / 32, 0.3, 1.0)):
        asked_now(noise, rate, 20)


@pytest.mark.slow  # half a minute
@pytest.mark.parametrize(("noise", "rate", "steps"), SETTINGS)
def test_every_kept_figure_is_what_dp_accounting_says(
    noise: float, rate: float, steps: int
) -> None:
    asked_now(noise, rate, steps)


@pytest.mark.parametrize(("noise", "rate", "steps"), SETTINGS)
def test_rdp_is_opacuss_and_at_whole_orders_dp_accountings(
    noise: float, rate: float, steps: int
) -> None:
    orders = list(renyi.ORDERS)
    ours = accountant.epsilon_rdp(taken(noise, rate, steps), DELTA)
    theirs, _ = opacus_rdp.get_privacy_spent(
        orders=orders,
        rdp=opacus_rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders),
        delta=DELTA,
    )
    assert ours == pytest.approx(theirs, rel=1e-6)
    # The series that dp-accounting sums between whole orders is too high, or does not converge.
    whole = [order for order in orders if float(order).is_integer()]
    of_ours = dict(zip(orders, steps * renyi.of_one(noise, rate), strict=True))
    found = RdpAccountant(orders=whole).compose(dp_event(noise, rate, steps))._rdp
    assert [of_ours[order] for order in whole] == pytest.approx(list(found), rel=1e-6)


# Every noise, rate and number of steps with each other's, in a third of the settings.
BALANCED = [s for i, s in enumerate(SETTINGS) if (i // 12 + i // 3 % 4 + i % 3) % 3 == 0]
FOR_PRV = [
    pytest.param(*s, marks=[] if s in BALANCED else pytest.mark.slow, id="-".join(map(str, s)))
    for s in SETTINGS
]


@pytest.mark.parametrize(("noise", "rate", "steps"), FOR_PRV)
def test_prv_agrees_with_pld(noise: float, rate: float, steps: int) -> None:
    pld = accountant.epsilon_pld(taken(noise, rate, steps), DELTA)
    if accountant.epsilon_rdp(taken(noise, rate, steps), DELTA) > 200:
        with pytest.raises(ConfideError) as caught:
            accountant.epsilon_prv(taken(noise, rate, steps), DELTA)
        assert caught.value.code == "privacy.prv"
        return
    assert abs(pld - accountant.epsilon_prv(taken(noise, rate, steps), DELTA)) <= CROSS_CHECK


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 8.0])
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 20), (1 / 32, 320), (0.3, 20)])
def test_calibrated_noise_spends_the_target_and_no_more(
    epsilon: float, rate: float, steps: int
) -> None:
    noise = accountant.calibrate(epsilon=epsilon, delta=DELTA, sampling_rate=rate, steps=steps)
    spent = PLDAccountant().compose(dp_event(noise, rate, steps)).get_epsilon(DELTA)
    assert 0.999 * epsilon <= spent <= epsilon


def test_where_the_figure_jumps_calibration_stays_below_the_target() -> None:
    target, rate, steps = 190, 0.3, 20  # at 200 the RDP bound takes over, where PLD is 178
    noise = accountant.calibrate(epsilon=target, delta=DELTA, sampling_rate=rate, steps=steps)
    assert accountant.epsilon_pld(taken(noise, rate, steps), DELTA) <= target
    assert accountant.epsilon_pld(taken(noise * 0.99, rate, steps), DELTA) > target


def test_twenty_full_batch_steps_at_epsilon_8_need_a_multiplier_of_about_2_68() -> None:
    noise = accountant.calibrate(epsilon=8, delta=DELTA, sampling_rate=1.0, steps=20)
    assert noise == pytest.approx(2.68, abs=0.01)


def test_full_batches_are_the_plain_gaussian_in_closed_form() -> None:
    noise, steps = 3.0, 20
    mu = math.sqrt(steps) / noise
    epsilon = accountant.epsilon_pld(taken(noise, 1.0, steps), DELTA)
    normal = NormalDist()
    delta = normal.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal.cdf(
        -mu / 2 - epsilon / mu
    )
    assert delta == pytest.approx(DELTA, rel=1e-3)
    assert delta <= DELTA  # pessimistic


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_the_best_attack_on_a_gaussian_is_the_likelihood_ratio_test(rate: float) -> None:
    noise, steps = 2.68, 20
    normal = NormalDist()
    exact = normal.cdf(normal.inv_cdf(rate) + math.sqrt(steps) / noise)
    bound = accountant.true_positive_rate(taken(noise, 1.0, steps), false_positive_rate=rate)
    assert exact <= bound <= exact * 1.01


def test_an_attacker_guesses_without_steps_and_knows_without_noise() -> None:
    assert accountant.true_positive_rate([], false_positive_rate=0.05) == 0.05
    assert accountant.true_positive_rate(taken(0.0, 1.0, 1), false_positive_rate=0.05) == 1.0


def test_delta_and_epsilon_are_inverse() -> None:
    steps = taken(1.025, 1 / 32, 320)
    epsilon = accountant.epsilon_pld(steps, DELTA)
    assert accountant.delta_pld(steps, epsilon) == pytest.approx(DELTA, rel=1e-3)
    assert accountant.delta_pld([], 1.0) == 0.0
    assert accountant.delta_pld(taken(0.0, 1.0, 1), 1.0) == 1.0


def test_no_steps_cost_nothing_and_a_step_without_noise_costs_everything() -> None:
    assert accountant.epsilon_pld([], DELTA) == 0.0
    assert accountant.epsilon_pld(taken(1.0, 0.1, 0), DELTA) == 0.0
    one_bare_step = [*taken(1.0, 0.1, 10), *taken(0.0, 0.1, 1)]
    for epsilon in (accountant.epsilon_pld, accountant.epsilon_rdp):
        assert epsilon(one_bare_step, DELTA) == math.inf


def test_rounds_add_up_however_they_are_split() -> None:
    whole = accountant.epsilon_pld(taken(1.025, 1 / 32, 96), DELTA)
    in_rounds = accountant.epsilon_pld(taken(1.025, 1 / 32, 32) * 3, DELTA)
    assert in_rounds == whole
    assert len(accountant.merge(taken(1.025, 1 / 32, 32) * 3)) == 1


def test_different_mechanisms_compose() -> None:
    event = dp_accounting.ComposedDpEvent([dp_event(1.5, 1.0, 3), dp_event(1.0, 0.1, 50)])
    theirs = PLDAccountant().compose(event).get_epsilon(DELTA)
    ours = accountant.epsilon_pld([*taken(1.5, 1.0, 3), *taken(1.0, 0.1, 50)], DELTA)
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 20), (0.1, 60)])
def test_within_decides_like_the_figure_on_both_sides_of_it(rate: float, steps: int) -> None:
    epsilon = accountant.epsilon_pld(taken(2.68, rate, steps), DELTA)
    for limit in (epsilon * 0.5, epsilon - 1e-6, epsilon - 1e-9):
        assert not accountant.within(taken(2.68, rate, steps), DELTA, limit)
    for limit in (epsilon, epsilon + 1e-9, epsilon + 1e-3, epsilon * 2):
        assert accountant.within(taken(2.68, rate, steps), DELTA, limit)


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [(1e-6, 0.5, 10), (0.05, 0.001, 10), (1.0, 1.0, 10**12), (300.0, 0.001, 10**9)],
)
def test_absurd_steps_get_a_bound_at_once(noise: float, rate: float, steps: int) -> None:
    assert accountant.epsilon_pld(taken(noise, rate, steps), DELTA) == accountant.epsilon_rdp(
        taken(noise, rate, steps), DELTA
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": True},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.1},
        {"sampling_rate": "1"},
        {"steps": -1},
        {"steps": 1.0},
        {"steps": True},
    ],
)
def test_impossible_steps_are_refused(bad: dict[str, object]) -> None:
    good = {"noise_multiplier": 1.0, "sampling_rate": 0.5, "steps": 3}
    assert GaussianSteps.from_json(good).to_json() == good
    with pytest.raises(ConfideError) as caught:
        GaussianSteps.from_json({**good, **bad})
    assert caught.value.code == "privacy.steps"


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, True])
def test_an_impossible_delta_is_refused_with_a_hint(delta: float) -> None:
    with pytest.raises(ConfideError) as caught:
        accountant.epsilon_pld(taken(1.0, 0.5, 1), delta)
    assert caught.value.code == "privacy.delta"
    assert "1e-5" in caught.value.hint


def test_the_book_keeping_starts_without_torch_or_dp_accounting() -> None:
    code = (
        "import sys, confide.common.privacy.ledger, confide.common.privacy.statement;"
        "sys.exit(bool({'torch', 'opacus', 'dp_accounting'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


QUICK = list(itertools.product((0.7, 1.5, 4.0, 30.0), (0.004, 1 / 32, 0.3, 1.0), (1, 20, 300)))
ROUNDING = 1e-7


@pytest.mark.parametrize(("noise", "rate", "steps"), QUICK)
def test_the_coarse_figure_is_above_the_fine_one_and_close_to_it(
    noise: float, rate: float, steps: int
) -> None:
    fine = accountant.epsilon_pld(taken(noise, rate, steps), DELTA)
    found = accountant.epsilon_pld(taken(noise, rate, steps), DELTA, interval=accountant.COARSE)
    assert fine - ROUNDING <= found <= 1.005 * fine + 0.005


@pytest.mark.parametrize(
    "mixed",
    [
        taken(1.5, 1.0, 3) + taken(1.0, 0.1, 50),
        taken(0.55, 1.0, 3) + taken(33.4, 7e-4, 2000),  # the fine grid cannot hold the second
    ],
)
def test_a_coarse_figure_of_a_mix_is_above_the_fine_one(mixed: list[GaussianSteps]) -> None:
    fine = accountant.epsilon_pld(mixed, DELTA)
    found = accountant.epsilon_pld(mixed, DELTA, interval=accountant.COARSE)
    assert fine - ROUNDING <= found <= fine + 0.005
