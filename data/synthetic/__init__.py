"""Simulated 12-lead ECGs with planted findings: `SyntheticCohort`, and the names of what is planted."""

from data.synthetic.cohort import VERSION, SyntheticCohort
from data.synthetic.parameters import (
    AXES,
    CONDUCTIONS,
    NOISES,
    RATES,
    ST_SITES,
    VOLTAGES,
    Array,
    Parameters,
    categories,
    findings,
)
from data.synthetic.waves import ELECTRODES, LEAD_FIELD, ST_LEAD

__all__ = ["AXES", "CONDUCTIONS", "ELECTRODES", "LEAD_FIELD", "NOISES", "RATES", "ST_LEAD", "ST_SITES"]
__all__ += ["VERSION", "VOLTAGES", "Array", "Parameters", "SyntheticCohort", "categories", "findings"]
