"""The command that makes a results folder of an exported model, after all of it was checked."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_preprocessing.archives import UNPACKING, install_folder, refuse_small_disk
from scripts.download_transfer import SCHEMES, check_digest, download
from scripts.model_archive import ModelCard, open_archive
from utils.command import run_command
from utils.errors import DatasetError, UserError
from utils.options import parse
from utils.run_log import say
from utils.storage import file_hash

DESCRIPTION = (
    "Unpack a model of scripts/export_model.py into a results folder, for main.py --exec_mode predict "
    "--results FOLDER, or for a training that starts from it. Nothing of the archive is run."
)


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Which archive, and where to."""

    archive: Path | None = None
    """The archive, a file that is here."""
    url: str = ""
    """Its https, http or file address, in place of --archive."""
    sha256: str = ""
    """The archive's SHA-256, 64 hexadecimal digits; another archive is refused."""
    results: Path = Path("/results")
    """Results folder to make."""
    overwrite: bool = False
    """Replace a results folder that is there already, with all that it holds."""


def run(options: ImportOptions) -> Path:
    """Make the results folder and return it; it appears whole or not at all. UserError and its kinds."""
    _refuse_odd_options(options)
    archive, is_fresh = _fetch(options)
    _check_hash(archive, options.sha256.lower(), is_fresh=is_fresh)
    with open_archive(archive) as opened:
        # Imported here, behind the checks of the options: torch takes seconds.
        from scripts.model_unpacking import check_models

        options.results.parent.mkdir(parents=True, exist_ok=True)
        refuse_small_disk(options.results.parent, opened.size)
        prefix = f".{options.results.name}."
        temporary = Path(tempfile.mkdtemp(dir=options.results.parent, prefix=prefix, suffix=UNPACKING))
        try:
            made = temporary / "model"
            opened.unpack(made)
            check_models(archive, opened.card, made)
            install_folder(made, options.results, aside=temporary / "replaced")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if is_fresh:
        archive.unlink()
    say(f"{options.results}: {_told(opened.card)} of {opened.card.dataset}.")
    print(f"python main.py --exec_mode predict --results {options.results} -i SCANS -o PREDICTIONS")
    return options.results


def _told(card: ModelCard) -> str:
    """How many models there are."""
    num_previous = sum(model.is_previous for model in card.models)
    number = len(card.models) - num_previous
    before = f", and {num_previous} of their previous stage," if num_previous else ""
    return f"{number} model{'s' if number > 1 else ''}{before}"


def _refuse_odd_options(options: ImportOptions) -> None:
    check_digest(options.sha256)
    if (options.archive is None) == (not options.url):
        raise UserError("Give the model by --archive FILE or by --url ADDRESS, one of the two.")
    if options.archive is not None and not options.archive.is_file():
        raise UserError(f"--archive {options.archive} is no file.")
    scheme = urlsplit(options.url).scheme
    if options.url and scheme not in SCHEMES:
        raise UserError(f"--url should start with https://, http:// or file://, got {options.url!r}.")
    if scheme == "http" and not options.sha256:
        say("Nothing proves the origin of what comes over http; give --sha256 or use https.")
    folder = options.results
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not options.overwrite):
        raise UserError(f"{folder} is there already; choose another --results, or --overwrite to replace it.")


def _fetch(options: ImportOptions) -> tuple[Path, bool]:
    """(The archive, whether this run downloaded it)."""
    if options.archive is not None:
        return options.archive, False
    parts = urlsplit(options.url)
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        if parts.netloc not in ("", "localhost") or not path.is_file():
            raise UserError(f"--url {options.url}: {path} does not exist on this machine.")
        return path, False
    say(f"Downloading {options.url}")
    return download(options.url, options.results.parent / f".{options.results.name}.zip"), True


def _check_hash(archive: Path, expected: str, *, is_fresh: bool) -> None:
    """DatasetError if the archive is not the one asked for; one downloaded by this run is removed then."""
    if not expected or (found := file_hash(archive)) == expected:
        return
    if is_fresh:
        archive.unlink()
    raise DatasetError(f"{archive} has the SHA-256 {found}, expected {expected}. Nothing was unpacked.")


def main() -> None:
    """Run from the command line."""
    run(parse(ImportOptions, sys.argv[1:], program="import_model.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
