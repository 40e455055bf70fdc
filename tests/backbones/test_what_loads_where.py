"""The table of docs/weights.md: made by trying, and compared with the page."""

import itertools
from pathlib import Path

import pytest
import timm
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead

from mixco_lightly import (
    MultiExitBackbone,
    create_backbone,
    export_backbone,
    load_backbone,
    push_to_hub,
)

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
NETWORKS = {
    "published stem": lambda: create_backbone("test_resnet", 64, stem="timm"),
    "published stem, other `in_chans`": lambda: create_backbone(
        "test_resnet", 64, in_chans=4, stem="timm"
    ),
    "small stem of convolutions": lambda: create_backbone("test_resnet", 32, stem="small"),
    "small patches that timm's constructor takes (ViT, Swin)": lambda: create_backbone(
        "test_vit", 32, stem="small"
    ),
    "small patches set in the built network (MLP-Mixer, gMLP)": lambda: create_backbone(
        "gmlp_ti16_224", 32, stem="small"
    ),
    "own arguments that change shapes, such as `embed_dim`": lambda: create_backbone(
        "test_vit", 32, embed_dim=96
    ),
    "own arguments that change no shape, such as `act_layer`": lambda: create_backbone(
        "test_resnet", 64, stem="timm", act_layer="gelu"
    ),
    "backbone of a `MultiExitBackbone`, without sub-networks": lambda: MultiExitBackbone(
        "test_resnet", 64, stem="timm"
    ),
}


def load_here(directory, repo_id):
    return load_backbone(directory)


def load_from_the_hub(directory, repo_id):
    return load_backbone(f"hf-hub:{repo_id}")


def load_in_timm(directory, repo_id):
    return timm.create_model(f"local-dir:{directory}", pretrained=True, num_classes=0)


def load_in_timm_from_the_hub(directory, repo_id):
    return timm.create_model(f"hf-hub:{repo_id}", pretrained=True, num_classes=0)


COLUMNS = {
    "`load_backbone(DIR)`": load_here,
    '`load_backbone("hf-hub:...")`': load_from_the_hub,
    'timm, `"local-dir:DIR"`': load_in_timm,
    'timm, `"hf-hub:..."`': load_in_timm_from_the_hub,
}


def trains_in_lightly(backbone, images):
    """Whether Lightly's head and loss give every parameter of a loaded backbone a gradient."""
    head = SimCLRProjectionHead(backbone.feature_dim, 32, 16)
    z0, z1 = head(backbone.train()(images)), head(backbone(images.flip(3)))
    NTXentLoss()(z0, z1).backward()
    return all(parameter.grad is not None for parameter in backbone.parameters())


def make_table(folder):
    """Tries every network in every column; the cells say what happened."""
    rows = [["network", *COLUMNS, "Lightly"]]
    for count, (network, create) in enumerate(NETWORKS.items()):
        torch.manual_seed(count)
        module = create()
        backbone = getattr(module, "backbone", module).eval()
        directory, repo_id = export_backbone(module, folder / str(count)), f"alice/network-{count}"
        push_to_hub(directory, repo_id)
        size = (4, backbone.in_chans, backbone.image_size, backbone.image_size)
        images = torch.randn(size)
        with torch.no_grad():
            features = backbone(images)
        row = [network]
        for load in COLUMNS.values():
            try:
                with torch.no_grad():
                    is_equal = torch.equal(load(directory, repo_id).eval()(images), features)
                row.append("yes" if is_equal else "OTHER FEATURES")
            except RuntimeError as error:
                row.append("error" if "use mixco_lightly's load_backbone" in str(error) else "?")
        loaded = load_backbone(directory)
        row.append("yes" if trains_in_lightly(loaded, images) else "NO GRADIENT")
        rows.append(row)
    rows.insert(1, ["---"] * len(rows[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub to its own httpx
def test_the_table_of_what_loads_where_is_what_happens(hub, tmp_path):
    made = make_table(tmp_path)
    lines = PAGE.read_text().splitlines(keepends=True)
    table = itertools.takewhile(
        lambda line: line.startswith("|"),
        itertools.dropwhile(lambda line: not line.startswith("| network |"), lines),
    )
    assert "".join(table) == made, f"{PAGE} should have:\n{made}"
