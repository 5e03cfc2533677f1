"""Means of answers, and intervals that know whose answers go together: the one home of clustered statistics.

Twenty-five questions about one ECG are not twenty-five independent observations. The unit that is resampled, or whose
signs are flipped, is the patient.

**Intervals** are a cluster bootstrap (Field and Welsh, JRSS B 2007; for language-model evaluations Miller,
arXiv:2411.00640): every draw gives each patient a multinomial weight, and the mean is taken over all answers with their
patients' weights.

An answer about ECGs of two patients goes together with the other answers about either one. Its weight is the product of
their two weights (the pigeonhole bootstrap; Owen, Annals of Applied Statistics 2007), which errs to the wide side, as
their mean does to the narrow side (docs/audit.md). They are percentile intervals: too narrow for fewer than twenty
patients or so, and of zero width where every answer is right (or wrong), as no resampling shows what was never seen.

**Standard errors** are sandwiches with one term for every two answers that share a patient (Cameron, Gelbach and
Miller, JBES 2011; for pairs Aronow, Samii and Assenova, Political Analysis 2015).

**Tests** flip the signs of paired differences by patient (`sign_flip_p` says what that means for pairs).

The linear probe of representations, `eval.statistics.linear`, is imported by its own name.
"""

from eval.statistics.intervals import (
    Interval,
    cluster_interval,
    cluster_intervals,
    cluster_se,
    paired_interval,
    percentile_interval,
    resampled_means,
    robust_interval,
    rounded,
    smallest_detectable_difference,
)
from eval.statistics.partition import Clusters, Floats, patients_of
from eval.statistics.roc import auroc, auroc_interval, balanced_accuracy, resampled_aurocs, spearman
from eval.statistics.tests import holm, mcnemar_p, sign_flip_p

__all__ = ["Clusters", "Floats", "Interval", "patients_of", "rounded"]
__all__ += ["cluster_interval", "cluster_intervals", "paired_interval", "percentile_interval", "robust_interval"]
__all__ += ["cluster_se", "resampled_means", "smallest_detectable_difference", "holm", "mcnemar_p", "sign_flip_p"]
__all__ += ["auroc", "auroc_interval", "balanced_accuracy", "resampled_aurocs", "spearman"]
