import pytest
import torch
from torch.utils.data import DataLoader

from conceptcam.data.batch import ConceptBatch, ConceptDataset, ConceptItem, as_batch, collate
from conceptcam.data.boxes import ConceptBoxes


def box(concept: int = 0) -> ConceptBoxes:
    return ConceptBoxes(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([concept]), torch.tensor([0]))


def item(number: int, boxes: ConceptBoxes | None = None) -> ConceptItem:
    return ConceptItem(
        torch.full((3, 4, 6), float(number)), torch.tensor([1.0, torch.nan]), torch.ones(1), boxes, f"i{number}"
    )


class FourImages(ConceptDataset):
    concepts, tasks = ("a", "b"), ("t",)
    concept_labels, task_labels = torch.zeros(4, 2), torch.zeros(4, 1)

    def load_item(self, index: int) -> ConceptItem:
        return item(index, [None, ConceptBoxes.empty(), box(0), box(1)][index])


def test_collate_stacks_items_and_numbers_their_boxes_by_image():
    batch = collate([FourImages()[index] for index in range(4)])
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert (batch.concepts.shape, batch.targets.shape, batch.names) == ((4, 2), (4, 1), ("i0", "i1", "i2", "i3"))
    assert batch.boxes is not None
    assert (batch.boxes.image.tolist(), batch.boxes.concept.tolist()) == ([2, 3], [0, 1])


def test_nobody_drew_is_no_boxes_and_nothing_found_is_empty_boxes():
    assert collate([item(0), item(1)]).boxes is None
    looked = collate([item(0), item(1, ConceptBoxes.empty())]).boxes
    assert looked is not None and len(looked) == 0


def test_batches_come_whole_out_of_worker_processes():
    for workers in (0, 1):
        (batch,) = DataLoader(FourImages(), batch_size=4, num_workers=workers, collate_fn=collate)
        assert isinstance(batch, ConceptBatch) and batch.boxes is not None
        assert (len(batch.boxes), batch.names[3]) == (2, "i3")


def test_moving_a_batch_moves_everything_and_changes_nothing():
    batch = collate([item(0, box()), item(1)])
    moved = batch.to("cpu")
    for first, second in zip(batch[:3], moved[:3], strict=True):
        assert torch.equal(first.nan_to_num(-1), second.nan_to_num(-1))
    assert moved.boxes is not None and moved.names == batch.names
    away = batch.to("meta")
    assert away.boxes is not None
    assert {away.images.device.type, away.concepts.device.type, away.boxes.xyxy.device.type} == {"meta"}
    assert collate([item(0)]).to("cpu").boxes is None


def test_a_dict_as_the_seed_has_it_is_the_same_batch():
    images, concepts, targets = torch.rand(2, 3, 4, 4), torch.tensor([[1, 0], [0, 1]]), torch.tensor([[1], [0]])
    boxes = [[{"concept_idx": 0, "bbox": [0.1, 0.2, 0.3, 0.4]}], []]
    batch = as_batch({"image": images, "concepts": concepts, "targets": targets, "bboxes": boxes})
    assert batch.images is images
    assert torch.equal(batch.concepts, concepts.float()) and torch.equal(batch.targets, targets.float())
    assert batch.boxes is not None and torch.equal(batch.boxes.xyxy, box().xyxy)


def test_a_dict_may_lack_fields_and_hold_those_of_others():
    images, concepts = torch.rand(2, 3, 4, 4), torch.zeros(2, 5)
    bare = as_batch({"image": images, "concepts": concepts, "patient": ["x", "y"]})
    assert bare.targets.shape == (2, 0) and bare.boxes is None and bare.names == ()
    drawn = box()
    full = as_batch({"image": images, "concepts": concepts, "bboxes": drawn, "names": ["a", "b"]})
    assert full.boxes is drawn and full.names == ("a", "b")


