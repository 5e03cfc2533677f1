from collections import Counter

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from eval import statistics
from eval.speed.statistics import looped_aurocs, looped_flips, looped_means
from eval.statistics import (
    auroc,
    auroc_interval,
    balanced_accuracy,
    cluster_interval,
    cluster_intervals,
    cluster_se,
    holm,
    mcnemar_p,
    paired_interval,
    percentile_interval,
    resampled_aurocs,
    resampled_means,
    robust_interval,
    sign_flip_p,
    smallest_detectable_difference,
    spearman,
)

# Answers about one to three of six patients each, with a small whole number as value.
ANSWERS = st.lists(
    st.tuples(st.integers(-2, 2), st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3)), min_size=1, max_size=30
)


def test_equals_the_ordinary_bootstrap_where_every_answer_has_its_own_patient():
    rng = np.random.default_rng(0)
    values = rng.random(300) < 0.7
    low, high = cluster_interval(values, [str(i) for i in range(300)], draws=8000)
    means = values[rng.integers(300, size=(8000, 300))].mean(axis=1)
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.004)


def answers(rng, patients, items, effect, pairs=False):
    """Right or wrong, with patients who are easier and harder, and whom each answer is about."""
    easy = rng.normal(0, effect, patients)
    about = thrown(rng, patients, items, pairs)
    values = rng.random(items) < chance(easy[about])
    return values, named(about)


def thrown(rng, patients, items, pairs):
    """The patient, or two different ones, of every answer: `[items, 1 or 2]`."""
    first, apart = rng.integers(patients, size=items), rng.integers(1, patients, size=items)
    return np.column_stack([first, (first + apart) % patients][: 2 if pairs else 1])


def named(about):
    return [[str(p) for p in who] for who in about]


def chance(easy):
    return 1 / (1 + np.exp(-0.5 - easy.sum(axis=1)))


@pytest.mark.parametrize(("pairs", "least", "most"), [(False, 0.90, 0.985), (True, 0.94, 1.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(pairs, least, most):
    rng = np.random.default_rng(1)
    truth = chance(rng.normal(0, 1.0, (1_000_000, 2 if pairs else 1))).mean()  # for patients never seen
    held = []
    for _ in range(150):
        values, clusters = answers(rng, 60, 200, effect=1.0, pairs=pairs)
        low, high = cluster_interval(values, clusters, draws=200)
        held.append(low <= truth <= high)
    assert least <= np.mean(held) <= most


def test_answers_that_go_together_widen_the_interval():
    rng = np.random.default_rng(2)
    patient = np.repeat(np.arange(50), 20)
    values = rng.random(50)[patient] < 0.6  # all of a patient's answers alike
    clustered = cluster_interval(values, [str(p) for p in patient])
    independent = cluster_interval(values, [str(i) for i in range(1000)])
    assert clustered.high - clustered.low > 3 * (independent.high - independent.low)


def test_a_difference_is_narrower_than_its_parts_suggest():
    rng = np.random.default_rng(3)
    patient = rng.integers(0, 40, 800)
    easy = rng.random(40)[patient]
    throw = rng.random(800)
    first, second = throw < easy, throw < easy - 0.1
    clusters = [str(p) for p in patient]
    gap = paired_interval(first, second, clusters)
    one = cluster_interval(first, clusters)
    assert gap.high - gap.low < 0.5 * (one.high - one.low)
    assert gap.low > 0 and gap == cluster_interval(first.astype(float) - second, clusters)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3)),
        min_size=1,
        max_size=30,
    ),
    st.randoms(),
)
def test_intervals_are_sound_for_any_answers(items, random):
    def interval(items, seed=0):
        return cluster_interval([v for v, _ in items], [tuple(c) for _, c in items], draws=50, seed=seed)

    low, high = interval(items)
    if len({frozenset(c) for _, c in items}) == 1:
        assert np.isnan([low, high]).all()
        return
    assert np.isnan(low) or 0 <= low <= high <= 1
    random.shuffle(items)
    assert interval(items) == pytest.approx((low, high), nan_ok=True)  # the order of answers says nothing


