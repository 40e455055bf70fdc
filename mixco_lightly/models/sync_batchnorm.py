"""BatchNorm over the images of all processes, for timm's networks under Lightning."""

from __future__ import annotations

from pytorch_lightning import LightningModule
from pytorch_lightning.plugins import LayerSync, TorchSyncBatchNorm
from pytorch_lightning.strategies import ParallelStrategy
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class TimmSyncBatchNorm(LayerSync):
    """Synchronises BatchNorm over all processes, and keeps timm's activations.

    A Lightning plugin. It replaces ``Trainer(sync_batchnorm=True)``, which converts with
    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``: that drops the activation inside timm's
    ``BatchNormAct2d`` (EfficientNet, MobileNetV3, RegNet, DenseNet and others) without a word.

    Lightning converts at the start of ``fit`` and back at its end. Names and parameters stay, so
    that checkpoints and exports load with and without it. It has no effect on one device; on
    several it needs GPUs, because torch has no SyncBatchNorm for the CPU.

    Examples:
        >>> from pytorch_lightning import Trainer
        >>> from mixco_lightly.models.sync_batchnorm import TimmSyncBatchNorm
        >>> trainer = Trainer(accelerator="cpu", plugins=[TimmSyncBatchNorm()], logger=False)
    """

    def __init__(self) -> None:
        self._plain: dict[str, _BatchNorm] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replaces all BatchNorm layers by synchronised ones, in place.

        Args:
            model: The module.

        Returns:
            The module.
        """
        self._plain = {
            name: layer
            for name, layer in model.named_modules(remove_duplicate=False)
            # timm's conversion would drop the activation of a layer that is converted already.
            if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm)
        }
        for name, layer in self._plain.items():
            model.set_submodule(name, convert_sync_batchnorm(layer))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Puts the BatchNorm layers back, with what the synchronised ones have learned.

        Args:
            model: The module that :meth:`apply` returned.

        Returns:
            The module.
        """
        for name, layer in self._plain.items():
            synchronised = model.get_submodule(name)
            # The same parameters, but buffers are others once they were moved to a device.
            layer._parameters, layer._buffers = synchronised._parameters, synchronised._buffers
            layer.training = synchronised.training
            model.set_submodule(name, layer)
        self._plain = {}
        return model


def keep_activations(module: LightningModule) -> None:
    """Replaces the plugin of ``Trainer(sync_batchnorm=True)`` by :class:`TimmSyncBatchNorm`.

    Args:
        module: A module in its ``setup``.
    """
    strategy = module.trainer.strategy
    if isinstance(strategy, ParallelStrategy) and type(strategy._layer_sync) is TorchSyncBatchNorm:
        strategy._layer_sync = TimmSyncBatchNorm()
