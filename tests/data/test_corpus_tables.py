"""Tables and folders of corpora as programs and systems leave them: encodings, ids, hidden files, cut-off archives."""

import gzip
import shutil

import pytest

from data.conversations import load_questions
from data.corpora.cpsc2018 import Cpsc2018
from data.corpora.folder import table_columns, table_rows, whole_number
from data.corpora.mimic_iv_ecg import MimicIvEcg
from data.corpora.ptbxl import PtbXl
from data.support.files import hidden_files, is_hidden, visible_files
from helpers.ecg_qa import ask, sample_file, write_ecg_qa

TABLE = "id,text\n1,alpha\n2,größer\n"
LISTED = "subject_id,study_id,path\n"


@pytest.fixture
def table(tmp_path):
    return tmp_path / "table.csv"


@pytest.fixture
def root(tmp_path):
    return write_ecg_qa(tmp_path / "qa", {1: 1, 2: 2, 9: 9}, {"train": [1, 2], "valid": [9], "test": []})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, encoding, suffix):
    path = tmp_path / f"table{suffix}"
    path.write_bytes((gzip.compress if suffix == ".csv.gz" else bytes)(TABLE.encode(encoding)))
    assert list(table_rows(path, ["id"], "ours")) == [{"id": "1", "text": "alpha"}, {"id": "2", "text": "größer"}]
    assert list(table_columns(path, ["text", "id"], "ours")) == [(2, ["alpha", "1"]), (3, ["größer", "2"])]


def test_what_is_not_utf_8_is_read_as_cp1252_and_told_once(table, caplog):
    table.write_bytes((TABLE + "3,µV – fünf\n").encode("cp1252"))
    assert [row["text"] for row in table_rows(table, ["id"], "ours")] == ["alpha", "größer", "µV – fünf"]
    assert caplog.text.count("table.csv: line 3: byte 0xf6 is not UTF-8: such lines are read as cp1252") == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TABLE.encode() + b"3,\x81\x8d\n", "line 4: byte 0x81 is not UTF-8, nor is the line cp1252: save the table as"),
        (TABLE.encode("utf-16"), "table.csv: is UTF-16: save it as UTF-8"),
        (TABLE.replace(",", ";").encode(), "no column 'id': not ours. Its columns are separated by ';': save it with"),
        (TABLE.replace(",", "\t").encode(), r"Its columns are separated by '\\t'"),
        (b"number,text\n1,a\n", "no column 'id': not ours$"),
        (b"", "no column 'id': not ours$"),
        (b"id,text\n1,a,b\n", "line 2: '1,a,b' is no row of 2 fields, as the header has"),
        (b"id,text\n1\n", "line 2: '1' is no row of 2 fields"),
    ],
)
def test_what_is_no_such_table_is_named(table, content, message):
    table.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(table_rows(table, ["id"], "ours"))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b[: len(b) // 2], lambda b: b[:20], lambda _: b"no archive"]
)
def test_an_archive_that_is_cut_off_is_named(tmp_path, damage):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(damage(gzip.compress("".join(f"{i},{i * i % 977}\n" for i in range(3000)).encode())))
    with pytest.raises(ValueError, match=r"table\.csv\.gz: cut off or damaged \(.*\): download it again"):
        list(table_rows(path, ["0", "0"], "ours"))


@pytest.mark.parametrize("text", ["15709", "15709.0", "15709.", " 15709 ", "15709.000", "015709"])
def test_ids_may_be_decimals(text):
    assert whole_number(text) == 15709


@pytest.mark.parametrize("text", ["1.5", "", "x", "1e4", "nan", "inf", "1,0", "0x1"])
def test_other_numbers_are_no_ids(text):
    with pytest.raises(ValueError):
        whole_number(text)


def test_ids_of_ptb_xl_may_be_decimals_and_no_fractions(root):
    table = root / "ptbxl/ptbxl_database.csv"
    text = table.read_text()
    table.write_text(text.replace("\n1,501.0,1,", "\n1.0,501,1.0,"))
    corpus = PtbXl(root / "ptbxl")
    assert corpus.records == ("1", "2", "9") and corpus.patient_of["1"] == "501" and corpus.fold_of["1"] == 1
    for wrong, column in (("1.5,501.0,1,", "ecg_id"), ("1,501.5,1,", "patient_id"), ("1,501.0,1.5,", "strat_fold")):
        table.write_text(text.replace("\n1,501.0,1,", f"\n{wrong}"))
        with pytest.raises(ValueError, match=rf"database\.csv: ecg_id .*, {column}: '.*\.5' is not a whole number"):
            PtbXl(root / "ptbxl")


def test_ids_of_mimic_may_be_decimals(tmp_path):
    table = tmp_path / "record_list.csv"
    row = "10000032.0,40689238.0,files/p1000/p10000032/s40689238/40689238"
    table.write_text(f"\ufeff{LISTED}{row}\n", encoding="utf-8")
    corpus = MimicIvEcg(tmp_path)
    assert dict(corpus.patient_of) == {"40689238": "10000032"} and not corpus._paths
    table.write_text(f"{LISTED}10000032.5,40689238,x\n")
    with pytest.raises(ValueError, match=r"line 2: '10000032\.5,40689238,x' is no row with a subject_id"):
        MimicIvEcg(tmp_path)