@pytest.mark.slow
def test_robust_intervals_hold_the_mean_of_flip_pairs_and_the_bootstrap_is_too_wide():
    rng, patients, held, wider = np.random.default_rng(3), 60, [], []
    for _ in range(150):
        effect = rng.normal(0, 0.4, patients)
        one, other = rng.integers(patients, size=(2, 400))
        other = np.where(one == other, (one + 1) % patients, other)
        values = effect[one] + effect[other] + rng.normal(size=400)
        clusters = [(f"{a}", f"{b}") for a, b in zip(one, other)]
        low, high = robust_interval(values, clusters)
        held.append(low <= 0 <= high)
        wide = cluster_interval(values, clusters, draws=200)
        wider.append((wide.high - wide.low) / (high - low))
    assert 0.90 < np.mean(held) <= 0.99 and 1.1 < np.mean(wider) < 1.8
    assert robust_interval([1.0, 1.0, 1.0], [("a", "b"), ("b", "c"), ("c", "a")]) == (1, 1)
    assert np.isnan(robust_interval([1.0, 0.0], ["a", "a"])).all()
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        robust_interval([1.0, 0.0], ["a", "b"], level=95)


def test_robust_intervals_of_one_patient_an_answer_are_the_usual_ones():
    values = np.random.default_rng(0).normal(size=40)
    usual = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert robust_interval(values, [f"p{i}" for i in range(40)], level=0.9) == pytest.approx(tuple(usual), rel=1e-9)


def test_the_same_seed_gives_the_same_interval_and_columns_share_resamples():
    rng = np.random.default_rng(4)
    values, clusters = answers(rng, 30, 200, 1.0)
    assert cluster_interval(values, clusters, seed=5) == cluster_interval(values, clusters, seed=5)
    assert cluster_interval(values, clusters, seed=5) != cluster_interval(values, clusters, seed=6)
    both = cluster_intervals(np.column_stack([values, 1 - values]), clusters, seed=5)
    assert both[0] == cluster_interval(values, clusters, seed=5)
    assert both[1] == pytest.approx((1 - both[0].high, 1 - both[0].low))
    wide = cluster_interval(values, clusters, level=0.99)
    assert wide.low < cluster_interval(values, clusters).low


def test_a_patient_named_twice_is_one_patient():
    values = [1, 0, 1, 1]
    assert cluster_interval(values, ["a", "b", "c", "a"]) == cluster_interval(values, [["a", "a"], ["b"], "c", "a"])


def test_one_patient_says_nothing_about_others():
    assert np.isnan(cluster_interval([1, 0, 1], ["a", "a", "a"])).all()
    assert np.isnan(cluster_interval([1, 0], [("a", "b"), ("b", "a")])).all()


@pytest.mark.parametrize(
    ("values", "clusters", "settings_", "match"),
    [
        ([], [], {}, "no values"),
        ([1, 0], ["a"], {}, "2 values but 1 clusters"),
        ([1, np.nan], ["a", "b"], {}, "value 1 is not finite"),
        ([1, 0], ["a", []], {}, "value 1 belongs to no cluster"),
        ([[1], [0]], ["a", "b"], {}, "one number per answer"),
        ([1, 0], ["a", "b"], {"draws": 0}, "draws"),
        ([1, 0], ["a", "b"], {"level": 95}, "level"),
    ],
)
def test_wrong_arguments_are_named(values, clusters, settings_, match):
    with pytest.raises(ValueError, match=match):
        cluster_interval(values, clusters, **settings_)


def test_resamples_do_not_depend_on_how_many_fit_into_memory(monkeypatch):
    rng = np.random.default_rng(6)
    values, clusters = answers(rng, 30, 200, 1.0, pairs=True)
    columns, scores = values[:, None].astype(float), rng.normal(size=200)
    means, areas = resampled_means(columns, clusters, 100, 0), resampled_aurocs(scores, values, clusters, 100)
    monkeypatch.setattr(statistics.partition, "AT_ONCE", 1000)
    assert resampled_means(columns, clusters, 100, 0) == pytest.approx(means, rel=1e-12)
    assert np.array_equal(resampled_aurocs(scores, values, clusters, 100), areas)


