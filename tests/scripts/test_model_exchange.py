"""A model packed, sent and unpacked; and archives that are refused before anything is written."""

import hashlib
import json
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from nnunet.case_features import weights_hash
from nnunet.evaluation.postprocessing import Postprocessing
from nnunet.network import Architecture, MultiTaskUNet
from nnunet.training.checkpoint import AVERAGED_PREFIX, MODEL_KEY, NETWORK_PREFIX, load_model, model_card
from nnunet.training.portable import write_portable
from scripts import export_model, import_model, model_archive
from scripts.export_model import ExportOptions
from scripts.import_model import ImportOptions
from scripts.members import find_members
from scripts.model_archive import CARD, WEIGHTS
from scripts.run_options import RunOptions
from utils.contracts import Plan
from utils.errors import DatasetError, UserError
from utils.storage import write_json

CPU = torch.device("cpu")
MakePlan = Callable[..., Plan]


def write_training(results: Path, plan: Plan, *, seed: int = 0) -> Path:
    """What a training leaves: a checkpoint with other averaged weights, scores, splits."""
    torch.manual_seed(seed)
    last, averaged = (MultiTaskUNet(plan, Architecture()).state_dict() for _ in range(2))
    state = {NETWORK_PREFIX + name: value for name, value in last.items()}
    state |= {AVERAGED_PREFIX + name: value for name, value in averaged.items()}
    (results / "checkpoints").mkdir(parents=True)
    path = results / "checkpoints" / "epoch=7.ckpt"
    torch.save({"state_dict": state, MODEL_KEY: model_card(plan, Architecture(), ["a", "b"])}, path)
    write_json(results / "final_metrics.json", {"dsc_mean": 0.5, "checkpoint": str(path)})
    write_json(results / "splits_final.json", [{"train": ["a", "b"], "val": ["c"]}])
    return path


def write_postprocessing(results: Path, networks: tuple[str, ...]) -> None:
    found = Postprocessing(
        steps=(), trials=(), num_cases=1, dice_before=0.5, dice_after=0.5, networks=networks
    )
    write_json(results / "postprocessing.json", found)


@pytest.fixture
def training(tmp_path: Path, make_plan: MakePlan) -> Path:
    """The results of a training."""
    write_training(tmp_path / "run", make_plan())
    return tmp_path / "run"


@pytest.fixture
def archive(training: Path, tmp_path: Path) -> Path:
    return export_model.run(ExportOptions(results=training, output=tmp_path / "model.zip"))


def imported(archive: Path, name: str = "imported") -> Path:
    return import_model.run(ImportOptions(archive=archive, results=archive.parent / name))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def hash_of(checkpoint: Path) -> str:
    return weights_hash(load_model(checkpoint, CPU).network)


@pytest.mark.flag(
    "import_model:archive", "import_model:results", "export_model:results", "export_model:output"
)
def test_the_averaged_weights_arrive_bit_by_bit_with_all_that_prediction_needs(
    archive: Path, training: Path
) -> None:
    results = imported(archive)
    assert names(results) == [WEIGHTS, "final_metrics.json", "splits_final.json"]
    (member,) = find_members(RunOptions(results=results))
    there, here = load_model(member.checkpoint, CPU), load_model(training / "checkpoints/epoch=7.ckpt", CPU)
    assert weights_hash(there.network) == weights_hash(here.network)
    assert (there.plan, there.architecture) == (here.plan, here.architecture)
    assert there.training_cases == ("a", "b")


