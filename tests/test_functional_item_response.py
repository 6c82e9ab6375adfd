"""Accuracy against hint rate: the fitted curve, its inversion, and what happens when the points do not pin it down."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reasonrl.functional import item_response
from reasonrl.functional.item_response import ItemResponse, accuracy_at, fit_item_response

FIELDS = ("slope", "shift", "floor", "sse")
SOLVERS = ("grid", "trf")

B = [(0.8, 0.875), (0.4, 0.25)]
C = [*B, (0.6, 0.5)]
D = [*C, (0.6, 0.625)]
E = [(0.2, 0.26653816), (0.4, 0.6), (0.6, 0.93346184)]  # on the curve of slope 12, shift -0.4, floor 0.2


def fit(*rounds: tuple[float, float], **options) -> ItemResponse:
    """The curve of one problem from its (rate, accuracy) rounds."""
    rates, accuracies = zip(*rounds, strict=True)
    return fit_item_response([rates], [accuracies], **options)


def curve(slope: float, shift: float, floor: float) -> ItemResponse:
    return ItemResponse(*(np.array([value]) for value in (slope, shift, floor, 0.0)))


def random_rounds(problems: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates, accuracies in eighths and which rounds exist, 1..3 a problem; ends and repeated rates among them."""
    rng = np.random.default_rng(seed)
    rates = rng.random((problems, 3))
    special = rng.random((problems, 3)) < 0.3
    rates[special] = rng.choice([0.0, 1.0, 0.8, 0.5], special.sum())
    return rates, rng.integers(0, 9, (problems, 3)) / 8, np.arange(3) < rng.integers(1, 4, (problems, 1))


def assert_same(got: ItemResponse, wanted: ItemResponse) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)


