"""report.html of a run: its figures are those of summary.json, and it needs nothing else."""

import json
import re

import pytest
import torch
import yaml

from mixco_lightly.training import load_recipe, pretrain
from mixco_lightly.training.pretraining import fit, measure_and_write, prepare
from tests.reports.parsed_page import Page


@pytest.fixture
def hostile_folder(image_folder):
    """The image folder, whose classes are named like HTML."""
    for split in ("train", "test"):
        (image_folder / split / "blue").rename(image_folder / split / "<script>alert(1)<b>")
        (image_folder / split / "red").rename(image_folder / split / 'r&d"')
    return image_folder


def tiny(recipe, folder, output, **options):
    options = {
        **{"dataset": "imagefolder", "data_dir": str(folder), "image_size": 16, "epochs": 1},
        **{"backbone": "test_resnet", "num_workers": 0, "knn_k": 5, "batch_size": 10},
        **{"precision": "32-true", "protocol": ["knn"], "output_dir": str(output), **options},
    }
    return recipe.config_class(**options)


@pytest.mark.filterwarnings("ignore")
def test_a_run_ends_with_a_report_of_its_figures_that_needs_no_other_file(
    hostile_folder, tmp_path, capsys
):
    recipe, folder = load_recipe("moco"), tmp_path / "my runs" / "one"
    config = tiny(recipe, hostile_folder, folder, memory_bank_size=8, epochs=2)
    run = prepare(recipe, config)
    fit(run)
    summary = measure_and_write(run, "python recipes/moco.py")
    assert capsys.readouterr().out.endswith(f"\nReport: {folder / 'report.html'}\n")
    text = (folder / "report.html").read_text()
    page = Page(text)

    # The closing table and the vote are those of summary.json.
    written = json.loads((folder / "summary.json").read_text())
    assert written == summary
    closing = [cells for cells in page.cells if "kNN" in cells]
    assert [cells[2] for cells in closing] == [
        f"{summary[name]:.2f}" for name in ("knn_top1", "random_init_knn_top1")
    ]
    assert f"is right for {summary['knn_top1']:.2f}% of 12 test images" in page.text
    confusion = [cells for cells in page.cells if cells[0] in ("<script>alert(1)<b>", 'r&d"')]
    counts = [[int(cell) for cell in cells[1:3]] for cells in confusion]
    right = 100 * (counts[0][0] + counts[1][1]) / 12
    assert right == pytest.approx(summary["knn_top1"])
    assert [float(cells[3]) for cells in confusion] == pytest.approx(
        [100 * counts[i][i] / 6 for i in (0, 1)], abs=0.05
    )

    # Weights of the mixtures, and what mixing did.
    weights = [float(x) for x in re.findall(r"λ = (\d\.\d\d)", page.text)]
    bars = [float(x["style"][6:-1]) for x in page.all("span") if "width" in x.get("style", "")]
    assert len(weights) == 12
    assert bars == pytest.approx([100 * weight for weight in weights], abs=0.6)
    before, after = re.search(
        r"diagonal is (\S+) before training and (\S+) after", page.text
    ).groups()
    assert 0 < float(before) < 1
    assert 0 < float(after) < 1
    assert len(page.all("svg")) == 6

    # How to repeat it.
    quoted = f"'{folder}/config.yaml' --output_dir '{folder}-again'"
    assert f"python recipes/moco.py --config {quoted}" in page.text
    options = yaml.safe_load((folder / "config.yaml").read_text())
    listed = {cells[0]: cells[1] for cells in page.cells if len(cells) == 2}
    assert {name: listed[name] for name in options} == {
        name: str(value) for name, value in options.items()
    }

    page.assert_complete()
    assert len(text) < 3e6
    # Bokeh, its level of logging, and the map; a class has added none.
    assert len(page.all("script")) == 3
    assert "alert(1)" in page.text
    assert not page.all("b")


