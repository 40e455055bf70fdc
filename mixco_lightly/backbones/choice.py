"""Which arguments, stem and strides fit a timm model to an image size."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mixco_lightly.backbones.facts import read_facts
from mixco_lightly.backbones.trace import TIMM_ERRORS, Trace, Tracer, Variant, reason_of

# stem="auto" takes the small stem up to this size, if the published one leaves fewer than 8x8
# positions: published stems, with a total stride of 32, leave 2x2 of 64 pixels.
SMALL_IMAGE_SIZE = 64
_ENOUGH_POSITIONS = 8
# The small stem of a convolutional network leaves at least 2x2 positions of 32 pixels.
_LARGEST_SMALL_STRIDE = 16
# Arguments of timm.create_model that load weights: shapes do not depend on them.
_WEIGHT_KWARGS = {"checkpoint_path", "cache_dir"}


class Fit(NamedTuple):
    """What fits a timm model to an image size.

    Attributes:
        stem: "timm" or "small".
        kwargs: Arguments of timm's model.
        removed: Names of the layers that lose their stride, see
            :func:`mixco_lightly.backbones.surgery.remove_strides`.
        patch_size: Side of the patches that are set in the built model, see
            :func:`mixco_lightly.backbones.surgery.set_patch_size`; None leaves it as built.
        feature_dim: Number of features, measured.
        output_stride: Image height over that of the last feature map, measured; None if the
            model has no such map.
    """

    stem: str
    kwargs: dict[str, Any]
    removed: tuple[str, ...]
    patch_size: int | None
    feature_dim: int
    output_stride: int | None


class Fitting:
    """Finds what fits a timm model to image sizes.

    No model is known by name. Its constructor's signature says what it takes, timm's description
    names its first convolution, and a forward pass at its own size measures its strides. A choice
    is valid if a forward pass with it returns features of shape (N, feature_dim).

    Attributes:
        image_size: Height and width that the model was published for.
        parameters: Number of parameters of the published model, without a head.

    Args:
        name: A timm model name.
        in_chans: Channels of the images.
        timm_kwargs: The user's arguments of timm's model; they are left as they are.

    Raises:
        ValueError: If timm cannot build the model with these arguments.

    Examples:
        >>> from mixco_lightly.backbones.choice import Fitting
        >>> fit = Fitting("resnet18").fit(image_size=32)
        >>> fit.stem, fit.removed, fit.output_stride
        ('small', ('conv1', 'maxpool'), 8)
    """

    def __init__(
        self, name: str, in_chans: int = 3, timm_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.name = name
        self.timm_kwargs = {
            key: value for key, value in (timm_kwargs or {}).items() if key not in _WEIGHT_KWARGS
        }
        self._tracer = Tracer(name, in_chans)
        try:
            model = self._tracer.build(Variant(self.timm_kwargs))
        except TIMM_ERRORS as error:
            options = f" with options {self.timm_kwargs}" if self.timm_kwargs else ""
            raise ValueError(f"timm cannot build {name}{options}: {reason_of(error)}") from error
        self._facts = read_facts(model, self.timm_kwargs)
        self.image_size = self._facts.image_size
        self.parameters = self._facts.parameters
        self._published: Trace | None = None
        self._defect: str | None = None  # why there are no features even at its own size
        for pooling in self._facts.poolings:
            self._own_kwargs = {**pooling, **self.timm_kwargs}
            try:
                self._published = self._tracer.trace(Variant(self._own_kwargs), self.image_size)
                break
            except TIMM_ERRORS as error:
                self._defect = self._defect or reason_of(error)

    @property
    def stride(self) -> int | None:
        """Total stride of the published model; None if it has no feature map."""
        if self._published is None or not self._published.height:
            return None
        return round(self.image_size / self._published.height)

    def fit(self, image_size: int, stem: str = "auto", pretrained: bool = False) -> Fit:
        """Finds what fits the model to an image size.

        Args:
            image_size: Height and width of the images in pixels.
            stem: "timm", "small" or "auto", as in :func:`mixco_lightly.create_backbone`.
            pretrained: If True, "auto" takes the stem that published weights belong to, unless
                it does not take the images.

        Returns:
            The fit.

        Raises:
            ValueError: If nothing fits. The message says what is possible.
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
        """Returns the first fit that gives features, else why the first choice gives none."""
        reason = None
        for stem, pooling in [(stem, pool) for pool in self._facts.poolings for stem in stems]:
            for variant in self._variants(stem, image_size):
                variant = variant._replace(kwargs={**pooling, **variant.kwargs})
                try:
                    trace = self._tracer.trace(variant, image_size)
                except TIMM_ERRORS as error:
                    reason = reason or reason_of(error)
                    continue
                stride = round(image_size / trace.height) if trace.height else None
                kwargs, removed, patch_size = variant
                return Fit(stem, kwargs, removed, patch_size, trace.feature_dim, stride), None
            reason = reason or f"there is no {stem} stem for it"
        return None, reason

    def _variants(self, stem: str, image_size: int) -> Iterator[Variant]:
        """Yields what may fit, the best first."""
        facts = self._facts
        size = {"img_size": image_size} if facts.takes_size else {}
        if stem == "timm" or "patch_size" in self.timm_kwargs:
            yield Variant({**size, **self.timm_kwargs})
            if facts.scaled_patches:
                scale = _tiled_scales(image_size, facts.scaled_patches)
                yield Variant({**size, "img_scale": scale, **self.timm_kwargs})
            return
        if facts.scaled_patches:
            factor = _patch_size(image_size, patches=8) / max(facts.scaled_patches)
            patches = [max(1, round(factor * patch)) for patch in facts.scaled_patches]
            options = {"patch_size": patches, "img_scale": _tiled_scales(image_size, patches)}
            yield Variant({**size, **options, **self.timm_kwargs})
        if facts.takes_patch_stride:
            stride = _patch_size(image_size, patches=16)
            overlapping = {"patch_kernel": [3, 3], "patch_stride": [stride] * 2}
            yield Variant({**size, **overlapping, "patch_padding": [1, 1], **self.timm_kwargs})
        if facts.published_patch is not None:
            patches = self._small_patches(image_size, facts.published_patch)
            for patch in patches if facts.takes_patch else []:
                options = {**size, "patch_size": patch}
                if facts.takes_window:
                    yield Variant({**options, "window_size": 4, **self.timm_kwargs})
                yield Variant({**options, **self.timm_kwargs})
            for patch in patches if facts.has_patch_layer else []:
                # Built for an image that has as many patches of the published size.
                larger = image_size // patch * facts.published_patch
                size_of_patches = {"img_size": larger} if facts.takes_size else {}
                yield Variant({**size_of_patches, **self.timm_kwargs}, patch_size=patch)
        removed, factor = self._small_strides
        if removed:
            if facts.takes_size and factor > 1:
                # Without these strides the maps are those of images `factor` times as large.
                yield Variant({"img_size": image_size * factor, **self.timm_kwargs}, removed)
            yield Variant({**size, **self.timm_kwargs}, removed)

    def _small_patches(self, image_size: int, published: int) -> list[int]:
        """Returns sides of patches for the small stem, the best first."""
        takes_window = self._facts.takes_window
        is_pyramid = takes_window or (self.stride or 0) > published
        patch = _patch_size(image_size, patches=16 if is_pyramid else 8)
        if not takes_window and patch > published:
            patch = _patch_size(image_size, patches=-(-image_size // published))
        larger = range(patch + 1, published)
        return [patch, *(side for side in larger if image_size % side == 0)]

    @functools.cached_property
    def _small_strides(self) -> tuple[tuple[str, ...], int]:
        """Layers that lose their stride in the small stem, and the factor of their strides.

        The first convolution and a pool behind it lose theirs. While the total stride is above
        16, so do the next layers, from the image downwards, that the model can do without.
        """
        if self._published is None:
            return (), 1
        removed = list(self._facts.first_convs)
        factor = 1.0
        levels = list(self._published.levels)
        if levels and not set(removed).isdisjoint(levels[0].names):
            removed.extend(name for name in levels[0].names if name not in removed)
            factor *= levels.pop(0).stride
        pool = self._facts.pool
        if levels and pool is not None:
            removed.append(pool)
            if any(name.startswith(pool) for name in levels[0].names):
                factor *= levels.pop(0).stride
        elif levels and levels[0].is_pool:
            removed.extend(levels[0].names)
            factor *= levels.pop(0).stride
        for level in levels:
            if (self.stride or 1) / factor <= _LARGEST_SMALL_STRIDE:
                break
            more = (*removed, *(name for name in level.names if name not in removed))
            # A fixed-size model expects maps of the size it was published for.
            size = self.image_size
            if self._facts.takes_size:
                size //= round(factor * level.stride)
            try:
                self._tracer.trace(Variant(self._own_kwargs, more), size)
            except TIMM_ERRORS:
                continue
            removed = list(more)
            factor *= level.stride
        return tuple(removed), round(factor)

    def _what_is_possible(self, stem: str, image_size: int) -> str:
        """Returns the other stem or the next larger size that works; empty if neither does."""
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
            low = max(image_size, size - step)  # is too small, or not known to work
            while not self._facts.takes_size and size - low > 1:
                middle = (low + size) // 2
                low, size = (low, middle) if works(middle) else (middle, size)
            kind = "next" if self._facts.takes_size else "smallest"
            possible.append(f"the {kind} size that works is {size}")
        return ", and ".join(possible)


def _patch_size(image_size: int, patches: int) -> int:
    """Returns the largest patch that tiles the image with at least `patches` patches a side."""
    largest = max(1, image_size // patches)
    return next(patch for patch in range(largest, 0, -1) if image_size % patch == 0)


def _tiled_scales(image_size: int, patches: list[int]) -> list[float]:
    """Returns, for each patch, the scale to the next smaller image that it tiles."""
    # Half a pixel more, because CrossViT rounds down.
    return [(image_size // patch * patch + 0.5) / image_size for patch in patches]
