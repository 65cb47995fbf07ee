"""Gaze consistency in the Trainer of transformers: a vision transformer, evaluated and checkpointed every epoch.

    pip install transformers accelerate
    python examples/gaze_trainer.py --out gaze_trainer

Begun again with more epochs, it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.trainer_utils import get_last_checkpoint

from konkyo.data import Examples
from konkyo.data.splits import splits
from konkyo.models import Preprocess
from konkyo.training import ConsistencyLoss, LambdaSchedule


class GazeTrainer(Trainer):
    """The Trainer, with the distance of maps in its loss; the running maps are part of its checkpoints."""

    def __init__(self, *args: Any, gaze: ConsistencyLoss, weight: LambdaSchedule, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gaze, self.weight = gaze.to(self.args.device), weight

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """Returns the loss of a batch, in training and, without gradients, in evaluation."""
        labels = inputs["labels"]
        outputs = model(pixel_values=inputs["pixel_values"])
        weight = self.weight(1 + (self.state.epoch or 0.0))
        loss = cross_entropy(outputs.logits, labels) + weight * self.gaze(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        torch.save(self.gaze.state_dict(), folder / "gaze.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads the network, and its running maps.

        By `from_pretrained`, for a checkpoint of a vision transformer bears the names of older versions, which the
        Trainer's own way does not know (transformers 5.24): it would leave the network as it was, with a warning.
        """
        network = model if model is not None else self.model
        network.load_state_dict(type(network).from_pretrained(resume_from_checkpoint).state_dict())
        self.gaze.load_state_dict(torch.load(Path(resume_from_checkpoint) / "gaze.pt", weights_only=True))


def main(arguments: Sequence[str] | None = None) -> GazeTrainer:
    """Trains and returns the trainer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="lesions:300")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("gaze_trainer"))
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    size = (options.size, options.size)
    parts, prepare = splits(options.data), Preprocess(size, None, (0.5,), (0.5,))
    train, valid = (Examples(part, prepare, parts.classes) for part in (parts.train, parts.validation))
    config = ViTConfig(
        **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64},
        **{"image_size": options.size, "patch_size": 8, "num_channels": 1, "num_labels": len(parts.classes)},
    )
    model = ViTForImageClassification(config)
    trainer = GazeTrainer(
        model,
        TrainingArguments(
            str(options.out),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            eval_strategy="epoch",
            save_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=train,
        eval_dataset=valid,
        data_collator=lambda rows: {
            "pixel_values": torch.stack([image for image, _ in rows]),
            "labels": torch.tensor([int(label) for _, label in rows]),
        },
        gaze=ConsistencyLoss(model, (1, *size)),
        weight=LambdaSchedule(3.0, start=1, end=3),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(options.out)) if options.out.is_dir() else None)
    print([line for line in trainer.state.log_history if "eval_loss" in line])
    return trainer


if __name__ == "__main__":
    main()
