import json
from pathlib import Path
from typing import Any

import pytest

from data_preprocessing.dataset import describe_dataset, find_dataset, read_dataset, task_code
from data_preprocessing.faults import DatasetFaults
from data_preprocessing.scans import read_scans
from utils.errors import UserError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
NNUNET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
MSD = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior"}}
CLASSES = {"name": "grade", "classes": ["low", "high"], "source": "classes.csv"}


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def nnunet(root: Path, *case_ids: str, **changes: Any) -> Path:
    """An nnU-Net v2 folder with empty files; `changes` replaces keys of dataset.json."""
    for case_id in case_ids:
        touch(root, f"imagesTr/{case_id}_0000.nii.gz", f"labelsTr/{case_id}.nii.gz")
    (root / "dataset.json").write_text(json.dumps(NNUNET | changes))
    return root


def msd(root: Path, *case_ids: str, **changes: Any) -> Path:
    """An MSD folder with empty files."""
    entries = [
        {"image": f"./imagesTr/{case_id}.nii.gz", "label": f"./labelsTr/{case_id}.nii.gz"}
        for case_id in case_ids
    ]
    for case_id in case_ids:
        touch(root, f"imagesTr/{case_id}.nii.gz", f"labelsTr/{case_id}.nii.gz")
    (root / "dataset.json").write_text(json.dumps(MSD | {"training": entries} | changes))
    return root


def codes(root: Path) -> list[str]:
    return [fault.code for fault in describe_dataset(root).faults]


def only_fault(root: Path) -> str:
    (fault,) = describe_dataset(root).faults
    return str(fault)


def test_an_nnunet_folder_is_read_by_its_file_names(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/._a_0000.nii.gz", "imagesTr/.DS_Store", "imagesTs/t_0000.nii.gz")
    dataset = read_dataset(nnunet(tmp_path, "b", "a"))
    assert [case.case_id for case in dataset.training] == ["a", "b"]
    assert dataset.training[0].images == (tmp_path / "imagesTr/a_0000.nii.gz",)
    assert dataset.training[0].label == tmp_path / "labelsTr/a.nii.gz"
    assert [case.case_id for case in dataset.test] == ["t"]
    assert (dataset.channel_names, dataset.label_names) == (("CT",), ("background", "tumour"))
    assert (dataset.class_names, dataset.training[0].class_target) == ((), None)


def test_an_msd_folder_is_read_by_its_lists(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTs/t.nii.gz", "imagesTs/u.nii.gz", "imagesTr/._a.nii.gz")
    root = msd(tmp_path, "a", test=["./imagesTs/t.nii.gz", {"image": "imagesTs/u.nii.gz"}], numTraining=1)
    dataset = read_dataset(root)
    assert [case.case_id for case in dataset.training] == ["a"]
    assert [case.case_id for case in dataset.test] == ["t", "u"]
    assert dataset.label_names == ("background", "Anterior")
    assert codes(root) == []


def test_an_msd_list_finds_files_with_channel_numbers(tmp_path: Path) -> None:
    root = msd(tmp_path, "a", modality={"0": "T1", "1": "T2"})
    (root / "imagesTr/a.nii.gz").unlink()
    touch(root, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz")
    assert [path.name for path in read_dataset(root).training[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_the_dataset_block_replaces_the_image_folder(tmp_path: Path) -> None:
    touch(tmp_path, "scans/one.nii.gz", "masks/one.nii.gz")
    block = {"case_1": {"images": ["scans/one.nii.gz"], "label": "masks/one.nii.gz"}}
    (case,) = read_dataset(nnunet(tmp_path, dataset=block)).training
    assert case.case_id == "case_1"
    assert case.images == (tmp_path / "scans/one.nii.gz",)


SIDES = {"background": 0, "kidney_left": 1, "kidney_right": 2}
SIDED_REGIONS = {"background": 0, "left": [1, 3], "right": [2, 4], "left_cyst": 3, "right_cyst": 4}


def test_sides_are_declared_by_the_names_of_labels_or_of_regions(tmp_path: Path) -> None:
    def pairs(**changes: Any) -> object:
        return read_dataset(nnunet(tmp_path, "a", **changes)).left_right_pairs

    assert pairs(labels=SIDES) is None
    assert pairs(labels=SIDES, left_right_pairs=[]) == ()
    assert pairs(labels=SIDES, left_right_pairs=[["kidney_left", "kidney_right"]]) == ((1, 2),)
    declared = [["left", "right"], ["left_cyst", "right_cyst"]]
    regions = {"labels": SIDED_REGIONS, "regions_class_order": [1, 2, 3, 4]}
    assert pairs(**regions, left_right_pairs=declared) == ((1, 2), (3, 4))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ("kidney_left", "a list of pairs of names"),
        ([["kidney_left", "liver"]], "two of background, kidney_left, kidney_right"),
        ([["kidney_left"]], "got kidney_left"),
        ([["kidney_left", "kidney_left"]], "a label once"),
    ],
)
def test_sides_that_are_no_pairs_of_labels_are_told(tmp_path: Path, pairs: object, words: str) -> None:
    root = nnunet(tmp_path, "a", labels=SIDES, left_right_pairs=pairs)
    assert codes(root) == ["E103"]
    assert words in only_fault(root)


def test_both_nifti_endings_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/b_0000.nii", "labelsTr/b.nii.gz")
    assert [case.case_id for case in read_dataset(nnunet(tmp_path, "a")).training] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1"),
        ('{"labels": ', "line 1"),
        ('{"labels": {}, "labels": {}}', "twice"),
        ('{"x": NaN}', "NaN"),
        ("[1]", "list"),
        ("[" * 100_000, "dataset.json"),
    ],
)
def test_a_damaged_description_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    assert codes(tmp_path) == ["E101"]
    assert words in only_fault(tmp_path)


def test_a_missing_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetFaults, match="E101.*dataset.json does not exist"):
        read_dataset(tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file = nnunet(tmp_path, "a") / "dataset.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert codes(tmp_path) == []


def test_a_misspelt_key_is_an_error_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    root = nnunet(tmp_path, "a", note="free text", clasification=CLASSES)
    assert "did you mean 'classification'" in only_fault(root)
    root = nnunet(tmp_path, "a", note="free text", clases=["low", "high"])
    assert "did you mean 'classes'" in only_fault(root)


@pytest.mark.parametrize("channels", [None, {}, {"1": "CT"}, {"0": 3}, "CT"])
def test_channels_must_be_numbered_names(tmp_path: Path, channels: Any) -> None:
    assert "E104" in codes(nnunet(tmp_path, "a", channel_names=channels))


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "tumour": 2},
        {"tumour": 1, "cyst": 2},
        {"background": 0, "a": 1, "b": 1},
        {"0": "background", "2": "tumour"},
        {"0": "background", "1": "background"},
        {"background": 0, "tumour": "1"},
        {"background": 0, "tumour": True},
        {"background": 0, "tumour": 1, "ignore": 1},
        {"background": 0, "tumour": 1, "ignore": 7},
        {},
        None,
    ],
)
def test_labels_with_gap_duplicate_or_no_background_are_refused(tmp_path: Path, labels: Any) -> None:
    assert "E105" in codes(nnunet(tmp_path, "a", labels=labels))


