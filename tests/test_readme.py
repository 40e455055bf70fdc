"""The README's code runs, and its change to a Lightly pipeline is the three lines it says."""

import re
from pathlib import Path

import pytest
import torch
from lightly.loss import NTXentLoss
from PIL import Image

from mixco_lightly import MixCoLoss, create_backbone, export_backbone, mix_pairs

README = (Path(__file__).parent.parent / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
(SELFCON,) = (code for code in CODE if "SelfConLoss" in code)
(FEATURES,) = (code for code in CODE if "load_backbone" in code)
IN_STEP, SIMCLR = (code for code in CODE if "mix_pairs(" in code)
AFTER, BEFORE = (code for code in CODE if "DataLoader" in code)


@pytest.mark.parametrize("code", [BEFORE, AFTER], ids=["before", "after"])
def test_the_pipeline_runs_and_its_loss_is_finite(code, capsys):
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)


def test_the_selfcon_example_runs_and_all_code_of_the_readme_is_tested():
    exec(compile(SELFCON, "README.md", "exec"), {})  # noqa: S102
    assert len(CODE) == 6


def test_mixing_inside_the_step_runs_with_the_pipelines_names():
    before_the_loss = AFTER.partition("    loss = ")[0]
    in_step = "".join(f"    {line}\n" for line in IN_STEP.splitlines())
    code = f"from mixco_lightly import mix_pairs\n{before_the_loss}{in_step}    loss.backward()\n"
    names = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert names["mixture"].images.shape[0] == names["query_view"].shape[0] // 2
    assert names["loss"].isfinite()


def test_the_simclr_lines_run_and_equal_lightlys_loss_without_mixtures():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 16))
    view0, view1 = torch.rand(2, 8, 3, 4, 4)
    names = {
        "MixCoLoss": MixCoLoss,
        "mix_pairs": mix_pairs,
        "model": model,
        "view0": view0,
        "view1": view1,
        "z0": model(view0),
        "z1": model(view1),
    }
    exec(compile(SIMCLR, "README.md", "exec"), names)  # noqa: S102
    assert names["loss"].isfinite()
    assert torch.allclose(
        names["criterion"](names["z0"], names["z1"]), NTXentLoss()(names["z0"], names["z1"])
    )


def test_the_features_of_one_image_file_are_computed_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = create_backbone("test_resnet", 32)
    export_backbone(backbone, "runs/quickstart/mixco", mean=(0.5,) * 3, std=(0.25,) * 3)
    Image.new("RGB", (640, 480)).save("photo.jpg")
    names = {}
    exec(compile(FEATURES, "README.md", "exec"), names)  # noqa: S102
    assert names["features"].shape == (1, backbone.feature_dim)


def test_the_shown_difference_is_that_of_the_two_pipelines_but_for_their_imports():
    before, after = (
        [line for line in code.splitlines() if "import" not in line] for code in (BEFORE, AFTER)
    )
    changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    (shown,) = re.findall(r"```diff\n(.*?)```", README, flags=re.DOTALL)
    assert shown.splitlines() == [line for old, new in changed for line in (f"-{old}", f"+{new}")]
    assert len(changed) == 3


def test_every_recipe_and_file_that_the_readme_names_exists():
    root = Path(__file__).parent.parent
    named = set(re.findall(r"(?:mixco_lightly|recipes|docs)/[\w/.-]+\.(?:py|png|yaml)", README))
    assert len(named) > 5
    assert not [name for name in named if not (root / name).is_file()]
