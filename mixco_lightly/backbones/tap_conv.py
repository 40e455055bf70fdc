"""Computes convolutions over a few pixels as matrix products, which train faster on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Most input pixels for which the products are faster, measured with 128 to 512 channels.
_MAX_PIXELS = 4
_MIN_CHANNELS = 64


class TapConv2d(nn.Conv2d):
    """A Conv2d that trains faster on a CPU if its input has at most 2x2 pixels.

    Published stems leave that few pixels of small images: a ResNet's last stage sees 1x1 pixel of
    32 and 2x2 of 64. Most of a 3x3 kernel then covers only padding, and the weights are far larger
    than the images. The CPU library's backward takes tens of times its forward (256 images, 512
    channels, 1x1 pixel). One matrix product for each tap of the kernel that covers a pixel brings
    that down to a few times. Parameters are those of ``nn.Conv2d``; results and gradients are
    equal up to rounding. On other devices, for larger inputs and without gradients it runs
    ``nn.Conv2d``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Computes the convolution, (N, C, H, W) -> (N, O, H', W')."""
        if (
            input.device.type != "cpu"
            or input.dim() != 4
            or input.shape[2] * input.shape[3] > _MAX_PIXELS
            or not torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        assert not isinstance(self.padding, str)
        # Unbound, because the backward of each index would allocate a whole tensor of zeros.
        pixels = input.permute(2, 3, 0, 1).flatten(0, 1).unbind()  # hw of n x c
        taps = self.weight.permute(2, 3, 1, 0).flatten(0, 1).unbind()  # ab of c x o
        height, width = (
            (size + 2 * padding - kernel) // stride + 1
            for size, padding, kernel, stride in zip(
                input.shape[2:], self.padding, self.kernel_size, self.stride, strict=True
            )
        )
        rows: list[Tensor] = []
        for i in range(height):
            for j in range(width):
                # Each input pixel that this output pixel sees, times its tap of the kernel.
                products = [
                    pixels[y * input.shape[3] + x] @ taps[a * self.kernel_size[1] + b]  # nc,co->no
                    for a in range(self.kernel_size[0])
                    for b in range(self.kernel_size[1])
                    if 0 <= (y := i * self.stride[0] + a - self.padding[0]) < input.shape[2]
                    and 0 <= (x := j * self.stride[1] + b - self.padding[1]) < input.shape[3]
                ]
                rows.append(torch.stack(products).sum(dim=0) if len(products) > 1 else products[0])
        output = torch.stack(rows, dim=-1).unflatten(-1, (height, width))  # n o h w
        return output if self.bias is None else output + self.bias.view(1, -1, 1, 1)


def use_tap_convolutions(model: nn.Module) -> None:
    """Replaces a model's convolutions by :class:`TapConv2d` where that is possible, in place.

    It is possible for plain, ungrouped and undilated convolutions with zero padding, a kernel
    larger than one pixel, and at least 64 channels in and out. Names and parameters stay.

    Args:
        model: The model.
    """
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and set(module.dilation) == {1}
            and max(module.kernel_size) > 1
            and min(module.in_channels, module.out_channels) >= _MIN_CHANNELS
        ):
            module.__class__ = TapConv2d
