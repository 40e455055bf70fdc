import logging

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import StdConv2dSame, resample_abs_pos_embed, resample_patch_embed
from torch import nn

from mixco_lightly import create_backbone
from mixco_lightly.backbones import trace
from mixco_lightly.backbones.choice import Fitting
from mixco_lightly.backbones.surgery import remove_strides
from mixco_lightly.backbones.trace import measure_feature_dim

TINY = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]
WIDTHS = {
    "resnet18": 512,
    "resnet50d": 2048,
    "convnextv2_atto": 320,
    "efficientnet_b0": 1280,
    "mobilenetv3_small_100": 1024,  # timm's num_features says 576
    "vit_tiny_patch16_224": 192,
    "swin_tiny_patch4_window7_224": 768,
    "test_resnet": 96,
    "test_vit": 64,
    "test_convnext": 64,
    "test_efficientnet": 256,
}
# Large images are slow; the width of a network does not depend on them.
CASES = [
    pytest.param(name, size, marks=pytest.mark.slow if size == 224 and name not in TINY else ())
    for name in WIDTHS
    for size in (32, 64, 224)
]


def images(size, n=2, in_chans=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, in_chans, size, size, generator=generator)


def backbone_of(name, image_size, **options):
    torch.manual_seed(0)
    return create_backbone(name, image_size, **options)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_feature_dim_is_the_real_output_width(name, size):
    backbone = backbone_of(name, size)
    with torch.no_grad():
        features = backbone(images(size))
    assert features.shape == (2, backbone.feature_dim)
    assert backbone.feature_dim == WIDTHS[name]
    assert features.isfinite().all()
    assert not torch.allclose(features[0], features[1], rtol=1e-4)
    assert (backbone.name, backbone.image_size, backbone.in_chans) == (name, size, 3)


@pytest.mark.parametrize("stem", ["small", "timm"])
@pytest.mark.parametrize("name", [*TINY, "resnet18"])
def test_training_step_reaches_the_first_and_the_last_layer(name, stem):
    backbone = backbone_of(name, 32, stem=stem)
    backbone(images(32, n=4)).square().sum().backward()
    parameters = list(backbone.parameters())
    first = backbone.model.get_submodule(backbone.model.pretrained_cfg["first_conv"]).weight
    assert any(first is parameter for parameter in parameters)
    for parameter in (first, parameters[-1]):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@pytest.mark.parametrize("name", ["resnet18", "test_resnet", "resnet50d", "resnetv2_50"])
def test_small_resnet_stem_is_a_3x3_convolution_without_pool(name):
    model = backbone_of(name, 32, stem="small").model
    conv = model.get_submodule(model.pretrained_cfg["first_conv"])
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    assert conv.weight.shape[2:] == (3, 3)
    assert not any(isinstance(module, nn.MaxPool2d) for module in model.modules())
    with torch.no_grad():
        feature_map = model.eval().forward_features(images(32, n=1))
    assert feature_map.shape[2:] == (4, 4)  # a total stride of 8


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_convnext", 32),
        ("test_convnext", 64),
        ("convnext_atto_ols", 32),  # its stem has overlapping convolutions instead of patches
        ("test_efficientnet", 64),
        ("mobilenetv3_small_100", 64),
    ],
)
def test_small_stem_enlarges_the_feature_map(name, size):
    small, published = (
        backbone_of(name, size, stem=stem).model.eval().forward_features(images(size, n=1))
        for stem in ("small", "timm")
    )
    assert small.shape[2:].numel() > published.shape[2:].numel()


@pytest.mark.parametrize("size", [32, 48, 64, 96])
def test_small_vit_stem_makes_64_tokens(size):
    model = backbone_of("test_vit", size, stem="small").model
    assert model.patch_embed.num_patches == 64


@pytest.mark.parametrize(("size", "patch"), [(32, 2), (64, 4), (37, 1)])
def test_small_swin_stem_makes_patches_that_tile_the_image(size, patch):
    # Fewer layers, whose weights need not be drawn.
    options = {"stem": "small", "depths": (1, 1, 1, 1)}
    model = backbone_of("swin_tiny_patch4_window7_224", size, **options).model
    assert model.patch_embed.patch_size == (patch, patch)


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_convnext", "mobilenetv3_small_100"])
@pytest.mark.parametrize("size", [64, 224])
def test_published_stem_leaves_the_model_of_timm(name, size):
    state = backbone_of(name, size, stem="timm").model.state_dict()
    options = {"img_size": size} if name == "test_vit" else {}
    published = timm.create_model(name, num_classes=0, **options).state_dict()
    assert list(state) == list(published)
    for key, tensor in published.items():
        assert state[key].shape == tensor.shape, key


