"""The public face of training: options, `fit` and `validate`. The loop itself is in `loop.py`."""

from collections.abc import Iterable
from dataclasses import dataclass

from conceptcam.data.batch import Batches, worker_deaths_told
from conceptcam.model.concept_model import ConceptModel
from conceptcam.training import distributed
from conceptcam.training.batches import BatchLoader
from conceptcam.training.history import EpochResult
from conceptcam.training.inputs import Images
from conceptcam.training.loop import TrainingLoop
from conceptcam.training.options import TrainerOptions
from conceptcam.training.passes import no_batches, validate
from conceptcam.training.seeding import seeded
from conceptcam.training.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Trainer(TrainerOptions):
    """Trains a model through its stages, in one process or in those that `torchrun` starts.

    Several processes divide each batch among them and give the weights that one process gives, save that batch norm
    takes its statistics from each process's own rows, and that each process draws its own dropout. Only the first
    one writes files, shows a bar, logs and calls `callbacks`.

    Attributes:
        device: Where to train; `"cuda"` is the GPU of this process.
        precision: `"bf16"` and `"fp16"` run the forward pass in autocast; `"fp16"` needs a GPU and scales
            the loss.
        max_grad_norm: Gradients are scaled down to this norm.
        seed: Makes `fit` repeatable, whatever was random before it, and leaves the global random state
            as it was; None uses and advances the global random state.
        progress_bar: Whether to show a bar with loss and score.
        callbacks: Each is called with the model and an `EpochResult` as an epoch ends: log, draw or stop (raise) here.
            If a run is killed soon after an epoch, it may train this epoch again when it resumes, and call again.
        gradient_accumulation_steps: Batches per step. Their losses are averaged by samples, so that a loss that is a
            mean over images is the same as that of one large batch.
        checkpoint_dir: Folder of the checkpoints, from which a killed run can be resumed; None writes none.
        checkpoint_every: Steps after which a checkpoint is written, beside those at the end of each epoch.
        keep_checkpoints: How many of the newest are kept.
        compile: Whether to run the training steps through `torch.compile`, or with which of its backends.
        gradient_checkpointing: Whether a backbone that learns computes its activations again in the backward pass,
            which costs about a third more time and saves most of their memory.
        feature_cache: Where stages keep the outputs of their frozen parts for each sample, so that its image is read
            once and not in each epoch; the weights that are learned stay the same. `"auto"`: in memory, or on disk if
            they are large, for data that are known to be the same each time (not augmented). With `"memory"` and
            `"disk"` you promise that the data are the same, where the library cannot know. `"off"`: nowhere. Each
            result says whether its epoch was `cached`.
        feature_cache_limit: GB that may be kept; if more is needed, images are read in each epoch.
        feature_cache_dtype: Type to keep outputs in, such as `torch.bfloat16`, which halves their size and rounds
            them; None rounds nothing.
    """

    def fit(
        self,
        model: ConceptModel,
        stages: Iterable[Stage],
        train_batches: Batches,
        val_batches: Batches,
        *,
        resume: bool = False,
    ) -> list[EpochResult]:
        """Run the stages in order; each ends with the weights of its own best epoch.

        Parameters that do not require gradients beforehand, such as blocks you froze, stay as they are.
        Afterwards the model is in eval mode, its parameters require gradients as they did before, and its
        training record names the stages that it has completed.

        Args:
            model: What to train, in place.
            stages: What learns when; see `get_preset`.
            train_batches: Iterated once per epoch; a `DataLoader`, say, of `ConceptBatch`es or of dicts as
                `as_batch` reads. The items of a `DataLoader` are read with random numbers of their own.
            val_batches: The same for validation.
            resume: Whether to go on from the newest checkpoint in `checkpoint_dir`, to the same weights as if the
                run had never stopped. Without a checkpoint, training starts from the beginning. A finished run
                gives its results and weights at once.

        Returns:
            The result of each epoch, also of those before the run was resumed.

        Raises:
            ValueError: If a stage does not fit the model, there are no batches, or what is to be resumed was begun
                with another model, other stages or other settings.
            FileExistsError: If `checkpoint_dir` holds checkpoints and `resume` is off.
            OSError: If a checkpoint cannot be written; those before are as they were.
            FloatingPointError: If a loss is not finite; the message names the samples.
            RuntimeError: If a worker of a loader dies.
        """
        if resume and self.checkpoint_dir is None:
            raise ValueError("`fit(resume=True)` needs a `checkpoint_dir` to resume from")
        with distributed.process_group(self.device) as device, worker_deaths_told():
            model.to(device)
            distributed.broadcast_tensors(model.state_dict().values())
            train, val = _loader(train_batches, "train_batches"), _loader(val_batches, "val_batches")
            with seeded(None if self.seed is None else self.seed + distributed.rank(), device):
                return TrainingLoop(self, model, tuple(stages), train, val, device).run(resume=resume)

    def validate(self, model: ConceptModel, stage: Stage, batches: Batches) -> tuple[float, float]:
        """The stage's loss and score on batches, in eval mode; a higher score is better, and each is NaN if undefined.

        Raises:
            ValueError: If there are no batches.
            FloatingPointError: If a batch's loss is not finite; the message names the samples.
        """
        with distributed.process_group(self.device) as device:
            model.to(device)
            loader = _loader(batches, "batches")
            source = Images(loader, stage, device)
            return validate(model, stage, source, loader.draw(seed=0), precision=self.precision)


def _loader(batches: Batches, name: str) -> BatchLoader:
    if batches is None:
        raise ValueError(
            f"`{name}` is None; a stage needs validation data to tell which of its epochs is best. Set some aside"
        )
    loader = BatchLoader(batches, rank=distributed.rank(), world=distributed.world_size())
    if loader.length == 0:
        raise no_batches(name)
    return loader
