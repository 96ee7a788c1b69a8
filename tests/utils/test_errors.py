"""Every kind of user error ends with its own exit status."""

from utils.errors import DatasetError, EnvironmentFault, Fault, StorageFault, UserError


def test_exit_statuses_are_the_documented_ones() -> None:
    kinds = (UserError, DatasetError, EnvironmentFault, StorageFault)
    assert [kind.exit_status for kind in kinds] == [2, 3, 4, 5]


def test_a_fault_is_one_line_with_case_file_what_and_fix() -> None:
    fault = Fault(code="F01", case_id="c1", file="c1.nii.gz", what="It is empty.", fix="Copy it again.")
    assert str(fault) == "F01 case c1: c1.nii.gz: It is empty. Fix: Copy it again."
