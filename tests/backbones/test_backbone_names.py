"""Names over as many families of timm: each is built, trains one step, and is exported."""

import pytest

from tests.benchmarks.backbones import check_step

# timm's tiny test models first, then small ones of families whose stem, feature layout, size rule
# or output width is of its own kind.
NAMES = [
    "test_byobnet",
    "test_convnext",
    "test_efficientnet",
    "test_mambaout",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "coat_lite_tiny",
    "coatnet_pico_rw_224",
    "crossvit_9_dagger_240",
    "efficientformerv2_s0",
    "dla46_c",
    "edgenext_xx_small",
    "efficientvit_b0",
    "efficientvit_m0",
    "ghostnet_050",
    "gmlp_ti16_224",
    "lcnet_050",
    "levit_128s",
    "maxvit_pico_rw_256",
    "mobilenetv3_small_050",
    "mobilevitv2_050",
    "pit_ti_224",
    "regnetx_002",
    "repvgg_a0",
    "fasternet_t0",
    "rexnet_100",
    "starnet_s050",
    "tinynet_e",
    "vit_relpos_small_patch16_224",
    "xcit_nano_12_p16_224",
]
# timm has no small network of this kind: two of its twelve blocks.
KWARGS = {"vit_relpos_small_patch16_224": {"depth": 2}}
# A second or more each, and relatives of others in the list.
SLOW = ["coat_lite_tiny", "coatnet_pico_rw_224", "crossvit_9_dagger_240", "efficientvit_m0"]
SLOW += ["fasternet_t0", "ghostnet_050", "gmlp_ti16_224", "maxvit_pico_rw_256", "repvgg_a0"]
SLOW += ["regnetx_002", "rexnet_100", "vit_relpos_small_patch16_224", "xcit_nano_12_p16_224"]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(
            name, ["moco", "simclr"][index % 2], marks=pytest.mark.slow if name in SLOW else ()
        )
        for index, name in enumerate(NAMES)
    ],
)
def test_training_reaches_first_and_last_layer_and_the_export_loads_bit_by_bit(name, method):
    check_step(name, method, 32, **KWARGS.get(name, {}))
