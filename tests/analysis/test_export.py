"""An exported file says what the model says, names its outputs and knows what belongs to them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptcam import ConceptModel, TrainingRecord, explain, export_model
from conceptcam.cli.main import main
from tests.worlds import SIZE, Squares, tiny_model, weights

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
# Words of torch about how timm resamples position biases.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.searchsorted"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence"),
]

SWIN = {"backbone": "timm:swin_tiny_patch4_window7_224", "feature_level": 1, "image_size": (112, 112)}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "cnn": {},
    "resnet": {"backbone": "timm:resnet18", "image_size": (64, 64)},
    "vit": {"backbone": "timm:test_vit", "image_size": (64, 96)},
    "swin": SWIN,
}
NAMES = ("concept_maps", "concept_logits", "evidence", "similarity_maps", "contributions", "task_logits")


def taught(*, tasks: bool = True, **fields: Any) -> ConceptModel:
    """A model whose outputs are far from 0, with a record that says that it was taught."""
    model = tiny_model(**fields).eval()
    random = torch.Generator().manual_seed(3)
    for weight in (model.concept_head.score.weight, model.task_head.weight, model.task_head.bias):
        weight.data = torch.randn(weight.shape, generator=random)
    model.record = TrainingRecord(
        stages=("concepts", "prototypes", "task")[: 3 if tasks else 1],
        thresholds={"bright": 0.25},
        calibration={"bright": (2.0, -1.0)},
        license="CC-BY-4.0",
    )
    return model


def names_of(bottleneck: str) -> tuple[str, ...]:
    return tuple(name for name in NAMES if name != "similarity_maps" or bottleneck == "prototypes")


def session(path: Path) -> "onnxruntime.InferenceSession":
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def differences(model: ConceptModel, said: dict[str, torch.Tensor], images: torch.Tensor) -> dict[str, float]:
    with torch.no_grad():
        output = model(images)
        expected = output._asdict() | {"contributions": model.task_head.contributions(output.evidence).sum(-1)}
    assert {name: value.shape for name, value in said.items()} == {name: expected[name].shape for name in said}
    return {name: float((said[name] - expected[name]).abs().max()) for name in said}


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_onnx_says_what_the_model_says_for_any_batch(architecture, bottleneck, tmp_path):
    model = taught(bottleneck=bottleneck, **ARCHITECTURES[architecture])
    report, names = export_model(model, tmp_path / "model.onnx"), names_of(bottleneck)
    assert report.outputs == names and set(report.differences) == {1, 5} and max(report.differences.values()) <= 1e-4
    file = session(tmp_path / "model.onnx")
    assert {one.shape[0] for one in (*file.get_inputs(), *file.get_outputs())} == {"batch"}
    for count in (1, 5):
        images = torch.randn(count, 3, *model.config.image_size)
        values = file.run(list(names), {"images": images.numpy()})
        said = dict(zip(names, map(torch.from_numpy, values), strict=True))
        assert max(differences(model, said, images).values()) <= 1e-4


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pt2_says_what_the_model_says_for_any_batch(architecture, bottleneck, tmp_path):
    model = taught(bottleneck=bottleneck, **ARCHITECTURES[architecture])
    report = export_model(model, tmp_path / "model.pt2")
    assert report.outputs == names_of(bottleneck) and set(report.differences) == {1, 5}
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 5):
        images = torch.randn(count, 3, *model.config.image_size)
        assert max(differences(model, program(images), images).values()) <= 1e-4


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_file_of_any_size_says_what_a_model_of_it_says(kind, tmp_path):
    fields = {"backbone": "timm:resnet10t", "image_size": (64, 64)}
    export_model(taught(**fields), tmp_path / f"model.{kind}", any_size=True)
    wide = taught(**(fields | {"image_size": (96, 160)}))  # the same weights
    images = torch.randn(3, 3, 96, 160)
    if kind == "onnx":
        values = session(tmp_path / "model.onnx").run(list(NAMES), {"images": images.numpy()})
        said = dict(zip(NAMES, map(torch.from_numpy, values), strict=True))
    else:
        said = torch.export.load(tmp_path / "model.pt2").module()(images)
    assert max(differences(wide, said, images).values()) <= 1e-4
    assert metadata_of(tmp_path / f"model.{kind}")["preprocessing"]["any_size"] is True


def test_a_backbone_of_one_size_is_not_exported_for_any(tmp_path):
    with pytest.raises(ValueError, match="backbone 'small_cnn_s8' takes images of one size; leave out `any_size`"):
        export_model(taught(), tmp_path / "model.pt2", any_size=True)
    assert list(tmp_path.iterdir()) == []


def metadata_of(path: Path) -> dict[str, Any]:
    if path.suffix == ".onnx":
        return json.loads(session(path).get_modelmeta().custom_metadata_map["conceptcam"])
    more = {"conceptcam.json": ""}
    torch.export.load(path, extra_files=more)
    return json.loads(more["conceptcam.json"])


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_file_knows_its_names_preprocessing_and_license(kind, tmp_path):
    model = taught()
    export_model(model, tmp_path / f"model.{kind}")
    known = metadata_of(tmp_path / f"model.{kind}")
    assert known["config"]["concepts"] == list(model.config.concepts)
    assert known["record"]["thresholds"] == {"bright": 0.25} and known["record"]["license"] == "CC-BY-4.0"
    assert known["record"]["calibration"] == {"bright": [2.0, -1.0]}
    assert known["preprocessing"]["image_size"] == list(SIZE) and known["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert tuple(known["outputs"]) == NAMES
    assert known["task_bias"] == pytest.approx(model.task_head.bias.tolist())


def test_contributions_of_a_file_are_those_of_the_explanation(tmp_path):
    model, image = taught(), Squares(1, preprocess=False).load_item(0).image
    export_model(model, tmp_path / "model.onnx")
    file, known = session(tmp_path / "model.onnx"), metadata_of(tmp_path / "model.onnx")
    (contributions,) = file.run(["contributions"], {"images": model.preprocess(image)[None].numpy()})
    explained = explain(model, image)
    for number, task in enumerate(known["config"]["tasks"]):
        expected = {part.concept: part.value for part in explained.task(task).contributions}
        assert dict(zip(model.config.concepts, contributions[0, number], strict=True)) == pytest.approx(
            expected, abs=1e-4
        )
        logit = known["task_bias"][number] + contributions[0, number].sum()
        assert logit == pytest.approx(explained.task(task).logit, abs=1e-4)


def test_what_was_never_taught_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="never taught concepts"):
        export_model(tiny_model(), tmp_path / "model.pt2")
    report = export_model(taught(tasks=False), tmp_path / "model.pt2")
    assert report.outputs == ("concept_maps", "concept_logits")
    assert metadata_of(tmp_path / "model.pt2")["task_bias"] == []


def test_exporting_leaves_the_model_and_random_numbers_alone(tmp_path):
    model = taught().train()
    model.backbone.requires_grad_(False)
    before, state = weights(model), torch.get_rng_state()
    export_model(model, tmp_path / "model.pt2")
    assert model.training and next(model.task_head.parameters()).requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_in_half_precision_is_exported_in_float32(tmp_path):
    model = taught().to(torch.bfloat16)
    export_model(model, tmp_path / "model.pt2")
    images = torch.randn(2, 3, *SIZE)
    said = torch.export.load(tmp_path / "model.pt2").module()(images)
    assert max(differences(model.float(), said, images).values()) <= 1e-4


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("conceptcam.analysis.export._compare", _differs)
    (tmp_path / "model.pt2").write_text("of yesterday")
    with pytest.raises(FloatingPointError, match="differ"):
        export_model(taught(), tmp_path / "model.pt2")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of yesterday"]


def _differs(*_: object) -> float:
    raise FloatingPointError("the outputs differ")


def test_a_difference_is_told_with_the_name_of_the_output(tmp_path):
    with pytest.raises(FloatingPointError, match="gives `concept_maps` that differ by .* so it was not written"):
        export_model(taught(), tmp_path / "model.onnx", tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused_with_those_known(tmp_path):
    with pytest.raises(ValueError, match=r"unknown `format` 'pth'.*known: \['onnx', 'pt2'\]"):
        export_model(taught(), tmp_path / "model.pth")


def test_a_model_too_large_for_onnx_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("conceptcam.analysis.export._LARGEST_ONNX", 10)
    with pytest.raises(ValueError, match="take the format 'pt2'"):
        export_model(taught(), tmp_path / "model.onnx")


def test_the_command_line_exports_and_prints_the_parity(tmp_path, capsys):
    taught().save_pretrained(tmp_path / "model")
    out = tmp_path / "file.onnx"
    assert main(["export", str(tmp_path / "model"), str(out), "--format", "pt2"]) == 0
    printed = capsys.readouterr().out
    assert "1 random image: the largest difference" in printed and "5 random images" in printed
    with out.open("rb") as file:
        assert set(torch.export.load(file).module()(torch.zeros(3, 3, *SIZE))) == set(NAMES)
    assert main(["export", str(tmp_path / "model"), str(out)]) == 2
    assert "add --force" in capsys.readouterr().err
