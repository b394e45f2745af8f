"""Bring images: readers that all give the same items, with labels, boxes, preprocessing and augmentation."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.data.adapter import DatasetAdapter as DatasetAdapter
    from conceptcam.data.batch import (
        ConceptBatch as ConceptBatch,
        ConceptDataset as ConceptDataset,
        ConceptItem as ConceptItem,
        collate as collate,
    )
    from conceptcam.data.boxes import ConceptBoxes as ConceptBoxes
    from conceptcam.data.coco import CocoDataset as CocoDataset
    from conceptcam.data.faults import Fault as Fault
    from conceptcam.data.image_cache import ImageCache as ImageCache
    from conceptcam.data.images import load_image as load_image
    from conceptcam.data.inspection import Inspection as Inspection, inspect_dataset as inspect_dataset
    from conceptcam.data.joined import JoinedDataset as JoinedDataset
    from conceptcam.data.labels import resolve_uncertain as resolve_uncertain
    from conceptcam.data.merging import merge_readers as merge_readers
    from conceptcam.data.public_tables import (
        CHEXPERT_CONCEPTS as CHEXPERT_CONCEPTS,
        NIH_CONCEPTS as NIH_CONCEPTS,
    )
    from conceptcam.data.readers import SimulatedReaders as SimulatedReaders
    from conceptcam.data.regions import WithRegions as WithRegions
    from conceptcam.data.splits import (
        ConceptSubset as ConceptSubset,
        divide_dataset as divide_dataset,
        load_split as load_split,
        make_folds as make_folds,
        save_split as save_split,
        shared_patients as shared_patients,
        split_by_patient as split_by_patient,
    )
    from conceptcam.data.table import TableDataset as TableDataset
    from conceptcam.data.transforms import (
        BoxAwareTransform as BoxAwareTransform,
        Preprocess as Preprocess,
        default_augmentation as default_augmentation,
    )
    from conceptcam.data.transplant import FindingTransplant as FindingTransplant
    from conceptcam.data.vindr import VINDR_CONCEPTS as VINDR_CONCEPTS, VINDR_TASKS as VINDR_TASKS

__getattr__, __dir__ = hand_on(__name__)
