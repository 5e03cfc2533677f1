"""A cohort of simulated 12-lead ECGs with planted findings: `SyntheticCohort`, and what is planted."""

from data.synthetic.cohort import (
    AXES,
    CONDUCTIONS,
    ELECTRODES,
    LEAD_FIELD,
    NOISES,
    RATES,
    ST_LEAD,
    ST_SITES,
    VERSION,
    VOLTAGES,
    Array,
    Parameters,
    SyntheticCohort,
    categories,
    findings,
)

__all__ = [
    "AXES",
    "CONDUCTIONS",
    "ELECTRODES",
    "LEAD_FIELD",
    "NOISES",
    "RATES",
    "ST_LEAD",
    "ST_SITES",
    "VERSION",
    "VOLTAGES",
    "Array",
    "Parameters",
    "SyntheticCohort",
    "categories",
    "findings",
]
