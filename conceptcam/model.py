"""The model: image -> features -> concepts -> prototypes -> task."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from conceptcam import hub
from conceptcam.backbones import Backbone, create_backbone
from conceptcam.config import ConceptConfig, ModelRecord
from conceptcam.data.transforms import Preprocess
from conceptcam.heads import ConceptHead, Prototypes, TaskHead, create_projector, project_grid
from conceptcam.outputs import Compared, ConceptOutput, Seen
from conceptcam.pooling import create_pooling


class ConceptModel(nn.Module):
    """A concept-bottleneck model that says which concepts it sees, where, and what each counted for.

    Build one with `from_config` or `from_pretrained`; use the constructor to put in parts of your own.
    Every part is an attribute, and stages name parts by those attributes.

    Attributes:
        config: What the model is.
        record: What it has been taught.
        preprocess: Turns an image as read into what the model wants.

    Raises:
        ValueError: If prototypes are asked for without the parts they need.
    """

    task_head: TaskHead

    def __init__(
        self,
        config: ConceptConfig,
        *,
        backbone: Backbone,
        concept_head: nn.Module,
        pool: nn.Module,
        task_head: TaskHead,
        projector: nn.Module | None = None,
        prototypes: nn.Module | None = None,
        record: ModelRecord | None = None,
    ) -> None:
        super().__init__()
        if config.bottleneck == "prototypes" and (projector is None or prototypes is None):
            raise ValueError("a 'prototypes' bottleneck needs a projector and prototypes; or choose 'concepts'")
        self.config = config
        self.record = record or ModelRecord()
        self.preprocess = Preprocess(config.image_size, config.mean, config.std)
        self.backbone = backbone
        self.concept_head = concept_head
        self.pool = pool
        self.projector = projector
        self.prototypes = prototypes
        self.task_head = task_head

    @classmethod
    def from_config(
        cls,
        config: ConceptConfig,
        *,
        pretrained_backbone: bool = False,
        backbone_weights: str | Path | None = None,
    ) -> Self:
        """Build the standard parts, sized by the config and untrained, save perhaps the backbone.

        Args:
            config: What the model is.
            pretrained_backbone: Whether to download the backbone's published weights.
            backbone_weights: A safetensors file to start the backbone from; see `create_backbone`.

        Raises:
            ValueError: If a name in the config is unknown, or the weights do not fit.
        """
        backbone = create_backbone(
            config.backbone,
            pretrained=pretrained_backbone,
            weights=backbone_weights,
            image_size=config.image_size,
            feature_level=config.feature_level,
        )
        if not isinstance(backbone, Backbone):
            raise ValueError(
                f"backbone {config.backbone!r} gave a {type(backbone).__name__}; its factory must return a `Backbone`"
            )
        channels, concepts = backbone.out_channels, len(config.concepts)
        with_prototypes = config.bottleneck == "prototypes"
        per_concept = config.prototypes_per_concept if with_prototypes else 1
        return cls(
            config,
            backbone=backbone,
            concept_head=ConceptHead(channels, concepts, bias=config.head_bias, prior=_prior(config.pooling)),
            pool=create_pooling(config.pooling, num_concepts=concepts, value=config.pooling_value),
            projector=create_projector(config.projector, channels, config.embed_dim) if with_prototypes else None,
            prototypes=Prototypes(concepts, per_concept, config.embed_dim) if with_prototypes else None,
            task_head=TaskHead(concepts, per_concept, len(config.tasks)),
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: torch.device | str = "cpu", verify: bool = False) -> Self:
        """Load a model from a folder, in eval mode.

        Args:
            source: A folder written by `save_pretrained`.
            device: Where to put the model.
            verify: Whether to check the weights against the SHA-256 that was recorded when they were saved.

        Raises:
            FileNotFoundError: If the folder, its config or its weights are not there.
            ValueError: If the config or the weights do not fit this version of conceptcam, or each other.
        """
        config, record, weights = hub.read_folder(Path(source).expanduser())
        if verify and hub.sha256(weights) != record.weights_sha256:
            raise ValueError(f"{weights} is not the file that its config was saved with: the SHA-256 differs")
        with torch.random.fork_rng(devices=[]):  # what is random at first is overwritten below
            model = cls.from_config(config)
        model.record = record
        hub.load_tensors(model, weights)
        return model.to(device).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the config, the record and the weights that `from_pretrained` reads.

        What the folder held before stays whole if writing fails.

        Raises:
            OSError: If the disk is full or the folder cannot be written.
        """
        hub.save_folder(Path(folder).expanduser(), self.config, self.record, self.state_dict())

    def see(self, images: Tensor) -> Seen:
        """Images (B, 3, H, W), normalized -> features, concept maps and concept logits.

        Raises:
            ValueError: If the images have another shape than the config says, or another type than the weights.
        """
        self._check(images)
        features = self.backbone(images)
        concept_maps = self.concept_head(features)
        return Seen(features, concept_maps, self.pool(concept_maps))

    def compare(self, images: Tensor) -> Compared:
        """Images (B, 3, H, W), normalized -> what was seen, and each concept's vector beside the prototypes.

        Stage 2 learns from this alone, so its projector sees concept vectors and no other places.
        """
        seen = self.see(images)
        return Compared(*seen, self.compare_vectors(seen))

    def reason(self, seen: Seen) -> ConceptOutput:
        """What was seen -> similarities to prototypes, evidence and task logits."""
        if self.config.bottleneck == "concepts":
            vector_similarity, similarity_maps, evidence = _without_prototypes(seen)
        else:
            vector_similarity = self.compare_vectors(seen)
            similarity_maps = self.compare_places(seen)
            evidence = similarity_maps.amax(dim=(-2, -1))
        return ConceptOutput(*seen, vector_similarity, similarity_maps, evidence, self.task_head(evidence))

    def forward(self, images: Tensor) -> ConceptOutput:
        """Images (B, 3, H, W), normalized -> everything the model has to say about them."""
        return self.reason(self.see(images))

    def compare_vectors(self, seen: Seen) -> Tensor:
        """(B, K, K, M) cosine of each concept's vector with each prototype (CSR, Eq. 2 and 3).

        A concept's vector is the mean feature, weighed by the softmax of its map over places.
        """
        assert self.projector is not None and self.prototypes is not None
        weights = rearrange(seen.concept_maps / self.config.map_temperature, "b k h w -> b k (h w)").softmax(dim=-1)
        if self.config.pooling_order == "project_then_pool":
            vectors = einsum(weights, project_grid(self.projector, seen.features), "b k p, b p d -> b k d")
        else:
            places = rearrange(seen.features, "b c h w -> b c (h w)")
            vectors = self.projector(einsum(weights, places, "b k p, b c p -> b k c"))
        return self.prototypes(vectors)

    def compare_places(self, seen: Seen) -> Tensor:
        """(B, K, M, h, w) cosine of each place with each prototype, clipped at 0 (CSR, Eq. 10 and 13)."""
        assert self.projector is not None and self.prototypes is not None
        height = seen.features.shape[-2]
        cosines = self.prototypes(project_grid(self.projector, seen.features))
        return rearrange(cosines.relu(), "b (h w) k m -> b k m h w", h=height)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, leaving frozen parts in eval mode.

        A frozen part must give the same output at every step, so its batch-norm statistics and dropout
        stay still too, whichever loop calls `train()`.
        """
        super().train(mode)
        for part in self.children():
            parameters = list(part.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                part.eval()
        return self

    def _check(self, images: Tensor) -> None:
        expected, dtype = (3, *self.config.image_size), self.task_head.weight.dtype
        castable = images.is_floating_point() and torch.is_autocast_enabled(images.device.type)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected or not (images.dtype == dtype or castable):
            raise ValueError(
                f"expected normalized {dtype} images of shape (B, {', '.join(map(str, expected))}), got "
                f"{images.dtype} of shape {tuple(images.shape)}; `model.preprocess` makes them from an image"
            )


def _prior(pooling: str) -> float:
    """Probability that every place starts from, such that a concept is hardly ever seen in the whole image."""
    # Noisy-or adds places up: the same start at each of, say, 14 x 14 would be near certainty.
    return 0.05 / 14**2 if pooling == "noisy_or" else 0.05


@contextlib.contextmanager
def evaluating(model: nn.Module, device: torch.device | str | None = None) -> Iterator[torch.device]:
    """Put a model in eval mode, and on a device, for a while; gives the device. It is left as it was."""
    was_training, home = model.training, next(model.parameters()).device
    where = home if device is None else torch.device(device)
    try:
        model.to(where).eval()
        yield where
    finally:
        model.to(home).train(was_training)


def _without_prototypes(seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
    batch, concepts, height, width = seen.concept_maps.shape
    return (
        seen.concept_maps.new_zeros(batch, concepts, concepts, 0),
        seen.concept_maps.new_zeros(batch, concepts, 0, height, width),
        seen.concept_logits.sigmoid()[..., None],
    )
