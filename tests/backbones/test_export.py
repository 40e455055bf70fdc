import errno
import hashlib
import json
import math
import os
import re

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from mixco_lightly import create_backbone, export_backbone, load_backbone
from mixco_lightly.backbones.description import read_config
from mixco_lightly.backbones.timm_config import _crop_pct
from mixco_lightly.data.images import ImageFacts
from mixco_lightly.data.transforms import create_test_transform

WEIGHTS = "model.safetensors"
CONFIG = "backbone.json"
TIMM_CONFIG = "config.json"
EARLIER_WEIGHTS = "backbone.safetensors"


def trained_backbone(name="test_resnet", image_size=32, **options):
    """A backbone whose weights and BatchNorm statistics have moved from their start."""
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size, **options)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
    for _ in range(2):
        images = torch.randn(4, backbone.in_chans, image_size, image_size)
        backbone(images).square().mean().backward()
        optimizer.step()
    return backbone


def features_of(backbone, image_size=None, in_chans=3):
    """Features of three images of the backbone's size; of a timm model, of the size given."""
    if image_size is None:
        image_size, in_chans = backbone.image_size, backbone.in_chans
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, in_chans, image_size, image_size, generator=generator)
    with torch.no_grad():
        return backbone.eval()(images)


def load_in_timm(directory):
    return timm.create_model(f"local-dir:{directory}", pretrained=True, num_classes=0)


def write_earlier_export(backbone, directory, with_digest=True, **changes):
    """Writes what versions before 0.2 did."""
    weights = directory / EARLIER_WEIGHTS
    save_file(backbone.model.state_dict(), weights, metadata={"format": "pt"})
    config = {
        "format": f"mixco-lightly backbone {1 + with_digest}",
        "name": backbone.name,
        "image_size": backbone.image_size,
        "in_chans": 3,
        "stem": backbone.stem,
        "timm_kwargs": {},
        "chosen_kwargs": backbone.fit.kwargs,
        "removed_strides": list(backbone.fit.removed),
        "patch_size": None,
        "feature_dim": backbone.feature_dim,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.2, 0.2],
        "training": {},
        "metrics": {},
        **changes,
    }
    (directory / CONFIG).write_text(json.dumps(seal(config, weights) if with_digest else config))


def edit_config(directory, **changes):
    """Changes a description and its checksum."""
    path = directory / CONFIG
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(seal(config, directory / WEIGHTS)))


def seal(config, weights):
    """Adds the checksum of a description and its weights."""
    config = {key: value for key, value in config.items() if key != "sha256"}
    text = json.dumps(config, sort_keys=True) + hashlib.sha256(weights.read_bytes()).hexdigest()
    return {**config, "sha256": hashlib.sha256(text.encode()).hexdigest()}


