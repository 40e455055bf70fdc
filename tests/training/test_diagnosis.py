"""What a run says about its figures: at chance, below random initialisation."""

import importlib
import math
import types

import pytest
import torch

from mixco_lightly import MixCoLoss, ProbeResult
from tests.run_recipe import RECIPES, tiny_run


@pytest.fixture
def diagnosis(monkeypatch):
    """The module."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("mixco_lightly.training.diagnosis")


def test_the_chance_level_is_the_loss_of_projections_that_are_all_alike(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    moco, simclr = (importlib.import_module(name) for name in ("moco", "simclr"))
    alike = torch.ones(8, 4, requires_grad=True)

    queue = MixCoLoss(memory_bank_size=(50, 4))
    queue.queue.keys.fill_(0.5)
    negatives = moco.count_negatives(moco.MoCoConfig(memory_bank_size=50))
    assert queue(alike, alike.detach()).item() == pytest.approx(math.log1p(negatives))

    negatives = simclr.count_negatives(simclr.SimCLRConfig(batch_size=8))
    assert MixCoLoss()(alike, alike).item() == pytest.approx(math.log1p(negatives))
    # With several processes the views of all are gathered.
    assert simclr.count_negatives(simclr.SimCLRConfig(batch_size=4, devices=2)) == negatives


def test_a_contrast_term_within_two_percent_of_chance_or_above_it_is_at_chance(diagnosis):
    assert diagnosis.describe_chance(1024) == "ln(1 + 1024) = 6.93"
    chance = math.log(1025)
    for factor, expected in [(1.0, True), (0.99, True), (1.2, True), (0.97, False), (0.5, False)]:
        assert diagnosis.is_at_chance(factor * chance, 1024) is expected


def test_the_mean_of_an_epoch_decides_and_other_epochs_do_not(diagnosis, tmp_path):
    rows = ["epoch,step,contrast,knn_top1", "0,9,6.93,", "1,19,6.90,", "1,29,6.94,", "1,29,,12.5"]
    (tmp_path / "metrics.csv").write_text("\n".join([*rows, "2,39,5.0,", ""]))
    line = diagnosis.find_chance(tmp_path, 2, 3, 1024)
    assert "After 2 of 3 epochs the contrast term is 6.92" in line
    assert "chance level ln(1 + 1024) = 6.93" in line
    assert "--learning_rate" in line
    assert "\n" not in line
    assert diagnosis.find_chance(tmp_path, 3, 3, 1024) == ""
    assert diagnosis.find_chance(tmp_path, 4, 4, 1024) == ""  # nothing was logged
    assert diagnosis.find_chance(tmp_path / "none", 1, 3, 1024) == ""


def test_a_backbone_below_its_random_initialisation_by_any_protocol_is_named(diagnosis):
    def results(torch_top1, knn_top1):
        return {"torch": ProbeResult(torch_top1, 99.0), "knn": ProbeResult(knn_top1, 99.0)}

    line = diagnosis.find_below_random(results(80.0, 60.12), results(70.0, 66.4))
    assert line == (
        "The trained backbone is below its random initialisation: kNN 60.12 % against 66.40 %."
    )
    both = diagnosis.find_below_random(results(60.0, 60.0), results(70.0, 66.4))
    assert "linear, torch 60.00 % against 70.00 %; kNN 60.00 % against 66.40 %." in both
    assert diagnosis.find_below_random(results(70.0, 66.4), results(70.0, 66.4)) == ""
    assert diagnosis.find_below_random({}, results(70.0, 66.4)) == ""


@pytest.mark.parametrize("recipe", ["moco", "simclr"])
def test_a_run_says_its_chance_level_and_once_after_a_tenth_and_at_the_end_that_it_is_there(
    recipe, image_folder, tmp_path, run_here, monkeypatch, diagnosis
):
    options = tiny_run(image_folder, "--protocol", "knn", "--overwrite")
    options += ["--memory_bank_size", 32] if recipe == "moco" else []
    options += ["--output_dir", tmp_path / "run", "--random_init=false"]
    chance = {"moco": "ln(1 + 32) = 3.50", "simclr": "ln(1 + 18) = 2.94"}[recipe]
    for is_at_chance in (True, False):
        monkeypatch.setattr(diagnosis, "is_at_chance", lambda *_, at=is_at_chance: at)
        code, printed, _ = run_here(recipe, *options)
        assert code == 0
        assert printed.count(f"Chance level of the contrast term: {chance}.\n") == 1
        said = [line for line in printed.splitlines() if "still at its chance" in line]
        starts = [line.partition(" the contrast term")[0] for line in said]
        assert starts == (["After 1 of 2 epochs", "After 2 of 2 epochs"] * is_at_chance)


@pytest.mark.parametrize(("epochs", "tenth"), [(1, None), (2, 1), (10, 1), (11, 2), (30, 3)])
def test_the_line_comes_after_a_tenth_of_the_epochs_and_the_last_is_left_to_the_run(
    epochs, tenth, diagnosis, tmp_path, capsys
):
    rows = "".join(f"{epoch},{epoch},6.93\n" for epoch in range(epochs))
    (tmp_path / "metrics.csv").write_text(f"epoch,step,contrast\n{rows}")
    callback = diagnosis.WarnAtChance(tmp_path, 1024)
    for is_first in (False, True):
        for epoch in range(epochs):
            trainer = types.SimpleNamespace(
                is_global_zero=is_first, current_epoch=epoch, max_epochs=epochs
            )
            callback.on_train_epoch_end(trainer, None)
    said = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert said == ([] if tenth is None else [str(tenth)])


def test_a_run_says_that_it_is_below_its_random_initialisation(
    image_folder, tmp_path, run_here, monkeypatch, diagnosis
):
    import mixco_lightly.training.summary as summary

    def evaluate(network, **_):
        is_trained = (tmp_path / "run" / "curves.png").exists() and not evaluate.calls
        evaluate.calls += 1
        return {"backbone": {"knn": ProbeResult(50.0 if is_trained else 75.0, 100.0)}}, None

    evaluate.calls = 0
    monkeypatch.setattr(summary, "evaluate_parts", evaluate)
    options = tiny_run(image_folder, "--memory_bank_size", 8, "--output_dir", tmp_path / "run")
    code, printed, _ = run_here("moco", *options, "--protocol", "knn")
    assert code == 0
    assert "below its random initialisation: kNN 50.00 % against 75.00 %.\n" in printed
