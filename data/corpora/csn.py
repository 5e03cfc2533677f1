"""CSN (Chapman, Shaoxing, Ningbo): 45,152 12-lead ECGs of 10 s at 500 Hz (Zheng et al., Scientific Data 2020 and 2022).

Source: https://physionet.org/content/ecg-arrhythmia/ (CC BY 4.0). Expected layout:

    root/WFDBRecords/01/010/JS00001.hea, JS00001.mat ...

Benchmarks use 23,026 of the recordings with 38 labels, split by the tables `chapman_train.csv`, `chapman_val.csv` and
`chapman_test.csv`, which come with the code of MERL, MELP and HeartLang. Sinus bradycardia, the commonest rhythm, is
none of the labels; the tables' `age` is 12 for everybody. Every recording is of another patient.

The columns of the published tables are not what the diagnoses beside them say. They were filled by looking for a name
anywhere in the text, so that `AFIB` also counts as `AF` (atrial flutter), `STTC` as `ST` (sinus tachycardia), `LVQRSAL`
as `SA` (sinus arrhythmia) and `CCR` as `CR`: 3,817 of the 23,026 recordings have labels too many, none has too few.
`split_labels` gives the columns, which published numbers are about, `stated` what the diagnoses say.
"""

from pathlib import Path

from data.corpora import register
from data.corpora.labelled_wfdb import LabelledWfdb


@register
class Csn(LabelledWfdb):
    """CSN: `source["JS00001"]`."""

    name = "csn"
    title = "CSN"
    pattern = "JS[0-9][0-9][0-9][0-9][0-9].hea"
    where = "download https://physionet.org/content/ecg-arrhythmia/ and pass the folder that holds WFDBRecords"
    classes = (
        "AQW", "UW", "SR", "WPW", "2AVB", "AT", "VB", "ARS", "STTC", "SA", "STE", "VPB", "TWO", "STTU", "ALS", "APB",
        "2AVB1", "PRIE", "CCR", "CR", "AF", "AVB", "QTIE", "LBBB", "VEB", "SVT", "RBBB", "1AVB", "STDD", "MI", "AFIB",
        "TWC", "PWC", "ERV", "RVH", "LVH", "ST", "JEB",
    )  # fmt: skip
    tables = {"train": "chapman_train", "valid": "chapman_val", "test": "chapman_test"}
    column = "ecg_path"

    @classmethod
    def stated(cls, folder: Path | str) -> dict[str, dict[str, frozenset[str]]]:
        """`split_labels` by the text of the diagnoses: the classes that it names, each as a word of its own."""
        return cls._labels(folder, lambda row: set(row["diagnose"].split(",")) & set(cls.classes), "diagnose")