# The fit: worked examples


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("rounds", "options", "slope", "floor", "rate", "sse"),
    [
        pytest.param(B, {}, 7.9292, 0.0, 0.54103, 9.791e-4, id="two rounds"),
        pytest.param([*B, (0.54103, 0.5)], {}, 7.9292, 0.0, 0.54103, 9.791e-4, id="a third on their curve"),
        pytest.param(C, {}, 7.7000, 0.00661, 0.57597, 6.2751e-3, id="three rounds"),
        pytest.param(D, {}, 7.6664, 0.0, 0.56019, 2.3329e-3, id="a repeated rate, counted each round"),
        pytest.param(D, {"duplicates": "per_distinct_rate"}, 7.7005, 0.0, 0.55627, 2.0570e-3, id="counted once"),
        pytest.param(E, {"margins": False}, 12.0, 0.2, 0.35743, 0.0, id="an exact curve"),
        pytest.param(E, {}, 8.7433, 0.0, 0.33958, 5.4393e-3, id="margins press its floor to 0"),
    ],
)
def test_worked_examples(rounds, options, slope, floor, rate, sse, solver) -> None:
    # the same minimum from 200 random starts of scipy's trust-region solver
    fitted = fit(*rounds, solver=solver, **options)
    assert fitted.rate_for(0.5)[0] == pytest.approx(rate, abs=1e-3)
    assert fitted.slope[0] == pytest.approx(slope, abs=1e-2)
    assert fitted.floor[0] == pytest.approx(floor, abs=1e-3)
    assert fitted.sse[0] == pytest.approx(sse, abs=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_other_targets_read_other_rates_off_the_same_curve(solver) -> None:
    fitted = fit(*C, solver=solver)
    rates = [fitted.rate_for(target)[0] for target in (0.25, 0.375, 0.625, 0.75)]
    np.testing.assert_allclose(rates, [0.43154, 0.50905, 0.64266, 0.71923], atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_round_gives_a_usable_rate_although_it_does_not_determine_the_slope(solver) -> None:
    # three points, three parameters: the slope runs towards its bound, so it is not asserted
    assert 0.7 < fit((0.8, 0.875), solver=solver).rate_for(0.5)[0] < 0.8
    assert fit((0.8, 1.0), solver=solver).rate_for(0.5)[0] < 0.8


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_sum_of_squares_is_that_of_the_points_and_the_margins(solver) -> None:
    fitted = fit(*C, solver=solver)
    rates, accuracies = np.array([*C, (0.0, 0.0), (1.0, 1.0)]).T
    residuals = accuracy_at(rates, fitted.slope, fitted.shift, fitted.floor) - accuracies
    assert fitted.sse[0] == pytest.approx(residuals @ residuals, abs=1e-14)


def test_bounds_hold_and_the_sum_of_squares_is_that_of_the_curve_within_them() -> None:
    # the miss falls from .1 by .35 every half: the tail of a logistic centred at rate -1, beyond the bound of -0.5
    rates, accuracies = np.array([[0.0, 0.5, 1.0]]), np.array([[0.9, 0.965, 0.98775]])
    fitted = fit_item_response(rates, accuracies, margins=False)
    assert fitted.shift[0] == 0.5
    residuals = accuracy_at(rates[0], fitted.slope, fitted.shift, fitted.floor) - accuracies[0]
    assert fitted.sse[0] == pytest.approx(residuals @ residuals, rel=1e-9)
    assert fitted.sse[0] > 1e-6

    rates, accuracies, known = random_rounds(300)
    many = fit_item_response(rates, accuracies, known=known, margins=False)  # two thirds at a bound of the shift
    assert ((many.shift >= -1.5) & (many.shift <= 0.5)).all()
    assert ((many.slope >= 0.0) & (many.slope <= 50.0)).all()
    assert ((many.floor >= 0.0) & (many.floor <= 1.0)).all()


# The fit: rounds that do not pin the curve down


@pytest.mark.parametrize(
    ("rounds", "rate"),
    [([(0.8, 0)], 0.900), ([(0.8, 0), (0.9, 0)], 0.950), ([(0.8, 0), (0.95, 0), (0.975, 0)], 0.989)],
)
def test_all_wrong_walks_towards_the_whole_solution(rounds, rate) -> None:
    assert fit(*rounds).rate_for(0.5)[0] == pytest.approx(rate, abs=1e-3)


@pytest.mark.parametrize(
    ("rounds", "rate"), [([(0.8, 1)], 0.400), ([(0.8, 1), (0.4, 1)], 0.200), ([(0.8, 1), (0.4, 1), (0.2, 1)], 0.100)]
)
def test_all_right_halves_the_rate(rounds, rate) -> None:
    assert fit(*rounds).rate_for(0.5)[0] == pytest.approx(rate, abs=1e-3)


def test_wrong_with_the_whole_solution_asks_for_all_of_it() -> None:
    fitted = fit((1.0, 0.0))
    assert fitted.shift[0] == pytest.approx(-1.5, abs=1e-9)  # the midpoint lies beyond rate 1
    assert fitted.rate_for(0.5)[0] == 1.0


@pytest.mark.parametrize(
    ("rounds", "floor"),
    [([(0.0, 1.0)], 1.0), ([(0.0, 0.625), (0.8, 1.0), (0.4, 0.875)], 0.625), ([(0.0, 0.75)], None)],
)
def test_better_than_the_target_without_a_hint_gives_rate_zero(rounds, floor) -> None:
    fitted = fit(*rounds)
    assert fitted.rate_for(0.5)[0] == 0.0
    if floor is not None:
        assert fitted.floor[0] == pytest.approx(floor, abs=1e-3)


def test_the_grid_finds_the_lower_of_two_minima_where_one_start_does_not() -> None:
    rounds = [(0.8, 0.25), (0.4, 0.75), (0.6, 0.25)]
    assert fit(*rounds).rate_for(0.5)[0] == pytest.approx(0.898, abs=1e-3)
    assert fit(*rounds).sse[0] == pytest.approx(0.2972, abs=1e-4)
    assert fit(*rounds, solver="trf").rate_for(0.5)[0] == pytest.approx(0.663, abs=1e-3)
    assert fit(*rounds, solver="trf").sse[0] == pytest.approx(0.4392, abs=1e-4)


def test_the_zooms_follow_a_narrow_valley_to_its_end() -> None:
    # the best cell of the coarse grid has slope 11; halving windows of slope and shift from there stop at slope 21
    fitted = fit((0.9998, 0.125))
    assert fitted.slope[0] == pytest.approx(50.0, abs=1e-6)
    assert fitted.sse[0] == pytest.approx(0.380662, abs=1e-6)


def test_a_margin_counts_only_where_its_rate_was_not_tried() -> None:
    assert_same(fit((0.0, 0.25), (1.0, 0.75)), fit((0.0, 0.25), (1.0, 0.75), margins=False))
    assert_same(fit((0.0, 0.25), (0.6, 0.5)), fit((0.0, 0.25), (0.6, 0.5), (1.0, 1.0), margins=False))
    assert_same(fit((1.0, 0.75), (0.6, 0.5)), fit((1.0, 0.75), (0.6, 0.5), (0.0, 0.0), margins=False))


def test_equal_rates_share_the_mean_of_their_accuracies() -> None:
    np.testing.assert_array_equal(fit((0.6, 0.25), (0.6, 0.75), *B).slope, fit((0.6, 0.5), (0.6, 0.5), *B).slope)
    assert_same(fit(*D, duplicates="per_distinct_rate"), fit(*B, (0.6, 0.5625)))


# The fit: properties

points = st.lists(
    st.tuples(st.integers(0, 100).map(lambda i: i / 100), st.integers(0, 8).map(lambda i: i / 8)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=50)
@given(points, st.sampled_from(["per_round", "per_distinct_rate"]), st.data())
def test_the_order_of_the_rounds_does_not_matter(rounds, duplicates, data) -> None:
    shuffled = data.draw(st.permutations(rounds))
    assert_same(fit(*shuffled, duplicates=duplicates), fit(*rounds, duplicates=duplicates))


@settings(max_examples=50)
@given(points, st.booleans(), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_rates_stay_in_range_and_never_fall_with_the_target(rounds, margins, target, other) -> None:
    fitted = fit(*rounds, margins=margins)
    low, high = (fitted.rate_for(t)[0] for t in sorted((target, other)))
    assert 0.0 <= low <= high <= 1.0
    assert 0.0 <= fitted.slope[0] <= 50.0
    assert -1.5 <= fitted.shift[0] <= 0.5
    assert 0.0 <= fitted.floor[0] <= 1.0


def test_the_grid_is_never_much_worse_than_the_trust_region() -> None:
    rates, accuracies, known = random_rounds(60)
    grid = fit_item_response(rates, accuracies, known=known)
    trf = fit_item_response(rates, accuracies, known=known, solver="trf")
    assert (grid.sse <= trf.sse + 1e-3).all()
    # where one start finds the grid's minimum, both end at nearly the same rate: a step between two rounds has play,
    # and a floor that equals the target to rounding is reached at any rate
    same = (grid.sse > 1e-4) & (trf.sse - grid.sse < 1e-9) & (np.abs(grid.floor - 0.5) > 1e-6)
    assert same.sum() > 20
    np.testing.assert_allclose(grid.rate_for(0.5)[same], trf.rate_for(0.5)[same], atol=0.011)


def test_a_round_that_lands_on_the_curve_leaves_the_rate_where_it_is() -> None:
    rates, accuracies, known = random_rounds(200)
    fitted = fit_item_response(rates, accuracies, known=known)
    rate = fitted.rate_for(0.5)
    on_curve = accuracy_at(rate, fitted.slope, fitted.shift, fitted.floor)
    refitted = fit_item_response(
        np.column_stack((rates, rate)),
        np.column_stack((accuracies, on_curve)),
        known=np.pad(known, ((0, 0), (0, 1)), constant_values=True),
    )
    pinned = (fitted.sse > 1e-4) & (rate > 0.0) & (rate < 1.0)  # an exact fit may be one of many
    assert pinned.sum() > 100
    np.testing.assert_allclose(refitted.rate_for(0.5)[pinned], rate[pinned], atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_batch_equals_its_problems_one_by_one(solver) -> None:
    rates, accuracies, known = random_rounds(133 if solver == "grid" else 10)  # more than one chunk, the last one short
    whole = fit_item_response(rates, accuracies, known=known, solver=solver)
    for i in range(len(rates)):
        alone = fit_item_response([rates[i, known[i]]], [accuracies[i, known[i]]], solver=solver)
        for name in FIELDS:
            assert getattr(whole, name)[i] == getattr(alone, name)[0], (i, name)


@pytest.mark.parametrize(("coarse", "zoom"), [(1, 1), (7, 5), (1000, 1000)])
def test_the_size_of_a_chunk_does_not_change_a_digit(coarse, zoom, monkeypatch) -> None:
    rates, accuracies, known = random_rounds(20)
    wanted = fit_item_response(rates, accuracies, known=known)
    monkeypatch.setattr(item_response, "COARSE_CHUNK", coarse)
    monkeypatch.setattr(item_response, "ZOOM_CHUNK", zoom)
    assert_same(fit_item_response(rates, accuracies, known=known), wanted)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_stands_in_a_round_that_does_not_exist_is_ignored(solver) -> None:
    known = np.array([[True, False, True]])
    got = fit_item_response([[0.8, np.nan, 0.4]], [[0.875, 7.0, 0.25]], known=known, solver=solver)
    assert_same(got, fit(*B, solver=solver))


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_problems_give_no_curves(solver) -> None:
    assert fit_item_response(np.empty((0, 3)), np.empty((0, 3)), solver=solver).rate_for(0.5).shape == (0,)


# The inversion


def test_the_inversion_worked_by_hand() -> None:
    # 0.4 - ln(0.8 / 0.3 - 1) / 12 = 0.4 - ln(5/3) / 12
    assert curve(12.0, -0.4, 0.2).rate_for(0.5)[0] == pytest.approx(0.3574312, abs=1e-7)


@pytest.mark.parametrize(
    ("slope", "shift", "floor", "rate"),
    [(4.46, -0.50, 0.00, 0.5000), (43.15, -0.84, 0.02, 0.8391), (19.03, -0.64, 0.45, 0.5190), (50.0, -0.59, 0.0, 0.59)],
)
def test_the_curves_of_the_papers_figure_3(slope, shift, floor, rate) -> None:
    assert curve(slope, shift, floor).rate_for(0.5)[0] == pytest.approx(rate, abs=1e-4)


@given(st.floats(0.5, 50), st.floats(-1.5, 0.5), st.floats(0, 0.9), st.floats(0.05, 0.95))
def test_the_curve_at_the_rate_for_a_target_is_the_target(slope, shift, floor, target) -> None:
    assume(target > floor + 1e-3)
    rate = curve(slope, shift, floor).rate_for(target)[0]
    reached = accuracy_at(rate, slope, shift, floor)
    if 0.0 < rate < 1.0:
        assert reached == pytest.approx(target, abs=1e-9)
    else:  # clipped: the target lies beyond this end
        assert reached >= target - 1e-9 if rate == 0.0 else reached <= target + 1e-9


def test_a_floor_at_or_above_the_target_gives_zero_without_a_logarithm() -> None:
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(
            ItemResponse(np.full(3, 10.0), np.full(3, -0.9), np.array([0.5, 0.6, 1.0]), np.zeros(3)).rate_for(0.5), 0.0
        )


def test_a_flat_curve_sends_the_rate_to_an_end_without_a_division_by_zero() -> None:
    with np.errstate(all="raise"):
        assert curve(0.0, -0.4, 0.0).rate_for(0.6)[0] == 1.0
        assert curve(0.0, -0.4, 0.0).rate_for(0.4)[0] == 0.0


def test_accuracy_at_broadcasts_and_survives_a_steep_slope() -> None:
    with np.errstate(all="raise"):
        got = accuracy_at([[0.0], [0.5], [1.0]], [1e6, 12.0], -0.5, [0.0, 0.2])  # (3, 2)
    # 0.2 + 0.8 / (1 + e^6) = 0.201978
    np.testing.assert_allclose(got, [[0.0, 0.201978], [0.5, 0.6], [1.0, 0.998022]], atol=1e-6)


# What is refused


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, float("nan")])
def test_a_target_outside_zero_and_one_is_refused(target) -> None:
    with pytest.raises(ValueError, match=r"the target accuracy must lie in \(0, 1\), got"):
        fit(*B).rate_for(target)


def test_a_problem_without_a_round_is_not_fitted() -> None:
    known = np.array([[True], [False]])
    with pytest.raises(ValueError, match="problem 1 of 2 has no known round .* use its stored rate, or the cold-start"):
        fit_item_response([[0.8], [0.8]], [[0.5], [0.5]], known=known)
    with pytest.raises(ValueError, match="problem 0 of 2 has no known round"):
        fit_item_response(np.empty((2, 0)), np.empty((2, 0)))


@pytest.mark.parametrize(
    ("rates", "accuracies", "options", "message"),
    [
        ([0.8], [0.5], {}, r"must both be \(B, J\), got \(1,\) and \(1,\)"),
        ([[0.8]], [[0.5, 0.5]], {}, r"must both be \(B, J\), got \(1, 1\) and \(1, 2\)"),
        (
            [[0.8]],
            [[0.5]],
            {"known": np.array([True])},
            r"known must be bool of shape \(1, 1\), got bool of shape \(1,\)",
        ),
        ([[0.8]], [[0.5]], {"known": [[1]]}, r"known must be bool of shape \(1, 1\), got int64"),
        ([[0.8, 1.1]], [[0.5, 0.5]], {}, r"rates \(B, J\) must lie in \[0, 1\], got 1.1 for problem 0, round 1"),
        (
            [[0.8], [0.8]],
            [[0.5], [-0.5]],
            {},
            r"accuracies \(B, J\) must lie in \[0, 1\], got -0.5 for problem 1, round 0",
        ),
        ([[np.nan]], [[0.5]], {}, r"rates \(B, J\) must lie in \[0, 1\], got nan"),
        ([[0.8]], [[np.inf]], {}, r"accuracies \(B, J\) must lie in \[0, 1\], got inf"),
        (
            [[0.8]],
            [[0.5]],
            {"duplicates": "mean"},
            "duplicates must be one of per_round, per_distinct_rate, got 'mean'",
        ),
        ([[0.8]], [[0.5]], {"solver": "lm"}, "solver must be one of grid, trf, got 'lm'"),
    ],
)
def test_errors_say_what_was_wanted_and_what_came(rates, accuracies, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit_item_response(rates, accuracies, **options)
