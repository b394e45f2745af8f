"""A data set over another one, which gives all that this one does not change."""

from collections.abc import Sequence

from conceptcam.data.batch import ConceptDataset
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.image_cache import ImageCache


class WrappedDataset(ConceptDataset):
    """Base of data sets over another one: what they do not change is the other's.

    Args:
        dataset: The other one, also an attribute.
    """

    def __init__(self, dataset: ConceptDataset) -> None:
        self.dataset = dataset
        self.concepts, self.tasks, self.task_kind = dataset.concepts, dataset.tasks, dataset.task_kind
        self.concept_labels, self.task_labels = dataset.concept_labels, dataset.task_labels
        self.folder, self.patients, self.notes = dataset.folder, dataset.patients, dataset.notes
        self.augmentation, self.preprocess = dataset.augmentation, dataset.preprocess

    @property
    def names(self) -> Sequence[str]:
        """What to call the images."""
        return self.dataset.names

    @property
    def all_boxes(self) -> ConceptBoxes | None:
        """The boxes of all images, numbered as the images."""
        return self.dataset.all_boxes

    @property
    def image_cache(self) -> ImageCache | None:
        """The cache that images are read through, if they are."""
        return self.dataset.image_cache

    def cache_images(self, cache: ImageCache | None) -> None:
        """Read images through a cache from now on, as all that read the same data set do; None ends that."""
        self.dataset.cache_images(cache)