def test_equals_the_loops_it_is_timed_against():
    rng = np.random.default_rng(7)
    patient_of = rng.permutation(np.repeat(np.arange(60), rng.integers(1, 9, 60)))
    answers_of, names = [np.flatnonzero(patient_of == p) for p in range(60)], [str(p) for p in patient_of]
    easy = rng.normal(size=60)[patient_of]
    scores, positive = easy + rng.normal(size=len(easy)), easy + rng.normal(size=len(easy)) > 0.5
    ours = resampled_means(scores[:, None], names, 1500, 0)
    assert scipy.stats.ks_2samp(ours[:, 0], looped_means(scores, answers_of, 1500, rng)).pvalue > 0.01
    ours = resampled_aurocs(scores, positive, names, 1500)
    assert scipy.stats.ks_2samp(ours, looped_aurocs(scores, positive, answers_of, 1500, rng)).pvalue > 0.01
    loop = (looped_flips(scores, patient_of, 1500, rng) >= scores.mean()).mean()
    assert sign_flip_p(scores, names) == pytest.approx(loop, abs=0.04)


# Standard errors


def test_the_standard_error_is_that_of_a_clustered_regression():
    rng = np.random.default_rng(8)
    patient = rng.integers(0, 40, 300)
    values = rng.normal(size=40)[patient] + rng.normal(size=300)
    theirs = OLS(values, np.ones(300)).fit(cov_type="cluster", cov_kwds={"groups": patient})
    assert cluster_se(values, [str(p) for p in patient]) == pytest.approx(theirs.bse[0], rel=1e-12)
    assert cluster_se(values, [str(i) for i in range(300)]) == pytest.approx(scipy.stats.sem(values), rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(ANSWERS)
def test_the_standard_error_has_a_term_for_every_two_answers_that_share_a_patient(items):
    values, clusters = np.array([v for v, _ in items], dtype=float), [tuple(c) for _, c in items]
    error = cluster_se(values, clusters)
    if len({frozenset(c) for c in clusters}) == 1:
        assert np.isnan(error)
        return
    products = np.multiply.outer(values - values.mean(), values - values.mean())
    share = np.array([[bool(set(a) & set(b)) for b in clusters] for a in clusters])
    alike = np.array([[set(a) == set(b) for b in clusters] for a in clusters])
    patients = len({tuple(name in c for c in clusters) for name in "abcdef"} - {(False,) * len(clusters)})
    least, wanted = (products * alike).sum(), (products * share).sum()
    assert error**2 * len(items) ** 2 == pytest.approx(max(least, wanted) * patients / (patients - 1), abs=1e-9)


def test_the_smallest_detectable_difference_is_that_of_a_t_test_where_every_answer_has_its_own_patient():
    differences = np.random.default_rng(9).normal(0, 2, 60)
    names = [str(i) for i in range(60)]
    for power, level in [(0.8, 0.05), (0.9, 0.01)]:
        theirs = TTestPower().solve_power(nobs=60, alpha=level, power=power) * differences.std(ddof=1)
        ours = smallest_detectable_difference(differences, names, power, level)
        assert ours == pytest.approx(theirs, rel=0.01)
        assert ours == pytest.approx(smallest_detectable_difference(differences + 1, names, power, level))


@pytest.mark.parametrize("pairs", [False, True])
def test_sign_flips_find_the_smallest_detectable_difference_as_often_as_it_says(pairs):
    rng = np.random.default_rng(10)

    def differences():
        easy = rng.normal(0, 0.5, 100)
        about = thrown(rng, 100, 400, pairs)
        return rng.normal(size=400) + easy[about].sum(axis=1), named(about)

    least = np.median([smallest_detectable_difference(*differences()) for _ in range(15)])
    found = []
    for _ in range(150):
        values, clusters = differences()
        found.append(sign_flip_p(values + least, clusters, draws=199, alternative="two-sided") <= 0.05)
    assert 0.68 <= np.mean(found) <= 0.9


@pytest.mark.parametrize(
    ("values", "clusters"), [([0, 0, 0], "abc"), ([0.1, 0.1, 0.1], "abc"), ([1, 0, -1], "aaa"), ([1, 0, 1, 0], "aabb")]
)
def test_patients_who_do_not_differ_say_nothing_about_what_could_be_found(values, clusters):
    assert np.isnan(smallest_detectable_difference(values, list(clusters)))


def test_patients_who_only_occur_together_are_one():
    values = [1, 2, 3, 1, 5, -2]
    together, one = [("a", "b"), ("c", "d"), ("e", "f"), ("b", "a"), ("g", "h"), "i"], list("aceagi")
    assert sign_flip_p(values, together) == sign_flip_p(values, one)
    assert cluster_se(values, together) == cluster_se(values, one)
    assert smallest_detectable_difference(values, together) == smallest_detectable_difference(values, one)


# Tests


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
@pytest.mark.parametrize("patients", [2, 7, 12])
def test_few_patients_are_flipped_in_every_way(patients, alternative):
    rng = np.random.default_rng(patients)
    patient = np.concatenate([np.arange(patients), rng.integers(0, patients, 30)])
    values = rng.integers(-1, 2, len(patient)) + 0.2
    totals = np.bincount(patient, values)
    theirs = scipy.stats.permutation_test((totals,), np.sum, permutation_type="samples", alternative=alternative)
    ours = sign_flip_p(values, [str(p) for p in patient], draws=1, alternative=alternative)
    assert ours == pytest.approx(theirs.pvalue, rel=1e-12)


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
def test_random_flips_approach_all_flips(alternative):
    totals = np.random.default_rng(11).normal(0.3, 1, 14)
    theirs = scipy.stats.permutation_test(
        (totals,), np.sum, permutation_type="samples", alternative=alternative, n_resamples=2**14
    )
    ours = sign_flip_p(totals, [f"{i:02d}" for i in range(14)], alternative=alternative)
    assert ours == pytest.approx(theirs.pvalue, abs=0.015)
    assert round(ours * 10_001) == pytest.approx(ours * 10_001)  # (b + 1) / (draws + 1)


@pytest.mark.parametrize(("pairs", "effect"), [(False, 1.0), (True, 0.0), (True, 1.0)])
def test_sign_flips_reject_as_seldom_as_they_say(pairs, effect):
    rng = np.random.default_rng(12)
    ps = []
    for _ in range(300):
        about = thrown(rng, 60, 200, pairs)
        first, second = (rng.random(200) < chance(rng.normal(0, effect, 60)[about]) for _ in range(2))
        ps.append(sign_flip_p(first.astype(float) - second, named(about), draws=199))
    assert 0.02 <= np.mean(np.array(ps) <= 0.05) <= 0.08
    assert 0.15 <= np.mean(np.array(ps) <= 0.2) <= 0.25


@settings(max_examples=50, deadline=None)
@given(ANSWERS, st.randoms())
def test_sign_flips_are_sound_for_any_differences(items, random):
    def p(items, factor=1.0, alternative="greater"):
        return sign_flip_p([factor * v for v, _ in items], [tuple(c) for _, c in items], 50, alternative=alternative)

    patients = len({name for _, c in items for name in c})
    assert 2**-patients <= p(items) <= 1
    assert p(items) == p(items, 0.1)  # the unit says nothing, nor what rounding does to ties
    assert p(items, alternative="two-sided") == p(items, -1, alternative="two-sided")
    total = sum(v for v, _ in items)
    if total == 0:
        assert p(items, alternative="two-sided") == 1
    assert (p(items) >= 0.5) or total > 0
    assert p(random.sample(items, len(items))) == p(items)


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
def test_conditions_that_never_differ_have_a_p_value_of_one(alternative):
    for patients in (3, 40):
        clusters = [(f"{i}", f"{(i + 1) % patients}") for i in range(patients)]
        assert sign_flip_p(np.zeros(patients), clusters, draws=99, alternative=alternative) == 1
    assert sign_flip_p([1, -1, 1], ["a", ("a", "b"), "b"]) == 1  # all patients' sums are 0


def test_a_difference_in_every_patient_has_the_least_p_value():
    names = [str(i) for i in range(50)]
    assert sign_flip_p(np.ones(50), names, draws=999) == 1 / 1000
    assert sign_flip_p(-np.ones(50), names, draws=999) == 1
    assert sign_flip_p(np.ones(10), names[:10]) == 2**-10
    assert sign_flip_p([1, 1, 1], ["a", "a", "a"]) == 1 / 2


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_test(only_first, only_second):
    ours = mcnemar_p(only_first, only_second)
    assert ours == mcnemar_p(only_second, only_first)
    if only_first + only_second == 0:
        assert ours == 1
        return
    theirs = mcnemar([[5, only_first], [only_second, 7]], exact=True).pvalue
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert ours == pytest.approx(scipy.stats.binomtest(only_first, only_first + only_second).pvalue, rel=1e-9)


@pytest.mark.parametrize("counts", [(-1, 3), (2.5, 3), (3, np.nan)])
def test_mcnemar_counts_are_whole(counts):
    with pytest.raises(ValueError, match="whole numbers from 0 on, got"):
        mcnemar_p(*counts)


@pytest.mark.slow
def test_holm_adjusts_the_tests_that_were_done():
    rng = np.random.default_rng(13)
    for count in (1, 2, 12):
        ps = np.round(rng.random(count) ** 3, 2)  # with ties
        with_gaps = np.insert(ps, rng.integers(0, count + 1, 4), np.nan)
        ours, done = np.array(holm(with_gaps)), ~np.isnan(with_gaps)
        assert np.isnan(ours[~done]).all()
        assert ours[done] == pytest.approx(multipletests(ps, method="holm")[1], rel=1e-12)
        assert np.array_equal(with_gaps[done], ps)  # left as they were
    assert holm([]) == []


def test_holm_names_what_is_no_p_value():
    with pytest.raises(ValueError, match=r"p-value 1 is 1\.2, not between 0 and 1"):
        holm([0.1, 1.2])


# Areas under the ROC curve


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40))
def test_the_area_is_the_mann_whitney_statistic(items):
    scores, positive = np.array([s for s, _ in items], dtype=float), np.array([p for _, p in items])
    area = auroc(scores, positive)
    if positive.all() or not positive.any():
        assert np.isnan(area)
        return
    theirs = scipy.stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert area == pytest.approx(theirs / positive.sum() / (~positive).sum(), rel=1e-12)
    assert area == pytest.approx(sklearn.metrics.roc_auc_score(positive, scores), rel=1e-12)
    assert auroc(-scores, positive) == pytest.approx(1 - area)
    assert auroc(np.where(scores == 3, np.inf, np.exp(scores)), positive) == area  # only the order counts