@pytest.mark.parametrize("stem", ["small", "timm"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_loaded_features_equal_the_exported_ones_bit_by_bit(name, stem, tmp_path):
    backbone = trained_backbone(name, stem=stem)
    torch.manual_seed(123)
    loaded = load_backbone(export_backbone(backbone, tmp_path))
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(features_of(loaded), features_of(backbone))
    for attribute in ("name", "image_size", "in_chans", "stem", "timm_kwargs", "feature_dim"):
        assert getattr(loaded, attribute) == getattr(backbone, attribute)


def test_small_stem_of_a_7x7_convolution_survives(tmp_path):
    backbone = trained_backbone("resnet18", stem="small")
    loaded = load_backbone(export_backbone(backbone, tmp_path))
    assert torch.equal(features_of(loaded), features_of(backbone))


def test_automatic_stem_is_recorded_as_what_it_was(tmp_path):
    export_backbone(create_backbone("test_resnet", 32, stem="auto"), tmp_path)
    assert read_config(tmp_path)["stem"] == "small"


def test_export_leaves_the_backbone_as_it_is(tmp_path):
    backbone = trained_backbone()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    export_backbone(backbone, tmp_path)
    assert backbone.training
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


def test_export_writes_only_safetensors_and_json(tmp_path):
    directory = export_backbone(trained_backbone(), tmp_path / "new" / "folder")
    assert directory == tmp_path / "new" / "folder"
    assert sorted(path.name for path in directory.iterdir()) == [CONFIG, TIMM_CONFIG, WEIGHTS]
    assert isinstance(json.loads((directory / TIMM_CONFIG).read_text()), dict)
    assert load_file(directory / WEIGHTS)
    # safetensors: the length of a JSON header, then the header. A pickle is neither.
    content = (directory / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert isinstance(json.loads(content[8 : 8 + length]), dict)


def test_description_has_all_that_is_needed_to_feed_the_backbone(tmp_path):
    backbone = trained_backbone(in_chans=1)
    export_backbone(
        backbone,
        tmp_path,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        training={"epochs": 3, "method": "moco"},
        metrics={"linear_top1": 12.5},
    )
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config == read_config(tmp_path)
    assert len(config.pop("sha256")) == 64
    assert config == {
        "format": "mixco-lightly backbone 3",
        "name": "test_resnet",
        "image_size": 32,
        "in_chans": 1,
        "stem": "small",
        "timm_kwargs": {},
        "chosen_kwargs": {},
        "removed_strides": ["conv1.0", "maxpool"],
        "patch_size": None,
        "feature_dim": 96,
        "differs_from_timm": [
            "Without their stride (convolutions have at most 3x3 pixels): conv1.0, maxpool."
        ],
        "resize": 32,
        "interpolation": "bilinear",
        "crop": 32,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "training": {"epochs": 3, "method": "moco"},
        "metrics": {"linear_top1": 12.5},
    }


def test_unstated_facts_are_empty(tmp_path):
    export_backbone(trained_backbone(), tmp_path)
    config = read_config(tmp_path)
    facts = [config[key] for key in ("mean", "std", "training", "metrics")]
    assert facts == [None, None, {}, {}]


def test_module_with_a_backbone_exports_the_backbone_alone(tmp_path):
    class Method(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = trained_backbone(stem="timm")
            self.projection_head = nn.Linear(96, 8)

    method = Method()
    loaded = load_backbone(export_backbone(method, tmp_path))
    assert torch.equal(features_of(loaded), features_of(method.backbone))
    assert set(load_file(tmp_path / WEIGHTS)) == set(method.backbone.model.state_dict())


@pytest.mark.parametrize(
    "module", [nn.Linear(2, 2), nn.ModuleDict({"backbone": nn.Linear(2, 2)})], ids=["none", "plain"]
)
def test_module_without_such_a_backbone_is_refused(module, tmp_path):
    with pytest.raises(ValueError, match=f"got {type(module).__name__}"):
        export_backbone(module, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {"patch_size": 8, "embed_dim": 96}),
        ("test_vit", {"stem": "timm", "patch_size": (4, 8)}),
        ("test_resnet", {"block_args": {"attn_layer": "se"}}),
    ],
)
def test_timm_kwargs_survive(name, options, tmp_path):
    backbone = trained_backbone(name, **options)
    loaded = load_backbone(export_backbone(backbone, tmp_path))
    assert torch.equal(features_of(loaded), features_of(backbone))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "resnet18"])
def test_weights_of_a_published_stem_load_into_timm(name, tmp_path):
    backbone = trained_backbone(name, image_size=64, stem="timm")
    export_backbone(backbone, tmp_path)
    model = timm.create_model(name, num_classes=0)
    model.load_state_dict(load_file(tmp_path / WEIGHTS), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), backbone.eval()(images))


# Networks whose small stem has the shapes of the published one.
SAME_SHAPES = [
    "resnet10t",
    "resnet26d",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "regnety_002",
]


