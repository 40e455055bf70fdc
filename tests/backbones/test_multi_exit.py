"""MultiExitBackbone: which layers an exit has, which it shares, and what it leaves untouched."""

import copy

import pytest
import timm
import torch
from torch import nn

from mixco_lightly import (
    MultiExitBackbone,
    create_backbone,
    export_backbone,
    extract_features,
    load_backbone,
)
from mixco_lightly.backbones.tap_conv import TapConv2d

FAMILIES = {  # name: number of stages
    "test_resnet": 4,
    "test_convnext": 4,
    "test_efficientnet": 5,
    "test_vit": 6,
    "test_byobnet": 4,
    "test_mambaout": 4,
}


def images(n=4, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def network_of(name="test_resnet", size=32, **options):
    torch.manual_seed(0)
    return MultiExitBackbone(name, size, **options)


def block_counts(subnetwork):
    return [len(stage) for stage in subnetwork if isinstance(stage, nn.Sequential)]


@pytest.mark.parametrize("name", FAMILIES)
def test_features_of_all_exits_have_the_backbones_width_and_the_backbones_come_last(name):
    network = network_of(name, exits=(1, 2))
    plain = network.backbone
    features = network.train()(images())
    assert [x.shape for x in features] == [(4, plain.feature_dim)] * 3
    assert network.feature_dim == plain.feature_dim
    state = copy.deepcopy(plain.state_dict())
    # Bit by bit, in training too: BatchNorm takes the batch's statistics there.
    assert torch.equal(features[-1], plain(images()))
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(images())[-1], plain(images()))
    assert not torch.equal(*network(images())[:2])
    assert state.keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_exit_is_possible_after_each_stage_but_the_last(name):
    stages = FAMILIES[name]
    network = network_of(name, exits=tuple(range(1, stages)))
    assert len(network(images())) == stages
    with pytest.raises(ValueError, match=f"stages from 1 to {stages - 1} of {name} in ascending"):
        network_of(name, exits=(stages,))


@pytest.mark.parametrize("exits", [(0,), (-1,), (2, 1), (1, 1), (7,)])
def test_exits_that_are_not_rising_stages_are_named(exits):
    with pytest.raises(
        ValueError, match="from 1 to 3 of test_resnet in ascending order, got "
    ) as caught:
        network_of(exits=exits)
    assert str(exits) in str(caught.value)


def test_stages_count_from_one_and_leave_the_stem_out():
    # ResNet-18's stages have 64, 128, 256 and 512 channels, its stem 64 as well.
    network = network_of("resnet18", exits=(1, 2, 3))
    assert [part[-1].in_features for part in network.subnetworks] == [64, 128, 256]
    assert [part[-1].out_features for part in network.subnetworks] == [512] * 3
    # MobileNetV3 has a stem in timm's list too, ConvNeXt has none.
    network = network_of("mobilenetv3_small_100", exits=(1, 4 - 1))
    assert [part[-1].in_features for part in network.subnetworks] == [16, 48]
    network = network_of("test_convnext", exits=(1, 3))
    assert [part[-1].in_features for part in network.subnetworks] == [24, 48]


def test_fc_is_the_pooled_map_of_the_stage_and_one_linear_layer():
    network = network_of("test_resnet", exits=(2,)).eval()
    model = network.backbone.model
    maps = {}
    model.layer2.register_forward_hook(lambda *args: maps.update(stage=args[-1]))
    exit_features, _ = network(images())
    linear = network.subnetworks[0][-1]
    expected = maps["stage"].mean(dim=(2, 3)) @ linear.weight.T + linear.bias
    torch.testing.assert_close(exit_features, expected)
    assert [type(layer) for layer in network.subnetworks[0]] == [
        nn.AdaptiveAvgPool2d,
        nn.Flatten,
        nn.Linear,
    ]


def test_one_forward_of_the_trunk_serves_all_exits():
    network = network_of(exits=(1, 2, 3))
    counts = dict.fromkeys(("conv1", "layer1", "layer4"), 0)
    for name in counts:
        network.backbone.model.get_submodule(name).register_forward_hook(
            lambda *_, name=name: counts.update({name: counts[name] + 1})
        )
    network(images())
    assert set(counts.values()) == {1}


def test_without_exits_the_network_is_the_backbone():
    network = network_of(exits=())
    (features,) = network(images())
    assert torch.equal(features, network.backbone(images()))
    assert not list(network.subnetworks.parameters())


