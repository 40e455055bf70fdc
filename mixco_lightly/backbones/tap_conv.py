"""Convolutions over a handful of pixels, as matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Input pixels up to which the taps' products are faster, measured for 128 to 512 channels.
_MAX_PIXELS = 4
_MIN_CHANNELS = 64


class TapConv2d(nn.Conv2d):
    """A Conv2d that trains faster on a CPU where its input has at most 2x2 pixels.

    Published stems leave so few pixels of small images: a ResNet's last stage sees 1x1 pixel at
    32 and 2x2 at 64. There most of a 3x3 kernel meets the padding alone, and the weights are far
    larger than the images; the CPU library's backward then takes tens of times the forward (256
    images, 512 channels, 1x1 pixel). As one matrix product for each tap of the kernel that meets a
    pixel it takes a few times the forward. Parameters, results and gradients are those of
    ``nn.Conv2d`` but for rounding. On other devices, for larger inputs and without gradient it is
    an ``nn.Conv2d``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The convolution, (N, C, H, W) -> (N, O, H', W')."""
        if (
            input.device.type != "cpu"
            or input.dim() != 4
            or input.shape[2] * input.shape[3] > _MAX_PIXELS
            or not torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        assert not isinstance(self.padding, str)
        # Unbound, not indexed: the gradient of an index is a whole tensor of zeros each time.
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
                # The input pixels that this output pixel sees, with the taps that they meet.
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
    """Turns a model's convolutions that can be TapConv2d into ones, in place.

    They can where they are plain, ungrouped and undilated with zero padding and a kernel larger
    than one pixel, of at least 64 channels in and out. Names and parameters stay.

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
