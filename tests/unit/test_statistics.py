"""Success rates and intervals: against the published formula, against counting, and against simulation."""

from __future__ import annotations

import itertools
import random

import pytest

from mini_r1.intervals import Z95, difference_interval, pass_at_k, rate_interval, t95, wilson_interval


@pytest.mark.parametrize(("samples", "correct", "k"), [
    (n, c, k) for n in range(1, 7) for c in range(n + 1) for k in range(1, n + 1)
])  # fmt: skip
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


def test_pass_at_k_is_unbiased():
    """Its mean over many draws of n completions is the chance 1 - (1 - p)^k that it estimates."""
    rng, p, n, k = random.Random(0), 0.15, 10, 4
    estimates = [pass_at_k(n, sum(rng.random() < p for _ in range(n)), k) for _ in range(40_000)]
    assert sum(estimates) / len(estimates) == pytest.approx(1 - (1 - p) ** k, abs=0.005)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_nonsense(samples: int, correct: int, k: int):
    with pytest.raises(ValueError, match="need 0 <= correct"):
        pass_at_k(samples, correct, k)


def test_with_one_completion_a_puzzle_the_interval_is_wilsons():
    for right, total in ((1, 10), (50, 100), (420, 512)):
        mean, low, high = rate_interval([1.0] * right + [0.0] * (total - right))
        expected = wilson_interval(right, total)
        assert mean == pytest.approx(right / total)
        assert (low, high) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[0.0] * 5, [1.0] * 5, [0.5] * 5, [0.0], [1.0]])
def test_no_spread_is_not_certainty(values: list[float]):
    mean, low, high = rate_interval(values)
    assert low <= mean <= high
    assert high - low > 0.3
    assert low >= 0
    assert high <= 1


def coverage(trials: int, draw) -> float:
    """Share of simulated experiments whose interval holds the truth; `draw` returns truth, low, high."""
    hits = 0
    for _ in range(trials):
        truth, low, high = draw()
        hits += low <= truth <= high
    return hits / trials


@pytest.mark.parametrize("samples", [1, 4])
def test_rate_intervals_hold_the_truth_in_about_95_of_100_experiments(samples: int):
    """Puzzles differ in difficulty, and completions of one puzzle share it: pooling them would be overconfident."""
    rng = random.Random(1)

    def experiment() -> tuple[float, float, float]:
        rates = []
        for _ in range(150):
            p = rng.betavariate(0.5, 1.0)  # mean 1/3; most puzzles are hopeless or easy
            rates.append(sum(rng.random() < p for _ in range(samples)) / samples)
        _, low, high = rate_interval(rates)
        return 1 / 3, low, high

    assert 0.93 <= coverage(2000, experiment) <= 0.975


@pytest.mark.parametrize(("degrees", "quantile"), [
    (1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (4, 2.7764451), (9, 2.2621572), (30, 2.0422725),
    (120, 1.9799304), (1000, 1.9623391),
])  # fmt: skip
def test_students_t_is_the_tables(degrees: int, quantile: float):
    assert t95(degrees) == pytest.approx(quantile, abs=1e-7)


def test_students_t_comes_down_to_the_normal_quantile():
    assert t95(100_000) == pytest.approx(Z95, abs=3e-5)
    assert all(t95(n) > t95(n + 1) > Z95 for n in range(1, 60))
    with pytest.raises(ValueError, match="degree of freedom"):
        t95(0)


@pytest.mark.parametrize("puzzles", [3, 5, 8])
def test_intervals_of_few_puzzles_hold_the_truth_in_about_95_of_100_experiments(puzzles: int):
    """With the normal quantile in the place of Student's t it would be 80 to 90 of 100."""
    rng, samples = random.Random(4), 16

    def rates(low: float, high: float) -> list[float]:
        chances = [rng.uniform(low, high) for _ in range(puzzles)]
        return [sum(rng.random() < p for _ in range(samples)) / samples for p in chances]

    assert 0.93 <= coverage(3000, lambda: (0.5, *rate_interval(rates(0, 1), puzzles * samples)[1:])) <= 0.985
    assert 0.93 <= coverage(3000, lambda: (0.2, *difference_interval(rates(0, 0.6), rates(0, 1))[1:])) <= 0.985


def test_a_single_puzzle_says_nothing_about_a_change():
    assert difference_interval([0.25], [0.75]) == (0.5, -1.0, 1.0)
    assert difference_interval([1.0], [1.0]) == (0.0, -1.0, 1.0)


def test_pooling_completions_would_be_overconfident():
    """What the test above guards against: Wilson's interval over all completions misses the truth far too often."""
    rng = random.Random(2)

    def experiment() -> tuple[float, float, float]:
        right = 0
        for _ in range(150):
            p = rng.betavariate(0.5, 1.0)
            right += sum(rng.random() < p for _ in range(8))
        return (1 / 3, *wilson_interval(right, 150 * 8))

    assert coverage(1000, experiment) < 0.8


def test_difference_intervals_hold_the_truth_in_about_95_of_100_experiments():
    rng = random.Random(3)

    def experiment() -> tuple[float, float, float]:
        before, after = [], []
        for _ in range(200):
            p = rng.uniform(0, 0.6)
            before.append(float(rng.random() < p))
            after.append(float(rng.random() < p + 0.3))
        _, low, high = difference_interval(before, after)
        return 0.3, low, high

    assert 0.93 <= coverage(2000, experiment) <= 0.975


def test_a_difference_is_of_pairs():
    """The same puzzles right on both sides: no change, whatever their number."""
    change, low, high = difference_interval([1.0, 0.0] * 50, [1.0, 0.0] * 50)
    assert change == 0
    assert low < 0 < high
    assert difference_interval([0.0] * 100, [1.0] * 100)[0] == 1
    assert difference_interval([0.0] * 100, [1.0] * 100)[1] < 1


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [1.0, 0.0])])
def test_differences_need_the_same_puzzles(before: list, after: list):
    with pytest.raises(ValueError, match="same puzzles"):
        difference_interval(before, after)


def test_rates_need_a_puzzle():
    with pytest.raises(ValueError, match="no puzzle"):
        rate_interval([])