@pytest.mark.parametrize(
    ("name", "stage", "same", "small"),
    [
        ("resnet18", 2, [2, 2], [1, 1]),
        ("resnet34", 2, [6, 3], [3, 1]),
        ("resnet50", 2, [6, 3], [3, 1]),
        ("resnet18", 1, [2, 2, 2], [1, 1, 1]),
        ("resnet50", 3, [3], [1]),
        ("resnet10t", 2, [1, 1], [1, 1]),  # half of one is still one
    ],
)
def test_block_counts_of_same_and_small(name, stage, same, small):
    narrow = {"channels": [8, 16, 24, 32]}
    for subnetwork, expected in [("same", same), ("small", small)]:
        with torch.device("meta"):
            model = timm.create_model(name, **narrow)
        network = network_of(name, exits=(stage,), subnetwork=subnetwork, stem="timm", **narrow)
        part = network.subnetworks[0]
        assert block_counts(part) == expected
        # The kind of block and the strides are the backbone's.
        published = getattr(model, f"layer{stage + 1}")[0]
        assert type(part[0][0]) is type(published)
        convs = [[m.stride for m in block.modules() if isinstance(m, nn.Conv2d)]
                 for block in (part[0][0], published)]  # fmt: skip
        assert convs[0] == convs[1]
        assert sum(part[0][0].conv1.stride + part[0][0].conv2.stride) > 4


@pytest.mark.parametrize("subnetwork", ["small", "same"])
def test_copied_stages_map_the_stages_output_to_features(subnetwork):
    network = network_of("test_resnet", exits=(1, 2), subnetwork=subnetwork)
    assert [x.shape for x in network(images())] == [(4, network.feature_dim)] * 3


def test_copied_stages_keep_the_backbones_own_arguments():
    network = network_of(
        "resnet10t", exits=(2,), subnetwork="same", channels=[8, 16, 24, 32], layers=(1, 1, 3, 1)
    )
    assert network.feature_dim == 32
    assert block_counts(network.subnetworks[0]) == [3, 1]
    assert network.subnetworks[0][0][0].conv1.weight.shape[:2] == (24, 16)


@pytest.mark.parametrize("subnetwork", ["fc", "small", "same"])
def test_parameters_are_not_shared_and_start_at_random_of_their_own(subnetwork):
    network = network_of("resnet18", exits=(2, 3), subnetwork=subnetwork)
    trunk = {id(parameter) for parameter in network.backbone.parameters()}
    storage = {parameter.data_ptr() for parameter in network.backbone.parameters()}
    seen = set()
    for part in network.subnetworks:
        for parameter in part.parameters():
            assert id(parameter) not in trunk | seen
            assert parameter.data_ptr() not in storage
            seen.add(id(parameter))
    assert seen
    if subnetwork == "same":
        weight = network.backbone.model.layer4[0].conv1.weight
        copies = [
            network.subnetworks[0][1][0].conv1.weight,
            network.subnetworks[1][0][0].conv1.weight,
        ]
        assert not torch.equal(copies[0], weight)
        assert not torch.equal(*copies)
        # He's law, as in the backbone.
        assert copies[0].std().item() == pytest.approx(weight.std().item(), rel=0.05)


def test_copies_of_pretrained_stages_are_not_pretrained(monkeypatch):
    create_model = timm.create_model

    def with_published_weights(name, pretrained=False, **kwargs):
        model = create_model(name, **kwargs)
        if pretrained:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(0.5)
        return model

    monkeypatch.setattr(timm, "create_model", with_published_weights)
    network = network_of(exits=(2,), subnetwork="same", pretrained=True)
    assert (network.backbone.model.layer4[0].conv1.weight == 0.5).all()
    assert network.subnetworks[0][1][0].conv1.weight.std() > 0


@pytest.mark.parametrize("subnetwork", ["fc", "small", "same"])
def test_the_gradient_of_each_exit_reaches_the_first_layer_and_only_its_own_subnetwork(subnetwork):
    network = network_of("test_resnet", exits=(1, 2), subnetwork=subnetwork)
    first = network.backbone.model.get_submodule(
        network.backbone.model.pretrained_cfg["first_conv"]
    ).weight
    for index in range(3):
        network.zero_grad()
        network(images())[index].square().sum().backward()
        assert first.grad is not None
        assert first.grad.abs().sum() > 0
        for other, part in enumerate(network.subnetworks):
            touched = [p.grad is not None for p in part.parameters()]
            assert all(touched) if other == index else not any(touched)
        last_stage = next(network.backbone.model.layer4.parameters())
        assert (last_stage.grad is not None) == (index == 2)


