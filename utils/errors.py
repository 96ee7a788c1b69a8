"""Errors for the person at the keyboard, each with the exit status the command ends with."""

from dataclasses import dataclass
from typing import ClassVar


class UserError(Exception):
    """Something the user can mend; printed as one message, without a traceback."""

    exit_status: ClassVar[int] = 2


class DatasetError(UserError):
    """The data are not what the program needs; ends with status 3."""

    exit_status: ClassVar[int] = 3


class EnvironmentFault(UserError):  # noqa: N818 - EnvironmentError is Python's
    """A device, driver or package is missing; ends with status 4."""

    exit_status: ClassVar[int] = 4


class StorageFault(UserError):  # noqa: N818 - like EnvironmentFault
    """A file could not be read or written; ends with status 5."""

    exit_status: ClassVar[int] = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with one file: code, case, file, what, fix; printed as one line."""

    code: str
    case_id: str
    file: str
    what: str
    fix: str
    severity: str = "error"  # error or warning

    def __str__(self) -> str:
        return f"{self.code} case {self.case_id}: {self.file}: {self.what} Fix: {self.fix}"
