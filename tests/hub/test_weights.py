import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conceptcam.backbones import create_backbone
from conceptcam.config import ConceptConfig
from conceptcam.hub.weights import load_into, read_tensors, save_tensors, sha256
from conceptcam.model.concept_model import ConceptModel

# One of each way to know where a patch is, since that is what lies in buffers that no file holds.
FAMILIES = {
    "test_vit": 32,
    "test_resnet": 32,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_cr_tiny_ns_224": 224,
    "eva02_tiny_patch14_224": 224,
    "vit_tiny_r_s16_p8_224": 224,
    "vit_small_patch16_rope_224": 224,
    "beit_base_patch16_224": 224,
    "levit_128s": 224,
    "maxvit_rmlp_pico_rw_256": 256,
    "convnextv2_atto": 64,
    "mobilevitv2_050": 64,
    "edgenext_xx_small": 64,
}


def counted(build: Callable[[], nn.Module]) -> tuple[Callable[[], nn.Module], list[int]]:
    calls: list[int] = []

    def call() -> nn.Module:
        calls.append(1)
        return build()

    return call, calls


def shaken(module: nn.Module) -> nn.Module:
    """The module with other weights than it starts with, so that a start left over shows."""
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.mul_(1 + 0.05 * torch.rand_like(value)).add_(torch.rand_like(value), alpha=1e-3)
    return module.eval()