def test_the_card_is_json_and_names_no_path_of_this_machine(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        card = json.loads(opened.read(CARD))
        texts = [opened.read(name) for name in opened.namelist()]
    assert (card["dataset"], card["class_names"]) == ("Dataset001_Tiny", ["benign", "malignant"])
    assert card["made_with"]["torch"] == torch.__version__
    assert card["models"][0]["card"]["training_cases"] == ["a", "b"]
    assert {file["name"] for file in card["files"]} == {WEIGHTS, "final_metrics.json", "splits_final.json"}
    assert not any(str(tmp_path).encode() in text for text in texts)


def test_the_same_model_gives_the_same_bytes(archive: Path, training: Path, tmp_path: Path) -> None:
    again = export_model.run(ExportOptions(results=training, output=tmp_path / "again.zip"))
    assert again.read_bytes() == archive.read_bytes()


def test_an_imported_model_can_be_exported_again(archive: Path, tmp_path: Path) -> None:
    again = export_model.run(ExportOptions(results=imported(archive), output=tmp_path / "again.zip"))
    assert again.read_bytes() == archive.read_bytes()


@pytest.mark.flag("export_model:folds")
def test_a_cross_validation_keeps_its_folds_and_what_they_share(tmp_path: Path, make_plan: MakePlan) -> None:
    runs = tmp_path / "runs"
    paths = [write_training(runs / f"fold_{fold}", make_plan(), seed=fold) for fold in range(3)]
    write_postprocessing(runs, tuple(map(hash_of, paths)))
    archive = export_model.run(ExportOptions(results=runs, output=tmp_path / "all.zip"))
    members = find_members(RunOptions(results=imported(archive)))
    assert [hash_of(member.checkpoint) for member in members] == [hash_of(path) for path in paths]
    assert "postprocessing.json" in names(tmp_path / "imported")
    two = export_model.run(ExportOptions(results=runs, folds=(0, 2), output=tmp_path / "two.zip"))
    members = find_members(RunOptions(results=imported(two, "two_folds")))
    assert [member.results.name for member in members] == ["fold_0", "fold_2"]


@pytest.mark.flag("export_model:ckpt_path")
def test_a_checkpoint_can_be_named(training: Path, tmp_path: Path, make_plan: MakePlan) -> None:
    other = write_training(tmp_path / "other", make_plan(), seed=9)
    archive = export_model.run(ExportOptions(results=training, ckpt_path=other, output=tmp_path / "o.zip"))
    assert hash_of(imported(archive) / WEIGHTS) == hash_of(other)


@pytest.mark.flag("export_model:overwrite")
def test_an_archive_that_is_there_is_kept(archive: Path, training: Path) -> None:
    options = ExportOptions(results=training, output=archive)
    with pytest.raises(UserError, match="--overwrite to replace it"):
        export_model.run(options)
    export_model.run(ExportOptions(results=training, output=archive, overwrite=True))


@pytest.mark.flag("import_model:overwrite")
def test_a_results_folder_that_is_there_is_kept(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "mine").touch()
    with pytest.raises(UserError, match="is there already"):
        imported(archive)
    results = tmp_path / "imported"
    import_model.run(ImportOptions(archive=archive, results=results, overwrite=True))
    assert WEIGHTS in names(results)
    assert "mine" not in names(results)


@pytest.mark.flag("import_model:sha256")
def test_another_archive_than_the_one_asked_for_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected a+\. Nothing was unpacked"):
        import_model.run(ImportOptions(archive=archive, results=tmp_path / "r", sha256="A" * 64))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest().upper()
    assert import_model.run(ImportOptions(archive=archive, results=tmp_path / "r", sha256=digest)).is_dir()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Tests are silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.flag("import_model:url")
def test_a_model_comes_from_an_address(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with served(tmp_path) as address:
        results = tmp_path / "over http" / "model"
        import_model.run(ImportOptions(url=f"{address}/model.zip", results=results))
        assert "give --sha256 or use https" in capsys.readouterr().err
        other = ImportOptions(url=f"{address}/model.zip", results=tmp_path / "no", sha256="a" * 64)
        with pytest.raises(DatasetError, match="Nothing was unpacked"):
            import_model.run(other)
    assert WEIGHTS in names(results)
    assert [path.name for path in results.parent.iterdir()] == ["model"]
    assert not list(tmp_path.glob(".no*"))
    local = ImportOptions(url=archive.as_uri(), results=tmp_path / "local")
    assert WEIGHTS in names(import_model.run(local))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "one of the two"),
        ({"archive": Path("a.zip"), "url": "https://a.example/b"}, "one of the two"),
        ({"archive": Path("/nowhere.zip")}, "is no file"),
        ({"url": "ftp://a.example/b"}, "https://, http:// or file://"),
        ({"url": "file:///nowhere.zip"}, "does not exist on this machine"),
        ({"url": "https://a.example/b", "sha256": "12"}, "64 hexadecimal digits"),
    ],
)
def test_an_odd_option_is_told(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        import_model.run(ImportOptions(results=tmp_path / "r", **changes))


# --- archives that are refused -----------------------------------------------------------------------------


def repacked(archive: Path, change: Callable[[dict[str, bytes]], None], *, honest: bool = True) -> Path:
    """The archive with other content; `honest` describes it anew, as its maker would."""
    with zipfile.ZipFile(archive) as opened:
        content = {name: opened.read(name) for name in opened.namelist()}
    change(content)
    if honest:
        card = json.loads(content[CARD])
        card["files"] = [
            {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in content.items()
            if name != CARD
        ]
        content[CARD] = json.dumps(card).encode()
    path = archive.with_name("changed.zip")
    with zipfile.ZipFile(path, "w") as made:
        for name, data in content.items():
            made.writestr(name, data)
    return path


def refused(path: Path, reason: str) -> None:
    """The archive is refused and leaves nothing."""
    before = sorted(entry.name for entry in path.parent.iterdir())
    with pytest.raises(DatasetError, match=reason):
        imported(path, "refused")
    assert sorted(entry.name for entry in path.parent.iterdir()) == before


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "/tmp/evil.json",
        "checkpoints/../../evil.json",
        "checkpoints\\model.safetensors",
        "checkpoints/last.ckpt",
        "classifier/lda.pkl",
        "fold_0/run.py",
        "checkpoints/",
        "fold_0/../postprocessing.json",
        "postprocessing.json\0.py",
    ],
)
def test_a_file_that_no_model_has_is_refused(archive: Path, name: str) -> None:
    def add(content: dict[str, bytes]) -> None:
        content[name] = b"{}"

    reasons = "which is no (plain file|file of a model)|is no whole zip archive|differ about"
    refused(repacked(archive, add), reasons)