@pytest.mark.parametrize("stem", ["small", "timm"])
def test_published_stem_computes_what_timm_computes(stem):
    backbone = backbone_of("test_resnet", 64, stem=stem).eval()
    published = timm.create_model("test_resnet", num_classes=0).eval()
    published.load_state_dict(backbone.model.state_dict())
    with torch.no_grad():
        same = torch.equal(backbone(images(64)), published(images(64)))
    # The small stem has the same shapes here, and a stride that makes the difference.
    assert same == (stem == "timm")


@pytest.mark.parametrize(
    ("size", "stem"), [(32, "small"), (64, "small"), (65, "timm"), (224, "timm")]
)
def test_auto_picks_the_stem_by_size_and_logs_it(size, stem, caplog):
    with caplog.at_level(logging.INFO, logger="mixco_lightly"):
        backbone = backbone_of("test_resnet", size)
    assert backbone.stem == stem
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"test_resnet at {size} pixels: the stem is '{stem}'."


def test_named_stem_is_not_logged_as_a_choice(caplog):
    with caplog.at_level(logging.INFO, logger="mixco_lightly"):
        assert backbone_of("test_resnet", 224, stem="small").stem == "small"
    assert not caplog.records


@pytest.mark.parametrize("stem", ["small", "timm"])
@pytest.mark.parametrize("name", TINY)
def test_grey_images_have_one_channel(name, stem):
    backbone = backbone_of(name, 32, in_chans=1, stem=stem)
    assert backbone.in_chans == 1
    assert backbone(images(32, in_chans=1)).shape == (2, backbone.feature_dim)
    with pytest.raises((RuntimeError, AssertionError)):
        backbone(images(32))


@pytest.mark.parametrize("stem", ["small", "timm"])
def test_timm_kwargs_win_over_the_choices_made_here(stem):
    backbone = backbone_of("test_vit", 32, stem=stem, patch_size=8, embed_dim=96)
    assert backbone.model.patch_embed.patch_size == (8, 8)
    assert backbone.model.patch_embed.num_patches == 16
    assert backbone.feature_dim == 96
    assert backbone.timm_kwargs == {"patch_size": 8, "embed_dim": 96}


def test_img_size_of_the_user_wins():
    backbone = backbone_of("test_vit", 64, stem="timm", img_size=32, dynamic_img_size=True)
    assert backbone.model.patch_embed.img_size == (32, 32)


@pytest.mark.parametrize("name", TINY)
def test_backbone_is_in_training_mode(name):
    assert all(module.training for module in backbone_of(name, 32).modules())


@pytest.mark.parametrize("stem", ["small", "timm"])
def test_dry_run_leaves_batch_norm_untouched(stem):
    norms = [
        module
        for module in backbone_of("test_resnet", 32, stem=stem).modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    assert norms
    for norm in norms:
        assert norm.num_batches_tracked == 0
        assert not norm.running_mean.any()
        assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))


@pytest.mark.parametrize("name", TINY)
def test_dry_run_leaves_no_gradient(name):
    assert all(parameter.grad is None for parameter in backbone_of(name, 32).parameters())


@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_torch_seed_decides_the_initial_weights(name):
    one, same = (backbone_of(name, 32).state_dict() for _ in range(2))
    other = create_backbone(name, 32).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_shrunk_kernel_is_initialised_for_its_own_size():
    # He's law for 64 outputs: a centre cut out of the 7x7 kernel would be 7/3 times too small.
    weight = backbone_of("resnet18", 32, stem="small").model.conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)
    assert weight.requires_grad


@pytest.fixture
def publish(tmp_path):
    """Makes up weights of a timm model: their state, and the arguments that have timm read them."""

    def make(name, **options):
        torch.manual_seed(1)
        state = timm.create_model(name, **options).state_dict()
        path = tmp_path / f"{name}.safetensors"
        save_file({key: tensor.clone() for key, tensor in state.items()}, path)
        overlay = {"file": str(path)}
        return state, {"pretrained": True, "pretrained_cfg_overlay": overlay, **options}

    return make


@pytest.fixture
def published_weights(publish):
    return publish("resnet18")