def test_a_region_with_a_value_beyond_the_labels_is_named_with_it(tmp_path: Path) -> None:
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 9], "enhancing": 3}
    told = only_fault(nnunet(tmp_path, "a", labels=regions, regions_class_order=[1, 2, 3]))
    assert "E105" in told
    assert "'core' names the value 9, but nothing names 4; the values should be 0, 1, 2" in told
    assert "whole" not in told


def test_labels_that_no_mask_holds_are_refused_when_the_dataset_is_read(tmp_path: Path) -> None:
    as_names = {"background": 0} | {f"part {value}": value for value in range(1, 256)}
    root = nnunet(tmp_path, "a", labels=as_names | {"ignore": 256})
    assert codes(root) == []  # the ignore label is never predicted
    told = only_fault(nnunet(tmp_path, "a", labels=as_names | {"one more": 256}))
    assert "E105" in told
    assert "dataset.json" in told
    assert "values up to 255" in told
    regions = {"background": 0} | {f"part {value}": [value] for value in range(1, 257)}
    order = list(range(1, 257))
    assert "values up to 255" in only_fault(nnunet(tmp_path, "a", labels=regions, regions_class_order=order))


def test_the_ignore_label_is_no_label_name(tmp_path: Path) -> None:
    dataset = read_dataset(nnunet(tmp_path, "a", labels={"background": 0, "tumour": 1, "ignore": 2}))
    assert (dataset.label_names, dataset.ignore_label) == (("background", "tumour"), 2)


KIDNEY = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2}


