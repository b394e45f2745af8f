"""The inputs of one step; several processes divide a batch, and all compute the loss of the whole batch.

A loss that each process took of its own rows would weigh boxes, known labels and present concepts by where they
happen to lie. So the small tensors that a loss reads are gathered, and every process computes the loss of the whole
batch, with gradients through its own rows only. The sum of the processes' gradients is then the gradient of one
process, for any loss.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from conceptcam.data.batch import ConceptBatch
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.corrections import PROBABILITIES, TypicalEvidence, mix_corrections
from conceptcam.training import distributed
from conceptcam.training.batches import BatchLoader, EpochPlan, RankBatch
from conceptcam.training.stages import SplitForward, Stage

log = distributed.main_process_logger(__name__)

_FAR = 50.0  # more than any image in [0, 1] comes to, divided by a standard deviation of 0.02


class StepInput(NamedTuple):
    """What a stage's forward pass and its loss need for one batch."""

    inputs: tuple[Tensor, ...]
    """What the forward pass is called with, after the model: this process's rows."""
    batch: ConceptBatch
    """Labels, boxes and names of the whole batch."""
    own: int | None
    """How many of this process's rows count; None if every process has the whole batch."""


class Source(Protocol):
    """Where the inputs of a stage come from."""

    forward: Callable[..., Any]
    """What to call with the model and the inputs."""
    divided: bool
    """Whether each process has its own rows, so that gradients must be summed."""

    @property
    def cached(self) -> bool:
        """Whether the outputs of frozen parts are read from a cache."""

    def load(self, plan: EpochPlan, start: int = 0) -> Iterator[StepInput]:
        """The inputs of each batch of a plan, from the batch numbered `start` on.

        Batches to skip are read before this returns, because a resumed epoch sets random states next.
        """


class Images:
    """Inputs that are images, as a loader gives them."""

    cached = False

    def __init__(self, loader: BatchLoader, stage: Stage, device: torch.device) -> None:
        self._loader, self._stage, self._device = loader, stage, device
        self.forward = stage.forward
        self.divided = distributed.world_size() > 1
        self._looked = False

    def load(self, plan: EpochPlan, start: int = 0) -> Iterator[StepInput]:
        """The inputs of each batch of a plan, from the batch numbered `start` on."""
        return map(self._step_input, self._loader.load(plan, start))

    def _step_input(self, share: RankBatch) -> StepInput:
        if not self._looked:
            self._looked = True
            _notice_raw(share.batch.images)
        mine = share.batch.to(self._device, non_blocking=True)
        split = isinstance(self.forward, SplitForward)
        inputs = (mine.images, self._stage.concept_mask(mine)) if split else (mine.images,)
        if not self.divided:
            return StepInput(inputs, mine, None)
        parts = distributed.gather(share.batch.without_images().to("cpu").select(range(share.own)))
        whole = ConceptBatch.cat(parts).select(rank_order(share.size, len(parts)))
        return StepInput(inputs, whole.to(self._device, non_blocking=True), share.own)


class CorrectedInputs:
    """The inputs of a task stage, with some concepts corrected in each batch, alike in every process.

    Args:
        source: Gives evidence (B, K, M) and labels.
        typical: What corrections put in the place of evidence.
    """

    divided = False

    def __init__(self, source: Source, typical: TypicalEvidence) -> None:
        assert not source.divided
        self._source, self._typical, self.forward = source, typical, source.forward

    @property
    def cached(self) -> bool:
        """As the source is."""
        return self._source.cached

    def load(self, plan: EpochPlan, start: int = 0) -> Iterator[StepInput]:
        """The inputs of each batch of a plan, from the batch numbered `start` on."""
        seed = distributed.broadcast(plan.seed)
        step_inputs = self._source.load(plan, start)
        return (self._corrected(one, seed + start + number) for number, one in enumerate(step_inputs))

    def _corrected(self, step_input: StepInput, seed: int) -> StepInput:
        evidence, labels = step_input.inputs[0], step_input.batch.concepts
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(PROBABILITIES), (len(labels), 1), generator=generator)
        probability = torch.tensor(PROBABILITIES)[chosen]
        mixed = mix_corrections(evidence, labels, self._typical, probability, generator)
        return step_input._replace(inputs=(mixed, *step_input.inputs[1:]))


def _notice_raw(images: Tensor) -> None:
    """Warn of images that are surely not normalized, such as raw ones from 0 to 255."""
    low, high = (float(end) for end in images.float().aminmax()) if images.numel() else (0.0, 0.0)
    if not -_FAR <= low <= high <= _FAR:
        log.warning(
            "images span %.4g to %.4g, and normalized ones a few units around 0; does `model.preprocess` make them?",
            low, high,
        )  # fmt: skip


def rank_order(size: int, world: int) -> Tensor:
    """(size,) where each sample of a batch is among the rows of all processes, one process after the other."""
    return torch.argsort(torch.cat([torch.arange(rank, size, world) for rank in range(world)]))


def whole_output(output: Any, step_input: StepInput) -> Any:
    """The output for a whole batch, in the batch's order; gradients go to this process's rows.

    Features are by far the largest part and are not sent: they come out with no channels.
    """
    if step_input.own is None:
        return output
    size, world, rank = len(step_input.batch.concepts), distributed.world_size(), distributed.rank()
    counts = [len(range(other, size, world)) for other in range(world)]
    fields = {}
    for name, value in output._asdict().items():
        if name == "features":
            fields[name] = value.new_zeros(size, 0, *value.shape[2:])
            continue
        parts = distributed.gather_rows(value[: step_input.own], counts)
        parts[rank] = value[: step_input.own]
        fields[name] = torch.cat(parts)[rank_order(size, world).to(value.device)]
    return output._replace(**fields)


class StageModule(nn.Module):
    """A model whose forward pass is a stage's, for `DistributedDataParallel` and `torch.compile`."""

    def __init__(self, model: ConceptModel, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, *inputs: Tensor) -> Any:
        """What the stage computes."""
        return self._forward(self.model, *inputs)
