"""Checkpoints: whole or not at all, and readable without this program."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from nnunet.training.checkpoint import (
    AVERAGED_PREFIX,
    MODEL_KEY,
    NETWORK_PREFIX,
    AtomicCheckpointIO,
    load_model,
    model_card,
    read_checkpoint,
    refuse_other_model,
)
from utils.errors import DatasetError, StorageFault

if TYPE_CHECKING:
    from tests.nnunet.training.conftest import TinyRun

CPU = torch.device("cpu")
READ_ALONE = """
import sys, torch
content = torch.load(sys.argv[1], weights_only=True)
ours = {"utils", "nnunet", "data_loading", "data_preprocessing", "scripts"}
assert not ours & {name.split(".")[0] for name in sys.modules}
print(content["multitask_nnunet"]["plan"]["label_names"], len(content["state_dict"]))
"""


def edited(run: "TinyRun", folder: Path, **changes: Any) -> Path:
    """A copy of the run's checkpoint with other top-level values; None removes one."""
    content = read_checkpoint(run.checkpoint) | changes
    path = folder / "edited.ckpt"
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def test_a_trained_checkpoint_loads_where_this_program_is_not_installed(
    tiny_run: "TinyRun", tmp_path: Path
) -> None:
    command = [sys.executable, "-I", "-c", READ_ALONE, str(tiny_run.checkpoint)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.startswith("['background', 'organ', 'lesion']")


def test_training_leaves_the_last_and_the_best_checkpoint_only(tiny_run: "TinyRun") -> None:
    names = sorted(path.name for path in tiny_run.checkpoint.parent.iterdir())
    assert len(names) == 2
    assert names[0].startswith("epoch=")
    assert names[1] == "last.ckpt"


def test_the_loaded_model_answers_as_the_averaged_weights_did(tiny_run: "TinyRun") -> None:
    model = load_model(tiny_run.checkpoint, CPU)
    image = torch.randn(1, 1, *tiny_run.plan.patch)
    averaged = tiny_run.module.averaged
    assert averaged is not None
    with torch.no_grad():
        expected, found = averaged(image), model.network(image)
    assert torch.equal(found.label_logits[0], expected.label_logits[0])
    assert torch.equal(found.class_logits, expected.class_logits)
    assert model.plan == tiny_run.plan
    assert not model.network.training


def test_without_an_average_the_weights_themselves_are_loaded(tiny_run: "TinyRun", tmp_path: Path) -> None:
    state = read_checkpoint(tiny_run.checkpoint)["state_dict"]
    plain = {key: value for key, value in state.items() if key.startswith(NETWORK_PREFIX)}
    model = load_model(edited(tiny_run, tmp_path, state_dict=plain), CPU)
    for name, weight in tiny_run.module.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], weight)


def test_the_average_lags_behind_the_weights(tiny_run: "TinyRun") -> None:
    state = read_checkpoint(tiny_run.checkpoint)["state_dict"]
    pairs = [
        (value, state[NETWORK_PREFIX + key.removeprefix(AVERAGED_PREFIX)])
        for key, value in state.items()
        if key.startswith(AVERAGED_PREFIX)
    ]
    assert any(not torch.equal(averaged, weight) for averaged, weight in pairs)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no checkpoint .*gone\.ckpt.*Train first"):
        load_model(tmp_path / "gone.ckpt", CPU)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(tiny_run: "TinyRun", tmp_path: Path, share: float) -> None:
    content = tiny_run.checkpoint.read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DatasetError, match=r"cut\.ckpt is not a checkpoint"):
        load_model(path, CPU)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"weights": torch.zeros(3)}])
def test_a_foreign_file_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "foreign.ckpt"
    torch.save(content, path)
    with pytest.raises(DatasetError, match=r"foreign\.ckpt"):
        load_model(path, CPU)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": Path("a path is more than a plain value")}, path)
    with pytest.raises(DatasetError, match=r"evil\.ckpt is not a checkpoint that can be loaded safely"):
        load_model(path, CPU)


