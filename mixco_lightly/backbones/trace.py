"""What a forward pass shows of a model: its features, and where its maps become smaller.

Models are built and run on torch's meta device, where tensors have shapes but no values.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixco_lightly.backbones.facts import one_side
from mixco_lightly.backbones.surgery import remove_strides, set_patch_size

# What timm and torch raise for arguments and images that a model does not take.
TIMM_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

_Result = TypeVar("_Result")


def reason_of(error: Exception) -> str:
    """Returns an error's message in one line of at most 300 characters.

    For weights that do not fit, torch's message names every layer.
    """
    return textwrap.shorten(str(error), 300, placeholder=" ...").rstrip(".") or type(error).__name__


@torch.no_grad()
def measure_feature_dim(model: nn.Module, in_chans: int, image_size: int) -> int:
    """Counts a model's features with a forward pass in eval mode, which changes nothing.

    Args:
        model: Maps images to features.
        in_chans: Channels of the images.
        image_size: Height and width of the images in pixels.

    Returns:
        The number of features.

    Raises:
        ValueError: If the output is not of shape (N, feature_dim).
        RuntimeError: Or another of ``TIMM_ERRORS``, if the model does not take such images.
    """
    modes = [(module, module.training) for module in model.modules()]
    images = next(model.parameters()).new_zeros(1, in_chans, image_size, image_size)
    try:
        with torch.random.fork_rng(devices=[]):
            features = model.eval()(images)
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(features, Tensor) or features.dim() != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"its output has shape {shape}, not (N, feature_dim)")
    return int(features.shape[1])


class Variant(NamedTuple):
    """One way to build a timm model.

    Attributes:
        kwargs: Arguments of timm's model.
        removed: Names of the layers that lose their stride.
        patch_size: Side of the patches that are set in the built model; None leaves it as built.
    """

    kwargs: dict[str, Any]
    removed: tuple[str, ...] = ()
    patch_size: int | None = None


class Level(NamedTuple):
    """Layers with a stride that see maps of the same height.

    Attributes:
        names: Their names.
        stride: Height of the maps that they see over that of the next level's.
        is_pool: Whether none of them has parameters.
    """

    names: list[str]
    stride: float
    is_pool: bool


class Trace(NamedTuple):
    """What a forward pass shows.

    Attributes:
        feature_dim: Number of features.
        height: Height of the last feature map; None if the model has no such map.
        levels: Layers with a stride, from the image downwards.
    """

    feature_dim: int
    height: int | None
    levels: list[Level]


class Tracer:
    """Builds variants of a timm model and runs them on images, each once.

    Args:
        name: A timm model name.
        in_chans: Channels of the images.
    """

    def __init__(self, name: str, in_chans: int) -> None:
        self.name = name
        self.in_chans = in_chans
        self._models: dict[str, nn.Module] = {}
        self._traces: dict[str, Trace] = {}

    def build(self, variant: Variant, image_size: int = 0) -> nn.Module:
        """Builds a variant, on the meta device if its constructor needs no values.

        Args:
            variant: The variant.
            image_size: Height and width of the images in pixels; needed if the variant sets
                patches.

        Returns:
            The model in eval mode.

        Raises:
            RuntimeError: Or another of ``TIMM_ERRORS``, if timm cannot build it.
        """
        return _on_meta(lambda device: self._build_on(device, variant, image_size))

    def trace(self, variant: Variant, image_size: int) -> Trace:
        """Runs a variant on images of a size.

        Args:
            variant: The variant.
            image_size: Height and width of the images in pixels.

        Returns:
            What the forward pass shows.

        Raises:
            RuntimeError: Or another of ``TIMM_ERRORS``, if the variant cannot be built, or does
                not give features of shape (N, feature_dim) of such images.
        """
        return _on_meta(lambda device: self._trace_on(device, variant, image_size))

    def _build_on(self, device: str, variant: Variant, image_size: int) -> nn.Module:
        key = repr((device, variant))
        if key not in self._models:
            model = _build(self.name, self.in_chans, variant.kwargs, device)
            remove_strides(model, variant.removed, keep_weights=True)
            if variant.patch_size is not None:
                set_patch_size(model, variant.patch_size, image_size, keep_weights=True)
            self._models[key] = model
        return self._models[key]

    def _trace_on(self, device: str, variant: Variant, image_size: int) -> Trace:
        key = repr((device, variant, image_size))
        if key not in self._traces:
            model = self._build_on(device, variant, image_size)
            self._traces[key] = _trace(model, self.in_chans, image_size)
        return self._traces[key]


def _on_meta(work: Callable[[str], _Result]) -> _Result:
    """Does work on the meta device, or on the CPU if torch says that it needs values."""
    try:
        return work("meta")
    except RuntimeError as error:
        if not any(text in str(error) for text in ("meta", "Meta", "unsupported scalarType")):
            raise
        return work("cpu")


def _build(name: str, in_chans: int, kwargs: Mapping[str, Any], device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device(device), _ShapesOnly():
        return timm.create_model(name, num_classes=0, in_chans=in_chans, **kwargs).eval()


def _trace(model: nn.Module, in_chans: int, image_size: int) -> Trace:
    inputs: dict[str, int] = {}  # the height of the maps that each layer with a stride sees
    maps: list[Any] = []

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args[0].dim() == 4:
                inputs.setdefault(name, args[0].shape[2])

        return hook

    hooks = []
    for name, layer in model.named_modules():
        stride = getattr(layer, "stride", 1)
        if isinstance(stride, int | tuple) and one_side(stride) > 1 and not any(layer.children()):
            hooks.append(layer.register_forward_pre_hook(record(name)))
    forward_features = getattr(model, "forward_features", None)
    if forward_features is not None:

        def record_map(*args: Any, **kwargs: Any) -> Any:
            maps.append(forward_features(*args, **kwargs))
            return maps[-1]

        model.forward_features = record_map  # type: ignore[assignment]
    try:
        with _ShapesOnly():
            feature_dim = measure_feature_dim(model, in_chans, image_size)
    finally:
        for handle in hooks:
            handle.remove()
        vars(model).pop("forward_features", None)
    last_height = _height_of(maps[0], model) if maps else None
    heights = sorted(set(inputs.values()), reverse=True)
    levels = []
    for height, next_height in itertools.pairwise([*heights, last_height or 1]):
        names = [name for name, seen in inputs.items() if seen == height]
        layers = [model.get_submodule(name) for name in names]
        is_pool = not any(True for layer in layers for _ in layer.parameters())
        levels.append(Level(names, height / next_height, is_pool))
    return Trace(feature_dim, last_height, levels)


def _height_of(features: Any, model: nn.Module) -> int | None:
    """Returns the height of what timm's forward_features returns: a map, tokens, or a list."""
    if isinstance(features, list | tuple):
        features = features[0]
    if isinstance(features, Tensor) and features.dim() == 4:
        channels_last = getattr(model, "output_fmt", "") == "NHWC"
        shape = features.shape
        return int(shape[1 if channels_last or shape[1] == shape[2] != shape[3] else 2])
    if isinstance(features, Tensor) and features.dim() == 3:
        patches = features.shape[1] - getattr(model, "num_prefix_tokens", 0)
        return math.isqrt(patches) if patches > 2 else None  # PiT returns class tokens only
    return None