@pytest.fixture
def quick_report(monkeypatch):
    """Leaves out what takes a report's time: drawings, the map and its script."""
    monkeypatch.setattr("mixco_lightly.reports.charts.draw", lambda *arguments: "<svg></svg>")
    monkeypatch.setattr("mixco_lightly.reports.network_section.MIN_MAP_IMAGES", 1000)
    monkeypatch.setattr("mixco_lightly.training.run_report.load_map_script", lambda: "")
    monkeypatch.setattr("mixco_lightly.training.summary.draw_curves", lambda run: None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["unlabelled", "protocol none", "selfcon", "one-stage"])
def test_every_kind_of_run_has_a_report(case, image_folder, tmp_path, quick_report, capsys):
    recipe = load_recipe("moco" if case in ("unlabelled", "protocol none") else "selfcon")
    options = {
        "unlabelled": {"memory_bank_size": 8},
        "protocol none": {"memory_bank_size": 8, "mix_weight": 0.0, "protocol": ["none"]},
        "selfcon": {"objective": "selfcon-su", "exits": [1, 2], "mix_weight": 1.0},
        "one-stage": {"objective": "one-stage", "random_init": False},
    }[case]
    data = image_folder / "train" if case == "unlabelled" else image_folder
    summary = pretrain(recipe, tiny(recipe, data, tmp_path / "run", **options))
    printed = capsys.readouterr().out
    assert "warning" not in printed
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert ("Nothing was measured" in page.text) == (case in ("unlabelled", "protocol none"))
    assert ("nearest neighbours is right for" in page.text) == (case != "unlabelled")
    assert ("12 training images and their" in page.text) == (case == "unlabelled")
    assert ("This run mixes no images" in page.text) == (case in ("protocol none", "one-stage"))
    assert ("has no projection head" in page.text) == (case == "one-stage")
    assert "The run was started from Python" in page.text
    if case in ("selfcon", "one-stage"):
        assert f"is right for {summary['knn_top1']:.2f}% of 12" in page.text
        assert next(cells[2] for cells in page.cells if "kNN" in cells) == (
            f"{summary['knn_top1']:.2f}"
        )


STREAM = """
import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset

class Noise(IterableDataset):
    def __iter__(self):
        for seed in range(24):
            pixels = np.random.default_rng(seed).integers(256, size=(16, 16, 3), dtype=np.uint8)
            yield Image.fromarray(pixels)

def create(data_dir, train):
    return Noise() if train else None
"""


@pytest.mark.filterwarnings("ignore")
def test_the_report_of_a_stream_shows_its_first_images(tmp_path, quick_report, capsys):
    (tmp_path / "noise.py").write_text(STREAM)
    options = {"dataset": f"{tmp_path / 'noise.py'}:create", "max_steps": 2, "steps_per_epoch": 2}
    options |= {"memory_bank_size": 8, "batch_size": 8}
    recipe = load_recipe("moco")
    pretrain(recipe, tiny(recipe, tmp_path, tmp_path / "run", **options))
    assert "warning" not in capsys.readouterr().out
    page = Page((tmp_path / "run" / "report.html").read_text())
    facts = re.sub(r"\s+", "", page.text)
    assert "trainingimagesastream" in facts
    assert "length2steps(" in facts
    assert "12 training images and their nearest neighbours among 24" in " ".join(page.text.split())


@pytest.mark.filterwarnings("ignore")
def test_a_report_that_cannot_be_written_is_one_line_and_the_run_is_whole(
    image_folder, tmp_path, quick_report, capsys, monkeypatch
):
    def fail(*arguments, **options):
        raise OSError("no space\nleft")

    recipe = load_recipe("simclr")
    config = tiny(recipe, image_folder, tmp_path / "run", random_init=False)
    monkeypatch.setattr("mixco_lightly.training.run_report.write_page", fail)
    torch.manual_seed(1)
    summary = pretrain(recipe, config)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    last = capsys.readouterr().out.splitlines()[-1]
    path = tmp_path / "run" / "report.html"
    assert last == f"warning: {path} was not written (OSError): no space left"
    assert not path.exists()