@pytest.mark.parametrize("name, size", FAMILIES.items())
@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
def test_a_backbone_built_without_initializing_is_the_same(name, size, tmp_path):
    def build() -> nn.Module:
        return create_backbone(f"timm:{name}", image_size=(size, size))

    original = shaken(build())
    save_tensors(original.state_dict(), tmp_path / "w.safetensors")
    loaded = load_into(build, tmp_path / "w.safetensors").eval()
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        features = original(images)
        assert features.isfinite().all()
        # The same numbers elsewhere in memory may be summed in another order, by another kernel: not to the bit.
        torch.testing.assert_close(loaded(images), features, rtol=1e-4, atol=1e-4 * features.abs().max().item())
    tensors = original.state_dict()
    assert all(torch.equal(value, tensors[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("backbone", ["small_cnn_s8", "timm:test_vit", "timm:test_resnet"])
@pytest.mark.parametrize("pooling", ["max", "attention", "noisy_or"])
def test_our_models_are_never_initialized_in_vain(backbone, pooling, tmp_path):
    config = ConceptConfig(concepts=("a",), tasks=("t",), backbone=backbone, image_size=(32, 32), pooling=pooling)
    save_tensors(ConceptModel.from_config(config).state_dict(), tmp_path / "w.safetensors")
    build, calls = counted(lambda: ConceptModel.from_config(config))
    load_into(build, tmp_path / "w.safetensors")
    assert len(calls) == 1


class Peeking(nn.Module):
    """Reads a value while it is built, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.scale = torch.linspace(0, 1, 3)[1].item()


class Remembering(nn.Module):
    """Keeps a tensor that is neither parameter nor buffer, and a buffer that nothing computes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.rate = torch.ones(3)
        self.register_buffer("steps", torch.arange(4), persistent=False)


@pytest.mark.parametrize("kind", [Peeking, Remembering])
def test_a_module_that_needs_values_is_built_with_them(kind, tmp_path):
    original = kind()
    save_tensors(original.state_dict(), tmp_path / "w.safetensors")
    build, calls = counted(kind)
    before = torch.get_rng_state()
    loaded = load_into(build, tmp_path / "w.safetensors")
    assert torch.equal(torch.get_rng_state(), before) and len(calls) == 2
    assert torch.equal(loaded.layer.weight, original.layer.weight)
    everything = [*loaded.parameters(), *loaded.buffers(), *vars(loaded).values()]
    assert not any(value.is_meta for value in everything if isinstance(value, Tensor))


class Listing(nn.Module):
    """Uses a weight through a plain list, and a part of another through a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.in_list, self.part = [self.layer.weight], self.layer.bias[:1]


class PeekingListing(Listing):
    """As the former, and reads a value while it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(()).item()


@pytest.mark.parametrize("kind", [Listing, PeekingListing])
def test_a_weight_used_through_a_list_or_view_is_the_files_too(kind, tmp_path):
    original = kind()
    save_tensors(original.state_dict(), tmp_path / "w.safetensors")
    loaded = load_into(kind, tmp_path / "w.safetensors")
    assert loaded.in_list[0] is loaded.layer.weight and torch.equal(loaded.layer.weight, original.layer.weight)
    assert torch.equal(loaded.part, original.layer.bias[:1])


def test_a_module_keeps_the_half_precision_of_its_file(tmp_path):
    save_tensors(Listing().bfloat16().state_dict(), tmp_path / "w.safetensors")
    loaded = load_into(Listing, tmp_path / "w.safetensors")
    assert {value.dtype for value in loaded.parameters()} == {torch.bfloat16}
    assert loaded.in_list[0] is loaded.layer.weight


class Hiding(nn.Module):
    """Has a layer that torch does not know of, and so no file has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.layers = {"more": [nn.Linear(3, 2)], "me": self}


def test_parameters_that_no_file_can_hold_are_refused(tmp_path):
    save_tensors(Hiding().state_dict(), tmp_path / "w.safetensors")
    message = r"Hiding keeps 2 parameters in plain lists or dictionaries, .* use nn.ModuleList"
    with pytest.raises(ValueError, match=message):
        load_into(Hiding, tmp_path / "w.safetensors")


def test_a_tensor_kept_from_one_build_to_the_next_is_refused(tmp_path):
    places = functools.cache(lambda: torch.arange(2.0))

    def build() -> nn.Module:
        layer = nn.Linear(2, 2)
        layer.register_buffer("places", places(), persistent=False)
        return layer

    save_tensors(nn.Linear(2, 2).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="Linear takes tensors from one build to the next, .* make them anew"):
        load_into(build, tmp_path / "w.safetensors")


def test_a_module_that_reads_a_file_itself_gets_saved_weights(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "published.pth")

    def build() -> nn.Module:
        layer = nn.Linear(2, 2)
        layer.load_state_dict(torch.load(tmp_path / "published.pth", weights_only=True))
        return layer

    original = shaken(build())
    save_tensors(original.state_dict(), tmp_path / "w.safetensors")
    assert torch.equal(load_into(build, tmp_path / "w.safetensors").weight, original.weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_what_was_one_parameter_under_two_names_stays_one(tmp_path):
    original = Tied()
    save_tensors(original.state_dict(), tmp_path / "w.safetensors")
    loaded = load_into(Tied, tmp_path / "w.safetensors")
    assert loaded.first.weight is loaded.second.weight
    assert torch.equal(loaded.first.weight, original.first.weight)
    assert len(list(loaded.parameters())) == 3


class PeekingTied(Tied):
    """As the former, and reads a value while it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(()).item()


@pytest.mark.parametrize("kind", [Tied, PeekingTied])
def test_two_values_for_one_parameter_are_refused_with_both_names(kind, tmp_path):
    weights = kind().state_dict()
    save_tensors({**weights, "second.weight": weights["second.weight"] + 1}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="different values for 'first.weight' and 'second.weight', which are one para"):
        load_into(kind, tmp_path / "w.safetensors")


def test_half_precision_is_kept_and_what_no_file_holds_follows_it(tmp_path):
    def build() -> nn.Module:
        return create_backbone("timm:eva02_tiny_patch14_224")

    original = build().bfloat16().eval()
    save_tensors(original.state_dict(), tmp_path / "w.safetensors")
    loaded = load_into(build, tmp_path / "w.safetensors").eval()
    types = [{value.dtype for value in module.buffers()} for module in (loaded, original)]
    assert {value.dtype for value in loaded.parameters()} == {torch.bfloat16} and types[0] == types[1]


def test_a_dtype_asked_for_is_given(tmp_path):
    config = ConceptConfig(concepts=("a",), tasks=("t",), backbone="small_cnn_s8", image_size=(16, 16))
    ConceptModel.from_config(config).save_pretrained(tmp_path)
    model = ConceptModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model(torch.zeros(1, 3, 16, 16, dtype=torch.bfloat16)).task_logits.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "half")
    assert {value.dtype for value in ConceptModel.from_pretrained(tmp_path / "half").parameters()} == {torch.bfloat16}


def test_whole_numbers_in_place_of_real_ones_are_refused(tmp_path):
    save_file({"weight": torch.ones(2, 2, dtype=torch.int64), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(
        ValueError,
        match=r"1 of 2 tensors match; .* 1 of another shape or kind \['weight \(2, 2\) int64 for \(2, 2\)'\]",
    ):
        load_into(lambda: nn.Linear(2, 2), tmp_path / "w.safetensors")


def test_loading_needs_little_more_memory_than_the_weights(tmp_path):
    """A random start of the same size beside the weights would need twice as much."""
    layers = nn.Sequential(*(nn.Linear(2000, 2000) for _ in range(10)))
    save_tensors(layers.state_dict(), tmp_path / "w.safetensors")
    code = f"""
import resource, torch
from pathlib import Path
from torch import nn
from conceptcam.hub.weights import load_into
build = lambda: nn.Sequential(*(nn.Linear(2000, 2000) for _ in range(10)))
load_into(lambda: nn.Linear(1, 1), Path({str(tmp_path / "small")!r}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loaded = load_into(build, Path({str(tmp_path / "w.safetensors")!r}))
sum(float(value.sum()) for value in loaded.parameters())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    save_tensors(nn.Linear(1, 1).state_dict(), tmp_path / "small")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1.3 * Path(tmp_path, "w.safetensors").stat().st_size


EDITS = {
    "twice": lambda h: {**h, "b": h["a"]},
    "gap": lambda h: {**h, "b": {**h["b"], "data_offsets": [28, 36]}},
    "short": lambda h: {"a": h["a"]},
    "huge": lambda h: {**h, "a": {**h["a"], "shape": [2**40, 2**40]}},
    "negative": lambda h: {**h, "a": {**h["a"], "shape": [-2, -3]}},
    "bool": lambda h: {**h, "a": {**h["a"], "shape": [True, 6]}},
    "type": lambda h: {**h, "a": {**h["a"], "dtype": "F4"}},
    "unlike": lambda h: {**h, "a": {**h["a"], "dtype": "F64"}},
    "list": lambda h: [h],
    "entry": lambda h: {**h, "a": 5},
    "field": lambda h: {"a": {"dtype": "F32"}},
    "deep": lambda h: {**h, "__metadata__": "["},
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_a_header_that_does_not_describe_each_byte_once_is_refused(tmp_path, change):
    path = tmp_path / "w.safetensors"
    save_tensors({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(change(json.loads(content[8 : 8 + length])))
    text = text.replace('"["', "[" * 100_000).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(
        ValueError, match=r"is no readable safetensors file: .*; if it was downloaded, remove /.* again"
    ):
        read_tensors(path)


def test_tensors_come_back_from_a_file_in_every_type(tmp_path):
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    given = {str(kind): torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=kind) for kind in kinds}
    given |= {"none": torch.zeros(0, 3), "one": torch.tensor(2.5), "complex": torch.ones(2, dtype=torch.complex64)}
    save_tensors(given, tmp_path / "w.safetensors")
    found, digest = read_tensors(tmp_path / "w.safetensors")
    outside = load_file(tmp_path / "w.safetensors")
    assert found.keys() == given.keys() and digest == sha256(tmp_path / "w.safetensors")
    for name, value in found.items():
        assert value.dtype == outside[name].dtype == given[name].dtype and torch.equal(value, outside[name])
