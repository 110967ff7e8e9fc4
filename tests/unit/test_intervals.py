"""Success rates and intervals: against published formulas, against counting, and against simulation."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_r1.intervals import Z95, difference_interval, pass_at_k, rate_interval, wilson_interval

# --------------------------------------------------------------------------------------------------------------------
# Wilson
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        pytest.param(50, 100, 0.4038, 0.5962, id="half"),
        pytest.param(0, 10, 0.0, 0.2775, id="none"),
        pytest.param(10, 10, 0.7225, 1.0, id="all"),
        pytest.param(1, 10, 0.0179, 0.4042, id="few"),
        pytest.param(0, 1, 0.0, 0.7935, id="a single failure"),
        pytest.param(15, 148, 0.0624, 0.1605, id="Newcombe 1998, table I"),
    ],
)
def test_wilson_interval_of_known_cases(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_interval_holds_the_rates_within_z_standard_errors(trials, rate):
    low, high = wilson_interval(rate * trials, trials)
    assert 0 <= low < high <= 1
    for bound in (low, high):
        assert (rate - bound) ** 2 == pytest.approx(Z95**2 * bound * (1 - bound) / trials, abs=1e-12)


def test_wilson_interval_holds_the_measured_rate():
    """Also at 0 and 1, where rounding could push a bound past it: an error bar must not have a negative length."""
    outside = [
        (successes, trials)
        for trials in range(1, 100)
        for successes in range(trials + 1)
        if not wilson_interval(successes, trials)[0] <= successes / trials <= wilson_interval(successes, trials)[1]
    ]
    assert outside == []


@pytest.mark.parametrize(("rate", "trials"), [(0.5, 40), (0.1, 60), (0.3, 128), (0.8, 256), (0.03, 512)])
def test_wilson_interval_covers_the_true_rate(rate, trials):
    draws = np.random.default_rng(trials).binomial(trials, rate, 20_000)
    covered = 0
    for successes, times in Counter(draws.tolist()).items():
        low, high = wilson_interval(successes, trials)
        covered += times * (low <= rate <= high)
    assert 0.93 <= covered / len(draws) <= 0.975


@pytest.mark.parametrize(
    ("successes", "trials"),
    [
        pytest.param(0, 0, id="no trials"),
        pytest.param(0.25, 0.5, id="half a trial"),
        pytest.param(-1, 10, id="negative"),
        pytest.param(11, 10, id="more successes than trials"),
        pytest.param(math.nan, 10, id="not a number"),
    ],
)
def test_wilson_interval_refuses(successes, trials):
    with pytest.raises(ValueError, match="successes <= trials"):
        wilson_interval(successes, trials)


# --------------------------------------------------------------------------------------------------------------------
# pass@k
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "correct", "k"), [(n, c, k) for n in range(1, 7) for c in range(n + 1) for k in range(1, n + 1)]
)
def test_pass_at_k_is_the_share_of_draws_that_contain_a_right_one(samples: int, correct: int, k: int):
    completions = [True] * correct + [False] * (samples - correct)
    draws = list(itertools.combinations(completions, k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_the_published_product():
    """Chen et al. 2021 compute 1 - prod(1 - k / i) for i from n - c + 1 to n."""
    for n, c, k in ((200, 13, 10), (200, 1, 100), (100, 99, 2), (64, 0, 8)):
        product = 1.0
        for i in range(n - c + 1, n + 1):
            product *= 1 - k / i
        assert pass_at_k(n, c, k) == pytest.approx(1.0 if n - c < k else 1 - product)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_nonsense(samples: int, correct: int, k: int):
    with pytest.raises(ValueError, match="need 0 <= correct"):
        pass_at_k(samples, correct, k)


# --------------------------------------------------------------------------------------------------------------------
# Puzzles as the unit
# --------------------------------------------------------------------------------------------------------------------


def test_with_one_completion_per_puzzle_the_interval_is_wilsons():
    for right, total in ((0, 10), (1, 10), (50, 100), (420, 512), (7, 7)):
        found = rate_interval([1.0] * right + [0.0] * (total - right), total)
        assert found == pytest.approx((right / total, *wilson_interval(right, total)))


def test_the_normal_approximation_is_of_puzzles():
    """Mean 3/8, standard error sqrt(1/64 * 100/99 / 100), however many completions gave each rate."""
    for completions in (None, 1600):
        mean, low, high = rate_interval([0.25, 0.5] * 50, completions)
        assert (mean, high - mean, mean - low) == pytest.approx((0.375, Z95 * 0.012563, Z95 * 0.012563), rel=1e-4)
    # 200 completions are worth no more than 200 independent trials, although the puzzles hardly differ.
    mean, low, high = rate_interval([0.25, 0.5] * 50, 200)
    assert high - low == pytest.approx(2 * Z95 * math.sqrt(0.375 * 0.625 / 200))


@pytest.mark.parametrize("value", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("puzzles", [1, 3, 100])
def test_no_spread_is_not_certainty(value: float, puzzles: int):
    mean, low, high = rate_interval([value] * puzzles, 4 * puzzles)
    assert 0 <= low <= mean <= high <= 1
    assert high - low == pytest.approx(np.diff(wilson_interval(value * puzzles, puzzles))[0])
    change, low, high = difference_interval([0.0] * puzzles, [value] * puzzles)
    assert -1 <= low < change <= high <= 1
    assert change - low > 0.03


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_intervals_hold_the_mean_and_stay_in_their_range(pairs: list[tuple[float, float]]):
    before, after = zip(*pairs, strict=True)
    mean, low, high = rate_interval(before)
    assert 0 <= low <= mean <= high <= 1
    assert high - low > 1e-9
    change, low, high = difference_interval(before, after)
    assert -1 <= low <= change <= high <= 1
    assert high - low > 1e-9


def coverage(trials: int, experiment) -> float:
    """Share of simulated experiments whose interval holds the truth; `experiment` returns truth, low, high."""
    return sum(low <= truth <= high for truth, low, high in (experiment() for _ in range(trials))) / trials


@pytest.mark.parametrize(
    ("puzzles", "samples", "at_least"),
    [
        pytest.param(150, 1, 0.93, id="Wilson"),
        pytest.param(150, 4, 0.93, id="as an evaluation has them"),
        pytest.param(30, 4, 0.92, id="few puzzles"),
        pytest.param(5, 4, 0.85, id="very few puzzles, where the docstring promises less"),
    ],
)
def test_intervals_hold_the_truth_in_about_95_of_100_experiments(puzzles: int, samples: int, at_least: float):
    rng = random.Random(1)

    def rates(chances: list[float]) -> list[float]:
        return [sum(rng.random() < p for _ in range(samples)) / samples for p in chances]

    def rate() -> tuple[float, float, float]:
        chances = [rng.uniform(0, 1) for _ in range(puzzles)]
        return (0.5, *rate_interval(rates(chances), puzzles * samples)[1:])

    def difference() -> tuple[float, float, float]:
        chances = [rng.uniform(0, 0.6) for _ in range(puzzles)]
        return (0.3, *difference_interval(rates(chances), rates([p + 0.3 for p in chances]))[1:])

    assert at_least <= coverage(1000, rate) <= 0.975
    assert at_least <= coverage(1000, difference) <= 0.975


def test_pooling_completions_would_be_overconfident():
    """What the test above guards against: Wilson's interval over all completions misses the truth far too often."""
    rng = random.Random(2)

    def experiment() -> tuple[float, float, float]:
        chances = [rng.betavariate(0.5, 1.0) for _ in range(150)]  # most puzzles are hopeless or easy
        return (1 / 3, *wilson_interval(sum(rng.random() < p for p in chances for _ in range(8)), 150 * 8))

    assert coverage(400, experiment) < 0.8


def test_a_difference_is_of_pairs():
    """The same puzzles right on both sides: no change, whatever their number."""
    change, low, high = difference_interval([1.0, 0.0] * 50, [1.0, 0.0] * 50)
    assert change == 0
    assert low < 0 < high
    # Against 14 points on either side if the puzzles were not paired.
    _, low, high = difference_interval([1.0, 0.0] * 50, [1.0, 0.0] * 49 + [1.0, 1.0])
    assert high - low < 0.05


def test_differences_need_the_same_puzzles():
    with pytest.raises(ValueError, match="longer"):
        difference_interval([1.0], [1.0, 0.0])


def test_a_single_puzzle_says_nothing_about_a_change():
    assert difference_interval([0.25], [0.75]) == (0.5, -1.0, 1.0)
