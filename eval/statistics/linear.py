"""A linear probe: how well findings can be told from a representation of an ECG by a weighted sum of its features.

One logistic regression per finding, penalised by the square of its weights (Alain and Bengio, arXiv:1610.01644, for
probes of layers). How strong the penalty is, is chosen for each finding on patients the fit has not seen: those of a
validation split, or parts of the training patients in turn.

Where there are more features than recordings, the weights are sought among the combinations of the recordings, in which
the best ones lie (the representer theorem; Schoelkopf, Herbrich, Smola, COLT 2001): nothing is lost, and a width of
32,768 costs no more than one of a few hundred. Of more than `max_width` recordings as many are drawn to span the
weights, which is an approximation (Williams and Seeger, NeurIPS 2000).

All findings are fitted in one search: for ten findings of 4,000 recordings and 512 features six times as fast as
scikit-learn's `LogisticRegression`, which fits one after the other and finds the same weights (a test compares them).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Features = NDArray[np.floating]  # [N, D]
Validation = tuple[ArrayLike, ArrayLike]  # features and labels of other patients

STRENGTHS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the penalty


@dataclass(frozen=True)
class Probe:
    """Linear scores of several findings: `probe(features)`."""

    weights: Array  # [D, F], of the features as they come
    intercepts: Array  # [F]
    strengths: Array  # [F], the penalty chosen for each finding

    def __call__(self, features: ArrayLike) -> Array:
        """Log-odds `[N, F]` of each finding, given features `[N, D]`.

        Raises:
            ValueError: The features are not as wide as those the probe was fitted to.
        """
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != len(self.weights):
            raise ValueError(f"the probe was fitted to features [N, {len(self.weights)}], got {features.shape}")
        return np.asarray(features @ self.weights + self.intercepts)


def fit_probe(
    features: ArrayLike,
    labels: ArrayLike,
    patients: Sequence[str],
    *,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = 5,
    max_width: int = 2048,
    seed: int = 0,
    validation: Validation | None = None,
) -> Probe:
    """Fit one logistic regression per finding.

    Each minimises the mean log loss of the recordings whose label is known, plus `strength / 2 * |weights|^2`, where
    features are standardised (those that do not vary are left out) and divided by the root of their number: a
    recording's features then have a length near 1, and a strength means the same at any width. The intercept is not
    penalised.

    Args:
        features: `[N, D]`.
        labels: `[N, F]` of 0 and 1, NaN where unknown. Findings known for the same recordings are fitted together.
        patients: Patient of each recording, whose recordings are never parted between fit and choice.
        strengths: Penalties to choose from: the one with the least log loss on patients left out.
        folds: Parts into which patients are cut for that.
        max_width: Number of recordings above which some are drawn to span the weights.
        seed: Seed of the parts and of those draws.
        validation: Features `[M, D]` and labels `[M, F]` of other patients, to choose on in place of the parts. Where
            a finding's labels are there of one kind only, the strength is that of least loss for the other findings.

    Raises:
        ValueError: Shapes do not match; a feature is not finite; a label is not 0, 1 or NaN; a finding has labels of
            one kind only, or too few patients to leave some out. Names the finding's column. Or no finding has labels
            of both kinds in the validation.
    """
    features, labels = np.asarray(features), np.asarray(labels, dtype=np.float64)
    _check(features, labels, patients, strengths, folds)
    path = np.sort(np.asarray(strengths, dtype=np.float64))[::-1]
    if validation is not None:
        return _fit_validated(features, labels, validation, path, max_width, seed)
    present = ~np.isnan(labels)
    together: dict[bytes, list[int]] = defaultdict(list)
    for finding, rows_present in enumerate(present.T):
        together[rows_present.tobytes()].append(finding)
    of_patient = _folds(patients, folds, seed)
    weights = np.zeros((features.shape[1], labels.shape[1]))
    intercepts, chosen = np.zeros((2, labels.shape[1]))
    for findings in together.values():
        rows = np.flatnonzero(present[:, findings[0]])
        x, back, mean = _coordinates(features[rows], max_width, seed)
        y = labels[rows][:, findings]
        chosen[findings] = path[_least_loss(x, y, of_patient[rows], path, findings)]
        fit = _minimise(x, y, chosen[findings], np.zeros((x.shape[1] + 1, len(findings))))
        weights[:, findings] = back(fit[:-1])
        intercepts[findings] = fit[-1] - mean @ weights[:, findings]
    return Probe(weights, intercepts, chosen)


def _fit_validated(
    features: Features, labels: Array, validation: Validation, path: Array, max_width: int, seed: int
) -> Probe:
    """`fit_probe` with a validation split. All labels are known on both sides, as those of benchmarks are."""
    held, truth = (np.asarray(side, dtype=np.float64) for side in validation)
    if held.shape != (len(truth), features.shape[1]) or truth.shape[1:] != labels.shape[1:]:
        raise ValueError(f"validation {held.shape}, {truth.shape} does not match {features.shape}, {labels.shape}")
    if not np.isfinite(held).all() or not (np.isin(truth, (0, 1)).all() and np.isin(labels, (0, 1)).all()):
        raise ValueError("with a validation split, features must be finite and labels 0 or 1")
    both = truth.any(axis=0) & (1 - truth).any(axis=0)
    if not both.any():
        raise ValueError("no finding has labels of both kinds in the validation: take more patients for it")
    x, back, mean = _coordinates(features, max_width, seed)
    x_held = (held - mean) @ back(np.eye(x.shape[1]))
    fits = np.stack(list(_along(path, x, labels)))
    loss = np.stack([_log_loss(x_held, fit, truth)[0].mean(axis=0) for fit in fits])
    best = np.where(both, np.argmin(loss, axis=0), np.argmin(loss[:, both].sum(axis=1)))
    chosen = fits[best, :, np.arange(labels.shape[1])].T  # [d + 1, F]
    weights = back(chosen[:-1])
    return Probe(weights, chosen[-1] - mean @ weights, path[best])


def _check(features: Features, labels: Array, patients: Sequence[str], strengths: Sequence[float], folds: int) -> None:
    if features.ndim != 2 or labels.ndim != 2 or not len(features) == len(labels) == len(patients):
        raise ValueError(
            f"features [N, D], labels [N, F] and patients must match: {features.shape}, {labels.shape}, {len(patients)}"
        )
    if not len(strengths) or min(strengths) <= 0:
        raise ValueError(f"strengths must be positive numbers, got {list(strengths)}")
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    if len(rows := np.flatnonzero(~np.isfinite(features).all(axis=1))):
        raise ValueError(f"features of row {rows[0]} (patient {patients[rows[0]]}) are not finite")
    for finding, column in enumerate(labels.T):
        values = np.unique(column[~np.isnan(column)])
        if len(wrong := values[~np.isin(values, (0, 1))]):
            raise ValueError(f"finding {finding}: labels must be 0, 1 or NaN, got {wrong[0]}")
        if len(values) < 2:
            raise ValueError(f"finding {finding}: all known labels are {values}: leave it out, it cannot be learned")


def _folds(patients: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """The part each recording falls in. Sorted names: their order in the data does not matter."""
    names, place = np.unique(np.asarray(patients), return_inverse=True)
    part = np.empty(len(names), np.int64)
    part[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % folds
    return part[place]


def _coordinates(features: Features, max_width: int, seed: int) -> tuple[Array, Callable[[Array], Array], Array]:
    """Standardised features along their principal axes, no more numerous than recordings: coordinates `[N, d]`.

    And what turns their weights `[d, F]` into weights of the features `[D, F]`; and the mean of the features `[D]`.
    """
    x = features.astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    spread = np.sqrt(np.mean(x**2, axis=0))
    # What is constant but for the last digits of single precision is constant: scaled up, the digits would be features.
    varies = spread > 1e-6 * np.sqrt(spread**2 + mean**2)
    factor = np.where(varies, 1 / np.where(varies, spread, 1), 0) / np.sqrt(max(1, varies.sum()))
    x *= factor
    few = min(len(x), max_width)
    if x.shape[1] <= few:
        values, axes = np.linalg.eigh(x.T @ x)
        axes = axes[:, values > 1e-10 * max(values[-1], 1e-10)]
    else:
        drawn = x if len(x) == few else x[np.sort(np.random.default_rng(seed).permutation(len(x))[:few])]
        values, vectors = np.linalg.eigh(drawn @ drawn.T)
        large = values > 1e-10 * max(values[-1], 1e-10)
        axes = drawn.T @ (vectors[:, large] / np.sqrt(values[large]))
    return x @ axes, lambda weights: factor[:, None] * (axes @ weights), mean


def _least_loss(x: Array, y: Array, fold: NDArray[np.int64], path: Array, findings: Sequence[int]) -> NDArray[np.int64]:
    """Place in `path`, from strong to weak, with the least log loss on patients left out, for each finding."""
    loss, judged = np.zeros((len(path), y.shape[1])), np.zeros(y.shape[1])
    for part in np.unique(fold):
        out = fold == part
        learnable = y[~out].any(axis=0) & (1 - y[~out]).any(axis=0)
        if not learnable.any():
            continue
        judged += learnable * out.sum()
        for i, fit in enumerate(_along(path, x[~out], y[~out][:, learnable])):
            loss[i, learnable] += _log_loss(x[out], fit, y[out][:, learnable])[0].sum(axis=0)
    if not judged.all():
        raise ValueError(
            f"finding {findings[int(np.argmin(judged))]}: all recordings of one label are of too few patients for "
            "any to be left out: give more patients"
        )
    return np.asarray(np.argmin(loss, axis=0))


def _along(path: Array, x: Array, y: Array) -> Iterator[Array]:
    """Weights `[d + 1, F]` for each strength, from strong to weak; each search starts where the last one ended."""
    weights = np.zeros((x.shape[1] + 1, y.shape[1]))
    for strength in path:
        weights = _minimise(x, y, np.full(y.shape[1], strength), weights)
        yield weights


def _log_loss(x: Array, weights: Array, y: Array) -> tuple[Array, Array]:
    """Log loss of each recording and finding, and the scores behind it, `[N, F]` both."""
    scores = x @ weights[:-1] + weights[-1]
    return np.logaddexp(0, scores) - y * scores, scores


def _minimise(x: Array, y: Array, strengths: Array, start: Array) -> Array:
    """Weights and, last, intercepts `[d + 1, F]` of all findings, searched for together."""
    from scipy.optimize import minimize
    from scipy.special import expit

    # Along principal axes the curvature is nearly diagonal, and at most this. In units of its root the search is over
    # in tens of steps, in the features' own units it takes hundreds.
    curvature = np.vstack([np.mean(x**2, axis=0)[:, None] / 4 + strengths, np.full((1, y.shape[1]), 1 / 4)])
    unit = 1 / np.sqrt(curvature)

    def objective(flat: Array) -> tuple[float, Array]:
        w = unit * flat.reshape(start.shape)
        loss, scores = _log_loss(x, w, y)
        pull, error = strengths * w[:-1], (expit(scores) - y) / len(x)
        value = loss.sum() / len(x) + (pull * w[:-1]).sum() / 2
        return float(value), (unit * np.vstack([x.T @ error + pull, error.sum(axis=0)])).ravel()

    x0 = (start / unit).ravel()
    result = minimize(
        objective, x0, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "maxfun": 10_000, "ftol": 0, "gtol": 1e-6}
    )
    weights: Array = unit * np.asarray(result.x).reshape(start.shape)
    return weights
