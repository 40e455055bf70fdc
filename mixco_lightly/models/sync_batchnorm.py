"""Synchronises BatchNorm over all processes under Lightning, for timm's networks."""

from __future__ import annotations

from pytorch_lightning import LightningModule
from pytorch_lightning.plugins import LayerSync, TorchSyncBatchNorm
from pytorch_lightning.strategies import ParallelStrategy
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class TimmSyncBatchNorm(LayerSync):
    """Synchronises BatchNorm over all processes and keeps timm's activations.

    Use this Lightning plugin instead of ``Trainer(sync_batchnorm=True)``. Lightning's own plugin
    calls ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``, which silently drops the activation
    inside timm's ``BatchNormAct2d`` (EfficientNet, MobileNetV3, RegNet, DenseNet and others).

    Lightning converts the layers at the start of ``fit`` and restores them at its end. Names and
    parameters stay, so checkpoints and exports load with and without the plugin. It has no effect
    on one device. On several devices it needs GPUs, because torch's SyncBatchNorm does not run on
    the CPU.

    Examples:
        >>> from pytorch_lightning import Trainer
        >>> from mixco_lightly.models import TimmSyncBatchNorm
        >>> trainer = Trainer(accelerator="cpu", plugins=[TimmSyncBatchNorm()], logger=False)
    """

    def __init__(self) -> None:
        self._plain: dict[str, _BatchNorm] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replaces all BatchNorm layers with synchronised ones, in place.

        Args:
            model: The module.

        Returns:
            The module.
        """
        self._plain = {
            name: layer
            for name, layer in model.named_modules(remove_duplicate=False)
            # timm's conversion would drop the activation of an already converted layer.
            if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm)
        }
        for name, layer in self._plain.items():
            model.set_submodule(name, convert_sync_batchnorm(layer))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Restores the BatchNorm layers, with the synchronised layers' weights and statistics.

        Args:
            model: The module that :meth:`apply` returned.

        Returns:
            The module.
        """
        for name, layer in self._plain.items():
            synchronised = model.get_submodule(name)
            # Moving to a device may have replaced the synchronised layer's buffers.
            layer._parameters, layer._buffers = synchronised._parameters, synchronised._buffers
            layer.training = synchronised.training
            model.set_submodule(name, layer)
        self._plain = {}
        return model


def keep_activations(module: LightningModule) -> None:
    """Replaces the plugin of ``Trainer(sync_batchnorm=True)`` with :class:`TimmSyncBatchNorm`.

    Args:
        module: A module in its ``setup``.
    """
    strategy = module.trainer.strategy
    if isinstance(strategy, ParallelStrategy) and type(strategy._layer_sync) is TorchSyncBatchNorm:
        strategy._layer_sync = TimmSyncBatchNorm()
