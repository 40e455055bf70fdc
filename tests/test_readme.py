"""The code of the README and of docs/ runs, and their links lead somewhere."""

import csv
import dataclasses
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from lightly.loss import NTXentLoss
from PIL import Image

from mixco_lightly import create_backbone, export_backbone
from mixco_lightly.data.catalogue import create_train_test, get_dataset
from mixco_lightly.data.image_stream import ImageStream
from mixco_lightly.data.own_transform import create_own_transform
from mixco_lightly.data.transforms import create_pretrain_transform
from tests.training.test_streams import write_shard

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    f"docs/{path.relative_to(ROOT / 'docs').as_posix()}"
    for folder in ("docs", "docs/methods")
    for path in (ROOT / folder).glob("*.md")
)
DOCUMENTS = ["README.md", "CHANGELOG.md", "SECURITY.md", "examples/README.md", *PAGES]
TEXT = {name: (ROOT / name).read_text() for name in DOCUMENTS}
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
(MOCO,) = BLOCK.findall(TEXT["README.md"])
IN_STEP, SIMCLR, LIGHTNING, PHOTOS, MINE, EVALUATE, FEATURES, SELFCON = BLOCK.findall(
    TEXT["docs/pipelines.md"]
)
OWN, STREAM, RECIPE = BLOCK.findall(TEXT["docs/recipes.md"])
FAMILY, *MIXED, SCALEMIX = BLOCK.findall(TEXT["docs/mixing.md"])
DIFF = re.findall(r"```diff\n(.*?)```", TEXT["README.md"], flags=re.DOTALL)


def run(code, **names):
    # A network of a hundredth of the size: what it learns is not what is tested here.
    code = code.replace('"resnet10t"', '"test_resnet"')
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
    tested = {"README.md": 1, "docs/pipelines.md": 8, "docs/recipes.md": 3, "docs/mixing.md": 6}
    tested["docs/weights.md"] = 3  # by test_hub.py and test_formats.py in tests/backbones
    assert {name: count for name, count in counts.items() if count} == tested


def test_the_stream_of_shards_shares_itself_out_and_gives_images_with_their_classes(tmp_path):
    for index in range(2):
        write_shard(tmp_path / f"train-{index:06}.tar", 8, kind="jpg")
    stream = ImageStream(run(STREAM)["create"](tmp_path, True), lambda image: image.size)
    samples = list(islice(stream, 8))
    assert "splits_itself is set" in stream.describe_reading(2)
    assert {size[0] for size, _ in samples} == {16}
    assert {target for _, target in samples} <= {0, 1}
    assert run(STREAM)["create"](tmp_path, False) is None


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


def logged(tmp_path, name):
    """The columns of a CSV logger's file, without empty cells."""
    with (tmp_path / "runs" / name / "version_0" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {column: [float(row[column]) for row in rows if row[column]] for column in rows[0]}


def test_moco_trains_on_photos_of_ones_own_and_logs_to_a_logger_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for index in range(40):
        Image.new("RGB", (32 + index, 40), (index, 0, 0)).save(f"photos/{index}.jpg")
    names = run(PHOTOS, __name__="photos")
    assert names["trainer"].global_step == 2
    figures = logged(tmp_path, "photos")
    assert len(figures["loss"]) == 2
    assert all(mix > 0 for mix in figures["mix"])


def test_simclr_trains_on_batches_of_ones_own_and_logs_a_figure_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(MINE, __name__="mine")
    assert names["trainer"].global_step == 4
    figures = logged(tmp_path, "mine")
    assert all(mix > 0 for mix in figures["mix"])
    assert len(figures["feature_std"]) == 4
    assert all(value > 0 for value in figures["feature_std"])
    assert all(0 <= lam <= 1 for lam in figures["lam"])


def test_images_and_views_of_ones_own_are_what_the_options_take(tmp_path, monkeypatch):
    monkeypatch.setattr("mixco_lightly.data.own_code._FUNCTIONS", {})
    for split, count in (("train", 3), ("test", 2)):
        (tmp_path / split).mkdir()
        for index in range(count):
            Image.new("L", (40, 30 + index)).save(tmp_path / split / f"{index % 2}_{index}.png")
    (tmp_path / "my_data.py").write_text(OWN)
    spec = get_dataset(f"{tmp_path}/my_data.py:create")
    train, test = create_train_test(spec, tmp_path)
    assert (train.targets, test.targets) == ([0, 0, 1], [0, 1])  # in the order of the names
    assert train[2][0].size == (40, 31)
    transform = create_own_transform(f"{tmp_path}/my_data.py:views", spec.facts, 16)
    assert [tuple(view.shape) for view in transform(train[0][0])] == [(3, 16, 16)] * 2


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