@pytest.mark.parametrize("name", SAME_SHAPES)
def test_weights_of_a_small_stem_do_not_load_into_timm_and_the_error_says_what_to_use(
    name, tmp_path
):
    backbone = create_backbone(name, image_size=32, stem="small")
    export_backbone(backbone, tmp_path)
    assert torch.equal(features_of(load_backbone(tmp_path)), features_of(backbone))
    model = timm.create_model(name, num_classes=0)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    shapes = {key: tensor.shape for key, tensor in backbone.model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in before.items()} == shapes
    with pytest.raises(RuntimeError, match="use_mixco_lightly_load_backbone"):
        model.load_state_dict(load_file(tmp_path / WEIGHTS))
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(load_file(tmp_path / WEIGHTS), strict=False)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", SAME_SHAPES)
def test_weights_of_their_published_stem_load_into_timm_with_equal_features(name, tmp_path):
    backbone = create_backbone(name, image_size=64, stem="timm")
    export_backbone(backbone, tmp_path)
    model = timm.create_model(name, num_classes=0)
    model.load_state_dict(load_file(tmp_path / WEIGHTS))
    assert torch.equal(features_of(backbone), features_of(load_backbone(tmp_path)))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), backbone(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_path": WEIGHTS}, "use_mixco_lightly_load_backbone"),
        # Without a head timm loads its pretrained weights with strict=False.
        ({"pretrained": True, "pretrained_cfg_overlay": {"file": WEIGHTS}}, "size mismatch"),
    ],
)
@pytest.mark.parametrize("name", ["test_resnet", "gmlp_ti16_224"])
def test_timm_itself_does_not_load_a_small_stem(name, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_backbone(create_backbone(name, 32, stem="small"), tmp_path)
    with pytest.raises(RuntimeError, match=message):
        timm.create_model(name, num_classes=0, **options)


@pytest.mark.parametrize(
    ("name", "options", "is_plain"),
    [
        ("test_resnet", {"output_stride": 8}, False),
        ("test_resnet", {"act_layer": "gelu"}, False),
        ("test_resnet", {"drop_path_rate": 0.1}, True),
        ("test_resnet", {"block_args": {"attn_layer": "se"}}, False),
        ("test_resnet", {"channels": (16, 32, 48, 64)}, True),
        ("test_vit", {"global_pool": "max"}, False),
        ("test_vit", {}, True),
        ("gmlp_ti16_224", {"stem": "small"}, False),
    ],
)
def test_names_are_those_of_timm_only_where_it_cannot_build_another_network_for_the_weights(
    name, options, is_plain, tmp_path
):
    backbone = create_backbone(name, 32, **{"stem": "timm", **options})
    export_backbone(backbone, tmp_path)
    names = set(load_file(tmp_path / WEIGHTS))
    assert (names == set(backbone.model.state_dict())) == is_plain
    assert torch.equal(features_of(load_backbone(tmp_path)), features_of(backbone))


@pytest.mark.parametrize("with_digest", [True, False])
@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_export_of_an_earlier_version_loads(name, with_digest, tmp_path):
    backbone = trained_backbone(name, stem="small")
    transform = {"resize": 40, "interpolation": "bilinear", "crop": 32} if with_digest else {}
    write_earlier_export(backbone, tmp_path, with_digest, **transform)
    loaded = load_backbone(tmp_path)
    assert torch.equal(features_of(loaded), features_of(backbone))
    assert loaded.transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


def test_export_of_an_earlier_version_with_refused_names_loads_and_is_replaced(tmp_path):
    backbone = trained_backbone("test_resnet")
    write_earlier_export(backbone, tmp_path)
    state = load_file(tmp_path / EARLIER_WEIGHTS)
    prefixed = {f"use_mixco_lightly_load_backbone.{key}": x for key, x in state.items()}
    save_file({**prefixed, "conv1.0.weight": torch.empty(0)}, tmp_path / EARLIER_WEIGHTS)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(seal(config, tmp_path / EARLIER_WEIGHTS)))
    loaded = load_backbone(tmp_path)
    assert torch.equal(features_of(loaded), features_of(backbone))
    export_backbone(loaded, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, TIMM_CONFIG, WEIGHTS}
    assert torch.equal(features_of(load_backbone(tmp_path)), features_of(backbone))


