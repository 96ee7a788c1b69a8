"""The command that writes a trained network as ONNX and compares the two."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command import run_command
from utils.errors import EnvironmentFault, UserError
from utils.options import parse
from utils.ranges import check_number
from utils.run_log import say
from utils.storage import atomic_file

DESCRIPTION = (
    "Write a trained network as ONNX: patches in, label_logits and class_logits out, any batch. The answers "
    "of ONNX Runtime and of torch on random patches are compared; where they differ, no file is written."
)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """Which network, where to, and how alike the answers have to be."""

    results: Path = Path("/results")
    """Results folder of a training, or an imported model."""
    ckpt_path: Path | None = None
    """Checkpoint, or an exported model (.safetensors); unset: the best one in --results."""
    output: Path = Path("model.onnx")
    """The file to write."""
    overwrite: bool = False
    """Replace a file that is there already."""
    tolerance: float = 1e-3
    """Largest difference of a logit between ONNX Runtime and torch that is accepted."""
    patches: int = 4
    """Batches of random patches that are compared, of one and of three by turns."""
    seed: int = 1
    """Decides the random patches."""

    def __post_init__(self) -> None:
        """UserError for numbers that compare nothing."""
        check_number("tolerance", self.tolerance, above=0)
        check_number("patches", self.patches, least=1)


def run(options: OnnxOptions) -> Path:
    """Write the model and return its path; UserError if the answers differ, EnvironmentFault without ONNX."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise EnvironmentFault(
            f"{', '.join(missing)} is not installed. Install what ONNX needs: pip install -r "
            "requirements-onnx.txt"
        )
    if options.output.exists() and not options.overwrite:
        raise UserError(f"{options.output} is there already; --overwrite to replace it.")
    # Imported here: --help must not wait for torch.
    import torch

    from nnunet.training.checkpoint import load_model
    from scripts.model_run import find_checkpoint
    from scripts.onnx_graph import OPSET, compare, export_network

    checkpoint = options.ckpt_path or find_checkpoint(options.results)
    model = load_model(checkpoint, torch.device("cpu"))
    with tempfile.TemporaryDirectory(prefix="onnx_export_") as scratch:
        made = Path(scratch) / "model.onnx"
        export_network(model, made)
        differences = compare(model, made, patches=options.patches, seed=options.seed)
        for difference in differences:
            print(f"{difference.head}: largest difference {difference.largest:.2e}")
        if far := [each.head for each in differences if not each.largest <= options.tolerance]:
            raise UserError(
                f"{' and '.join(far)} of ONNX Runtime and of torch differ by more than --tolerance "
                f"{options.tolerance:g}. {options.output} was not written."
            )
        with atomic_file(options.output) as stream:
            stream.write(made.read_bytes())
    say(f"{options.output}: {checkpoint} for patches of {model.plan.patch}, opset {OPSET}.")
    return options.output


def main() -> None:
    """Run from the command line."""
    run(parse(OnnxOptions, sys.argv[1:], program="export_onnx.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
