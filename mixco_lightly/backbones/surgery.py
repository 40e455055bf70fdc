"""How a built model is changed: layers lose their stride, images are cut into other patches."""

from __future__ import annotations

import torch
from torch import nn

from mixco_lightly.backbones.facts import find_patch_layer, one_side


def remove_strides(model: nn.Module, names: tuple[str, ...], keep_weights: bool) -> None:
    """Removes the stride of layers, in place.

    A convolution gets stride 1 and a kernel of at most 3x3. Any other layer (a pool) becomes the
    identity.

    Args:
        model: The model.
        names: Names of its layers.
        keep_weights: If True, a smaller kernel is the centre of the old one; otherwise it is
            initialised by He's law.
    """
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Conv2d):
            model.set_submodule(name, nn.Identity())
            continue
        layer.stride = (1, 1)
        height, width = (min(size, 3) for size in layer.kernel_size)
        if layer.kernel_size != (height, width):
            top, left = (layer.kernel_size[0] - height) // 2, (layer.kernel_size[1] - width) // 2
            centre = layer.weight.detach()[..., top : top + height, left : left + width]
            layer.weight = nn.Parameter(centre.clone())
            if not keep_weights:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            layer.kernel_size = (height, width)
        if getattr(layer, "same_pad", False):
            continue  # timm's layer pads in its forward
        layer.padding = "same" if (height, width) == (2, 2) else (height // 2, width // 2)


@torch.no_grad()
def set_patch_size(model: nn.Module, patch_size: int, image_size: int, keep_weights: bool) -> None:
    """Sets the size of the patches that the images are cut into, in place.

    For models whose constructor does not take a patch size (MLP-Mixer, CoaT, Sequencer). Build a
    fixed-size model for the number of patches it will see.

    Args:
        model: A model with timm's ``PatchEmbed``.
        patch_size: Side of the new patches in pixels.
        image_size: Height and width of the images in pixels.
        keep_weights: If True, timm resamples the old weights to the new size; otherwise the new
            weights are drawn at random.

    Raises:
        ValueError: If the model has no such layer.
    """
    layer = find_patch_layer(model)
    if layer is None:
        raise ValueError(f"a {type(model).__name__} has no layer whose patches can be set")
    side, deviation = one_side(layer.patch_size), layer.proj.weight.std()
    layer.set_input_size(
        img_size=None if layer.img_size is None else (image_size, image_size),
        patch_size=(patch_size, patch_size),
    )
    if not keep_weights:
        # The variance of initial weights is proportional to 1 / (pixels of a patch).
        layer.proj.weight.normal_().mul_(deviation * side / patch_size)
