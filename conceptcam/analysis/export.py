"""A trained model as one file that runs elsewhere, as ONNX or as a program of torch, compared with the model itself."""

import copy
import importlib
import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from conceptcam._checks import check_choice
from conceptcam._files import as_json, atomic_write, parse_json
from conceptcam.config import to_json
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.outputs import ConceptPart
from conceptcam.model.taught import check_taught, tasks_taught

ExportFormat = Literal["onnx", "pt2"]

METADATA = "conceptcam"
"""Under which name the file holds what belongs to the model: in ONNX's metadata, or as `conceptcam.json` in a pt2."""

_AXES = {
    "concept_maps": "batch, concept, row, column: logit of each concept at each place",
    "concept_logits": "batch, concept: logit of each concept in the image",
    "evidence": "batch, concept, prototype: highest similarity to each prototype, or the concept's probability",
    "similarity_maps": "batch, concept, prototype, row, column: similarity of each place to each prototype",
    "contributions": "batch, task, concept: what each concept adds to a task logit; with the bias they add up to it",
    "task_logits": "batch, task: logit of each task",
}
_BATCHES = (1, 5)
_LARGEST_ONNX = 1.9e9  # bytes; a protobuf file cannot have more than 2 GiB
_Runner = Callable[[Tensor], dict[str, Tensor]]


class ExportReport(NamedTuple):
    """What was written, and how far it is from the model."""

    path: Path
    format: ExportFormat
    outputs: tuple[str, ...]
    """Names of the outputs, in the file's order."""
    differences: dict[int, float]
    """Size of a batch of random images -> the largest absolute difference of any output from the model's."""

    def lines(self) -> list[str]:
        """What was written and compared, as lines to read."""
        size = self.path.stat().st_size / 1e6
        parity = [
            f"  {count} random image{'s' if count > 1 else ''}: the largest difference from the model is {value:.1e}"
            for count, value in self.differences.items()
        ]
        return [f"{self.path}: {size:.1f} MB, outputs {', '.join(self.outputs)}", *parity]


def export_model(
    model: ConceptModel,
    path: str | Path,
    *,
    format: ExportFormat | None = None,
    tolerance: float = 1e-4,
    any_size: bool = False,
) -> ExportReport:
    """Write a model as a file that runs without conceptcam, and check that it says what the model says.

    The input is `images` (B, in_chans, H, W), float32, normalized, of any batch size. The outputs have names:
    `concept_maps`, `concept_logits` and, if tasks were taught, `evidence`, `contributions` (B, T, K) and `task_logits`,
    and with prototypes `similarity_maps` (B, K, M, h, w). The file also holds a JSON text with the config, the record
    (thresholds, calibration, license), the preprocessing and the outputs.

    The model is left as it is. The file is written whole or not at all.

    Args:
        model: A model that was taught concepts; on any device, of any floating-point type. The file is float32.
        path: The file to write.
        format: `"onnx"`, which needs `pip install 'conceptcam[export]'`, or `"pt2"`, which `torch.export.load` reads;
            None takes it from the end of `path`.
        tolerance: How far an output may be from the model's, as a part of the largest value of that output, or of 1 if
            that is less.
        any_size: Whether the file takes images of any height and width, as convolutional backbones such as ResNets
            allow. What it says of other sizes than the model's was never measured.

    Raises:
        ValueError: If the format is unknown, the model was never taught concepts, it is too large for ONNX, or its
            backbone takes images of one size only.
        ImportError: If a package is missing.
        FloatingPointError: If the file says something else than the model.
    """
    target = Path(path).expanduser()
    kind = format or target.suffix.removeprefix(".")
    check_choice("format", kind, ExportFormat)
    check_taught(model.config, model.record)
    if kind == "onnx":
        _check_onnx(model)
    module = _Exported(model)
    if any_size:
        _check_any_size(module)
    axes = {0: "batch", 2: "height", 3: "width"} if any_size else {0: "batch"}
    with warnings.catch_warnings():  # exporters warn of their own insides
        warnings.simplefilter("ignore")
        dynamic = {axis: _dynamic(axis) for axis in axes}
        program = torch.export.export(module, (_random_images(model, 2),), dynamic_shapes=(dynamic,))
        metadata = _metadata(model, module, any_size=any_size)
        written, runner = (_as_onnx if kind == "onnx" else _as_pt2)(program, module.names, metadata, axes)
    with atomic_write(target) as scratch:
        scratch.write_bytes(written)
        differences = {count: _compare(module, runner, _random_images(model, count), tolerance) for count in _BATCHES}
        if any_size:
            _compare(module, runner, _random_images(model, 1, times=2), tolerance)
    return ExportReport(target, kind, module.names, differences)  # type: ignore[arg-type]  # it is a format


