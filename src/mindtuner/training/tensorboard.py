"""The training log as TensorBoard reads it, for who asks for it and has TensorBoard installed."""

from __future__ import annotations

from pathlib import Path

from mindtuner.errors import UserError
from mindtuner.training.loop import Log


def tensorboard_to(folder: str | Path) -> Log:
    """A log for ``pretrain`` and ``tune`` that writes each stage's curves into a folder of its own in ``folder``.

    A run that goes on sends its records again; they take the place of those that are there.
    Raises UserError where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "tensorboard: is not installed; expected it where its log is asked for (pip install tensorboard)"
        ) from error
    writers: dict[str, SummaryWriter] = {}

    def write(record: dict) -> None:
        stage, step = record["stage"], record["step"]
        if stage not in writers:
            writers[stage] = SummaryWriter(str(Path(folder) / stage), purge_step=step)
        for group in ("losses", "gradients", "validation"):
            for name, value in record.get(group, {}).items():
                writers[stage].add_scalar(f"{group}/{name}", value, step)
        if "lr" in record:
            writers[stage].add_scalar("lr", record["lr"], step)
        writers[stage].flush()

    return write
