"""Gaze consistency in a LightningModule: validation every epoch, mixed precision, checkpoints with the running maps.

    pip install lightning
    python examples/gaze_lightning.py --out gaze_lightning

Begun again with more epochs, it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from konkyo.data import Examples
from konkyo.data.splits import splits
from konkyo.models import Preprocess
from konkyo.training import ConsistencyLoss, LambdaSchedule, gaze_network


class GazeModule(lightning.LightningModule):
    """A classifier whose loss has the distance of maps in it. The loss is a submodule, so its maps are checkpointed."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.model = gaze_network(2, classes=classes)
        self.gaze, self.weight = ConsistencyLoss(self.model, (1, size, size)), LambdaSchedule(3.0, start=1, end=3)

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        """Returns the loss of a batch."""
        images, labels = batch
        logits = self.model(images)
        weight = self.weight(self.current_epoch + 1)
        return cross_entropy(logits, labels) + weight * self.gaze(logits, labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        """Logs what the batch is like; Lightning runs this in inference mode."""
        images, labels = batch
        logits = self.model(images)
        self.log("accuracy", (logits.argmax(1) == labels).float().mean(), batch_size=len(images))
        self.log("gaze", self.gaze(logits, labels), batch_size=len(images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimiser; the loss has no parameters."""
        return torch.optim.Adam(self.parameters(), 1e-3)


def main(arguments: Sequence[str] | None = None) -> GazeModule:
    """Trains and returns the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="lesions:300")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("gaze_lightning"))
    options = parser.parse_args(arguments)
    lightning.seed_everything(0, verbose=False)
    size = (options.size, options.size)
    parts, prepare = splits(options.data), Preprocess(size, None, (0.5,), (0.5,))
    train, valid = (Examples(part, prepare, parts.classes) for part in (parts.train, parts.validation))
    module = GazeModule(len(parts.classes), options.size)
    last = options.out / "last.ckpt"
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        precision="bf16-mixed",
        accelerator="auto",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[lightning.pytorch.callbacks.ModelCheckpoint(options.out, save_last=True)],
    )
    loaders = (DataLoader(train, 32, shuffle=True), DataLoader(valid, 32))
    trainer.fit(module, *loaders, ckpt_path=last if last.is_file() else None)
    print({name: float(value) for name, value in trainer.callback_metrics.items()})
    return module


if __name__ == "__main__":
    main()
