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
from mixco_lightly.backbones import export_onnx, export_program
from mixco_lightly.backbones.formats import ONNX_SUFFIX, PROGRAM_SUFFIX, measure_difference

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
# Largest difference in float32 that the page calls equal, as a part of the largest feature.
ROUNDING = 1e-5
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


RUNTIMES = {"ONNX": export_onnx, "torch.export": export_program}


def export_all(folder):
    """Exports every network: its name in the table, itself, and its folder."""
    for count, (network, create) in enumerate(NETWORKS.items()):
        torch.manual_seed(count)
        module = create()
        backbone = getattr(module, "backbone", module).eval()
        yield network, backbone, export_backbone(module, folder / f"network-{count}")


def try_loading(folder):
    """The cells of loading and of training on, which say what happened."""
    cells = {}
    for network, backbone, directory in export_all(folder):
        repo_id = f"alice/{directory.name}"
        push_to_hub(directory, repo_id)
        images = torch.randn(4, backbone.in_chans, backbone.image_size, backbone.image_size)
        with torch.no_grad():
            features = backbone(images)
        row = cells.setdefault(network, {})
        for column, load in COLUMNS.items():
            try:
                with torch.no_grad():
                    is_equal = torch.equal(load(directory, repo_id).eval()(images), features)
                row[column] = "yes" if is_equal else "OTHER FEATURES"
            except RuntimeError as error:
                known = "use mixco_lightly's load_backbone" in str(error)
                row[column] = "error" if known else "?"
        loaded = load_backbone(directory)
        row["Lightly"] = "yes" if trains_in_lightly(loaded, images) else "NO GRADIENT"
    return cells


def try_runtimes(folder):
    """The cells of the other runtimes, which get what was exported and loaded again."""
    cells = {}
    for network, backbone, directory in export_all(folder):
        for column, write in RUNTIMES.items():
            suffix = ONNX_SUFFIX if column == "ONNX" else PROGRAM_SUFFIX
            path = write(load_backbone(directory), directory / f"backbone{suffix}")
            is_equal = measure_difference(backbone, path) < ROUNDING
            cells.setdefault(network, {})[column] = "yes" if is_equal else "OTHER FEATURES"
    return cells


def read_page(columns):
    """The page's cells of these columns, and all its columns."""
    lines = itertools.dropwhile(
        lambda line: not line.startswith("| network |"), PAGE.read_text().splitlines()
    )
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    head, _, *rows = [line.strip("| ").split(" | ") for line in table]
    cells = [dict(zip(head, row, strict=True)) for row in rows]
    return {row["network"]: {name: row[name] for name in columns} for row in cells}, head


@pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub to its own httpx
def test_the_table_of_what_loads_where_is_what_happens(hub, tmp_path):
    made = try_loading(tmp_path)
    page, head = read_page([*COLUMNS, "Lightly"])
    assert head == ["network", *COLUMNS, *RUNTIMES, "Lightly"]
    assert page == made


@pytest.mark.slow
def test_its_columns_of_other_runtimes_are_what_happens(tmp_path):
    made = try_runtimes(tmp_path)
    assert read_page(RUNTIMES)[0] == made
