"""MapLogger: a callback of Lightning that logs maps of the same images at the end of every validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from konkyo.errors import KonkyoError
from konkyo.evaluation.map_log import log_maps
from konkyo.explanation.explain import Which
from konkyo.explanation.inputs import Images
from konkyo.models import Model
from konkyo.training.trackers import Tracker

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
except ImportError as error:
    raise KonkyoError(f"MapLogger is a callback of Lightning ({error}): pip install lightning") from error


class MapLogger(Callback):
    """Logs maps with `konkyo.log_maps` at the end of every `every`-th validation, but not of the sanity check."""

    def __init__(
        self,
        images: Images,
        *,
        tracker: Tracker | None = None,
        method: Which = "grad_cam",
        network: Callable[[Any], Model | nn.Module] | None = None,
        every: int = 1,
        **options: Any,
    ) -> None:
        """`tracker`: as of `log_maps`; None: the trainer's loggers.

        `network`: from the LightningModule to the model that is explained, as `lambda module: module.net`; None: the
        module itself. `images`, `method`, `options`: as of `log_maps`. KonkyoError: `every` is less than 1.
        """
        if every < 1:
            raise KonkyoError(f"every is a number of validations, 1 or more; got {every}")
        self.images, self.tracker, self.method, self.every = images, tracker, method, every
        self.network, self.options, self._validations = network, options, 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the maps of this epoch, in the first of several processes alone."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if (self._validations - 1) % self.every or not trainer.is_global_zero:
            return
        model = pl_module if self.network is None else self.network(pl_module)
        if self.tracker is not None:
            log_maps(self.tracker, model, self.images, step=trainer.current_epoch, method=self.method, **self.options)
            return
        for logger in trainer.loggers:
            tracker = _OfLogger(logger)
            log_maps(tracker, model, self.images, step=trainer.global_step, method=self.method, **self.options)


class _OfLogger:
    """A logger of Lightning as a tracker; of those that take no pictures only the numbers arrive."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def log(self, numbers: Mapping[str, float], step: int, /) -> None:
        self.logger.log_metrics(dict(numbers), step)

    def log_pictures(self, pictures: Mapping[str, Image.Image], step: int, /) -> None:
        logger: Any = self.logger  # what it writes to is said by its kind
        experiment: Any = logger.experiment
        for name, picture in pictures.items():
            if isinstance(self.logger, TensorBoardLogger):
                experiment.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
            elif isinstance(self.logger, WandbLogger):
                self.logger.log_image(name, [picture], step)
            elif isinstance(self.logger, MLFlowLogger):
                file = f"step-{step:06d}/{name}.png"
                experiment.log_image(self.logger.run_id, picture, file)

    def close(self) -> None:
        """The trainer closes its loggers itself."""