@pytest.mark.parametrize(
    ("name", "image_size", "options", "arguments"),
    [
        ("test_resnet", 64, {"stem": "timm"}, None),
        ("test_convnext", 64, {"stem": "timm", "drop_path_rate": 0.1}, None),
        ("test_resnet.r160_in1k", 64, {"stem": "timm"}, None),
        ("test_resnet", 64, {"stem": "timm", "in_chans": 1}, None),
        ("test_resnet", 64, {"stem": "timm", "in_chans": 4}, None),
        ("test_vit", 96, {"stem": "timm"}, {"img_size": 96}),
        ("test_vit", 32, {"stem": "small"}, {"img_size": 32, "patch_size": 4}),
        ("test_vit", 32, {"in_chans": 2}, {"img_size": 32, "patch_size": 4}),
        (
            "test_vit",
            32,
            {"patch_size": (4, 8), "embed_dim": 96, "global_pool": "max"},
            {"img_size": 32, "patch_size": [4, 8], "embed_dim": 96, "global_pool": "max"},
        ),
    ],
)
def test_timm_loads_the_folder_with_features_equal_bit_by_bit(
    name, image_size, options, arguments, tmp_path
):
    backbone = trained_backbone(name, image_size, **options)
    export_backbone(backbone, tmp_path)
    assert read_config(tmp_path)["differs_from_timm"] == []
    assert json.loads((tmp_path / TIMM_CONFIG).read_text()).get("model_args") == arguments
    features = features_of(load_in_timm(tmp_path), image_size, backbone.in_chans)
    assert torch.equal(features, features_of(backbone))


