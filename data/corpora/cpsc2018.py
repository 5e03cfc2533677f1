"""CPSC2018: 6,877 12-lead ECGs of 6 to 60 s at 500 Hz with nine diagnoses (Liu et al., JMIHI 2018).

Source: https://physionet.org/content/challenge-2021/ (`training/cpsc_2018`, CC BY 4.0), the challenge's WFDB copy of
what the makers publish as MATLAB structs. Expected layout:

    root/g1/A0001.hea, A0001.mat ...     or all in one folder, as in the challenge of 2020

The makers keep their test recordings. Benchmarks split the public ones by the tables `icbeb_train.csv`,
`icbeb_val.csv` and `icbeb_test.csv`, which come with the code of MERL, MELP and HeartLang; their `patient_id` is the
number of the recording, since patients are not published. A recording may have several of the nine labels.
"""

from data.corpora import register
from data.corpora.labelled_wfdb import LabelledWfdb


@register
class Cpsc2018(LabelledWfdb):
    """CPSC2018: `source["A0001"]`."""

    name = "cpsc2018"
    title = "CPSC2018"
    pattern = "A[0-9][0-9][0-9][0-9].hea"
    where = "download training/cpsc_2018 of https://physionet.org/content/challenge-2021/ and pass that folder"
    classes = ("AFIB", "VPC", "NORM", "1AVB", "CRBBB", "STE", "PAC", "CLBBB", "STD")
    tables = {"train": "icbeb_train", "valid": "icbeb_val", "test": "icbeb_test"}
    column = "filename"
