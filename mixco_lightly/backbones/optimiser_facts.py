"""What a network's layers say about the optimiser that it needs."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from timm.layers import RmsNorm, RmsNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RmsNorm, RmsNorm2d)


class OptimizerChoice(NamedTuple):
    """An optimiser for a network.

    Attributes:
        name: The optimiser.
        reason: What the network is made of, which is why.
    """

    name: Literal["sgd", "adamw"]
    reason: str


def choose_optimizer(network: nn.Module) -> OptimizerChoice:
    """Chooses the optimiser by what a network is made of.

    SGD needs gradients of a similar size in all layers, which BatchNorm behind each convolution
    gives. Networks with attention, with other norms or without any are trained with AdamW in their
    papers and in timm.

    Args:
        network: The network; it can be on the meta device.

    Returns:
        "sgd" for convolutions whose only norm is BatchNorm, otherwise "adamw"; and the reason.

    Examples:
        >>> import timm
        >>> choose_optimizer(timm.create_model("test_resnet"))
        OptimizerChoice(name='sgd', reason='convolutions with BatchNorm')
        >>> choose_optimizer(timm.create_model("test_vit")).reason
        'attention'
    """
    layers = list(network.modules())
    # timm's attention layers have their number of heads, whatever their class is called.
    if any(hasattr(layer, "num_heads") for layer in layers):
        return OptimizerChoice("adamw", "attention")
    norms = [type(layer).__name__ for layer in layers if isinstance(layer, _OTHER_NORMS)]
    if norms:
        return OptimizerChoice("adamw", max(sorted(set(norms)), key=norms.count))
    if not any(isinstance(layer, _BatchNorm) for layer in layers):
        return OptimizerChoice("adamw", "no BatchNorm")
    convolutions = sum(x.weight.numel() for x in layers if isinstance(x, nn.Conv2d))
    linear = sum(x.weight.numel() for x in layers if isinstance(x, nn.Linear))
    if linear > convolutions:
        return OptimizerChoice("adamw", "linear layers with BatchNorm")
    return OptimizerChoice("sgd", "convolutions with BatchNorm")


def has_depthwise(network: nn.Module) -> bool:
    """Returns whether a network has depthwise convolutions, as MobileNets and EfficientNets have.

    The first gradients of their stems can be several times as long as the weights, so that SGD
    needs a warm-up.

    Args:
        network: The network; it can be on the meta device.

    Examples:
        >>> import timm
        >>> has_depthwise(timm.create_model("test_efficientnet"))
        True
        >>> has_depthwise(timm.create_model("test_resnet"))
        False
    """
    return any(
        isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels
        for layer in network.modules()
    )


def find_decayed(module: nn.Module) -> list[str]:
    """Finds the trained parameters that AdamW and LARS decay: the weights of layers.

    Norms, biases, positions, tokens and scales are not decayed: vectors, parameters that are not
    called weights, and those that a timm model names in ``no_weight_decay()``.

    Args:
        module: The whole module, with projection heads.

    Returns:
        The parameters' names.
    """
    spared = [
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if callable(getattr(part, "no_weight_decay", None))
        for name in part.no_weight_decay()
    ]
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
        and name.endswith("weight")
        and parameter.ndim > 1
        and not any(fnmatchcase(name, pattern) for pattern in spared)
    ]