def test_resampled_areas_weigh_answers_as_resampled_means_do():
    rng = np.random.default_rng(13)
    for pairs in (False, True):
        positive, clusters = answers(rng, 30, 120, 1.0, pairs=pairs)
        scores = np.round(rng.normal(size=120) + positive, 1)  # with ties
        weights = resampled_means(np.eye(120), clusters, 40, 5)  # each answer's share of each resample
        beats = np.subtract.outer(scores[positive], scores[~positive])
        beats = (beats > 0) + (beats == 0) / 2
        ups, downs = weights[:, positive], weights[:, ~positive]
        wanted = np.einsum("di,dj,ij->d", ups, downs, beats) / ups.sum(axis=1) / downs.sum(axis=1)
        assert resampled_aurocs(scores, positive, clusters, 40, 5) == pytest.approx(wanted, rel=1e-9)


def test_the_interval_of_an_area_is_the_ordinary_one_where_every_answer_has_its_own_patient():
    rng = np.random.default_rng(14)
    positive = rng.random(150) < 0.4
    scores = positive + rng.normal(size=150)
    theirs = scipy.stats.bootstrap(
        (scores, positive), auroc, paired=True, vectorized=False, method="percentile", n_resamples=1500, rng=rng
    ).confidence_interval
    assert auroc_interval(scores, positive, [str(i) for i in range(150)]) == pytest.approx(tuple(theirs), abs=0.01)