def test_our_batch_stays_as_it_is():
    batch = collate([item(0)])
    assert as_batch(batch) is batch


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"image": None}, r"a batch needs 'image' and 'concepts'; \['image'\] is missing from \['concepts'\]"),
        ({"concepts": None}, r"\['concepts'\] is missing from \['image'\]"),
        (
            {"concepts": torch.zeros(3, 5)},
            "batch parts differ in length: 2, 3, 2",
        ),
        ({"targets": torch.zeros(1, 5)}, "batch parts differ in length: 2, 2, 1"),
        ({"bboxes": [[]]}, "'bboxes' needs one list per image: got 1 for 2 images"),
        ({"bboxes": [[{"bbox": [0, 0, 1, 1]}], []]}, "a box needs 'concept_idx'"),
    ],
)
def test_a_dict_that_is_no_batch_is_refused_with_the_reason(wrong, message):
    parts = {"image": torch.rand(2, 3, 4, 4), "concepts": torch.zeros(2, 5), **wrong}
    with pytest.raises(ValueError, match=message):
        as_batch({key: value for key, value in parts.items() if value is not None})


def test_a_dict_of_arrays_is_the_same_batch():
    images, labels = torch.rand(2, 3, 4, 6), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    arrays = as_batch({"image": images.numpy(), "concepts": labels.numpy().astype("i4"), "targets": labels.numpy()})
    assert arrays.images.equal(images) and arrays.concepts.equal(labels) and arrays.targets.equal(labels)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((torch.zeros(2, 3, 4, 6), torch.zeros(2, 1)), "got a tuple; a tuple does not say which part is which: write"),
        (torch.zeros(2, 3, 4, 6), "a batch must be a ConceptBatch or a dict, got a Tensor"),
        (
            {"image": [1, 2], "concepts": torch.zeros(2, 1)},
            "'image' of a batch must be a tensor or numpy array, got a list",
        ),
    ],
)
def test_what_is_no_batch_gets_one_clear_sentence(wrong, message):
    with pytest.raises(ValueError) as caught:
        as_batch(wrong)
    assert message in str(caught.value)


def test_images_are_called_by_numbers_unless_the_reader_knows():
    data = FourImages()
    assert data.names == ("0", "1", "2", "3") and data.patients is None and data.notes == ()


def test_a_data_set_reads_then_augments_then_preprocesses():
    data = FourImages()
    data.augmentation = lambda one: one._replace(image=one.image + 1, name="augmented")
    data.preprocess = lambda image: image * 10
    assert data[2].image.unique().item() == 30
    assert data[-1].image.unique().item() == 40
    assert data[0].name == "augmented" and data.load_item(0).name == "i0"


def test_a_data_set_ends_where_its_labels_end():
    data = FourImages()
    assert len(data) == 4 and len(list(data)) == 4
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"item {index} of 4"):
            data[index]


@pytest.mark.parametrize(("slip", "meant"), [("bbox", "bboxes"), ("target", "targets"), ("concept", "concepts")])
def test_an_entry_with_nearly_a_known_name_is_refused(slip, meant):
    batch = {"image": torch.zeros(2, 3, 4, 4), "concepts": torch.zeros(2, 1)}
    with pytest.raises(ValueError, match=f"entry '{slip}', which nothing reads; did you mean .*'{meant}'"):
        as_batch({**batch, slip: torch.zeros(2, 1)})
    assert as_batch({**batch, "patient": [1, 2]}).boxes is None


def test_a_dict_may_name_images_and_boxes_as_our_batch_does():
    images, labels = torch.rand(1, 3, 8, 8), torch.ones(1, 2)
    boxes = [[{"concept_idx": 1, "bbox": [0.1, 0.1, 0.4, 0.4]}]]
    one = as_batch({"image": images, "concepts": labels, "bboxes": boxes})
    other = as_batch({"images": images, "concepts": labels, "boxes": boxes})
    assert torch.equal(one.images, other.images) and torch.equal(one.boxes.xyxy, other.boxes.xyxy)


def test_a_dict_with_both_names_of_an_entry_is_refused():
    with pytest.raises(ValueError, match="both 'image' and 'images', which are one entry"):
        as_batch({"image": torch.zeros(1, 3, 8, 8), "images": torch.ones(1, 3, 8, 8), "concepts": torch.ones(1, 2)})