def test_small_stem_keeps_the_centre_of_pretrained_kernels(published_weights):
    state, options = published_weights
    model = backbone_of("resnet18", 32, stem="small", **options).model
    assert torch.equal(model.conv1.weight, state["conv1.weight"][..., 2:5, 2:5])
    assert torch.equal(model.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_auto_keeps_the_stem_that_pretrained_weights_belong_to(published_weights):
    state, options = published_weights
    backbone = backbone_of("resnet18", 32, **options)
    assert backbone.stem == "timm"
    assert torch.equal(backbone.model.conv1.weight, state["conv1.weight"])


# test_vit was published for 160 pixels: 10x10 patches of 16.
@pytest.mark.parametrize(
    ("size", "stem", "patch", "grid"),
    [(160, "timm", 16, 10), (64, "timm", 16, 4), (64, "small", 8, 8), (32, "small", 4, 8)],
)
def test_pretrained_positions_and_patches_are_resampled_by_timm(size, stem, patch, grid, publish):
    state, options = publish("test_vit")
    model = backbone_of("test_vit", size, stem=stem, **options).model
    expected = dict(state)
    expected["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [grid, grid], [10, 10])
    patches = resample_patch_embed(state["patch_embed.proj.weight"], [patch, patch])
    expected["patch_embed.proj.weight"] = patches
    assert model.patch_embed.grid_size == (grid, grid)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0)


def test_pretrained_patches_that_are_no_argument_are_resampled_by_timm(publish):
    state, options = publish("coat_lite_tiny")
    expected = dict(state)
    patches = resample_patch_embed(state["patch_embed1.proj.weight"], [2, 2])
    expected["patch_embed1.proj.weight"] = patches
    model = backbone_of("coat_lite_tiny", 32, stem="small", **options).model
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0)


def test_pretrained_naflexvit_keeps_its_patches_and_resamples_positions_itself(publish):
    tiny = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    state, options = publish("naflexvit_base_patch16_gap", **tiny)
    backbone = backbone_of("naflexvit_base_patch16_gap", 32, **options)
    assert backbone.stem == "timm"
    assert torch.equal(backbone.model.embeds.proj.weight, state["embeds.proj.weight"])
    assert torch.equal(backbone.model.embeds.pos_embed, state["embeds.pos_embed"])
    with pytest.raises(ValueError, match=r"embeds.proj.weight.* are for images of \d+ pixels"):
        backbone_of("naflexvit_base_patch16_gap", 32, stem="small", **options)


def test_pretrained_token_mixing_takes_its_own_number_of_tokens_only(publish):
    state, options = publish("gmlp_ti16_224")
    with pytest.raises(ValueError, match=r"32 pixels .* are for images of 224 pixels") as caught:
        backbone_of("gmlp_ti16_224", 32, **options)
    assert len(str(caught.value)) < 600
    model = backbone_of("gmlp_ti16_224", 224, **options).model
    assert torch.equal(model.stem.proj.weight, state["stem.proj.weight"])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet81", "resnet18"),
        ("timm/resnet18", "resnet18"),
        ("vit_tiny_patch16", "vit_tiny_patch16_224"),
    ],
)
def test_unknown_name_comes_with_the_nearest_names(name, nearest):
    with pytest.raises(ValueError, match=f"no model named '{name}'") as caught:
        create_backbone(name, 32)
    suggestions = str(caught.value).split("nearest names are: ")[1].rstrip(".").split(", ")
    assert nearest in suggestions
    assert all(timm.is_model(suggestion) for suggestion in suggestions)


