"""Bring images: readers that all give the same items, with labels, boxes, preprocessing and augmentation."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.data.batch import ConceptBatch, ConceptDataset, ConceptItem, collate
    from conceptcam.data.boxes import ConceptBoxes
    from conceptcam.data.coco import CocoDataset
    from conceptcam.data.images import load_image
    from conceptcam.data.labels import resolve_uncertain
    from conceptcam.data.transforms import BoxAwareTransform, Preprocess, default_augmentation
    from conceptcam.data.vindr import VINDR_CONCEPTS, VINDR_TASKS

__all__ = [
    "BoxAwareTransform", "CocoDataset", "ConceptBatch", "ConceptBoxes", "ConceptDataset",
    "ConceptItem", "Preprocess", "VINDR_CONCEPTS", "VINDR_TASKS", "collate",
    "default_augmentation", "load_image", "resolve_uncertain",
]  # fmt: skip

__getattr__, __dir__ = hand_on(
    __name__,
    {
        "batch": ["ConceptBatch", "ConceptDataset", "ConceptItem", "collate"],
        "boxes": ["ConceptBoxes"],
        "coco": ["CocoDataset"],
        "images": ["load_image"],
        "labels": ["resolve_uncertain"],
        "transforms": ["BoxAwareTransform", "Preprocess", "default_augmentation"],
        "vindr": ["VINDR_CONCEPTS", "VINDR_TASKS"],
    },
)
