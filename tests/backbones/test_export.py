import errno
import hashlib
import json
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
from mixco_lightly.data.images import ImageFacts
from mixco_lightly.data.transforms import create_test_transform

WEIGHTS = "backbone.safetensors"
CONFIG = "backbone.json"


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


def features_of(backbone):
    generator = torch.Generator().manual_seed(1)
    size = (3, backbone.in_chans, backbone.image_size, backbone.image_size)
    with torch.no_grad():
        return backbone.eval()(torch.randn(size, generator=generator))


def edit_config(directory, **changes):
    """Changes a description and leaves its checksum out, as in the first format."""
    path = directory / CONFIG
    first = {"format": "mixco-lightly backbone 1"}
    path.write_text(json.dumps(json.loads(path.read_text()) | first | changes))


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
    assert sorted(path.name for path in directory.iterdir()) == [CONFIG, WEIGHTS]
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
        "format": "mixco-lightly backbone 2",
        "name": "test_resnet",
        "image_size": 32,
        "in_chans": 1,
        "stem": "small",
        "timm_kwargs": {},
        "chosen_kwargs": {},
        "removed_strides": ["conv1.0", "maxpool"],
        "patch_size": None,
        "feature_dim": 96,
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
        # Not bit by bit, because the backbone computes convolutions of small maps another way.
        torch.testing.assert_close(model.eval()(images), backbone(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_path": WEIGHTS}, "use_mixco_lightly_load_backbone"),
        # Without a head timm loads its pretrained weights with strict=False.
        ({"pretrained": True, "pretrained_cfg_overlay": {"file": WEIGHTS}}, "size mismatch"),
    ],
)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
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
        ("test_vit", {"global_pool": "max"}, False),
        ("test_vit", {}, True),
        ("gmlp_ti16_224", {"stem": "small"}, False),
    ],
)
def test_names_are_those_of_timm_only_where_its_network_has_the_same_features(
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
    save_file(backbone.model.state_dict(), tmp_path / WEIGHTS, metadata={"format": "pt"})
    config = {
        "format": f"mixco-lightly backbone {1 + with_digest}",
        "name": name,
        "image_size": 32,
        "in_chans": 3,
        "stem": "small",
        "timm_kwargs": {},
        "chosen_kwargs": backbone.fit.kwargs,
        "removed_strides": list(backbone.fit.removed),
        "patch_size": None,
        "feature_dim": backbone.feature_dim,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.2, 0.2],
        "training": {},
        "metrics": {},
    }
    if with_digest:
        weights = hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
        text = json.dumps(config, sort_keys=True) + weights
        config["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / CONFIG).write_text(json.dumps(config))
    loaded = load_backbone(tmp_path)
    assert torch.equal(features_of(loaded), features_of(backbone))
    assert loaded.transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


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


@pytest.mark.parametrize("done", range(4))
def test_a_kill_between_the_writes_leaves_one_export_or_the_other(done, tmp_path, monkeypatch):
    before, after = trained_backbone("test_vit"), trained_backbone("test_resnet")
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
        if done < 3:
            with pytest.raises(KeyboardInterrupt):
                export_backbone(after, tmp_path)
        else:
            export_backbone(after, tmp_path)
    # The description is replaced last, and the weights as the second.
    expected = before if done < 2 else after
    assert torch.equal(features_of(load_backbone(tmp_path)), features_of(expected))
    export_backbone(before, tmp_path)
    assert torch.equal(features_of(load_backbone(tmp_path)), features_of(before))
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, WEIGHTS}


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


@pytest.mark.parametrize("form", ["mixco-lightly backbone 3", "", None, 2])
def test_another_format_is_refused(form, tmp_path):
    export_backbone(trained_backbone(), tmp_path)
    edit_config(tmp_path, format=form)
    with pytest.raises(ValueError, match="the format must be 'mixco-lightly backbone 2'"):
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
    edit_config(tmp_path)
    save_file({"weight": torch.ones(2)}, tmp_path / WEIGHTS)
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
    edit_config(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    # Versions before these were recorded.
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