@pytest.mark.parametrize("card", [None, {"format": 99}])
def test_a_checkpoint_of_another_program_or_format_is_named(
    tiny_run: "TinyRun", tmp_path: Path, card: dict[str, Any] | None
) -> None:
    with pytest.raises(DatasetError, match=r"edited\.ckpt has no model description of format 1"):
        load_model(edited(tiny_run, tmp_path, **{MODEL_KEY: card}), CPU)


def test_a_weight_of_the_wrong_shape_is_named(tiny_run: "TinyRun", tmp_path: Path) -> None:
    state = read_checkpoint(tiny_run.checkpoint)["state_dict"]
    state[f"{AVERAGED_PREFIX}decoder.heads.0.bias"] = torch.zeros(7)
    with pytest.raises(DatasetError, match=r"edited\.ckpt: weight decoder\.heads\.0\.bias .*\(3,\).*\(7,\)"):
        load_model(edited(tiny_run, tmp_path, state_dict=state), CPU)


def test_a_missing_weight_is_named(tiny_run: "TinyRun", tmp_path: Path) -> None:
    state = read_checkpoint(tiny_run.checkpoint)["state_dict"]
    del state[f"{AVERAGED_PREFIX}decoder.heads.0.bias"]
    with pytest.raises(DatasetError, match=r"weight decoder\.heads\.0\.bias should be \(3,\).*has nothing"):
        load_model(edited(tiny_run, tmp_path, state_dict=state), CPU)


def test_a_failed_write_leaves_the_old_checkpoint_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "epoch": 1}, path)

    def fail_halfway(_: Any, stream: Any) -> None:
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail_halfway)
    with pytest.raises(StorageFault, match=r"last\.ckpt could not be written: No space left"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "epoch": 2}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_until_it_is_whole_the_checkpoint_is_written_beside_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    seen = {}

    def spy(_: Any, stream: Any) -> None:
        stream.write(b"new")
        stream.flush()
        seen.update({item.name: item.read_bytes() for item in tmp_path.iterdir()})

    monkeypatch.setattr(torch, "save", spy)
    AtomicCheckpointIO().save_checkpoint({}, path)
    assert seen.pop("last.ckpt") == b"old"
    assert list(seen.values()) == [b"new"]
    assert path.read_bytes() == b"new"


def test_removing_a_checkpoint_that_is_gone_is_no_error(tmp_path: Path) -> None:
    AtomicCheckpointIO().remove_checkpoint(tmp_path / "gone.ckpt")


def test_a_run_goes_on_from_a_checkpoint_that_lacks_what_later_programs_write(tiny_run: "TinyRun") -> None:
    content = read_checkpoint(tiny_run.checkpoint)
    card = model_card(tiny_run.plan, tiny_run.module.architecture)
    del content[MODEL_KEY]["plan"]["region_names"]
    refuse_other_model(content, card, content["state_dict"])
    content[MODEL_KEY]["plan"]["region_names"] = ["whole"]
    with pytest.raises(DatasetError, match="another plan.region_names"):
        refuse_other_model(content, card, content["state_dict"])


def test_no_pairs_of_left_and_right_are_as_good_as_undeclared_ones(tiny_run: "TinyRun") -> None:
    content = read_checkpoint(tiny_run.checkpoint)
    content[MODEL_KEY]["plan"].pop("left_right_pairs")
    card = model_card(replace(tiny_run.plan, left_right_pairs=()), tiny_run.module.architecture)
    refuse_other_model(content, card, content["state_dict"])
    card = model_card(replace(tiny_run.plan, left_right_pairs=((1, 2),)), tiny_run.module.architecture)
    with pytest.raises(DatasetError, match="another plan.left_right_pairs"):
        refuse_other_model(content, card, content["state_dict"])
