"""The numbers of an audit, typed: `report.json` is `Report.to_json()`. Shares are of 1, intervals 95 % by patient."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Self

from eval.scoring.jsonable import EXACT, INLINE, OPTIONAL, Json
from eval.scoring.verdict import ModelVerdict
from eval.statistics import Interval

TEXT_ONLY = "text-only"  # condition of the lines of another model, trained without ECGs
NOISE = "noise"  # group of findings about the recording, not the patient: judged and shown, but counts for no verdict
RUNGS = {  # places between encoder and answer at which the ladder measures
    "encoder": "the encoder's features",
    "projected": "the tokens that enter the language model",
    "state": "the language model's state where the answer begins",
    "answer": "the answer",
}


class Likelihood(Json):
    """How often the likeliest option of `n` closed questions is right."""

    accuracy: float
    n: int


class ConditionResult(Json):
    """Answers under one condition: how many are right, and how the others fall (`eval.scoring.answers.outcome`)."""

    accuracy: float
    interval: Interval
    n: int
    valid: float
    abstained: int
    empty: int
    unparsed: int
    by_likelihood: Likelihood | None


class Difference(Json):
    """Right answers about the real ECG minus those under another condition, on the `n` questions asked under both."""

    difference: float
    interval: Interval
    n: int


class Flips(Json):
    """`n` flip pairs; see `eval.scoring.verdict.Evidence`. `follows`: right about the other ECG."""

    n: int
    patients: int
    gap: float
    gap_interval: Interval
    paired_flip: float
    paired_flip_interval: Interval
    exchanged: float
    p: float
    follows: float
    follows_interval: Interval


class Changed(Json):
    """How often the answer is another one than about the real ECG."""

    rate: float
    n: int


class Lift(Json):
    """Mean of log p(right answer | real ECG) - log p(right answer | this condition), in nats."""

    mean: float
    interval: Interval
    n: int


class Certainty(Json):
    """Brier score of yes/no answers, and accuracy among the surest share of them, by that share."""

    n: int
    brier: float
    selective: Mapping[str, float]


class SwapTest(Json):
    """Tests of the real ECG against another patient's: the least difference that would be seen, and p-values.

    McNemar's is given where every patient has one answer; the corrected one (Holm) among kinds of question.
    """

    smallest_detectable: float | None
    swap_p: float = field(metadata=EXACT)
    swap_mcnemar_p: float | None = field(default=None, metadata=OPTIONAL | EXACT)
    swap_p_corrected: float | None = field(default=None, metadata=OPTIONAL)


class Block(Json):
    """The numbers of one group of questions."""

    n: int  # questions
    patients: int  # patients they are about
    conditions: Mapping[str, ConditionResult]  # by condition
    majority: float  # right answers of who gives each kind of question its most common answer in training
    majority_by_question: float  # the same for each question
    majority_interval: Interval  # its interval
    # Right answers about the real ECG minus those of a condition or of one of the two above, by name.
    real_minus: Mapping[str, Difference]
    flips: Flips | None  # flip pairs, if any were asked
    changed: Mapping[str, Changed]  # by condition
    lift: Mapping[str, Lift]  # by condition that takes the ECG away
    verify: Certainty | None  # certainty of yes/no answers about the real ECG
    swap_test: SwapTest | None = field(default=None, metadata=INLINE)  # where `real` and `swap` were asked


class FindingResult(Json):
    """How well the model's probabilities tell ECGs with a finding from those without."""

    n: int
    positives: int
    group: str
    control: str
    auroc: float
    interval: Interval
    balanced_accuracy: float
    auroc_swap: float | None = field(default=None, metadata=OPTIONAL)


class Shapley(Json):
    """Accuracy with ECG and question each kept or exchanged, and what either adds (`eval.scoring.instruments`)."""

    n: int
    accuracy: Mapping[str, float]
    ecg: float
    question: float


class DosePoint(Json):
    """Mean probability of yes at one dose, and the right answer there."""

    dose: float
    p_yes: float
    right_answer: str


class DoseResponse(Json):
    """How the answer follows a parameter of simulated recordings: Spearman's correlation, mean over patients."""

    patients: int
    correlation: float
    interval: Interval
    curve: Sequence[DosePoint]


class TextResult(Json):
    """One metric of written reports; no interval for a metric that is no mean."""

    value: float
    interval: Interval | None
    settings: str