def test_name_like_no_other_has_no_suggestions():
    with pytest.raises(ValueError, match=r"no model named 'qqqqqqqqqq'\.$"):
        create_backbone("qqqqqqqqqq", 32)


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("inception_v3", 32, {"stem": "timm"}, "inception_v3 .* 32 pixels with stem 'timm'"),
        ("test_vit", 30, {"patch_size": 16, "stem": "timm"}, "test_vit .* 30 pixels .* 16"),
        ("test_vit", 32, {"patch_size": 5}, "test_vit .* 32 pixels .*divisible by patch size"),
        ("test_resnet", 32, {"bogus": 1}, "'bogus'"),
        ("test_resnet", 32, {"global_pool": ""}, r"not \(N, feature_dim\)"),
        ("test_resnet", 0, {}, "must be positive, got 0 and 3"),
        ("test_resnet", -32, {}, "must be positive, got -32 and 3"),
        ("test_resnet", 32, {"in_chans": 0}, "must be positive, got 32 and 0"),
        ("test_resnet", 32, {"stem": "cifar"}, "got 'cifar'"),
    ],
)
def test_what_cannot_be_built_is_one_clear_error(name, size, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        create_backbone(name, size, **options)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_out_of_reach_are_an_error_that_names_the_model(monkeypatch):
    create_model = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no connection")
        return create_model(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FileNotFoundError, match=r"weights of test_resnet .* no connection"):
        create_backbone("test_resnet", image_size=64, pretrained=True)


# Families of the convolutional kind, whose first convolution, pool or strides are named and nested
# in different ways, with the total stride of the small stem.
SMALL_STRIDES = {
    "resnet18": (("conv1", "maxpool"), 8),
    "resnetv2_50": (("stem.conv", "stem.pool"), 8),
    "densenet121": (("features.conv0", "features.pool0"), 8),
    "convnext_atto": (("stem.0",), 8),
    "mobilenetv3_small_100": (("conv_stem",), 16),
    "repvgg_a0": (("stem.conv_kxk.conv", "stem.conv_1x1.conv"), 16),
    "vgg11_bn": (("features.0", "features.3"), 16),
    # Neither has a stride in its first convolution: the next layers that can lose theirs do.
    "dla34": (("base_layer.0", "level1.0"), 16),
    "tresnet_m": (
        ("body.conv1.conv", "body.layer2.0.downsample.0", "body.layer2.0.conv1.aa"),
        16,
    ),
}


@pytest.mark.parametrize("name", SMALL_STRIDES)
def test_small_stem_leaves_at_least_2x2_of_32_pixels(name):
    fit = Fitting(name).fit(32)
    assert (fit.stem, fit.removed, fit.output_stride) == ("small", *SMALL_STRIDES[name])


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("maxvit_nano_rw_256", {"img_size": 64}),  # the first convolution's stride is gone
        ("levit_128s", {"img_size": 128}),
    ],
)
def test_size_bound_networks_see_images_larger_by_the_removed_strides(name, kwargs):
    fit = Fitting(name).fit(32)
    assert (fit.stem, fit.kwargs, fit.output_stride) == ("small", kwargs, 16)


@pytest.mark.parametrize(
    ("name", "size", "patches"),
    [
        ("crossvit_9_240", 32, [3, 4]),
        ("xcit_nano_12_p16_224", 32, 8),
        ("vit_tiny_patch16_224", 37, 1),
    ],
)
def test_small_patches_are_those_that_the_model_takes(name, size, patches):
    assert Fitting(name).fit(size, "small").kwargs["patch_size"] == patches


# timm fixes the patches of these: they are set in the model, which is built for as many tokens.
@pytest.mark.parametrize(
    ("name", "img_size", "patch", "stride"),
    [
        ("gmlp_ti16_224", 8 * 16, 4, 4),
        ("mixer_s32_224", 8 * 32, 4, 4),
        ("resmlp_big_24_224", 8 * 8, 4, 4),
        ("coat_lite_tiny", 16 * 4, 2, 16),
        ("sequencer2d_s", 16 * 7, 2, 4),
    ],
)
def test_patches_that_are_no_argument_are_set(name, img_size, patch, stride):
    fit = Fitting(name).fit(32)
    assert (fit.stem, fit.kwargs, fit.patch_size) == ("small", {"img_size": img_size}, patch)
    assert fit.output_stride == stride


def test_set_patches_see_each_pixel_once_and_are_initialised_for_their_size():
    model = backbone_of("gmlp_ti16_224", 32).model
    proj = model.stem.proj
    assert (proj.kernel_size, proj.stride, model.stem.grid_size) == ((4, 4), (4, 4), (8, 8))
    # timm draws them by LeCun's law: a variance of 1 / (3 channels x 16 pixels).
    assert proj.weight.std().item() == pytest.approx((3 * 16) ** -0.5, rel=0.05)
    assert proj.weight.requires_grad


def test_patches_of_a_configuration_are_an_argument():
    fit = Fitting("naflexvit_base_patch16_gap", timm_kwargs={"depth": 1}).fit(32)
    assert fit.kwargs == {"img_size": 32, "patch_size": 4, "depth": 1}
    assert (fit.patch_size, fit.output_stride) == (None, 4)


@pytest.mark.parametrize(
    ("name", "stride"), [("vit_small_r26_s32_224", 8), ("vit_base_r50_s16_224", 4)]
)
def test_hybrid_transformers_lose_the_strides_of_their_convolutional_stem(name, stride):
    fit = Fitting(name).fit(32)
    assert fit.removed == ("patch_embed.backbone.stem.conv", "patch_embed.backbone.stem.pool")
    assert (fit.stem, fit.kwargs, fit.output_stride) == ("small", {"img_size": 128}, stride)


def test_class_tokens_are_not_taken_for_a_map():
    fit = Fitting("pit_ti_224").fit(32)
    assert (fit.stem, fit.output_stride) == ("small", None)