@pytest.mark.parametrize(("pairs", "least", "most"), [(False, 0.88, 0.985), (True, 0.94, 1.0)])
def test_intervals_of_areas_hold_the_truth_as_often_as_they_say(pairs, least, most):
    rng = np.random.default_rng(15)
    truth = scipy.stats.norm.cdf(1 / np.sqrt(6 if pairs else 4))  # positives score 1 higher; for patients never seen
    held = []
    for _ in range(150):
        about, positive = thrown(rng, 60, 200, pairs), rng.random(200) < 0.4
        scores = positive + rng.normal(size=60)[about].sum(axis=1) + rng.normal(size=200)
        low, high = auroc_interval(scores, positive, named(about), draws=200)
        held.append(low <= truth <= high)
    assert least <= np.mean(held) <= most


def test_areas_of_two_scores_share_their_resamples():
    rng = np.random.default_rng(16)
    positive, clusters = answers(rng, 40, 200, 1.0)
    scores = positive + rng.normal(size=200)
    same = resampled_aurocs(scores, positive, clusters) - resampled_aurocs(np.exp(scores), positive, clusters)
    assert percentile_interval(same) == (0, 0)
    first, second = auroc_interval(scores, positive, clusters), auroc_interval(-scores, positive, clusters)
    assert second == pytest.approx((1 - first.high, 1 - first.low))
    noisier = scores + rng.normal(size=200)
    apart = resampled_aurocs(scores, positive, clusters) - resampled_aurocs(noisier, positive, clusters)
    difference = percentile_interval(apart)
    assert difference.low < auroc(scores, positive) - auroc(noisier, positive) < difference.high