def test_the_other_rate_is_named_where_it_alone_is_there(root):
    shutil.move(root / "ptbxl/records100", root / "ptbxl/records500")
    table = root / "ptbxl/ptbxl_database.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    rows = [[*row[:3], "", row[3].replace("records100", "records500"), *row[5:]] for row in lines[1:]]
    table.write_text("\n".join(map(",".join, [lines[0], *rows])))
    with pytest.raises(ValueError, match="is in records100/, but records500/ is there: set rate: 500"):
        PtbXl(root / "ptbxl")
    with pytest.raises(ValueError, match="set rate: 500"):
        load_questions("ecg_qa", root=root, sets=["ecgqa"])
    assert len(PtbXl(root / "ptbxl", 500)) == 3
    shutil.rmtree(root / "ptbxl/records500")
    with pytest.raises(ValueError, match="is in records100/: download PTB-XL"):
        PtbXl(root / "ptbxl")


def test_a_part_of_the_corpus_is_counted(root):
    sample_file(root, 2).with_suffix(".hea").unlink()
    notes = load_questions("ecg_qa", root=root, sets=["ecgqa"]).notes
    assert notes[0] == "2 of the 3 records of PTB-XL's table are on disk."
    assert "ecgqa (template): 1 training questions dropped: their ECGs are not on disk." in notes


@pytest.mark.parametrize("name", ["._a.json", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX", ".hidden"])
def test_what_systems_leave_behind_is_hidden(name):
    assert is_hidden(name) and not is_hidden("a.json") and not is_hidden("records.v1")


def test_visible_files_are_sorted_and_follow_links_once(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for path in (inside / "b.hea", inside / "a.hea", inside / "._a.hea", inside / ".git/c.hea", outside / "d.hea"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (inside / "linked").symlink_to(outside)
    (outside / "back").symlink_to(inside)
    assert [path.name for path in visible_files(inside, "*.hea")] == ["a.hea", "b.hea"]
    assert [path.name for path in visible_files(inside, "*.hea", below=True)] == ["a.hea", "b.hea", "d.hea"]
    assert [path.name for path in hidden_files(inside)] == ["._a.hea", "c.hea"]
    assert visible_files(tmp_path / "absent") == []


def test_hidden_files_are_no_records_and_no_tables(tmp_path):
    for name in ("A0001.hea", "._A0001.hea", ".trash/A0002.hea", "__MACOSX/A0003.hea"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert Cpsc2018(tmp_path).records == ("A0001",)
    (tmp_path / "._icbeb_train.csv").touch()
    with pytest.raises(ValueError, match=r"icbeb_train\.csv \(or icbeb_train\.csv\.gz\) is not in it or below"):
        Cpsc2018.split_labels(tmp_path)


def test_hidden_files_are_no_questions(root):
    folder = root / "ecgqa/ptbxl/template/train"
    before = load_questions("ecg_qa", root=root, sets=["ecgqa"]).train
    (folder / "._00000.json").write_bytes(b"\x00\x05\x16\x07")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints/00000.json").write_text("[]")
    assert load_questions("ecg_qa", root=root, sets=["ecgqa"]).train == before
    (folder / "00000.json").unlink()
    with pytest.raises(ValueError, match=r"no \.json files of questions"):
        load_questions("ecg_qa", root=root, sets=["ecgqa"])


@pytest.mark.parametrize("ecg", [1, 1.0, "1", "1.0", "00001"])
def test_a_record_has_one_id_however_it_is_written(tmp_path, ecg):
    root = write_ecg_qa(tmp_path, {1: 1, 9: 9}, {"train": [ecg], "valid": [9.0], "test": []})
    loaded = load_questions("ecg_qa", root=root, sets=["ecgqa"])
    assert [row["ecgs"] for row in (*loaded.train, *loaded.test)] == [["1"], ["9"]]


@pytest.mark.parametrize("ecg", [1.5, -1, True, None, "a", "", [1], "1e0", float("nan")])
def test_what_is_no_id_is_named_by_file_question_and_field(tmp_path, ecg):
    root = write_ecg_qa(tmp_path, {1: 1}, {"train": [1, ecg]})
    with pytest.raises(ValueError, match=r"train/00000\.json: question 1: ecg_id: .* is no number of a record"):
        load_questions("ecg_qa", root=root, sets=["ecgqa"])


def test_files_of_questions_may_begin_with_a_byte_order_mark(root):
    file = root / "ecgqa/ptbxl/template/train/00000.json"
    file.write_text("\ufeff" + file.read_text(), encoding="utf-8")
    assert len(load_questions("ecg_qa", root=root, sets=["ecgqa"]).train) == 2
    file.write_bytes(b'[{"question": "\xe4"}]')
    with pytest.raises(ValueError, match=r"00000\.json: not valid JSON: 'utf-8' codec can't decode byte 0xe4"):
        load_questions("ecg_qa", root=root, sets=["ecgqa"])


def test_an_ecg_compared_with_itself_is_told(tmp_path):
    kind = {"question_type": "comparison_irrelevant-verify", "attribute": None}
    pairs = [ask(0, 1) | {"ecg_id": [1, 2]} | kind, ask(1, 1) | {"ecg_id": [2, "2"]} | kind]
    root = write_ecg_qa(tmp_path, {1: 1, 2: 2}, {"train": pairs})
    loaded = load_questions("ecg_qa", root=root, sets=["ecgqa"])
    assert len(loaded.train) == 2
    assert loaded.notes[-1] == "1 training question compares an ECG with itself (ecgqa/template/train/1): kept."