class _ShapesOnly(TorchFunctionMode):
    """Skips operations on meta tensors that leave their shape as it is.

    torch's meta versions of initialisation, norms and activations take most of the time.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # torch.nn.init passes all arguments by name.
        tensor = args[0] if args else kwargs.get("tensor")
        if isinstance(tensor, Tensor) and tensor.is_meta:
            function = getattr(func, "__name__", "")
            if function in _SAME_SHAPE:
                return tensor
            if function == "linear":
                weight = args[1] if len(args) > 1 else kwargs["weight"]
                return func(args[0], weight)  # without the bias, which changes no shape
            if function == "lstm":  # torch runs one operation for each position
                (hidden, cell), dirs = args[1], 2 if args[7] else 1
                return args[0].new_empty(*args[0].shape[:-1], dirs * hidden.shape[-1]), hidden, cell
            if function == "scaled_dot_product_attention":
                query, _, value = args[:3]
                if query.shape[:-2] == value.shape[:-2] and query.shape[-1] == value.shape[-1]:
                    return query
        return func(*args, **kwargs)


_INITIALISATIONS = {
    "uniform_", "normal_", "trunc_normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_",
    "constant_", "kaiming_uniform_", "kaiming_normal_",
}  # fmt: skip
_NORMS = {"batch_norm", "layer_norm", "group_norm", "rms_norm"}
_ACTIVATIONS = {"gelu", "silu", "hardswish"}
_SAME_SHAPE = _INITIALISATIONS | _NORMS | _ACTIVATIONS