def test_a_link_is_refused(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as opened:
        link = zipfile.ZipInfo("postprocessing.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc/passwd")
    refused(archive, "'postprocessing.json', which is no plain file")


def test_a_bomb_is_refused_before_it_is_unpacked(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("postprocessing.json", bytes(2**27))
    refused(archive, "unpacks to .* at most 200 times its size")


def test_too_many_or_too_large_members_are_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = model_archive.ArchiveLimits(max_members=3, max_bytes=10**6)
    monkeypatch.setattr(model_archive, "LIMITS", limits)
    refused(archive, "has 4 members, at most 3")
    monkeypatch.setattr(model_archive, "LIMITS", model_archive.ArchiveLimits(max_bytes=1000))
    refused(archive, "and 1000 bytes are accepted")


def test_members_that_overlap_are_refused(archive: Path) -> None:
    """Two entries of the directory that name the same bytes: the way of the densest bombs."""
    with zipfile.ZipFile(archive, "a") as opened:
        weights = opened.getinfo(WEIGHTS)
        for fold in range(3):
            copy = zipfile.ZipInfo(f"fold_{fold}/{WEIGHTS}")
            copy.header_offset, copy.CRC = weights.header_offset, weights.CRC
            copy.file_size = copy.compress_size = weights.file_size
            opened.filelist.append(copy)
            opened.NameToInfo[copy.filename] = copy
        opened._didModify = True  # noqa: SLF001
    refused(archive, "members that overlap")


def test_a_name_that_occurs_twice_is_refused(archive: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("final_metrics.json", "{}")
    refused(archive, "holds 'final_metrics.json' twice")


@pytest.mark.parametrize("place", [0.3, 0.7])
def test_a_changed_byte_is_refused(archive: Path, place: float) -> None:
    content = bytearray(archive.read_bytes())
    content[int(place * len(content))] ^= 1
    archive.write_bytes(content)
    refused(archive, "is no whole zip archive|no file of a model|differ about")


def test_a_cut_off_archive_is_refused(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    refused(archive, "is no whole zip archive")


def test_content_that_the_card_does_not_describe_is_refused(archive: Path) -> None:
    def other_scores(content: dict[str, bytes]) -> None:
        content["final_metrics.json"] = content["final_metrics.json"].replace(b"0.5", b"0.9")

    refused(repacked(archive, other_scores, honest=False), "not the one its model.json describes")

    def longer(content: dict[str, bytes]) -> None:
        content["final_metrics.json"] += b" "

    refused(repacked(archive, longer, honest=False), "its model.json says")

    def fewer(content: dict[str, bytes]) -> None:
        del content["splits_final.json"]

    refused(repacked(archive, fewer, honest=False), "differ about splits_final.json")


def test_an_archive_without_card_or_of_another_format_is_refused(archive: Path) -> None:
    refused(repacked(archive, lambda content: content.pop(CARD) and None, honest=False), "has no model.json")

    def newer(content: dict[str, bytes]) -> None:
        content[CARD] = content[CARD].replace(b'"format": 1', b'"format": 2', 1)

    refused(repacked(archive, newer, honest=False), "has the format 2; this program reads 1")


def change_card(archive: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    def changed(content: dict[str, bytes]) -> None:
        card = json.loads(content[CARD])
        change(card)
        content[CARD] = json.dumps(card).encode()

    return repacked(archive, changed)


def test_a_card_of_another_network_than_the_weights_is_refused(archive: Path) -> None:
    def wider(card: dict[str, Any]) -> None:
        card["models"][0]["card"]["plan"]["stages"][0]["channels"] = 5

    refused(change_card(archive, wider), "describe different models")


def test_a_model_that_no_file_belongs_to_is_refused(archive: Path) -> None:
    def twice(card: dict[str, Any]) -> None:
        card["models"] += [card["models"][0] | {"folder": "../../elsewhere"}]

    refused(change_card(archive, twice), "the weights of just the models")


@pytest.mark.parametrize("channels", [10**5, -1])
def test_a_forged_plan_costs_no_memory(tmp_path: Path, make_plan: MakePlan, channels: int) -> None:
    """Card and weights agree, but the plan's network is another one."""
    plan = make_plan()
    stages = tuple(replace(stage, channels=channels) for stage in plan.stages)
    card = model_card(replace(plan, stages=stages), Architecture())
    weights = tmp_path / "forged.safetensors"
    write_portable(weights, MultiTaskUNet(plan, Architecture()).state_dict(), card)
    write_training(tmp_path / "run", plan)
    archive = export_model.run(ExportOptions(results=tmp_path / "run", output=tmp_path / "model.zip"))

    def forge(content: dict[str, bytes]) -> None:
        content[WEIGHTS] = weights.read_bytes()
        described = json.loads(content[CARD])
        described["models"][0]["card"] = card
        content[CARD] = json.dumps(described).encode()

    refused(repacked(archive, forge), "should be|no network that can be built")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("postprocessing.json", b"[]"),
        ("classifier/lda.json", b'{"name": "lda"}'),
        ("final_metrics.json", b"[1]"),
        ("splits_final.json", b'{"train": 1}'),
        (WEIGHTS, b"\x80\x04\x95pickle"),
    ],
)
def test_a_record_that_is_none_is_refused(archive: Path, name: str, content: bytes) -> None:
    def replaced(files: dict[str, bytes]) -> None:
        files[name] = content

    refused(repacked(archive, replaced), ".")
