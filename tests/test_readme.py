"""The code of the README and of docs/ runs, and their links lead somewhere."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from lightly.loss import NTXentLoss
from PIL import Image

from mixco_lightly import create_backbone, export_backbone
from mixco_lightly.data.catalogue import get_dataset
from mixco_lightly.data.transforms import create_pretrain_transform

ROOT = Path(__file__).parent.parent
PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CHANGELOG.md", "SECURITY.md", "examples/README.md", *PAGES]
TEXT = {name: (ROOT / name).read_text() for name in DOCUMENTS}
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
(MOCO,) = BLOCK.findall(TEXT["README.md"])
IN_STEP, SIMCLR, LIGHTNING, EVALUATE, FEATURES, SELFCON = BLOCK.findall(TEXT["docs/pipelines.md"])
(RECIPE,) = BLOCK.findall(TEXT["docs/recipes.md"])
FAMILY, *MIXED, SCALEMIX = BLOCK.findall(TEXT["docs/mixing.md"])
DIFF = re.findall(r"```diff\n(.*?)```", TEXT["README.md"], flags=re.DOTALL)


def run(code, **names):
    exec(compile(code, "document", "exec"), names)  # noqa: S102
    return names


def before_the_change():
    """The README's pipeline with each line that its diff adds replaced by the one it removes."""
    (diff,) = DIFF
    lines = diff.splitlines()
    code = MOCO
    for old, new in zip(lines[::2], lines[1::2], strict=True):
        assert old[0] == "-"
        assert new[0] == "+"
        assert code.count(f"{new[1:]}\n") == 1
        code = code.replace(new[1:], old[1:])
    return f"from lightly.loss import NTXentLoss\n{code}", len(lines) // 2


def check_losses(printed):
    losses = [float(line.split()[1]) for line in printed.splitlines()]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)


@pytest.mark.parametrize("code", [before_the_change()[0], MOCO], ids=["before", "moco"])
def test_the_pipeline_runs_and_its_loss_is_finite(code, capsys):
    run(code)
    check_losses(capsys.readouterr().out)


def test_the_change_to_a_lightly_pipeline_is_three_lines_and_leaves_nothing_of_the_package():
    before, changed = before_the_change()
    assert changed == 3
    used = before.partition("create_backbone\n")[2]
    assert "MixCo" not in used
    assert "batch[-1]" not in used


def test_all_code_of_the_documents_is_tested():
    counts = {name: len(BLOCK.findall(text)) for name, text in TEXT.items()}
    tested = {"README.md": 1, "docs/pipelines.md": 6, "docs/recipes.md": 1, "docs/mixing.md": 6}
    tested["docs/weights.md"] = 1  # by tests/backbones/test_hub.py
    assert {name: count for name, count in counts.items() if count} == tested


def test_mixing_inside_the_step_runs_with_the_pipelines_names():
    before_the_loss = MOCO.partition("    loss = ")[0]
    in_step = "".join(f"    {line}\n" for line in IN_STEP.splitlines())
    end = "    loss.backward()\n    break\n"  # one batch shows it
    names = run(f"from mixco_lightly import mix_pairs\n{before_the_loss}{in_step}{end}")
    assert names["mixture"].images.shape[0] == names["query_view"].shape[0] // 2
    assert names["loss"].isfinite()


def test_the_simclr_pipelines_losses_are_finite_and_without_mixtures_lightlys(capsys):
    names = run(SIMCLR)
    check_losses(capsys.readouterr().out)
    z0, z1 = names["z0"].detach(), names["z1"].detach()
    assert torch.allclose(names["criterion"](z0, z1), NTXentLoss()(z0, z1))


def test_the_lightning_pipeline_trains_and_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(LIGHTNING)
    assert names["trainer"].global_step == 4
    assert (tmp_path / "runs/mine/backbone/model.safetensors").is_file()


def test_the_evaluation_measures_percent(capsys):
    names = run(EVALUATE)
    assert 0 <= names["result"].top1 <= 100
    assert re.fullmatch(r"linear [\d.]+ %, kNN [\d.]+ %\n", capsys.readouterr().out)


def test_the_selfcon_example_runs():
    run(SELFCON)


def test_the_features_of_one_image_file_are_computed_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = create_backbone("test_resnet", 32)
    export_backbone(backbone, "runs/quickstart/mixco", mean=(0.5,) * 3, std=(0.25,) * 3)
    Image.new("RGB", (640, 480)).save("photo.jpg")
    assert run(FEATURES)["features"].shape == (1, backbone.feature_dim)


def test_the_recipe_of_ones_own_builds_its_model(tmp_path, monkeypatch):
    # tests/ runs such a file from an installed wheel, too; here it need only be right.
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_documented_recipe.py").write_text(RECIPE)
    import my_documented_recipe as mine

    config = mine.recipe.config_class(projection_dim=16, mix_weight=0.5)
    model = mine.recipe.create_model(create_backbone("test_resnet", 32), config)
    assert model.criterion.mix_weight == 0.5
    assert model.projection_head(torch.rand(4, model.backbone.feature_dim)).shape == (4, 16)


@pytest.mark.parametrize("code", MIXED, ids=["mixco", "imix", "n-pair", "unmix"])
def test_each_mixing_is_three_lines_and_its_gradient_is_finite(code):
    assert len(code.splitlines()) == 3
    names = run(FAMILY + code + "loss.backward()\n")
    assert names["encoder"][1].weight.grad.isfinite().all()
    assert 0 < float(names["loss"].detach()) < 100
    assert "lightly" not in code


def test_scalemix_trains_on_three_views_whose_first_two_are_cut_together(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_scalemix.py").write_text(SCALEMIX)
    import my_scalemix

    recipe = my_scalemix.recipe
    config = recipe.config_class(projection_dim=16, optimizer="sgd", learning_rate=0.1)
    config = dataclasses.replace(config, weight_decay=0.0, warmup_epochs=0)
    model = recipe.create_model(create_backbone("test_resnet", 32), config)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = Image.new("RGB", (32, 32), "red")
    transform = create_pretrain_transform(
        recipe.transform, get_dataset("cifar10").facts, 32, num_views=recipe.num_views
    )
    assert len(transform(image)) == 3
    views = [torch.full((4, 3, 32, 32), float(value)) for value in (0, 1, 5)]
    loss = model.training_step([views, None, []], 0)
    loss.backward()
    assert loss.isfinite()
    (queries,) = seen
    assert set(queries.unique().tolist()) == {0.0, 1.0}
    # No other image, and no mixture, is in a query: its own key is the only positive.
    assert int(model.criterion.queue.position) == 4


def anchors(text):
    """The anchors that GitHub gives a document's headings."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = (title.strip().lower() for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(name):
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[name]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else ROOT / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_footnote_of_a_document_is_there_and_used(name):
    defined = re.findall(r"^\[\^([\w-]+)\]:", TEXT[name], re.MULTILINE)
    used = re.findall(r"\[\^([\w-]+)\](?!:)", TEXT[name])
    assert sorted(defined) == sorted(set(defined))
    assert set(defined) == set(used)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_a_document_names_exists(name):
    named = set(
        re.findall(
            r"(?<![\w/.])(?:mixco_lightly|recipes|docs|tests)/[\w/.-]+\.(?:py|png|yaml|md)",
            TEXT[name],
        )
    )
    assert not [path for path in named if not (ROOT / path).is_file()]
