"""What questions about the simulated cohort ask for, and in which words."""

from data.synthetic import AXES, CONDUCTIONS, NOISES, RATES, ST_SITES, VOLTAGES

RHYTHMS = ("sinus rhythm", "atrial fibrillation")

VERIFY = ("Does this ECG show {0}?", "Is there {0} in this ECG?", "Is {0} present in this ECG?")
CHOOSE = ("Which does this ECG show, {0} or {1}?",)
NEW = (
    "Does the second ECG show {0} that the first ECG does not show?",
    "Is there new {0} in the second ECG compared to the first?",
)
WHICH = ("Which of the two ECGs shows {0}?", "In which of these ECGs is there {0}?")

FINDINGS = (
    "atrial fibrillation", "first degree AV block", "premature ventricular complexes",
    *RATES[1:], *CONDUCTIONS[1:], *ST_SITES[1:], *AXES[1:], *NOISES[1:],
)  # fmt: skip
PAIRS = (
    ("atrial fibrillation", "left bundle branch block"), ("atrial fibrillation", "premature ventricular complexes"),
    ("bradycardia", "tachycardia"), ("bradycardia", "right bundle branch block"),
    ("tachycardia", "left axis deviation"),
    ("left bundle branch block", "right bundle branch block"), ("left axis deviation", "right axis deviation"),
    ("anterior ST elevation", "inferior ST elevation"), ("anterior ST elevation", "atrial fibrillation"),
    ("inferior ST elevation", "right axis deviation"), ("baseline drift", "muscle noise"),
    ("premature ventricular complexes", "first degree AV block"), ("right bundle branch block", "muscle noise"),
)  # fmt: skip
QUERIES = {
    "rhythm": ("What is the rhythm of this ECG?", RHYTHMS),
    "rate": ("Is the heart rate normal, slow or fast in this ECG?", RATES),
    "conduction": ("How is the intraventricular conduction of this ECG?", CONDUCTIONS),
    "st": ("Where does this ECG show ST elevation?", ST_SITES),
    "axis": ("What is the direction of the electrical axis of this ECG?", AXES),
    "noise": ("What kind of noise does this ECG show?", NOISES),
    "voltage": ("How high is the QRS voltage of this ECG?", VOLTAGES),
}
# The family of each finding and of each attribute that is queried.
GROUPS = {
    **dict.fromkeys(("rhythm", "atrial fibrillation"), "rhythm"), **dict.fromkeys(("rate", *RATES), "rate"),
    "first degree AV block": "AV conduction", **dict.fromkeys(("conduction", *CONDUCTIONS), "conduction"),
    "premature ventricular complexes": "ectopy", **dict.fromkeys(("st", *ST_SITES), "ST"),
    **dict.fromkeys(("axis", *AXES), "axis"), **dict.fromkeys(("noise", *NOISES), "noise"),
    **dict.fromkeys(("voltage", *VOLTAGES), "voltage"), "normal ECG": "normal ECG",
}  # fmt: skip