@pytest.mark.parametrize(
    ("name", "options", "difference"),
    [
        ("resnet10t", {"stem": "small"}, r"Without their stride .*: conv1\.0, maxpool\."),
        ("gmlp_ti16_224", {"stem": "small"}, r"patches were set to 4x4 pixels\."),
        (
            "test_resnet",
            {"stem": "timm", "act_layer": "gelu"},
            r"change features but no weight's shape: act_layer\.",
        ),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_timm_refuses_the_folder_of_another_network_and_the_folder_says_what_differs(
    pretrained, name, options, difference, tmp_path
):
    export_backbone(create_backbone(name, 32, **options), tmp_path)
    for file in (CONFIG, TIMM_CONFIG):
        (listed,) = json.loads((tmp_path / file).read_text())["differs_from_timm"]
        assert re.search(difference, listed)
    with pytest.raises(RuntimeError, match=rf"Unknown model .*timm's {name}.*load_backbone"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=pretrained, num_classes=0)


@pytest.mark.parametrize("options", [{"embed_dim": 96}, {"stem": "small"}])
@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_arguments_that_timm_is_told_do_not_load_without_them(options, strict, tmp_path):
    export_backbone(create_backbone("test_vit", 32, **options), tmp_path)
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(load_file(tmp_path / WEIGHTS), strict=strict)


def test_timm_puts_a_new_head_on_the_exported_backbone(tmp_path):
    export_backbone(trained_backbone(image_size=64, stem="timm"), tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    weights = load_file(tmp_path / WEIGHTS)
    assert torch.equal(model.layer1[0].conv1.weight, weights["layer1.0.conv1.weight"])


@pytest.mark.parametrize("resize", [None, 96, 100, 109, 137])
def test_timms_transform_of_the_folder_is_that_of_the_evaluation(resize, tmp_path):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    backbone = create_backbone("test_vit", 96)
    backbone.resize = resize or backbone.resize
    export_backbone(backbone, tmp_path, mean=mean, std=std)
    data = timm.data.resolve_model_data_config(load_in_timm(tmp_path))
    transform = timm.data.create_transform(**data, is_training=False)
    pixels = torch.randint(256, (150, 201, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    image = Image.fromarray(pixels.numpy())
    assert torch.equal(transform(image), load_backbone(tmp_path).transform(image))


@pytest.mark.parametrize(("in_chans", "name"), [(3, "conv1.0"), (1, None), (4, None)])
def test_timm_is_told_the_first_convolution_only_if_it_has_three_channels(in_chans, name, tmp_path):
    # timm 1.0.26 fits its weights to other channels whatever channels they have: those of 4 are
    # replaced by random ones.
    export_backbone(create_backbone("test_resnet", 64, in_chans, stem="timm"), tmp_path)
    config = json.loads((tmp_path / TIMM_CONFIG).read_text())["pretrained_cfg"]
    assert (config["first_conv"], config["input_size"]) == (name, [in_chans, 64, 64])


def test_timms_floor_of_the_resized_side_is_the_recorded_one():
    for crop in range(1, 600):
        for resize in (crop, crop + 1, round(crop * 8 / 7), crop + 97, 2 * crop):
            assert math.floor(crop / _crop_pct(crop, resize)) == resize


@pytest.mark.parametrize("content", ['{"architectures": ["BertModel"]}', "[]", "not JSON"])
def test_another_tools_config_is_not_replaced(content, tmp_path):
    (tmp_path / TIMM_CONFIG).write_text(content)
    with pytest.raises(FileExistsError, match=f"{TIMM_CONFIG} was not written by export_backbone"):
        export_backbone(trained_backbone(), tmp_path)
    assert (tmp_path / TIMM_CONFIG).read_text() == content
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("image_size", [32, 64, 96, 224])
def test_loaded_backbone_has_the_transform_of_the_evaluation(image_size, tmp_path):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    backbone = create_backbone("test_resnet", image_size)
    loaded = load_backbone(export_backbone(backbone, tmp_path, mean=mean, std=std))
    pixels = torch.randint(256, (150, 200, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    image = Image.fromarray(pixels.numpy())
    expected = create_test_transform(ImageFacts(mean, std), image_size)(image)
    assert torch.equal(loaded.transform(image), expected)
    config = read_config(tmp_path)
    resize = {32: 32, 64: 64, 96: 110, 224: 256}[image_size]
    assert [config[key] for key in ("image_size", "crop", "resize")] == [
        image_size,
        image_size,
        resize,
    ]
    assert [config[key] for key in ("interpolation", "mean", "std")] == [
        "bilinear",
        list(mean),
        list(std),
    ]


def test_recorded_resize_wins_over_the_one_that_would_be_chosen_now(tmp_path):
    export_backbone(trained_backbone(), tmp_path, mean=(0, 0, 0), std=(1, 1, 1))
    edit_config(tmp_path, resize=40)
    loaded = load_backbone(tmp_path)
    assert loaded.transform.transforms[0].size == 40
    export_backbone(loaded, tmp_path / "again")
    assert read_config(tmp_path / "again")["resize"] == 40


def test_transform_without_mean_and_std_is_an_error_that_says_where_to_give_them(tmp_path):
    loaded = load_backbone(export_backbone(trained_backbone(), tmp_path))
    with pytest.raises(ValueError, match=r"test_resnet has no mean and std.*export_backbone"):
        _ = loaded.transform


def test_transform_of_a_pretrained_backbone_has_its_mean_and_std():
    backbone = trained_backbone()
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    normalize = backbone.transform.transforms[-1]
    assert (normalize.mean, normalize.std) == (backbone.mean, backbone.std)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": 16}, "resize must be a length of at least image_size=32, got 16"),
        ({"resize": "32"}, "resize must be a length of at least image_size=32, got '32'"),
        ({"crop": 28}, "crop must be 32, got 28"),
        ({"interpolation": "nearest"}, "interpolation must be 'bilinear', got 'nearest'"),
    ],
)
def test_a_transform_that_cannot_be_made_is_refused(changes, message, tmp_path):
    export_backbone(trained_backbone(), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(tmp_path)
    assert str(tmp_path / CONFIG) in str(caught.value)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_every_flipped_bit_is_found(name, tmp_path):
    export_backbone(trained_backbone(), tmp_path, training={"seed": 1}, metrics={"top1": 71.5})
    load_backbone(tmp_path)
    whole = (tmp_path / name).read_bytes()
    # Of the weights some bytes of the header, then of all layers; of the description every byte.
    step = 1 if name == CONFIG else len(whole) // 200
    for index in range(0, len(whole), step):
        flipped = bytearray(whole)
        flipped[index] ^= 1 << index % 7
        (tmp_path / name).write_bytes(flipped)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
            read_config(tmp_path)


def test_files_of_two_exports_are_refused(tmp_path):
    export_backbone(trained_backbone(), tmp_path / "a")
    torch.manual_seed(7)
    export_backbone(create_backbone("test_resnet", 32), tmp_path / "b")
    (tmp_path / "b" / CONFIG).replace(tmp_path / "a" / CONFIG)
    with pytest.raises(ValueError, match="not of one export"):
        load_backbone(tmp_path / "a")


@pytest.mark.parametrize("is_earlier", [False, True])
@pytest.mark.parametrize("done", range(5))
def test_a_kill_between_the_writes_leaves_one_export_or_the_other(
    done, is_earlier, tmp_path, monkeypatch
):
    before, after = trained_backbone("test_vit"), trained_backbone("test_resnet", stem="timm")
    if is_earlier:
        write_earlier_export(before, tmp_path)
    else:
        export_backbone(before, tmp_path)
    replace, count = os.replace, 0

    def die(*paths):
        nonlocal count
        count += 1
        if count > done:
            raise KeyboardInterrupt
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        if done < 4:
            with pytest.raises(KeyboardInterrupt):
                export_backbone(after, tmp_path)
        else:
            export_backbone(after, tmp_path)
    # The description is replaced last, and the weights as the second.
    expected = before if done < 2 else after
    assert torch.equal(features_of(load_backbone(tmp_path)), features_of(expected))
    # From before the weights are replaced until after, timm finds no description.
    if done in (1, 2) or (is_earlier and done == 0):
        with pytest.raises(FileNotFoundError, match=TIMM_CONFIG):
            load_in_timm(tmp_path)
    elif is_earlier and done == 3 and timm.__version__ in ("1.0.26", "1.0.27", "1.0.28", "1.0.29"):
        # They fail where they want to warn that a folder has two files with weights.
        with pytest.raises(NameError, match="names"):
            load_in_timm(tmp_path)
    else:
        assert torch.equal(features_of(load_in_timm(tmp_path), 32), features_of(expected))
    export_backbone(before, tmp_path)
    assert torch.equal(features_of(load_backbone(tmp_path)), features_of(before))
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, TIMM_CONFIG, WEIGHTS}


def test_a_write_that_fails_names_the_file_and_keeps_the_export(tmp_path, monkeypatch):
    backbone = trained_backbone()
    export_backbone(backbone, tmp_path)

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="cannot be written: No space left on device"):
            export_backbone(trained_backbone("test_vit"), tmp_path)
    assert torch.equal(features_of(load_backbone(tmp_path)), features_of(backbone))


@pytest.mark.parametrize("form", ["mixco-lightly backbone 4", "", None, 2, []])
def test_another_format_is_refused(form, tmp_path):
    export_backbone(trained_backbone(), tmp_path)
    edit_config(tmp_path, format=form)
    with pytest.raises(ValueError, match="the format must be 'mixco-lightly backbone 3'"):
        load_backbone(tmp_path)


def test_second_export_replaces_the_first(tmp_path):
    export_backbone(trained_backbone("test_vit"), tmp_path)
    backbone = trained_backbone("test_resnet")
    export_backbone(backbone, tmp_path)
    assert torch.equal(features_of(load_backbone(tmp_path)), features_of(backbone))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_missing_file_is_named(name, tmp_path):
    export_backbone(trained_backbone(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name) as caught:
        load_backbone(tmp_path)
    assert str(tmp_path) in str(caught.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def save_pickle(path):
    torch.save({"weight": torch.ones(2)}, path)


DAMAGES = {
    "truncated": cut,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("Not what it should be."),
    "pickle": save_pickle,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_damaged_file_is_named(name, damage, tmp_path):
    export_backbone(trained_backbone(), tmp_path)
    damage(tmp_path / name)
    with pytest.raises(ValueError, match="not") as caught:
        load_backbone(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"name": "test_resnet", "image_size": 32}'])
def test_foreign_json_is_refused_and_what_it_lacks_is_named(content, tmp_path):
    export_backbone(trained_backbone(), tmp_path)
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(ValueError, match=r"lacks .*in_chans.*stem.*timm_kwargs") as caught:
        load_backbone(tmp_path)
    assert str(tmp_path / CONFIG) in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "test_vit", "chosen_kwargs": {"img_size": 32}, "removed_strides": []},
        {"name": "test_resnet", "in_chans": 1},
        {"timm_kwargs": {"layers": [1, 1, 1, 2]}},
    ],
    ids=["model", "channels", "layers"],
)
def test_weights_of_another_model_are_refused(changes, tmp_path):
    export_backbone(trained_backbone(), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"does not fit {CONFIG}") as caught:
        load_backbone(tmp_path)
    assert str(tmp_path / WEIGHTS) in str(caught.value)


def test_foreign_weights_are_refused(tmp_path):
    export_backbone(trained_backbone(), tmp_path)
    save_file({"weight": torch.ones(2)}, tmp_path / WEIGHTS)
    edit_config(tmp_path)
    with pytest.raises(ValueError, match=f"does not fit {CONFIG}"):
        load_backbone(tmp_path)


def test_unknown_model_name_is_refused(tmp_path):
    export_backbone(trained_backbone(), tmp_path)
    edit_config(tmp_path, name="resnet81")
    with pytest.raises(ValueError, match=r"'resnet81'.*resnet18"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timm_kwargs": {"checkpoint_path": "weights.pth"}}, "must not have checkpoint_path"),
        ({"timm_kwargs": {"pretrained": True}}, "must not have pretrained"),
        ({"timm_kwargs": []}, "timm_kwargs must be of type dict"),
        ({"image_size": "32"}, "image_size must be of type int, got '32'"),
    ],
)
def test_a_description_that_would_load_other_files_or_has_wrong_types_is_refused(
    changes, message, tmp_path
):
    export_backbone(trained_backbone(), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)


def test_where_weights_came_from_is_not_exported(tmp_path):
    backbone = trained_backbone()
    backbone.timm_kwargs = {"drop_path_rate": 0.1, "checkpoint_path": "weights.pth"}
    export_backbone(backbone, tmp_path)
    assert read_config(tmp_path)["timm_kwargs"] == {"drop_path_rate": 0.1}
    load_backbone(tmp_path)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_export_without_the_choices_is_fitted_again(name, tmp_path):
    backbone = trained_backbone(name)
    export_backbone(backbone, tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / EARLIER_WEIGHTS)
    config = json.loads((tmp_path / CONFIG).read_text())
    # Versions before these were recorded.
    config["format"] = "mixco-lightly backbone 1"
    for key in ("chosen_kwargs", "removed_strides", "sha256"):
        del config[key]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert torch.equal(features_of(load_backbone(tmp_path)), features_of(backbone))


def test_patches_that_were_set_are_recorded_and_set_again(tmp_path):
    backbone = create_backbone("gmlp_ti16_224", image_size=32).eval()
    export_backbone(backbone, tmp_path)
    assert (read_config(tmp_path)["patch_size"], backbone.model.stem.patch_size) == (4, (4, 4))
    loaded = load_backbone(tmp_path)
    assert torch.equal(features_of(loaded), features_of(backbone))


def test_recorded_choices_win_over_those_that_would_be_made_now(tmp_path):
    backbone = trained_backbone("test_resnet")
    published = features_of(trained_backbone("test_resnet", stem="timm"))
    export_backbone(backbone, tmp_path)
    assert read_config(tmp_path)["removed_strides"] == ["conv1.0", "maxpool"]
    edit_config(tmp_path, removed_strides=[])
    loaded = load_backbone(tmp_path)
    assert loaded.model.conv1[0].stride == (2, 2)
    assert features_of(loaded).shape == published.shape
    assert not torch.equal(features_of(loaded), features_of(backbone))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"chosen_kwargs": {"checkpoint_path": "weights.pth"}},
            "chosen_kwargs may have .*img_size",
        ),
        ({"chosen_kwargs": [32]}, "chosen_kwargs may have"),
        ({"removed_strides": "conv1"}, "removed_strides must be names of layers, got 'conv1'"),
        ({"removed_strides": ["conv7"]}, "test_resnet cannot be built .*conv7"),
        ({"patch_size": "4"}, "patch_size must be a side in pixels or null, got '4'"),
        ({"patch_size": 4}, "test_resnet cannot be built .*no layer whose patches can be set"),
    ],
)
def test_choices_that_cannot_be_are_refused(changes, message, tmp_path):
    export_backbone(trained_backbone(), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(tmp_path)
    assert str(tmp_path / CONFIG) in str(caught.value)


def test_mean_and_std_of_a_pretrained_backbone_are_exported_and_loaded(tmp_path):
    backbone = trained_backbone()
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    loaded = load_backbone(export_backbone(backbone, tmp_path))
    assert (loaded.mean, loaded.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    export_backbone(backbone, tmp_path, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert load_backbone(tmp_path).mean == [0.0, 0.0, 0.0]


def test_a_backbone_whose_layers_share_weights_is_exported(tmp_path):
    backbone = create_backbone("resnet18", image_size=32, stem="timm").eval()
    blocks = backbone.model.layer1
    blocks[1].conv1.weight = blocks[0].conv1.weight
    loaded = load_backbone(export_backbone(backbone, tmp_path))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), backbone(images))
