"""What a model may report: only what it was taught."""

from conceptcam._checks import check_known
from conceptcam.config import ConceptConfig, TrainingRecord


def check_taught(config: ConceptConfig, record: TrainingRecord, *, task: str | None = None) -> None:
    """Refuse to report what a model was never taught.

    Raises:
        ValueError: If the model was taught no concepts, or `task` is no name of a task, or not taught.
    """
    stages = list(record.stages)
    if "concepts" not in stages:
        raise ValueError(
            f"this model was never taught concepts (stages done: {stages}), so its predictions mean nothing; train it, "
            "or, after a training loop of your own, set `model.record = model.record.after('concepts', parts)`"
        )
    if task is None:
        return
    if not config.tasks:
        raise ValueError(f"this model has no tasks, so none is called {task!r}; train with task labels to have some")
    check_known("task", task, config.tasks)
    if not tasks_taught(config, record):
        raise ValueError(
            f"this model was never taught the task {task!r} (stages done: {stages}); train what is missing"
        )


def tasks_taught(config: ConceptConfig, record: TrainingRecord) -> bool:
    """Whether a model was taught its tasks and everything that its task head reads."""
    needed = {"concepts", "task"} if config.bottleneck == "concepts" else {"concepts", "prototypes", "task"}
    return bool(config.tasks) and needed <= set(record.stages)
