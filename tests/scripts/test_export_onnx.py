"""ONNX: the same answers from both heads, for every branch and encoder; pooling in terms that ONNX has."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from nnunet.branches import BRANCHES
from nnunet.encoders import ENCODERS
from nnunet.network import Architecture, MultiTaskUNet
from nnunet.training.checkpoint import model_card
from nnunet.training.portable import write_portable
from scripts import export_onnx
from scripts.export_onnx import PACKAGES, OnnxOptions
from scripts.onnx_graph import adaptive_maxima, adaptive_means, where_of_booleans
from utils.contracts import Plan
from utils.errors import EnvironmentFault, UserError

MakePlan = Callable[..., Plan]
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} missing: pip install -r requirements-onnx.txt"
)


def write_model(path: Path, plan: Plan, **architecture: Any) -> Path:
    torch.manual_seed(0)
    built = Architecture(**architecture)
    write_portable(path, MultiTaskUNet(plan, built).state_dict(), model_card(plan, built, ["a"]))
    return path


@pytest.fixture
def model(make_plan: MakePlan, tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.safetensors", make_plan(), branch="simple")


@pytest.mark.parametrize(
    ("shape", "size"), [((7, 5), (3, 5)), ((8, 6, 5), (4, 3, 2)), ((2, 3, 4), (4, 4, 4))]
)
def test_adaptive_pooling_is_torchs(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    maps = torch.randn(2, 3, *shape)
    means = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(shape)](maps, size)
    maxima = {2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[len(shape)](maps, size)
    torch.testing.assert_close(adaptive_means(maps, size), means)
    assert torch.equal(adaptive_maxima(maps, size)[0], maxima)


def test_a_choice_of_booleans_is_torchs() -> None:
    condition = torch.tensor([[True], [False]])
    one, other = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    assert torch.equal(where_of_booleans(condition, one, other), torch.where(condition, one, other))
    assert where_of_booleans(condition, one.float(), other.float()) is NotImplemented


@needs_onnx
@pytest.mark.story
@pytest.mark.parametrize(
    ("encoder", "branch"),
    [
        *(("plain", spec.name) for spec in BRANCHES),
        *((spec.name, "roi_pooled") for spec in ENCODERS if spec.name != "plain"),
        ("plain", "none"),
        ("plain", "multi_scale:combine=mix,pool=max,grid=4,hidden=0"),
        ("plain", "roi_pooled:detach_roi=false"),
    ],
)
def test_every_network_answers_alike(make_plan: MakePlan, tmp_path: Path, encoder: str, branch: str) -> None:
    path = write_model(tmp_path / "m.safetensors", make_plan(), encoder=encoder, branch=branch)
    export_onnx.run(OnnxOptions(ckpt_path=path, output=tmp_path / "m.onnx", tolerance=1e-4, patches=2))


@needs_onnx
@pytest.mark.story
@pytest.mark.parametrize("branch", ["roi_pooled", "roi_scaled", "memory_query"])
@pytest.mark.parametrize("changes", [{"flat": True}, {"regions": ((1, 2), (2,))}], ids=["slice", "regions"])
def test_slices_and_regions_too(
    make_plan: MakePlan, tmp_path: Path, branch: str, changes: dict[str, Any]
) -> None:
    path = write_model(tmp_path / "m.safetensors", make_plan(**changes), branch=branch)
    export_onnx.run(OnnxOptions(ckpt_path=path, output=tmp_path / "m.onnx", tolerance=1e-4, patches=2))


@needs_onnx
@pytest.mark.flag("export_onnx:ckpt_path", "export_onnx:output", "export_onnx:overwrite")
def test_the_file_takes_any_batch_and_says_what_it_is(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    path = export_onnx.run(OnnxOptions(ckpt_path=model, output=tmp_path / "m.onnx"))
    assert capsys.readouterr().out.splitlines()[0].startswith("label_logits: largest difference ")
    made = onnx.load(path)
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*made.graph.input, *made.graph.output)
    }
    assert shapes == {
        "image": ["batch", 1, 4, 16, 16],
        "label_logits": ["batch", 3, 4, 16, 16],
        "class_logits": ["batch", 2],
    }
    card = json.loads({entry.key: entry.value for entry in made.metadata_props}["model_card"])
    assert card["plan"]["class_names"] == ["benign", "malignant"]
    assert card["training_cases"] == []
    with pytest.raises(UserError, match="--overwrite to replace it"):
        export_onnx.run(OnnxOptions(ckpt_path=model, output=path))


@needs_onnx
@pytest.mark.flag("export_onnx:tolerance", "export_onnx:results")
def test_answers_that_differ_leave_no_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    model.rename(tmp_path / "checkpoints" / "model.safetensors")
    with pytest.raises(UserError, match="differ by more than --tolerance 1e-12"):
        export_onnx.run(OnnxOptions(results=tmp_path, output=tmp_path / "m.onnx", tolerance=1e-12))
    assert not (tmp_path / "m.onnx").exists()


def test_without_onnx_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(EnvironmentFault, match=r"onnxruntime is not installed\..*requirements-onnx.txt"):
        export_onnx.run(OnnxOptions(output=tmp_path / "m.onnx"))


@pytest.mark.flag("export_onnx:patches")
@pytest.mark.parametrize("changes", [{"tolerance": 0.0}, {"patches": 0}])
def test_a_comparison_of_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--tolerance|--patches"):
        OnnxOptions(**changes)
