"""The archive of a trained model: a zip of safetensors and JSON, checked as a whole before it is unpacked."""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data_preprocessing.archives import ArchiveLimits
from scripts.stage_notes import NOTE
from utils.errors import DatasetError, StorageFault
from utils.storage import from_plain, parse_json

CARD = "model.json"
FORMAT = 1
# What an archive may hold beside its card; the names are those of a results folder.
PREVIOUS = "previous_stage"  # the folder of a cascade's first stage; NOTE names it
MEMBER = re.compile(
    rf"({PREVIOUS}/)?(fold_[0-9]{{1,3}}/)?(checkpoints/model\.safetensors|classifier/[a-z]{{1,32}}(_scores)?\.json"
    rf"|postprocessing\.json|final_metrics\.json|splits_final\.json)|{re.escape(NOTE)}"
)
WEIGHTS = "checkpoints/model.safetensors"
LIMITS = ArchiveLimits(max_members=1000, max_bytes=2**34)  # 16 GiB: ten folds of a very large network
CARD_LIMIT = 2**26  # bytes
CHUNK = 2**20  # bytes
PLAIN_KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1  # flag of a member
UNIX_MODE = 16  # bits by which a member's mode is shifted
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedFile:
    """One member: its name, its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedModel:
    """One network: the folder of its files (empty: the archive's own), and its card in plain values.

    `card` is that of a checkpoint: plan, architecture and training cases.
    """

    folder: str
    card: dict[str, Any]

    @property
    def prefix(self) -> str:
        """What the names of its files begin with."""
        return f"{self.folder}/" if self.folder else ""

    @property
    def is_previous(self) -> bool:
        """Whether it is of a cascade's first stage."""
        return self.prefix.startswith(f"{PREVIOUS}/")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What an archive says about itself; the rest of it can be read by this alone."""

    format: int
    made_with: dict[str, str]  # versions: program, python, torch, safetensors
    dataset: str
    configuration: str
    label_names: tuple[str, ...]
    class_names: tuple[str, ...]
    models: tuple[ArchivedModel, ...]
    files: tuple[ArchivedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenArchive:
    """An archive whose names, sizes and hashes were found right."""

    path: Path
    card: ModelCard
    zip: zipfile.ZipFile

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.card.files)

    def unpack(self, folder: Path) -> None:
        """Write all files below `folder`; DatasetError if one changed since it was checked."""
        for file in self.card.files:
            target = folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                _check_hash(self.path, self.zip, file, copy=stream)


@contextmanager
def open_archive(path: Path) -> Iterator[OpenArchive]:
    """The archive at `path`, checked; nothing is written.

    DatasetError for anything but plain files of the names that a model has, each once; for links, encryption,
    more members, more bytes or a higher ratio of packing than LIMITS, and members that overlap; for a card
    that is missing or does not list just these files; for a size or a hash that is not the card's; and for a
    damaged file.
    """
    with _told(path):
        opened = zipfile.ZipFile(path)
    with opened:
        with _told(path):
            members = _checked_members(path, opened)
            card = _read_card(path, opened)
            _refuse_other_files(path, card, members)
            for file in card.files:
                _check_hash(path, opened, file)
        yield OpenArchive(path=path, card=card, zip=opened)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What goes wrong in reading is told with the archive's name."""
    try:
        yield
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{path} is no whole zip archive ({reason}). Get it again.") from error
    except OSError as error:
        raise StorageFault(f"{path} could not be read: {error.strerror or error}.") from error


def _checked_members(path: Path, opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    infos = opened.infolist()
    if len(infos) > LIMITS.max_members:
        raise _refusal(path, f"has {len(infos)} members, at most {LIMITS.max_members} are accepted")
    packed_bytes = path.stat().st_size
    if sum(info.compress_size for info in infos) > packed_bytes:
        raise _refusal(path, "has members that overlap")
    for info in infos:
        if fault := _fault_of(info):
            raise _refusal(path, f"holds {info.filename!r}, {fault}")
        if info.filename in members:
            raise _refusal(path, f"holds {info.filename!r} twice")
        members[info.filename] = info
    if (total := sum(info.file_size for info in infos)) > min(
        LIMITS.max_bytes, LIMITS.max_ratio * packed_bytes
    ):
        raise _refusal(
            path,
            f"unpacks to {total} bytes from {packed_bytes}; at most {LIMITS.max_ratio:g} times its size and "
            f"{LIMITS.max_bytes} bytes are accepted",
        )
    return members


def _fault_of(info: zipfile.ZipInfo) -> str:
    """Why this member is not accepted, as the end of a sentence; empty if nothing is wrong with it."""
    kind = stat.S_IFMT(info.external_attr >> UNIX_MODE)
    if kind not in (0, stat.S_IFREG):
        return "which is no plain file"
    if info.filename != CARD and not MEMBER.fullmatch(info.filename):
        return "which is no file of a model"
    if info.flag_bits & ENCRYPTED:
        return "which is encrypted"
    if info.compress_type not in PLAIN_KINDS:
        return "which is packed in a way that is not accepted"
    if info.filename == CARD and info.file_size > CARD_LIMIT:
        return f"of {info.file_size} bytes; at most {CARD_LIMIT} are accepted"
    return ""


def _read_card(path: Path, opened: zipfile.ZipFile) -> ModelCard:
    if CARD not in opened.namelist():
        raise _refusal(path, f"has no {CARD}: it is no model of this program")
    source = f"{path}: {CARD}"
    data = parse_json(opened.read(CARD), source=source)
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise DatasetError(f"{source} has the format {found!r}; this program reads {FORMAT}.")
    return from_plain(ModelCard, data, source=source)


def _refuse_other_files(path: Path, card: ModelCard, members: dict[str, zipfile.ZipInfo]) -> None:
    """DatasetError unless the card lists every member once, with its size, and weights for every model."""
    listed = [file.name for file in card.files]
    if sorted([*listed, CARD]) != sorted(members):
        odd = sorted(set(listed) ^ (set(members) - {CARD})) or ["a file twice"]
        raise _refusal(path, f"and its {CARD} differ about {', '.join(odd)}")
    for file in card.files:
        if file.size != members[file.name].file_size:
            size = members[file.name].file_size
            raise _refusal(path, f"has {file.name} with {size} bytes, its {CARD} says {file.size}")
    models = sorted(f"{model.prefix}{WEIGHTS}" for model in card.models)
    if not models or models != sorted(name for name in listed if name.endswith(WEIGHTS)):
        raise _refusal(path, f"does not hold the weights of just the models that its {CARD} describes")


def _check_hash(
    path: Path, opened: zipfile.ZipFile, file: ArchivedFile, *, copy: IO[bytes] | None = None
) -> None:
    digest, size = hashlib.sha256(), 0
    with opened.open(file.name) as stream:
        # A forged header may promise fewer bytes than come; never more are read than were promised.
        while chunk := stream.read(min(CHUNK, file.size - size + 1)):
            size += len(chunk)
            if size > file.size:
                break
            digest.update(chunk)
            if copy is not None:
                copy.write(chunk)
    if size != file.size or digest.hexdigest() != file.sha256:
        raise _refusal(path, f"has a {file.name} that is not the one its {CARD} describes (SHA-256)")


def _refusal(path: Path, what: str) -> DatasetError:
    return DatasetError(f"{path} {what}. Nothing was unpacked; get the archive from a source you trust.")
