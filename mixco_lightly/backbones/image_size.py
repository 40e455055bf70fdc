"""How a timm model is fitted to an image size: its options, and the strides of its small stem."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Up to this size stem="auto" takes the small stem, where the published one leaves fewer than 8x8
# positions: published stems, with a total stride of 32, leave 2x2 of 64 pixels.
SMALL_IMAGE_SIZE = 64
_ENOUGH_POSITIONS = 8
# The small stem of a convolutional network leaves at least 2x2 positions of 32 pixels.
_LARGEST_SMALL_STRIDE = 16
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
# Arguments of timm.create_model that fill a model with weights: its shapes do not need them.
_WEIGHT_KWARGS = {"checkpoint_path", "cache_dir"}


class Fit(NamedTuple):
    """What fits a timm model to an image size.

    Attributes:
        stem: "timm" or "small".
        kwargs: Arguments of timm's model.
        removed: Names of the layers that lose their stride, see :func:`remove_strides`.
        patch_size: Side of the patches that the built model is set to, see :func:`set_patch_size`;
            None where it stays as built.
        feature_dim: Number of features, measured.
        output_stride: Image height over that of the last feature map, measured; None where the
            model has no such map.
    """

    stem: str
    kwargs: dict[str, Any]
    removed: tuple[str, ...]
    patch_size: int | None
    feature_dim: int
    output_stride: int | None


class Fitting:
    """Finds what fits a timm model to image sizes, on the meta device.

    Nothing is known by name. What a model takes stands in its constructor's signature
    (``img_size``, ``patch_size``, ``window_size``), its first convolution in timm's
    ``pretrained_cfg``, and its strides are measured by a forward pass at its own size. A choice
    counts when a forward pass with it gives features of shape (N, feature_dim).

    Attributes:
        image_size: Height and width that the model was published for.
        parameters: Number of parameters of the published model, without a head.

    Args:
        name: A timm model name.
        in_chans: Channels of the images.
        timm_kwargs: Arguments of timm's model that are not to be chosen.

    Raises:
        ValueError: If timm cannot build the model with these arguments.

    Examples:
        >>> from mixco_lightly.backbones.image_size import Fitting
        >>> fit = Fitting("resnet18").fit(image_size=32)
        >>> fit.stem, fit.removed, fit.output_stride
        ('small', ('conv1', 'maxpool'), 8)
    """

    def __init__(
        self, name: str, in_chans: int = 3, timm_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.name = name
        self.in_chans = in_chans
        self.timm_kwargs = {
            key: value for key, value in (timm_kwargs or {}).items() if key not in _WEIGHT_KWARGS
        }
        self._models: dict[str, nn.Module] = {}
        self._traces: dict[tuple[str, int], _Trace] = {}
        try:
            try:
                model = _build(name, in_chans, self.timm_kwargs, "meta")
            except RuntimeError as error:
                if not _needs_values(error):
                    raise
                model = _build(name, in_chans, self.timm_kwargs, "cpu")
        except TIMM_ERRORS as error:
            options = f" with options {self.timm_kwargs}" if self.timm_kwargs else ""
            raise ValueError(f"timm cannot build {name}{options}: {reason_of(error)}") from error
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        traits: dict[str, Any] = getattr(model, "_traits", {})
        self._first_conv = tuple(
            path for path in _first_layers(model) if isinstance(_layer(model, path), nn.Conv2d)
        )
        # A pool without a stride (HGNetV2) is not there to make the maps smaller.
        pools = ((path, _layer(model, path)) for path in ("maxpool", "stem.pool"))
        self._pool = next((path for path, pool in pools if pool and _has_stride(pool)), None)
        self._models[repr(("meta", _Choice(self.timm_kwargs)))] = model
        accepted = _constructor_arguments(type(model))
        # Whether the image size is an argument, and open.
        self._takes_size = "img_size" in accepted and "img_size" not in self.timm_kwargs
        self._takes_window = "window_size" in accepted
        embedding = getattr(model, "patch_embed", None)
        self._takes_patch_stride = {"patch_kernel", "patch_stride", "patch_padding"} <= accepted
        # Of a model that sees the images at several scales, in patches of several sizes (CrossViT).
        self._scaled_patches: list[int] = []
        self._published_patch: int | None = None
        if "img_scale" in accepted and isinstance(embedding, nn.ModuleList):
            self._scaled_patches = [_one_side(scale.patch_size) for scale in embedding]
        # Whether patches are an argument, and whether they are cut by timm's own layer for that.
        self._takes_patch = {"img_size", "patch_size"} <= accepted
        self._has_patch_layer = _patch_layer(model) is not None
        if not self._scaled_patches and (self._takes_patch or self._has_patch_layer):
            self._published_patch = _published_patch(model, self._first_conv)
        own_size = getattr(embedding, "img_size", None) or traits.get("img_size")
        self.image_size = _one_side(own_size or cfg["input_size"][1:])
        self._published: _Trace | None = None
        self._defect: str | None = None  # why not even its own size gives features
        # Some encoders give all their tokens, or pool those of some sizes only, unless told to.
        self._poolings: list[dict[str, Any]] = [{}]
        if "global_pool" in accepted and "global_pool" not in self.timm_kwargs:
            self._poolings.append({"global_pool": "avg"})
        for pooling in self._poolings:
            self._own_kwargs = {**pooling, **self.timm_kwargs}
            try:
                self._published = self._trace(_Choice(self._own_kwargs), self.image_size)
                break
            except TIMM_ERRORS as error:
                self._defect = self._defect or reason_of(error)

    @property
    def stride(self) -> int | None:
        """Total stride of the model as published."""
        if self._published is None or not self._published.height:
            return None
        return round(self.image_size / self._published.height)

    def fit(self, image_size: int, stem: str = "auto", pretrained: bool = False) -> Fit:
        """Finds what fits the model to an image size.

        Args:
            image_size: Height and width of the images in pixels.
            stem: "timm", "small" or "auto", as in :func:`mixco_lightly.create_backbone`.
            pretrained: Whether published weights will be loaded; "auto" then takes the stem that
                they belong to, if it takes the images.

        Returns:
            The fit.

        Raises:
            ValueError: If there is none. The message says what is possible.
        """
        stems: tuple[str, ...] = (stem,)
        if stem == "auto":
            few = image_size < _ENOUGH_POSITIONS * (self.stride or image_size)
            is_small = image_size <= SMALL_IMAGE_SIZE and few and not pretrained
            stems = ("small", "timm") if is_small else ("timm", "small")
        found, reason = self._first_that_works(stems, image_size)
        if found is not None:
            return found
        if self._published is None:
            reason = self._defect
        options = f" and options {self.timm_kwargs}" if self.timm_kwargs else ""
        possible = self._what_is_possible(stem, image_size)
        if self.timm_kwargs or not possible:
            possible = "; ".join(part for part in (reason, possible) if part)
        raise ValueError(
            f"{self.name} cannot take images of {image_size} pixels with stem {stem!r}{options}: "
            f"{possible}."
        )

    def _first_that_works(
        self, stems: tuple[str, ...], image_size: int
    ) -> tuple[Fit | None, str | None]:
        """The first fit that gives features, and why the first choice does not."""
        reason = None
        for stem, pooling in [(stem, pooling) for pooling in self._poolings for stem in stems]:
            for choice in self._choices(stem, image_size):
                choice = choice._replace(kwargs={**pooling, **choice.kwargs})
                try:
                    trace = self._trace(choice, image_size)
                except TIMM_ERRORS as error:
                    reason = reason or reason_of(error)
                    continue
                stride = round(image_size / trace.height) if trace.height else None
                return Fit(stem, *choice, trace.feature_dim, stride), None
            reason = reason or f"there is no {stem} stem for it"
        return None, reason

    def _choices(self, stem: str, image_size: int) -> Iterator[_Choice]:
        """What may fit, the best first."""
        size = {"img_size": image_size} if self._takes_size else {}
        if stem == "timm" or "patch_size" in self.timm_kwargs:
            yield _Choice({**size, **self.timm_kwargs})
            if self._scaled_patches:
                scale = _tiled_scales(image_size, self._scaled_patches)
                yield _Choice({**size, "img_scale": scale, **self.timm_kwargs})
            return
        if self._scaled_patches:
            factor = _patch_size(image_size, patches=8) / max(self._scaled_patches)
            patches = [max(1, round(factor * patch)) for patch in self._scaled_patches]
            options = {"patch_size": patches, "img_scale": _tiled_scales(image_size, patches)}
            yield _Choice({**size, **options, **self.timm_kwargs})
        if self._takes_patch_stride:  # overlapping patches (Hiera)
            stride = _patch_size(image_size, patches=16)
            overlapping = {"patch_kernel": [3, 3], "patch_stride": [stride] * 2}
            yield _Choice({**size, **overlapping, "patch_padding": [1, 1], **self.timm_kwargs})
        if self._published_patch is not None:
            patches = self._small_patches(image_size)
            for patch in patches if self._takes_patch else []:
                options = {**size, "patch_size": patch}
                if self._takes_window:
                    yield _Choice({**options, "window_size": 4, **self.timm_kwargs})
                yield _Choice({**options, **self.timm_kwargs})
            for patch in patches if self._has_patch_layer else []:
                # As many published patches tile an image that is larger by the patches' ratio.
                larger = image_size // patch * self._published_patch
                size_of_patches = {"img_size": larger} if self._takes_size else {}
                yield _Choice({**size_of_patches, **self.timm_kwargs}, patch_size=patch)
        removed, factor = self._small_strides
        if removed:
            if self._takes_size and factor > 1:
                # Behind the removed strides the maps are those of images so much larger.
                yield _Choice({"img_size": image_size * factor, **self.timm_kwargs}, removed)
            yield _Choice({**size, **self.timm_kwargs}, removed)

    def _small_patches(self, image_size: int) -> list[int]:
        """Sides of patches for the small stem, the best first."""
        assert self._published_patch is not None
        is_pyramid = self._takes_window or (self.stride or 0) > self._published_patch
        patch = _patch_size(image_size, patches=16 if is_pyramid else 8)
        if not self._takes_window and patch > self._published_patch:
            patch = _patch_size(image_size, patches=-(-image_size // self._published_patch))
        larger = range(patch + 1, self._published_patch)
        return [patch, *(side for side in larger if image_size % side == 0)]

    @functools.cached_property
    def _small_strides(self) -> tuple[tuple[str, ...], int]:
        """Layers that lose their stride in the small stem, and the factor of their strides.

        The first convolution and a pool behind it; then, as long as the total stride is above 16,
        the next layers from the image downwards that can.
        """
        if self._published is None:
            return (), 1
        levels, height = self._published.levels, self._published.height or 1
        heights = [level.height for level in levels] + [height]
        removed, factor, index = list(self._first_conv), 1.0, 0

        def take(names: list[str]) -> None:
            nonlocal factor, index
            removed.extend(name for name in names if name not in removed)
            factor *= heights[index] / heights[index + 1]
            index += 1

        if levels and set(self._first_conv) & set(levels[0].names):
            take(levels[0].names)
        if index < len(levels) and self._pool is not None:
            if any(name.startswith(self._pool) for name in levels[index].names):
                take([self._pool])
            else:
                removed.append(self._pool)
        elif index < len(levels) and levels[index].is_pool:
            take(levels[index].names)
        while index < len(levels) and (self.stride or 1) / factor > _LARGEST_SMALL_STRIDE:
            names = levels[index].names
            larger = factor * heights[index] / heights[index + 1]
            # Behind the removed strides a model that is bound to its size expects its own maps.
            size = self.image_size // round(larger) if self._takes_size else self.image_size
            try:
                self._trace(_Choice(self._own_kwargs, (*removed, *names)), size)
            except TIMM_ERRORS:
                index += 1
            else:
                take(names)
        return tuple(removed), round(factor)

    def _what_is_possible(self, stem: str, image_size: int) -> str:
        """The other stem or the next larger size that works; empty if none is found."""
        if self._published is None:
            return ""
        possible = []
        other = {"timm": "small", "small": "timm"}.get(stem)
        if other is not None and self._first_that_works((other,), image_size)[0]:
            possible.append(f"stem={other!r} takes this size")
        stems = ("timm", "small") if stem == "auto" else (stem,)

        def works(size: int) -> bool:
            return self._first_that_works(stems, size)[0] is not None

        step = 32
        sizes = {*range(step * (image_size // step + 1), self.image_size, step), self.image_size}
        size = next((size for size in sorted(sizes) if size > image_size and works(size)), None)
        if size is not None:
            low = max(image_size, size - step)  # does not work, or is not known to
            while not self._takes_size and size - low > 1:
                middle = (low + size) // 2
                low, size = (low, middle) if works(middle) else (middle, size)
            kind = "next" if self._takes_size else "smallest"
            possible.append(f"the {kind} size that works is {size}")
        return ", and ".join(possible)

    def _trace(self, choice: _Choice, image_size: int) -> _Trace:
        """A forward pass on the meta device, or on the CPU for a model that needs values."""
        try:
            return self._trace_on("meta", choice, image_size)
        except RuntimeError as error:
            if not _needs_values(error):
                raise
            return self._trace_on("cpu", choice, image_size)

    def _trace_on(self, device: str, choice: _Choice, image_size: int) -> _Trace:
        key = repr((device, choice))
        if (key, image_size) not in self._traces:
            if key not in self._models:
                model = _build(self.name, self.in_chans, choice.kwargs, device)
                remove_strides(model, choice.removed, keep_weights=True)
                if choice.patch_size is not None:
                    set_patch_size(model, choice.patch_size, image_size, keep_weights=True)
                self._models[key] = model
            self._traces[key, image_size] = _trace(self._models[key], self.in_chans, image_size)
        return self._traces[key, image_size]


class _Choice(NamedTuple):
    """What may fit: the first attributes of a :class:`Fit` behind its stem."""

    kwargs: dict[str, Any]
    removed: tuple[str, ...] = ()
    patch_size: int | None = None


class _Level(NamedTuple):
    """Layers with a stride that see maps of one height."""

    height: int
    names: list[str]
    is_pool: bool


class _Trace(NamedTuple):
    """What a forward pass shows."""

    feature_dim: int
    height: int | None  # of the last feature map
    levels: list[_Level]  # from the image downwards


class _ShapesOnly(TorchFunctionMode):
    """Spares meta tensors, which have no values, the work that leaves their shape as it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            function = getattr(func, "__name__", "")
            if function in _SAME_SHAPE:
                return args[0]
            if function == "linear":
                weight = args[1] if len(args) > 1 else kwargs["weight"]
                return func(args[0], weight)  # the bias changes no shape
            if function == "lstm":  # one operation for each position
                (hidden, cell), dirs = args[1], 2 if args[7] else 1
                return args[0].new_empty(*args[0].shape[:-1], dirs * hidden.shape[-1]), hidden, cell
            if function == "scaled_dot_product_attention":
                query, _, value = args[:3]
                if query.shape[:-2] == value.shape[:-2] and query.shape[-1] == value.shape[-1]:
                    return query
        return func(*args, **kwargs)