class _Exported(nn.Module):
    """A copy of the model in float32 on the CPU, whose outputs are those of the file."""

    def __init__(self, model: ConceptModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
        names = [name for name in _AXES if name != "similarity_maps" or model.config.bottleneck == "prototypes"]
        self.names = tuple(names if tasks_taught(model.config, model.record) else names[:2])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        # As `forward_concepts`, without its check of the size.
        features = self.model.backbone(images)
        maps = self.model.concept_head(features)
        part = ConceptPart(features, maps, self.model.pool(maps))
        if "task_logits" not in self.names:
            return {"concept_maps": part.concept_maps, "concept_logits": part.concept_logits}
        output = self.model.forward_task(part)
        contributions = self.model.task_head.contributions(output.evidence).sum(dim=-1)
        fields = {**output._asdict(), "contributions": contributions}
        return {name: fields[name] for name in self.names}


def _check_any_size(module: _Exported) -> None:
    """Refuse a backbone that takes images of one size."""
    try:
        with torch.inference_mode():
            module(_random_images(module.model, 1, times=2))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"backbone {module.model.config.backbone!r} takes images of one size; leave out `any_size` (--any-size)"
        ) from error


def _dynamic(axis: int) -> Any:
    """How torch.export calls an axis of any length."""
    return torch.export.Dim.DYNAMIC if axis else torch.export.Dim("batch")


def _metadata(model: ConceptModel, module: _Exported, *, any_size: bool) -> str:
    """The text of `config.json`, with how an image becomes the input and what the outputs are."""
    config = model.config
    more = {
        "preprocessing": {
            "input": f"images (batch, {config.in_chans}, height, width), float32: (pixels / 255 - mean) / std, "
            + ("grey" if config.in_chans == 1 else "colours red, green, blue"),
            "resize": "the whole image, bilinear with antialiasing, without keeping its proportions",
            "image_size": config.image_size,
            "any_size": any_size,
            "mean": config.mean,
            "std": config.std,
        },
        "outputs": {name: _AXES[name] for name in module.names},
        "task_bias": model.task_head.bias.detach().cpu().float().tolist() if "task_logits" in module.names else [],
    }
    return as_json({**parse_json(to_json(config, model.record), "config.json"), **more})


def _random_images(model: ConceptModel, count: int, times: int = 1) -> Tensor:
    """Normalized noise, the same every time, without touching the global random numbers."""
    height, width = (side * times for side in model.config.image_size)
    return torch.randn(count, model.config.in_chans, height, width, generator=torch.Generator().manual_seed(count))


def _as_onnx(program: Any, names: tuple[str, ...], metadata: str, axes: Mapping[int, str]) -> tuple[bytes, _Runner]:
    onnxruntime = _import_onnx()
    graph = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["images"],
        output_names=list(names),
        dynamic_shapes=(dict(axes),),  # names the axes, which the program calls s34 or the like
        verbose=False,
        optimize=True,
    )
    assert graph is not None  # as no file was named
    graph.model.metadata_props[METADATA] = metadata
    written = graph.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> dict[str, Tensor]:
        return dict(
            zip(names, map(torch.from_numpy, session.run(list(names), {"images": images.numpy()})), strict=True)
        )

    return written, run


def _as_pt2(program: Any, names: tuple[str, ...], metadata: str, axes: Mapping[int, str]) -> tuple[bytes, _Runner]:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f"{METADATA}.json": metadata})
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()


def _check_onnx(model: ConceptModel) -> None:
    """Refuse before any work what cannot be ONNX."""
    _import_onnx()
    if (size := 4 * sum(tensor.numel() for tensor in model.state_dict().values())) > _LARGEST_ONNX:
        raise ValueError(f"the model has {size / 1e9:.1f} GB, and a file of ONNX at most 2; take the format 'pt2'")


def _import_onnx() -> Any:
    """onnxruntime, if all is there that ONNX needs."""
    try:
        importlib.import_module("onnxscript")
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(
            f"ONNX needs {error.name}: pip install 'conceptcam[export]'; the format 'pt2' works without it"
        ) from error


@torch.inference_mode()
def _compare(module: _Exported, runner: _Runner, images: Tensor, tolerance: float) -> float:
    """The largest absolute difference between what a file and the model say about images."""
    expected, said = module(images), runner(images)
    largest = 0.0
    for name, value in expected.items():
        difference = float((said[name] - value).abs().max())
        if not difference <= tolerance * max(1.0, float(value.abs().max())):
            raise FloatingPointError(
                f"the exported file gives `{name}` that differ by {difference:.1e} from the model's, so it was not "
                "written; try the other format, or a larger `tolerance`"
            )
        largest = max(largest, difference)
    return largest