def test_regions_keep_their_order_and_name_the_value_they_are_painted_with(tmp_path: Path) -> None:
    dataset = read_dataset(nnunet(tmp_path, "a", labels=KIDNEY, regions_class_order=[1, 3, 2]))
    assert dataset.regions == ((1, 2, 3), (2, 3), (2,))
    assert dataset.label_names == ("background", "kidney", "tumour", "masses")
    assert dataset.region_names == ("kidney", "masses", "tumour")
    assert dataset.regions_class_order == (1, 3, 2)


@pytest.mark.parametrize("order", [None, [1, 2], [1, 1, 2], [1, 2, 9], ["1", "2", "3"]])
def test_regions_need_an_order_of_their_own_length(tmp_path: Path, order: Any) -> None:
    assert codes(nnunet(tmp_path, "a", labels=KIDNEY, regions_class_order=order)) == ["E106"]


def test_an_image_without_channel_number_is_told_its_right_name(tmp_path: Path) -> None:
    touch(nnunet(tmp_path, "a"), "imagesTr/b.nii.gz")
    faults = [fault for fault in describe_dataset(tmp_path).faults if fault.severity == "error"]
    assert [fault.code for fault in faults] == ["E111"]
    assert "b_0000.nii.gz" in faults[0].fix


def test_a_missing_channel_is_named_with_its_case(tmp_path: Path) -> None:
    root = nnunet(tmp_path, "a", channel_names={"0": "T1", "1": "T2"})
    assert "case a" in only_fault(root)
    assert "_0001" in only_fault(root)


def test_a_missing_label_is_an_error_and_a_surplus_one_a_warning(tmp_path: Path) -> None:
    root = nnunet(tmp_path, "a", "b")
    (root / "labelsTr/a.nii.gz").rename(root / "labelsTr/z.nii.gz")
    assert sorted(codes(root)) == ["E109", "W101"]


def test_a_listed_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    root = msd(tmp_path, "a", "b")
    (root / "imagesTr/b.nii.gz").unlink()
    assert "E109 case b" in only_fault(root)


def test_a_file_that_is_not_listed_is_a_warning(tmp_path: Path) -> None:
    touch(msd(tmp_path, "a"), "imagesTr/forgotten.nii.gz")
    assert codes(tmp_path) == ["W101"]
    assert "forgotten" in only_fault(tmp_path)


def test_test_images_that_were_not_fetched_are_a_warning(tmp_path: Path) -> None:
    assert codes(msd(tmp_path, "a", test=["./imagesTs/t.nii.gz"])) == ["W103"]


def test_a_wrong_number_of_cases_is_a_warning(tmp_path: Path) -> None:
    assert codes(nnunet(tmp_path, "a", numTraining=5)) == ["W102"]


def test_no_case_at_all_is_an_error(tmp_path: Path) -> None:
    assert codes(nnunet(tmp_path)) == ["E113"]


def test_a_case_listed_twice_is_an_error(tmp_path: Path) -> None:
    assert "E108 case a" in only_fault(msd(tmp_path, "a", "a"))


def test_ids_that_differ_by_letter_case_collide(tmp_path: Path) -> None:
    assert codes(nnunet(tmp_path, "case", "CASE")) == ["E108"]


@pytest.mark.parametrize("case_id", ["-a", ".a", "a b", "<script>", "$(id)", "ä", "a" * 129, "a\n"])
def test_an_id_that_could_not_be_a_plain_file_name_is_refused(tmp_path: Path, case_id: str) -> None:
    touch(tmp_path, "scan.nii.gz")
    root = nnunet(tmp_path, dataset={case_id: {"images": ["scan.nii.gz"]}})
    assert codes(root) == ["E107"]


@pytest.mark.parametrize("kind", ["parent", "absolute", "link", "variable"])
def test_a_path_out_of_the_folder_is_refused_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    root = tmp_path / "set"
    touch(tmp_path, "set/labelsTr/a.nii.gz", "outside.nii.gz")
    (root / "link.nii.gz").symlink_to(tmp_path / "outside.nii.gz")
    monkeypatch.setenv("SCANS", str(tmp_path))
    text = {
        "parent": "../outside.nii.gz",
        "absolute": str(tmp_path / "outside.nii.gz"),
        "link": "link.nii.gz",
        "variable": "$SCANS/outside.nii.gz",
    }[kind]
    nnunet(root, dataset={"a": {"images": [text], "label": "labelsTr/a.nii.gz"}})
    assert codes(root) == ["E110"]
    (case,) = read_dataset(root, allow_external=True).training
    assert case.images[0].resolve() == tmp_path / "outside.nii.gz"


