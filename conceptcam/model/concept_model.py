"""The model: image -> features -> concepts -> prototypes -> task."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from conceptcam._checks import shorten
from conceptcam.backbones import Backbone
from conceptcam.config import ConceptConfig, TrainingRecord
from conceptcam.data.transforms import Preprocess
from conceptcam.hub.architectures import architecture_config
from conceptcam.hub.download import resolve_model, upload
from conceptcam.hub.model_folder import known_sha256, read_folder, save_folder
from conceptcam.hub.weights import load_into
from conceptcam.model.device import eval_mode, resolve_device
from conceptcam.model.heads import TaskHead, project_grid
from conceptcam.model.novelty import can_tell, unlikeness
from conceptcam.model.outputs import ConceptOutput, ConceptPart
from conceptcam.model.parts import standard_parts
from conceptcam.model.predictions import (
    Predictions,
    check_finite,
    concept_probabilities,
    image_names,
    list_images,
    task_probabilities,
)
from conceptcam.model.taught import check_taught, tasks_taught


class ConceptModel(nn.Module):
    """A concept-bottleneck model that says which concepts it sees, where, and what each counted for.

    Build one with `from_config` or `from_pretrained`; use the constructor to put in parts of your own.
    Every part is an attribute, and stages name parts by those attributes.

    Attributes:
        config: What the model is.
        record: What it has been taught.
        preprocess: Turns an image (a path, a PIL image, an array or a tensor) into what the model takes.

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
        record: TrainingRecord | None = None,
    ) -> None:
        super().__init__()
        if config.bottleneck == "prototypes" and (projector is None or prototypes is None):
            raise ValueError("a 'prototypes' bottleneck needs a projector and prototypes; or choose 'concepts'")
        self.config = config
        self.record = record or TrainingRecord()
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
        """Build a model of the standard parts, untrained, save perhaps the backbone; see `standard_parts`.

        Args:
            config: What the model is.
            pretrained_backbone: Whether to download the backbone's published weights.
            backbone_weights: A file or a place on the Hub to start the backbone from; see `create_backbone`.

        Raises:
            ValueError: If a name in the config is unknown, or the weights do not fit.
        """
        parts = standard_parts(config, pretrained_backbone=pretrained_backbone, backbone_weights=backbone_weights)
        return cls(config, **parts)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        verify: bool = False,
    ) -> Self:
        """Load a model from a folder, the package itself or the Hugging Face Hub, in eval mode.

        Args:
            source: A folder written by `save_pretrained`, a name that `list_models` lists, or
                `"organization/name"` on the Hub, perhaps with `@revision`, or the address of its page there. A path
                object, the name of a folder that is there and text that starts with `.`, `/` or `~` are always folders.
            revision: Branch, tag or commit on the Hub; None is the main branch.
            token: For private and gated repositories; None takes the one you are logged in with.
            cache_dir: Where downloads are kept; None is the Hub client's cache.
            local_files_only: Whether to take what the cache has and ask nobody.
            device: Where to put the model.
            dtype: Floating-point type of the weights; None keeps the one they were saved in.
            verify: Whether to refuse a model that records no SHA-256 of its weights. Where one is recorded, the weights
                are always checked against it.

        Raises:
            FileNotFoundError: If the folder, the repository, the revision or a file is not there.
            PermissionError: If the Hub refuses access.
            ConnectionError: If the Hub cannot be reached, or breaks off.
            ValueError: If the config or the weights do not fit this version of conceptcam, or each other; if the
                weights are not those that were saved, or not finite; or, before anything is downloaded, if this machine
                has no such device or `dtype` is no floating-point type.
        """
        where = resolve_device(device)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"`dtype` must be a floating-point type such as torch.bfloat16, got {dtype!r}")
        folder = resolve_model(
            source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        config, record, weights = read_folder(folder)
        if verify and not record.weights_sha256:
            raise ValueError(f"{folder}: its config records no SHA-256 of the weights, so they cannot be verified")
        model = load_into(lambda: cls.from_config(config), weights, sha256=known_sha256(weights, record))
        model.record = record
        return model.to(device=where, dtype=dtype).eval()

    def save_pretrained(self, folder: str | Path, *, card: str | None = None) -> None:
        """Write the config, the record and the weights that `from_pretrained` reads, and a model card.

        What the folder held before stays whole if writing fails.

        Args:
            folder: Made if it is not there.
            card: Text of the card; None generates one with `model_card`, unless the folder holds one of your own.

        Raises:
            OSError: If the disk is full or the folder cannot be written.
        """
        save_folder(Path(folder).expanduser(), self.config, self.record, self.state_dict(), card=card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a conceptcam model",
        card: str | None = None,
    ) -> str:
        """Put the config, the weights and a model card on the Hugging Face Hub as one commit.

        Args:
            repo_id: `"organization/name"`; created if it is not there.
            token: With the right to write; None takes the one you are logged in with.
            private: Whether a repository that is created is private; None leaves it to the organization.
            revision: Branch to commit to; None is the main branch.
            commit_message: First line of the commit.
            card: Text of the card; None generates one, unless the Hub holds one that was written by hand.

        Returns:
            Address of the commit.

        Raises:
            PermissionError: If the token is missing or may not write.
            ConnectionError: If the Hub cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            save_folder(Path(folder), self.config, self.record, self.state_dict(), card=card, title=repo_id)
            return upload(
                Path(folder),
                repo_id,
                keep_card=card is None,
                token=token,
                private=private,
                revision=revision,
                commit_message=commit_message,
            )

    def forward(self, images: Tensor) -> ConceptOutput:
        """Images (B, 3, H, W), normalized -> concepts, similarities to prototypes, evidence and task logits."""
        return self.forward_task(self.forward_concepts(images))

    def forward_concepts(self, images: Tensor) -> ConceptPart:
        """Images (B, 3, H, W), normalized -> features, concept maps and concept logits; see `forward_features`."""
        features = self.forward_features(images)
        concept_maps = self.concept_head(features)
        return ConceptPart(features, concept_maps, self.pool(concept_maps))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalized -> features (B, C, h, w) of the backbone.

        Raises:
            ValueError: If the images have another shape than the config says, or another type than the weights.
        """
        self._check(images)
        features: Tensor = self.backbone(images)
        return features

    def forward_task(self, part: ConceptPart) -> ConceptOutput:
        """What `forward_concepts` gives -> that, similarities to prototypes, evidence and task logits."""
        if self.config.bottleneck == "concepts":
            vector_similarity, similarity_maps = _without_prototypes(part)
            evidence = part.concept_logits.sigmoid()[..., None]
        else:
            vector_similarity = self._vector_similarity(part)
            similarity_maps = self.similarity_maps(part)
            evidence = similarity_maps.amax(dim=(-2, -1))
        return ConceptOutput(*part, vector_similarity, similarity_maps, evidence, self.task_head(evidence))

    def concept_vectors(self, part: ConceptPart) -> Tensor:
        """(B, K, C) vector of each concept: the mean of the features, weighted by the softmax of the concept's map.

        CSR, Eq. 2; the softmax is over places, of the map over `attention_temperature`.
        """
        maps = part.concept_maps / self.config.attention_temperature
        weights = rearrange(maps, "b k h w -> b k (h w)").softmax(dim=-1)
        return einsum(weights, rearrange(part.features, "b c h w -> b c (h w)"), "b k p, b c p -> b k c")

    def similarity_maps(self, part: ConceptPart) -> Tensor:
        """(B, K, M, h, w) cosine of each place with each prototype, clipped at 0 (CSR, Eq. 10 and 13).

        Raises:
            ValueError: If the model has no prototypes.
        """
        projector, prototypes = self._prototype_parts()
        embeddings = project_grid(projector, part.features)
        cosines = prototypes(rearrange(embeddings, "b d h w -> b (h w) d"))
        return rearrange(cosines.relu(), "b (h w) k m -> b k m h w", h=part.features.shape[-2])

    def _vector_similarity(self, part: ConceptPart) -> Tensor:
        """(B, K, K, M) cosine of each concept's vector with each prototype (CSR, Eq. 3 and 4)."""
        projector, prototypes = self._prototype_parts()
        if self.config.pooling_order == "project_then_pool":
            embeddings = project_grid(projector, part.features)
            return prototypes(self.concept_vectors(part._replace(features=embeddings)))
        return prototypes(projector(self.concept_vectors(part)))

    def _prototype_parts(self) -> tuple[nn.Module, nn.Module]:
        if self.projector is None or self.prototypes is None:
            raise ValueError("a 'concepts' bottleneck has no prototypes to compare with")
        return self.projector, self.prototypes

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay would harm, biases and norms aside; timm's optimizers ask for them."""
        parts = {"backbone": self.backbone.no_weight_decay()}
        if self.prototypes is not None:
            parts["prototypes"] = {name for name, _ in self.prototypes.named_parameters()}
        return {f"{part}.{name}" for part, names in parts.items() for name in names}

    @property
    def device(self) -> torch.device:
        """Where the model is: the device of its parameters."""
        return self.task_head.weight.device

    @torch.inference_mode()
    def predict(
        self,
        images: Any,
        *,
        batch_size: int = 32,
        device: torch.device | str | None = None,
        calibrated: bool = True,
    ) -> Predictions:
        """Probabilities of all concepts and tasks in images, as a table.

        The model is left as it is, its mode and device included. `explain` also says where and why.

        Args:
            images: One image or several: paths, PIL images, arrays or tensors as `load_image` takes, mixed as you
                like.
            batch_size: Images per forward pass.
            device: Where to run; None stays where the model is.
            calibrated: Whether to scale probabilities as the record says; see `fit_calibration`.

        Returns:
            A row per image, in order. Tasks are left out if the model was taught none.

        Raises:
            ValueError: If the model was never taught concepts, or an image cannot be used.
            FloatingPointError: If what the model says is not finite, as where half precision overflows.
        """
        check_taught(self.config, self.record)
        if batch_size < 1:
            raise ValueError(f"`batch_size` (--batch-size) must be at least 1, got {batch_size}")
        with_tasks = tasks_taught(self.config, self.record)
        images = list_images(images)
        concepts = torch.empty(len(images), len(self.config.concepts))
        tasks = torch.empty(len(images), len(self.config.tasks) if with_tasks else 0)
        record = self.record if calibrated else None
        novelty = torch.empty(len(images), dtype=torch.float64)
        with eval_mode(self, device) as where:
            for start in range(0, len(images), batch_size):
                rows = slice(start, start + batch_size)
                batch = torch.stack([self.preprocess(image).to(where) for image in images[rows]])
                concept_part = self.forward_concepts(batch)
                check_finite(concept_part.concept_logits)
                novelty[rows] = unlikeness(self.record, concept_part.features)
                concepts[rows] = concept_probabilities(concept_part.concept_logits, self.config, record).cpu()
                if with_tasks:
                    task_logits = self.forward_task(concept_part).task_logits
                    check_finite(task_logits)
                    tasks[rows] = task_probabilities(task_logits, self.config, record).cpu()
        task_names = self.config.tasks if with_tasks else ()
        unlike = novelty if can_tell(self.record) else None
        return Predictions(image_names(images), self.config.concepts, task_names, concepts, tasks, unlike)

    def __repr__(self) -> str:
        """What it is and was taught, and a line per part; printing a part shows its layers."""
        config, size = self.config, " x ".join(map(str, self.config.image_size))
        lines = [
            f"ConceptModel of {size}{' grey' * (config.in_chans == 1)} images on {config.backbone!r}",
            f"  {len(config.concepts)} concepts: {shorten(map(repr, config.concepts))}",
            f"  {len(config.tasks)} tasks: {shorten(map(repr, config.tasks)) or '-'}",
            f"  taught: {', '.join(self.record.stages) or 'nothing yet'}",
        ]
        for name, part in self.named_children():
            lines.append(f"  {name}: {type(part).__name__}, {sum(p.numel() for p in part.parameters()):,} parameters")
        return "\n".join(lines)

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
        expected, dtype = (self.config.in_chans, *self.config.image_size), self.task_head.weight.dtype
        castable = images.is_floating_point() and torch.is_autocast_enabled(images.device.type)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected or not (images.dtype == dtype or castable):
            raise ValueError(
                f"expected normalized {dtype} images of shape (B, {', '.join(map(str, expected))}), got "
                f"{images.dtype} of shape {tuple(images.shape)}; `model.preprocess` makes them from an image"
            )


def create_model(
    name: str,
    *,
    concepts: Sequence[str],
    tasks: Sequence[str] = (),
    pretrained_backbone: bool = False,
    backbone_weights: str | Path | None = None,
    **fields: Any,
) -> ConceptModel:
    """Build a model of a named architecture for your concepts and tasks, untrained, save perhaps the backbone.

    Args:
        name: A name that `list_architectures` lists, such as `"csr_resnet50"`.
        concepts: Names of the concepts, such as `VINDR_CONCEPTS`.
        tasks: Names of the tasks.
        pretrained_backbone: Whether to download the backbone's published weights.
        backbone_weights: A file or a place on the Hub to start the backbone from; see `create_backbone`.
        **fields: Fields of `ConceptConfig` that differ from the architecture's.

    Raises:
        ValueError: If there is no such architecture, or a field or the weights do not fit.
    """
    config = architecture_config(name, concepts=concepts, tasks=tasks, **fields)
    return ConceptModel.from_config(config, pretrained_backbone=pretrained_backbone, backbone_weights=backbone_weights)


def _without_prototypes(part: ConceptPart) -> tuple[Tensor, Tensor]:
    batch, concepts, height, width = part.concept_maps.shape
    return (
        part.concept_maps.new_zeros(batch, concepts, concepts, 0),
        part.concept_maps.new_zeros(batch, concepts, 0, height, width),
    )