# Initialisation, norms and activations: torch's meta versions of them take most of the time.
_SAME_SHAPE = {
    *("uniform_", "normal_", "trunc_normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_"),
    *("zero_", "constant_", "kaiming_uniform_", "kaiming_normal_"),
    *("batch_norm", "layer_norm", "group_norm", "rms_norm", "gelu", "silu", "hardswish"),
}


def _needs_values(error: RuntimeError) -> bool:
    """Whether torch says that something cannot be done with meta tensors."""
    return any(text in str(error) for text in ("meta", "Meta", "unsupported scalarType"))


def _build(name: str, in_chans: int, kwargs: Mapping[str, Any], device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device(device), _ShapesOnly():
        return timm.create_model(name, num_classes=0, in_chans=in_chans, **kwargs).eval()


def _trace(model: nn.Module, in_chans: int, image_size: int) -> _Trace:
    inputs: dict[str, int] = {}
    maps: list[Any] = []

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args[0].dim() == 4:
                inputs.setdefault(name, args[0].shape[2])

        return hook

    hooks = []
    for name, layer in model.named_modules():
        stride = getattr(layer, "stride", 1)
        if isinstance(stride, int | tuple) and _one_side(stride) > 1 and not any(layer.children()):
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
    levels = []
    for height in sorted(set(inputs.values()), reverse=True):
        names = [name for name, seen in inputs.items() if seen == height]
        layers = [model.get_submodule(name) for name in names]
        is_pool = not any(True for layer in layers for _ in layer.parameters())
        levels.append(_Level(height, names, is_pool))
    return _Trace(feature_dim, _height_of(maps[0], model) if maps else None, levels)


def _height_of(features: Any, model: nn.Module) -> int | None:
    """Height of what timm's forward_features returns: a map, tokens, or several of them."""
    if isinstance(features, list | tuple):
        features = features[0]
    if isinstance(features, Tensor) and features.dim() == 4:
        channels_last = getattr(model, "output_fmt", "") == "NHWC"
        shape = features.shape
        return int(shape[1 if channels_last or shape[1] == shape[2] != shape[3] else 2])
    if isinstance(features, Tensor) and features.dim() == 3:
        patches = features.shape[1] - getattr(model, "num_prefix_tokens", 0)
        return math.isqrt(patches) if patches > 2 else None  # PiT gives its class tokens only
    return None


def _published_patch(model: nn.Module, first_conv: tuple[str, ...]) -> int | None:
    """Side of the published patches, if the images themselves are cut into patches."""
    embedding = getattr(model, "patch_embed", None)
    if embedding is None:
        embedding = next(map(functools.partial(_parent, model), _first_layers(model)), None)
    if hasattr(embedding, "backbone"):
        return None
    for name in first_conv:
        conv = model.get_submodule(name)
        if conv.kernel_size == conv.stride:
            return _one_side(conv.stride)
    patch = getattr(embedding, "patch_size", None)
    if patch is None:
        parameter = inspect.signature(type(model)).parameters.get("patch_size")
        patch = parameter.default if parameter else None
    return _one_side(patch) if isinstance(patch, int | tuple) else None


def _first_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that see the images, as timm describes the model."""
    traits: dict[str, Any] = getattr(model, "_traits", {})
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    first = traits.get("first_conv", cfg.get("first_conv")) or ()
    return (first,) if isinstance(first, str) else tuple(first)


def _parent(model: nn.Module, name: str) -> nn.Module | None:
    """The module that a layer of that name is in."""
    return _layer(model, name.rpartition(".")[0])


def _patch_layer(model: nn.Module) -> PatchEmbed | None:
    """The layer of timm's that cuts the images themselves into patches, if there is one."""
    parents = (_parent(model, name) for name in _first_layers(model))
    return next((layer for layer in parents if isinstance(layer, PatchEmbed)), None)


def _constructor_arguments(model_class: type) -> set[str]:
    """Names of the arguments of a class, with those that it hands on.

    To its base, or to the dataclass of its configuration (NaFlexViT).
    """
    names: set[str] = set()
    for base in model_class.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            names |= parameters.keys()
            for parameter in parameters.values():
                for hint in (parameter.annotation, *typing.get_args(parameter.annotation)):
                    if dataclasses.is_dataclass(hint):
                        names |= {field.name for field in dataclasses.fields(hint)}
            if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                break
    return names


def _layer(model: nn.Module, name: str) -> nn.Module | None:
    """A model's layer of that name, if there is one that does something."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        return None
    return None if isinstance(layer, nn.Identity) else layer


def _has_stride(layer: nn.Module) -> bool:
    strides = (getattr(part, "stride", None) for part in layer.modules())
    return any(isinstance(stride, int | tuple) and _one_side(stride) > 1 for stride in strides)


def _one_side(size: Any) -> int:
    return int(size) if isinstance(size, int) else int(size[0])


def _patch_size(image_size: int, patches: int) -> int:
    """The largest patch that tiles the image with at least `patches` patches a side."""
    largest = max(1, image_size // patches)
    return next(patch for patch in range(largest, 0, -1) if image_size % patch == 0)


def _tiled_scales(image_size: int, patches: list[int]) -> list[float]:
    """For each patch the scale to the next smaller image that it tiles."""
    # Half a pixel more, because CrossViT rounds down.
    return [(image_size // patch * patch + 0.5) / image_size for patch in patches]


def remove_strides(model: nn.Module, names: tuple[str, ...], keep_weights: bool) -> None:
    """Takes the stride from layers of a model, in place.

    A convolution gets stride 1 and a kernel of at most 3x3, another layer (a pool) becomes the
    identity.

    Args:
        model: The model.
        names: Names of its layers.
        keep_weights: Whether a smaller kernel is the centre of the old one; else it is initialised
            by He's law.
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
            continue  # it pads by itself
        layer.padding = "same" if (height, width) == (2, 2) else (height // 2, width // 2)


@torch.no_grad()
def set_patch_size(model: nn.Module, patch_size: int, image_size: int, keep_weights: bool) -> None:
    """Cuts the images into other patches than those that a model was built with, in place.

    For models whose patches are no argument (MLP-Mixer, CoaT, Sequencer). One that is bound to its
    image size is to be built for as many patches as it will see.

    Args:
        model: The model, with timm's layer for patches.
        patch_size: Side of the new patches in pixels.
        image_size: Height and width of the images in pixels.
        keep_weights: Whether the new weights are the old ones, as timm resamples them; else they
            are drawn anew.

    Raises:
        ValueError: If the model has no such layer.
    """
    layer = _patch_layer(model)
    if layer is None:
        raise ValueError(f"a {type(model).__name__} has no layer whose patches can be set")
    side, deviation = _one_side(layer.patch_size), layer.proj.weight.std()
    layer.set_input_size(
        img_size=None if layer.img_size is None else (image_size, image_size),
        patch_size=(patch_size, patch_size),
    )
    if not keep_weights:
        # The variance of initial weights goes by 1 / (pixels of a patch).
        layer.proj.weight.normal_().mul_(deviation * side / patch_size)


@torch.no_grad()
def measure_feature_dim(model: nn.Module, in_chans: int, image_size: int) -> int:
    """Counts the features of a model by a forward pass in eval mode, which changes nothing.

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


def reason_of(error: Exception) -> str:
    """An error's message in one line, which for weights that do not fit would be very long."""
    return textwrap.shorten(str(error), 300, placeholder=" ...").rstrip(".") or type(error).__name__