def test_sub_networks_of_small_maps_train_by_the_backbones_fast_convolutions():
    network = network_of("resnet18", stem="timm", exits=(2,), subnetwork="same")
    for part in (network.backbone.model.layer4, network.subnetworks[0][1]):
        convs = [m for m in part.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert convs
        assert all(isinstance(conv, TapConv2d) for conv in convs)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_adding_exits_leaves_weights_statistics_modes_and_random_numbers_alone(name):
    torch.manual_seed(0)
    backbone = create_backbone(name, 32)
    backbone.train()
    frozen = next(module for module in backbone.modules() if not list(module.children()))
    frozen.eval()
    modes = [module.training for module in backbone.modules()]
    state = copy.deepcopy(backbone.state_dict())
    torch.manual_seed(1)
    network = MultiExitBackbone.from_backbone(backbone, exits=(2,))
    drawn = torch.get_rng_state()
    # The only draws are those of the new linear layer.
    torch.manual_seed(1)
    nn.Linear(network.subnetworks[0][-1].in_features, network.feature_dim)
    assert torch.equal(drawn, torch.get_rng_state())
    assert network.backbone is backbone
    assert modes == [module.training for module in backbone.modules()]
    assert all(torch.equal(state[key], value) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_seed_gives_the_trunk_of_create_backbone():
    network = network_of("test_resnet", exits=(1, 2), subnetwork="small")
    torch.manual_seed(0)
    plain = create_backbone("test_resnet", 32).state_dict()
    trunk = network.backbone.state_dict()
    assert all(torch.equal(plain[key], trunk[key]) for key in plain)


def test_the_trunk_is_exported_and_loads_as_a_plain_backbone(tmp_path):
    network = network_of("test_resnet", exits=(2,)).eval()
    export_backbone(network, tmp_path)
    loaded = load_backbone(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images()), network(images())[-1])


def test_a_copy_and_its_state_dict_give_the_same_features():
    network = network_of("test_resnet", exits=(1, 2), subnetwork="small").eval()
    other = MultiExitBackbone("test_resnet", 32, exits=(1, 2), subnetwork="small").eval()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        for twin in (copy.deepcopy(network), other):
            pairs = zip(network(images()), twin(images()), strict=True)
            assert all(torch.equal(x, y) for x, y in pairs)


def test_grey_images_and_stems_go_to_create_backbone():
    network = network_of("test_resnet", exits=(2,), subnetwork="same", in_chans=1, stem="timm")
    assert network.backbone.stem == "timm"
    assert [x.shape for x in network(torch.rand(2, 1, 32, 32))] == [(2, 96)] * 2


def test_half_precision_weights_are_followed():
    backbone = create_backbone("test_resnet", 32).bfloat16()
    network = MultiExitBackbone.from_backbone(backbone, exits=(2,))
    assert {x.dtype for x in network(images().bfloat16())} == {torch.bfloat16}


@pytest.mark.parametrize("subnetwork", ["small", "same"])
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_copied_stages_of_other_families_are_refused_and_fc_is_named(name, subnetwork):
    with pytest.raises(ValueError, match=f"{name} is a .*: choose subnetwork='fc'"):
        network_of(name, subnetwork=subnetwork)


def test_an_unknown_sub_network_is_named():
    with pytest.raises(ValueError, match="fc, small, same, got 'large'"):
        network_of(subnetwork="large")


@pytest.mark.parametrize("missing", ["feature_info", "forward_intermediates"])
def test_a_backbone_without_stages_says_what_to_choose(missing, monkeypatch):
    backbone = create_backbone("test_resnet", 32)
    if missing == "feature_info":
        del backbone.model.feature_info
    else:
        monkeypatch.delattr(type(backbone.model), missing)
    with pytest.raises(ValueError, match=r"no access to stages of test_resnet .* such as resnet18"):
        MultiExitBackbone.from_backbone(backbone)
    assert len(MultiExitBackbone.from_backbone(backbone, exits=())(images())) == 1


def test_a_family_whose_intermediates_are_not_those_of_its_forward_is_refused():
    backbone = create_backbone("test_resnet", 32)
    # As a family would be whose forward has a further layer.
    plain = type(backbone.model).forward_features
    backbone.model.forward_features = lambda x: plain(backbone.model, x) * 2
    with pytest.raises(ValueError, match="feature maps of test_resnet as part of its forward"):
        MultiExitBackbone.from_backbone(backbone)


def test_features_of_a_dataset_can_be_extracted_for_one_exit():
    network = network_of(exits=(2,)).train()
    batches = [(images(), torch.arange(4))]
    features, _ = extract_features(network.backbone, batches)
    with torch.no_grad():
        assert torch.equal(features, network.eval()(images())[-1])