def test_resamples_without_both_classes_are_left_out():
    scores, positive, clusters = [3, 1, 2, 0], [True, False, False, False], list("abcd")
    areas = resampled_aurocs(scores, positive, clusters, draws=400)
    assert 0.2 < np.isnan(areas).mean() < 0.45  # (3/4)^4 = 0.32 without the positive, 1/256 with nothing else
    assert auroc_interval(scores, positive, clusters, draws=400) == (1, 1)
    assert np.isnan(auroc_interval(scores, [False] * 4, clusters)).all()
    assert np.isnan(auroc_interval(scores, positive, ["a"] * 4)).all()


@pytest.mark.parametrize(
    ("scores", "positive", "clusters", "settings_", "match"),
    [
        ([], [], [], {}, "one score and one class per answer"),
        ([1, 2], [True], ["a", "b"], {}, r"got \(2,\) and \(1,\)"),
        ([1, np.nan], [True, False], ["a", "b"], {}, "value 1 is not a number"),
        ([1, 2], [1, 2], ["a", "b"], {}, "value 1 is not positive or negative"),
        ([1, 2], [1, 0], ["a"], {}, "2 values but 1 clusters"),
        ([1, 2], [1, 0], ["a", "b"], {"draws": 0}, "draws must be positive, got 0"),
        ([1, 2], [1, 0], ["a", "b"], {"level": 95}, "level must lie between 0 and 1, got 95"),
    ],
)
def test_wrong_scores_are_named(scores, positive, clusters, settings_, match):
    with pytest.raises(ValueError, match=match):
        auroc_interval(scores, positive, clusters, **settings_)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sign_flip_p([1, 2], ["a"]), "2 values but 1 clusters"),
        (lambda: sign_flip_p([], []), "there are no values"),
        (lambda: sign_flip_p([1, np.inf], ["a", "b"]), "value 1 is not finite"),
        (lambda: sign_flip_p([[1]], ["a"]), "one number per answer"),
        (lambda: sign_flip_p([1], ["a"], draws=0), "draws must be positive"),
        (lambda: sign_flip_p([1], ["a"], alternative="less"), "must be 'greater' or 'two-sided', got 'less'"),
        (lambda: cluster_se([1, 2], ["a", ()]), "value 1 belongs to no cluster"),
        (lambda: smallest_detectable_difference([1, 2], ["a", "b"], power=80), "got level 0.05 and power 80"),
        (lambda: balanced_accuracy([], []), "got 0 and 0"),
        (lambda: balanced_accuracy(["a"], ["a", "b"]), "got 1 and 2"),
        (lambda: spearman([1, 2], [1]), r"got shapes \(2,\) and \(1,\)"),
        (lambda: spearman([1, 2], [np.nan, 1]), "value 0 is not a number"),
    ],
)
def test_what_cannot_be_computed_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# Others


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["yes", "no", None, 3]), st.sampled_from(["yes", "no"])), min_size=1))
def test_every_class_counts_alike_in_balanced_accuracy(pairs):
    accuracy = balanced_accuracy(*zip(*pairs))
    more = [pair for pair in pairs for _ in range(3 if pair[1] == "yes" else 1)]
    assert balanced_accuracy(*zip(*more)) == pytest.approx(accuracy)
    sizes = Counter(actual for _, actual in pairs)
    labels = [(str(predicted), actual) for predicted, actual in pairs]
    theirs = sklearn.metrics.recall_score(*list(zip(*labels))[::-1], labels=list(sizes), average="macro")
    assert accuracy == pytest.approx(theirs, rel=1e-12)
    assert balanced_accuracy(["yes"] * len(pairs), [actual for _, actual in pairs]) == ("yes" in sizes) / len(sizes)
    if len(set(sizes.values())) == 1:
        assert accuracy == pytest.approx(np.mean([predicted == actual for predicted, actual in pairs]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=30))
def test_spearman_is_the_rank_correlation(pairs):
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    ours = spearman(x, y)
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert np.isnan(ours)
        return
    assert ours == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    assert spearman(x, np.exp(x)) == 1