def test_a_convolution_that_pads_by_itself_is_not_padded_twice():
    model = nn.Sequential(StdConv2dSame(3, 8, 7, stride=2))
    remove_strides(model, ("0",), keep_weights=True)
    assert model(images(32)).shape == (2, 8, 32, 32)


def test_distilled_class_hands_its_size_on_to_its_base():
    fit = Fitting("deit_tiny_distilled_patch16_224").fit(32)
    assert fit.kwargs == {"img_size": 32, "patch_size": 4}


@pytest.mark.parametrize(
    ("name", "size", "options", "possible"),
    [
        ("inception_v3", 32, {"stem": "timm"}, "stem='small' .* smallest size that works is 75"),
        ("test_vit", 33, {"stem": "timm"}, "the next size that works is 64"),
        ("crossvit_9_dagger_240", 32, {"stem": "small"}, "stem='timm' takes this size"),
        ("test_vit", 32, {"patch_size": 5}, "the next size that works is 160"),
    ],
)
def test_error_says_what_is_possible(name, size, options, possible):
    with pytest.raises(ValueError, match=f"{name} .* {size} pixels .*{possible}") as caught:
        create_backbone(name, size, **options)
    assert "\n" not in str(caught.value)


def test_smallest_size_of_the_error_works():
    assert create_backbone("inception_v3", 75, stem="timm").feature_dim == 2048


def test_auto_takes_the_published_stem_where_it_leaves_8x8(caplog):
    with caplog.at_level(logging.INFO, logger="mixco_lightly"):
        backbone = backbone_of("test_vit", 64, patch_size=8)
    assert backbone.stem == "timm"
    assert len(caplog.records) == 1


def test_fitting_leaves_the_random_numbers_and_the_default_device_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fit = Fitting("test_vit").fit(32)
    assert torch.equal(torch.rand(3), expected)
    assert fit.feature_dim == 64
    assert torch.empty(0).device.type == "cpu"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_initial_weights_are_those_of_timm_at_the_same_seed(name):
    backbone = backbone_of(name, 64, stem="timm")
    torch.manual_seed(0)
    published = timm.create_model(name, num_classes=0, **backbone.fit.kwargs).state_dict()
    assert all(torch.equal(backbone.model.state_dict()[key], published[key]) for key in published)


def test_measuring_restores_each_module_of_a_partly_frozen_model():
    model = timm.create_model("test_resnet", num_classes=0)
    model.bn1.eval()
    measure_feature_dim(model, 3, 32)
    assert model.training
    assert not model.bn1.training


def test_a_model_that_needs_values_to_be_built_is_built_on_the_cpu(monkeypatch):
    expected = create_backbone("test_resnet", 32)
    build, devices = trace._build, []

    def need_values(name, in_chans, kwargs, device):
        devices.append(device)
        if device == "meta":  # as regnetx_002 under timm 1.0.22 and torch 2.10
            raise NotImplementedError("aten::_unique2: attempted to run with Meta tensors")
        return build(name, in_chans, kwargs, device)

    monkeypatch.setattr(trace, "_build", need_values)
    found = create_backbone("test_resnet", 32)
    assert set(devices) == {"meta", "cpu"}
    assert (found.stem, found.feature_dim) == (expected.stem, expected.feature_dim)
    assert found(torch.rand(2, 3, 32, 32)).shape == (2, expected.feature_dim)


def test_a_backbone_on_the_meta_device_has_the_same_width():
    with torch.device("meta"):
        backbone = create_backbone("test_vit", 32)
    assert backbone.feature_dim == 64
    assert next(backbone.parameters()).is_meta


def test_pretrained_backbone_has_its_own_mean_and_std(published_weights):
    _, options = published_weights
    published = timm.get_pretrained_cfg("resnet18")
    backbone = backbone_of("resnet18", 64, **options)
    assert (backbone.mean, backbone.std) == (published.mean, published.std)
    grey = backbone_of("resnet18", 64, in_chans=1, **options)
    assert grey.mean == pytest.approx((sum(published.mean) / 3,))
    assert backbone_of("resnet18", 64).mean is None


def test_pretrained_stem_is_summed_over_the_channels_for_grey_images(published_weights):
    state, options = published_weights
    model = backbone_of("resnet18", 64, in_chans=1, **options).model
    torch.testing.assert_close(model.conv1.weight, state["conv1.weight"].sum(dim=1, keepdim=True))


def test_a_pool_without_a_stride_stays_in_the_small_stem():
    backbone = create_backbone("hgnetv2_b0", image_size=32)
    assert backbone.stem == "small"
    assert backbone.fit.output_stride == 16
    assert isinstance(backbone.model.stem.pool, nn.MaxPool2d)
