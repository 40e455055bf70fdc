"""Backbones from timm: fitted to the image size, with several exits, exported and loaded."""

from typing import TYPE_CHECKING

from mixco_lightly.lazy import lazy_exports

if TYPE_CHECKING:
    from mixco_lightly.backbones.backbone import (
        Backbone as Backbone,
        create_backbone as create_backbone,
    )
    from mixco_lightly.backbones.export import (
        export_backbone as export_backbone,
        load_backbone as load_backbone,
    )
    from mixco_lightly.backbones.formats import (
        export_onnx as export_onnx,
        export_program as export_program,
    )
    from mixco_lightly.backbones.multi_exit import MultiExitBackbone as MultiExitBackbone
    from mixco_lightly.backbones.release import build_release as build_release
    from mixco_lightly.backbones.upload import push_to_hub as push_to_hub

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    backbone="Backbone create_backbone",
    export="export_backbone load_backbone",
    formats="export_onnx export_program",
    multi_exit="MultiExitBackbone",
    release="build_release",
    upload="push_to_hub",
)
