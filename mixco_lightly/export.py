"""The old place of ``export_backbone`` and ``load_backbone``, for one more release."""

import warnings

from mixco_lightly.backbones.description import (
    CONFIG_NAME as CONFIG_NAME,
    WEIGHTS_NAME as WEIGHTS_NAME,
    read_config as read_config,
)
from mixco_lightly.backbones.export import (
    export_backbone as export_backbone,
    load_backbone as load_backbone,
)

warnings.warn(
    "mixco_lightly.export will be removed in the next release. Import export_backbone and "
    "load_backbone from mixco_lightly or mixco_lightly.backbones.",
    DeprecationWarning,
    stacklevel=2,
)
