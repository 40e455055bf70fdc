"""The old place of export_backbone and load_backbone; it goes away in the next release."""

from mixco_lightly.backbones.export import (
    export_backbone as export_backbone,
    load_backbone as load_backbone,
)