def test_all_faults_are_raised_together_one_line_each(tmp_path: Path) -> None:
    root = nnunet(tmp_path, "a", "b", labels={"background": 0, "tumour": 3})
    (root / "labelsTr/a.nii.gz").unlink()
    with pytest.raises(DatasetFaults) as caught:
        read_dataset(root)
    assert [line[:4] for line in str(caught.value).splitlines()] == ["E105", "E109"]
    assert caught.value.exit_status == 3


@pytest.mark.parametrize(
    "table",
    [
        "case,class\na,high\nb,low\n",
        "\ufeffcase;class\r\na; high \r\nb;low\r\n",
        "class,note,case\nhigh,x,a\nlow,,b\n",
    ],
)
def test_classes_come_from_the_table_whatever_its_dialect(tmp_path: Path, table: str) -> None:
    (tmp_path / "classes.csv").write_text(table, encoding="utf-8")
    dataset = read_dataset(nnunet(tmp_path, "a", "b", classification=CLASSES))
    assert (dataset.class_title, dataset.class_names) == ("grade", ("low", "high"))
    assert [case.class_target for case in dataset.training] == [1, 0]


def test_without_a_block_classes_csv_is_used(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("case,class\na,z\nb,y\n")
    dataset = read_dataset(nnunet(tmp_path, "a", "b"))
    assert (dataset.class_names, dataset.training[0].class_target) == (("y", "z"), 1)


@pytest.mark.parametrize("classes", [["z", "y"], ["z", "y", "x"]])
def test_the_key_classes_orders_the_classes_of_the_table(tmp_path: Path, classes: list[str]) -> None:
    (tmp_path / "classes.csv").write_text("case,class\na,z\nb,y\n")
    dataset = read_dataset(nnunet(tmp_path, "a", "b", classes=classes))
    assert dataset.class_names == tuple(classes)
    assert [case.class_target for case in dataset.training] == [0, 1]


@pytest.mark.parametrize("classes", [{"0": "z", "1": "y"}, "z", ["z", "z"], [0, 1]])
def test_the_key_classes_that_is_no_list_of_names_is_refused_where_cases_have_one(
    tmp_path: Path, classes: object
) -> None:
    (tmp_path / "classes.csv").write_text("case,class\na,z\nb,y\n")
    assert codes(nnunet(tmp_path, "a", "b", classes=classes)) == ["E125"]
    (tmp_path / "classes.csv").unlink()
    assert read_dataset(tmp_path).class_names == ()


def test_class_folders_are_classes(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/benign/a_0000.nii.gz", "labelsTr/benign/a.nii.gz")
    touch(tmp_path, "imagesTr/malignant/b_0000.nii.gz", "labelsTr/b.nii.gz")
    dataset = read_dataset(nnunet(tmp_path))
    assert dataset.class_names == ("benign", "malignant")
    assert [case.class_target for case in dataset.training] == [0, 1]


def test_a_pattern_on_the_case_id_gives_the_class(tmp_path: Path) -> None:
    block = {"pattern": r"quiz_(\d)_", "classes": ["0", "1"]}
    dataset = read_dataset(nnunet(tmp_path, "quiz_1_a", "quiz_0_b", classification=block))
    assert [case.class_target for case in dataset.training] == [0, 1]


@pytest.mark.parametrize(
    ("table", "code", "words"),
    [
        ("case,class\na,high\nb,low\nb,low\n", "E122", "line 4"),
        ("case,class\na,high\nb,hihg\n", "E123", "line 3 holds the class 'hihg'"),
        ("case,class\na,high\nb,NaN\n", "E124", "line 3 holds 'NaN'"),
        ("case,class\na,high\n", "E124", "case b"),
        ("case,grade\na,high\n", "E121", "'class'"),
        ('case,class\na,"high\n', "E121", "cannot be read"),
    ],
)
def test_a_faulty_class_table_is_named_by_line(tmp_path: Path, table: str, code: str, words: str) -> None:
    (tmp_path / "classes.csv").write_text(table)
    faults = describe_dataset(nnunet(tmp_path, "a", "b", classification=CLASSES)).faults
    assert faults[0].code == code
    assert words in str(faults[0])


def test_a_missing_class_can_be_masked(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("case,class\na,high\nb,NaN\n")
    root = nnunet(tmp_path, "a", "b", "c", classification=CLASSES | {"missing": "mask"})
    assert [case.class_target for case in read_dataset(root).training] == [1, None, None]


@pytest.mark.parametrize(
    "block",
    [
        "classes.csv",
        CLASSES | {"missing": "maybe"},
        CLASSES | {"classes": ["low", "low"]},
        CLASSES | {"source": 3},
        {"pattern": "(a"},
        {"pattern": "a"},
    ],
)
def test_a_classification_block_that_makes_no_sense_is_refused(tmp_path: Path, block: Any) -> None:
    assert codes(nnunet(tmp_path, "a", classification=block)) == ["E125"]


def test_grouping_gives_the_patient(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("case,patient\na,P1\nb,P1\n")
    grouping = {"source": "cases.csv", "case_column": "case", "group_column": "patient"}
    root = nnunet(tmp_path, "a", "b", grouping=grouping)
    assert [case.patient_id for case in read_dataset(root).training] == ["P1", "P1"]
    touch(root, "imagesTr/c_0000.nii.gz", "labelsTr/c.nii.gz")
    assert "E124 case c" in only_fault(root)


@pytest.mark.parametrize("task", ["4", "04", "Task04_Heart", "{data}/Task04_Heart"])
def test_a_task_is_found_by_number_name_or_path(tmp_path: Path, task: str) -> None:
    msd(tmp_path / "Task04_Heart", "a")
    nnunet(tmp_path / "Dataset010_Lung", "a")
    assert find_dataset(tmp_path, task.format(data=tmp_path)) == tmp_path / "Task04_Heart"


def test_an_unknown_or_ambiguous_task_lists_what_is_there(tmp_path: Path) -> None:
    msd(tmp_path / "Task04_Heart", "a")
    nnunet(tmp_path / "Dataset004_Heart", "a")
    with pytest.raises(UserError, match="ambiguous.*Dataset004_Heart.*Task04_Heart"):
        find_dataset(tmp_path, "4")
    with pytest.raises(UserError, match="No dataset for task '7'.*Task04_Heart"):
        find_dataset(tmp_path, "7")


@pytest.mark.parametrize(
    ("name", "code"),
    [("Task04_Hippocampus", "04"), ("Dataset010_LIDC", "010"), ("phantom", "phantom")],
)
def test_the_task_code_is_the_number_as_written(name: str, code: str) -> None:
    assert task_code(Path("data") / name) == code


@pytest.mark.parametrize(
    ("files", "num_channels", "expected"),
    [
        (["a.nii.gz", "b_0000.nii"], 1, {"a": 1, "b": 1}),
        (["a_0000.nii.gz", "a_0001.nii.gz"], 2, {"a": 2}),
        (["a.nii.gz", ".DS_Store", "notes.txt"], 2, {"a": 1}),
        (["scan_0001.nii.gz", "scan_0002.nii.gz"], 1, {"scan_0001": 1, "scan_0002": 1}),
    ],
)
def test_a_folder_of_scans_is_grouped_into_cases(
    tmp_path: Path, files: list[str], num_channels: int, expected: dict[str, int]
) -> None:
    touch(tmp_path, *files)
    cases = read_scans(tmp_path, num_channels)
    assert {case.case_id: len(case.images) for case in cases} == expected


@pytest.mark.parametrize(
    ("files", "num_channels", "code"),
    [
        (["a_0000.nii.gz"], 2, "E112"),
        (["a_0000.nii.gz", "a_0001.nii.gz"], 1, "E112"),
        (["a.nii", "a.nii.gz"], 1, "E108"),
        (["a b.nii"], 1, "E107"),
        (["notes.txt"], 1, "E109"),
    ],
)
def test_scans_that_do_not_make_cases_are_refused(
    tmp_path: Path, files: list[str], num_channels: int, code: str
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DatasetFaults) as caught:
        read_scans(tmp_path, num_channels)
    assert [fault.code for fault in caught.value.faults] == [code]


def test_a_single_scan_brings_its_other_channels(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    (case,) = read_scans(tmp_path / "a_0000.nii.gz", 2)
    assert [path.name for path in case.images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    (alone,) = read_scans(tmp_path / "b_0000.nii.gz", 1)
    assert (alone.case_id, alone.images) == ("b", (tmp_path / "b_0000.nii.gz",))


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="the real datasets are not in ../shared/data")
def test_the_real_datasets_are_described_without_fault() -> None:
    hippocampus = describe_dataset(DATA / "Task04_Hippocampus")
    nodules = describe_dataset(DATA / "Dataset010_LIDCNodules")
    assert hippocampus.faults == nodules.faults == ()
    assert len(hippocampus.dataset.training) == 220
    assert len({case.patient_id for case in nodules.dataset.training}) == 385
    assert sum(case.class_target == 1 for case in nodules.dataset.training) == 234