class ReportScores(Json):
    """Metrics of `n` reports written under one condition, by name."""

    n: int
    scores: Mapping[str, TextResult]

    def to_json(self) -> dict[str, object]:
        """The object, the metrics beside `n`."""
        return {"n": self.n, **{name: score.to_json() for name, score in self.scores.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """The scores that an object was made of."""
        return super().from_json({"n": data["n"], "scores": {name: data[name] for name in data if name != "n"}})


class Rung(Json):
    """Mean AUROC over findings at one of `RUNGS`, and its change from the rung before; None where there is none."""

    label: str
    auroc: float
    interval: Interval | None
    change: float | None
    change_interval: Interval | None


class LadderFinding(Json):
    """AUROC of one finding by rung, and how many questions it rests on; `headline` is false for noise."""

    group: str
    headline: bool
    auroc: Mapping[str, float]
    train: int
    n: int
    positives: int
    patients: int


class Ladder(Json):
    """Where the signal is lost between encoder and answer (`eval.audit.ladder`)."""

    rungs: Mapping[str, Rung]  # by name
    # (AUROC of the answer - 0.5) / (AUROC at the encoder - 0.5); None where the encoder's interval reaches chance.
    fraction_read: float | None
    fraction_interval: Interval | None  # its interval
    n: int  # held-out questions of the headline
    patients: int  # patients they are about
    findings_in_headline: int  # findings it is the mean of
    findings: Mapping[str, LadderFinding]  # by name
    representation: str = ""  # how an ECG's tokens became the input of a probe, in words
    max_train: int = 0  # training questions a probe is fitted to, at most
    notes: Sequence[str] = ()  # what was left out, and why


class Estimate(Json):
    """A number and its interval."""

    value: float
    interval: Interval


class ClassScores(Json):
    """AUROC and balanced accuracy of one answerer."""

    auroc: Estimate
    balanced_accuracy: Estimate


class ClassResult(Json):
    """One super-class, or the mean of all: the model, a CNN, the model with another patient's ECG, model minus CNN."""

    positives: int | None = field(metadata=OPTIONAL)
    model: ClassScores
    cnn: ClassScores
    swap: ClassScores
    auroc_difference: Estimate
    balanced_accuracy_difference: Estimate


class TrainedOn(Json):
    """Folds of PTB-XL that the CNN learned from, and how many records they hold."""

    folds: Sequence[int]
    records: int


class ClassFlips(Json):
    """Swap-flip gap of questions about super-classes."""

    pairs: int
    patients: int
    gap: float
    interval: Interval


class SuperClasses(Json):
    """PTB-XL's super-classes asked about every record of some folds, beside a plain CNN."""

    classes: Mapping[str, ClassResult]
    macro: ClassResult
    folds: Sequence[int]
    trained_on: TrainedOn
    items: int
    records: int
    patients: int
    flips: ClassFlips


class About(Json, kw_only=True):
    """The model that was audited, and the settings."""

    model: str  # its folder, or hub id
    training: str | None = None  # digest of the training it is the result of, if that is recorded
    dataset: str  # name of the question set
    command: str  # the command that gives the same report
    seed: int  # seed of donors, sample and resamples
    draws: int  # resamples of the intervals
    limit: int | None  # questions asked at most; None for all
    available: int  # questions there are
    text_only: str | None  # folder of a model trained without ECGs, for reference
    notes: Sequence[str]  # on the questions, and on conditions that could not be asked
    vocabulary: Sequence[str]  # every term that is an answer


class Unscored(Json):
    """The parts of a report that do not follow from its answers: they outlast another scoring."""

    about: About = field(metadata=INLINE)
    ladder: Ladder | None = field(metadata=OPTIONAL)
    super_classes: SuperClasses | None = field(metadata=OPTIONAL)


class Report(Json):
    """Everything an audit measured. What was not asked is None or empty."""

    about: About = field(metadata=INLINE)  # what was audited
    verdict: ModelVerdict | None  # none without answers about real ECGs to questions other than about noise
    overall: Block = field(metadata=INLINE)  # all ordinary questions
    # Names of the controls, which are in none of the numbers but `controls` and `findings`.
    excluded_controls: Sequence[str]
    by_type: Mapping[str, Block]  # questions of one kind, by its name; so the next ones
    by_group: Mapping[str, Block]
    by_attribute: Mapping[str, Block]
    by_template: Mapping[str, Block]
    controls: Mapping[str, Block]  # each control by itself
    findings: Mapping[str, FindingResult]  # by finding, or `attribute: option`
    shapley: Shapley | None  # what ECG and question each bring
    dose_response: Mapping[str, DoseResponse]  # by `parameter: finding`
    reports: Mapping[str, ReportScores] | None  # by condition
    ladder: Ladder | None = field(default=None, metadata=OPTIONAL)  # from encoder to answer
    super_classes: SuperClasses | None = field(default=None, metadata=OPTIONAL)  # PTB-XL's, beside a CNN
