"""recipes/evaluate.py, called in this process."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixco_lightly import create_backbone, export_backbone, extract_features, knn_probe
from mixco_lightly.data.catalogue import create_dataset, get_dataset
from mixco_lightly.data.subset import choose_part
from mixco_lightly.data.transforms import create_test_transform
from mixco_lightly.evaluation import evaluator, image_probes, knn, linear
from mixco_lightly.evaluation.records import write_report
from tests.reports.parsed_page import Page

QUICK = ["--num_workers", 0, "--knn_k", 3, "--paper_epochs", 3, "--finetune_epochs", 2]
ALL = ["--protocol", "torch", "sklearn", "knn", "paper", "finetune"]


def make_folder(path, size, num_classes, count=(12, 6)):
    """An imagefolder whose classes differ by colour."""
    rng = np.random.default_rng(size)
    for split, images in zip(("train", "test"), count, strict=True):
        for target in range(num_classes):
            folder = path / split / str(target)
            folder.mkdir(parents=True)
            for index in range(images):
                pixels = rng.integers(0, 160, (size, size, 3), dtype=np.uint8)
                pixels[..., target % 3] += 90
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return path


def make_export(path, image_size, dataset="cifar10", seed=0):
    torch.manual_seed(seed)
    backbone = create_backbone("test_resnet", image_size, stem="timm")
    export_backbone(backbone, path, training={"dataset": dataset, "data_dir": "somewhere"})
    return path


@pytest.fixture
def run(tmp_path):
    return make_export(tmp_path / "run", 16, "imagefolder")


def results_in(folder):
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["format"] == "mixco-lightly evaluation 1"
    return report["results"]


def test_a_transfer_table_has_all_backbones_datasets_fractions_and_protocols(
    tmp_path, evaluate, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    # As TinyImageNet's 64 and CIFAR's 32 pixels, at a quarter of the size.
    small, large = make_folder(Path("8"), 8, 2), make_folder(Path("16"), 16, 3)
    runs = [make_export(Path("a"), 16, "tiny-imagenet"), make_export(Path("b"), 8)]
    code, printed, error = evaluate(
        *("--backbone_dir", *runs, "--dataset", "imagefolder", "imagefolder"),
        *("--data_dir", small, large, "--label_fractions", 1, 0.5),
        *("--output_dir", "out", *QUICK, *ALL),
    )
    assert code == 0, error
    records = results_in(Path("out"))
    assert len(records) == 2 * 2 * 2 * 5
    for record in records:
        assert 0 <= record["top1"] <= record["top5"] <= 100
        classes = 2 if record["data_dir"] == str(small) else 3
        assert record["training_images"] == 12 * classes * record["label_fraction"]
        assert record["test_images"] == 6 * classes  # all, whatever the fraction
        pretrained = {"a": ("tiny-imagenet", 16), "b": ("cifar10", 8)}[record["backbone"]]
        assert (record["pretrained_on"], record["settings"]["image_size"]) == pretrained
        assert record["versions"]["torch"]
        assert ("best_epoch_on_test" in record) == (record["protocol"] in ("paper", "finetune"))
        if "best_epoch_on_test" in record:
            assert record["best_epoch_on_test"]["top1"] >= record["top1"]
            assert 1 <= record["best_epoch_on_test"]["epoch"] <= 3
    table = Path("out/evaluation.md").read_text().split("## Top-5")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    header, body = rows[0], rows[2:]
    assert header == [
        *("dataset", "labels", "backbone", "pretrained on", "seed"),
        *("linear, torch", "linear, scikit-learn", "kNN"),
        *("linear, paper, last epoch", "linear, paper, best epoch, chosen on the test images"),
        *("fine-tuned, last epoch", "fine-tuned, best epoch, chosen on the test images"),
    ]
    assert [(row[0].split()[-1], row[1], row[2]) for row in body] == [
        *(("8", "50% (12)", "a"), ("8", "50% (12)", "b"), ("8", "100% (24)", "a")),
        *(("8", "100% (24)", "b"), ("16", "50% (18)", "a"), ("16", "50% (18)", "b")),
        *(("16", "100% (36)", "a"), ("16", "100% (36)", "b")),
    ]
    for pair in zip(body[::2], body[1::2], strict=True):
        for column in range(5, len(header)):
            cells = [row[column] for row in pair]
            values = [float(cell.strip("*")) for cell in cells]
            bold = [cell.startswith("**") for cell in cells]
            assert bold == [value == max(values) for value in values]
    assert printed.count("best epoch, chosen on the test images") == 2 * 8
    assert "epoch 3/3" in printed


def test_the_help_says_what_happens_to_images_and_in_which_precision_they_are_measured(evaluate):
    code, printed, _ = evaluate("--help")
    assert code == 0
    text = " ".join(printed.split())
    assert "the shorter side is resized to image_size up to 64 pixels" in text
    assert "8/7 of image_size above; then the centre square of image_size pixels is cropped" in text
    assert "Features and probes are computed in float32" in text


@pytest.mark.parametrize(("backbone_size", "size"), [(16, 8), (8, 16)])
def test_images_of_another_size_are_resized_to_the_backbones(
    backbone_size, size, tmp_path, evaluate
):
    folder = make_folder(tmp_path / "images", size, 3)
    run = make_export(tmp_path / "run", backbone_size)
    options = ["--dataset", "imagefolder", "--data_dir", folder, "--protocol", "knn", *QUICK]
    code, _, _ = evaluate("--backbone_dir", run, *options)
    assert code == 0
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", backbone_size, stem="timm")
    transform = create_test_transform(get_dataset("imagefolder").facts, backbone_size)
    train, test = (
        extract_features(
            backbone,
            [(torch.stack([x for x, _ in part]), torch.tensor([y for _, y in part]))],
        )
        for part in (
            create_dataset("imagefolder", folder, train, transform) for train in (True, False)
        )
    )
    (record,) = results_in(run)
    assert record["top1"] == pytest.approx(knn_probe(train, test, k=3).top1)


def test_all_protocols_and_backbones_are_given_the_same_part_of_the_labels(
    tmp_path, evaluate, monkeypatch
):
    folder = make_folder(tmp_path / "images", 8, 3)
    runs = [make_export(tmp_path / name, 8, seed=seed) for seed, name in enumerate("ab")]
    given = []

    def spy(module, name):
        function = getattr(module, name)

        def call(*args, **kwargs):
            train = args[1] if module is image_probes else args[0]
            given.append(train.targets.tolist() if hasattr(train, "targets") else train.indices)
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for module, name in [
        (linear, "linear_scores"),
        (knn, "knn_probe"),
        (image_probes, "paper_probe"),
        (image_probes, "finetune_probe"),
    ]:
        spy(module, name)
    chosen = choose_part(torch.arange(3).repeat_interleave(12), 0.25, seed=7)
    code, _, error = evaluate(
        *("--backbone_dir", *runs, "--dataset", "imagefolder", "--data_dir", folder),
        *("--label_fractions", 0.25, "--seed", 7, *QUICK, *ALL),
    )
    assert code == 0, error
    of_features, of_images = [0] * 3 + [1] * 3 + [2] * 3, chosen.tolist()
    assert given == ([of_features] * 3 + [of_images] * 2) * 2


def test_one_label_a_class_leaves_none_to_choose_a_setting_on_and_says_so(run, tmp_path, evaluate):
    folder = make_folder(tmp_path / "images", 16, 3)
    code, _, error = evaluate(
        *("--backbone_dir", run, "--dataset", "imagefolder", "--data_dir", folder),
        *("--label_fractions", 0.09, *QUICK, *ALL),
    )
    assert code == 0, error
    records = results_in(run)
    assert [record["training_images"] for record in records] == [3] * 5
    for record in records:
        expected = record["protocol"] in ("torch", "sklearn")
        assert ("one image a class" in record["note"]) == expected


def test_scikit_learns_c_is_chosen_and_named(run, tmp_path, evaluate):
    code, printed, _ = evaluate(
        "--backbone_dir", run, "--dataset", "digits", "--protocol", "sklearn", *QUICK
    )
    assert code == 0
    (record,) = results_in(run)
    assert record["note"].startswith("C=")
    assert "on a tenth of the training features" in record["note"]
    assert record["note"] in " ".join(printed.split())


def test_finetuning_first_changes_nothing_for_the_protocols_after_it(run, image_folder, evaluate):
    images = ["--dataset", "imagefolder", "--data_dir", image_folder, *QUICK]
    options = ["--backbone_dir", run, *images]
    assert evaluate(*options, "--protocol", "torch", "knn", "paper")[0] == 0
    alone = results_in(run)
    (run / "evaluation.json").unlink()
    first = ["finetune", "torch", "knn", "paper"]
    assert evaluate(*options, "--protocol", *first)[0] == 0
    assert results_in(run)[1:] == alone


def test_results_are_added_and_those_of_other_settings_kept_unless_overwritten(
    run, image_folder, evaluate, monkeypatch
):
    images = ["--dataset", "imagefolder", "--data_dir", image_folder, *QUICK]
    options = ["--backbone_dir", run, *images]
    assert evaluate(*options, "--protocol", "knn")[0] == 0
    assert evaluate(*options, "--protocol", "torch")[0] == 0
    assert (
        evaluate("--backbone_dir", run, "--dataset", "digits", *QUICK, "--protocol", "knn")[0] == 0
    )
    assert evaluate(*options, "--protocol", "knn", "--seed", 1)[0] == 0
    before = results_in(run)
    measured = [(record["dataset"], record["protocol"], record["seed"]) for record in before]
    assert measured == [
        *(("imagefolder", "knn", 0), ("imagefolder", "torch", 0)),
        *(("digits", "knn", 0), ("imagefolder", "knn", 1)),
    ]
    # The same again is the same.
    assert evaluate(*options, "--protocol", "knn")[0] == 0
    assert results_in(run) == before

    # Another setting, and other weights, are found out before anything is measured.
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "extract", lambda *_, **__: pytest.fail("it measures"))
        code, _, error = evaluate(*options, "--protocol", "knn", "--knn_k", 4)
        assert code == 1
        assert "knn" in error
        assert "k 3, not 4" in error
        assert "--overwrite" in error
        make_export(run, 16, "imagefolder", seed=1)
        code, _, error = evaluate(*options, "--protocol", "knn")
        assert code == 1
        assert "weights_sha256" in error
    assert results_in(run) == before
    assert evaluate(*options, "--protocol", "knn", "--knn_k", 4, "--overwrite")[0] == 0
    after = results_in(run)
    assert after[1:] == before[1:]
    assert after[0]["settings"]["k"] == 4


def test_an_interrupted_evaluation_keeps_what_it_has_measured(
    run, image_folder, evaluate, monkeypatch
):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(knn, "knn_probe", interrupt)
    files = {path.name for path in run.iterdir()}
    options = ["--dataset", "imagefolder", "--data_dir", image_folder, *QUICK]
    with pytest.raises(KeyboardInterrupt):
        evaluate("--backbone_dir", run, *options, "--protocol", "torch", "knn")
    (record,) = results_in(run)
    assert record["protocol"] == "torch"
    assert {path.name for path in run.iterdir()} - files == {"evaluation.json", "evaluation.md"}


def test_a_write_that_fails_leaves_the_earlier_file_whole(tmp_path, monkeypatch):
    (tmp_path / "evaluation.json").write_text("before")

    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_report(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]
    assert (tmp_path / "evaluation.json").read_text() == "before"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"digits": {"knn": {"top1": 3}}}', '{"format": "x", "results": []}']
)
def test_a_file_that_is_not_this_versions_is_left_alone(text, run, image_folder, evaluate):
    (run / "evaluation.json").write_text(text)
    options = ["--dataset", "imagefolder", "--data_dir", image_folder, "--protocol", "knn"]
    code, _, error = evaluate("--backbone_dir", run, *options)
    assert code == 1
    assert len(error.strip().splitlines()) == 1
    assert "evaluation.json is not an evaluation of this version" in error
    assert (run / "evaluation.json").read_text() == text


def test_timm_backbones_without_a_run_are_measured_as_one_table(tmp_path, image_folder, evaluate):
    code, printed, error = evaluate(
        *("--backbone", "test_resnet", "test_vit", "--image_size", 16),
        *("--dataset", "imagefolder", "--data_dir", image_folder),
        *("--protocol", "knn", "--output_dir", tmp_path / "out", *QUICK),
    )
    assert code == 0, error
    records = results_in(tmp_path / "out")
    assert [record["backbone"] for record in records] == ["test_resnet", "test_vit"]
    assert {record["pretrained_on"] for record in records} == {"nothing (random)"}
    assert all(record["top1"] > 60 for record in records)  # chance is 50
    assert "test_vit" in printed


def test_further_protocols_use_the_datasets_that_are_named_at_the_backbones_size(
    run, tmp_path, evaluate
):
    own, shifted, other = (
        make_folder(tmp_path / str(size), size, classes)
        for size, classes in [(16, 2), (8, 2), (12, 3)]
    )
    options = ["--dataset", "imagefolder", "--data_dir", own, "--num_workers", 0]
    options += ["--few_shots", 1, 5, "--few_shot_episodes", 4, "--corrupted_images", 5]
    second = ["--shift_data_dir", shifted, "--ood_data_dir", other, "--ood_k", 3]
    names = ["torch", "few-shot", "corruptions", "shift", "ood"]
    code, printed, error = evaluate(
        "--backbone_dir", run, *options, *second, "--protocol", *names
    )  # fmt: skip
    assert code == 0, error
    records = {record["protocol"]: record for record in results_in(run)}
    assert list(records) == names
    has_accuracy = {name for name in names if "top1" in records[name]}
    assert has_accuracy == {"torch", "corruptions", "shift"}
    assert records["shift"]["settings"]["dataset"] == f"imagefolder {shifted}"
    assert (
        records["ood"]["settings"] | {"dataset": f"imagefolder {other}", "k": 3}
        == (records["ood"]["settings"])
    )
    assert set(records["torch"]["measures"]) == set(records["shift"]["measures"]) == {"ECE"}
    assert records["shift"]["top1"] != records["torch"]["top1"] or (
        records["shift"]["measures"] != records["torch"]["measures"]
    )
    # Other colours are far away.
    assert set(records["ood"]["measures"]) == {"AUROC", "FPR95"}
    assert "AUROC" in printed
    text = (run / "evaluation.md").read_text()
    header = text.split("## Further measures")[1].strip().splitlines()[0]
    assert "| seed | linear, torch, ECE | class means, 1-shot |" in header
    assert "class means" not in text.split("## Top-5")[0]
    wrong = ["--shift_data_dir", other, "--protocol", "shift", "--overwrite"]
    code, _, error = evaluate("--backbone_dir", run, *options, *wrong)
    assert code != 0
    assert "must have the classes of --dataset" in error.strip().splitlines()[-1]


def test_images_of_several_sizes_are_augmented_one_by_one(run, image_folder, evaluate):
    image = image_folder / "train" / "red" / "00.png"
    Image.open(image).resize((20, 16)).save(image)
    options = ["--dataset", "imagefolder", "--data_dir", image_folder, "--protocol", "paper"]
    code, _, error = evaluate("--backbone_dir", run, *options, *QUICK)
    assert code == 0, error
    assert len(results_in(run)) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--label_fractions", 0], "in (0, 1]"),
        (["--label_fractions", 1.5], "in (0, 1]"),
        (["--label_fractions", "nan"], "label_fractions"),
        (["--label_fractions", 0.001], "0.001 of 1,348 images"),
        (["--label_fractions", "half"], "label_fractions"),
        (["--protocol", "svm"], "svm"),
        (["--protocol", "ood"], "--protocol ood needs a second dataset: give --ood_data_dir"),
        (["--protocol", "shift", "--shift_data_dir", "absent"], "absent"),
        (["--protocol", "few-shot", "--few_shot_episodes", 1], "--few_shot_episodes"),
        (["--protocol", "few-shot", "--few_shots", 500], "500 shots need 500 training images"),
        (["--protocol", "paper", "--paper_epochs", 0], "paper_epochs"),
        (["--protocol", "finetune", "--finetune_learning_rate", -1], "finetune_learning_rate"),
        (["--dataset", "digits", "imagefolder", "--data_dir", "absent"], "absent/train"),
        (["--precision", "16-mixed", "--device", "cpu"], "--precision 16-mixed"),
        (["--output_dir", __file__], Path(__file__).name),
    ],
)
def test_bad_input_ends_with_one_line_before_anything_is_written(
    options, named, tmp_path, evaluate, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, error = evaluate("--backbone", "test_resnet", "--num_workers", 0, *options)
    assert code not in (0, None)
    assert "Traceback" not in error
    assert named in error.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_report_shows_the_table_and_a_section_for_each_backbone(
    tmp_path, run, evaluate, monkeypatch
):
    monkeypatch.setattr("mixco_lightly.reports.network_section.MIN_MAP_IMAGES", 1000)
    monkeypatch.setattr("mixco_lightly.reports.evaluation_page.load_map_script", lambda: "")
    folder = make_folder(tmp_path / "images", 16, 2)
    out = tmp_path / "out"
    options = ["--dataset", "imagefolder", "--data_dir", folder, "--protocol", "knn", *QUICK]
    options = ["--backbone_dir", run, "--random_init", "--output_dir", out, *options, "--report"]
    code, printed, error = evaluate(*options)
    assert code == 0, error
    assert printed.count("Report: ") == 1
    assert printed.endswith(f"Report: {out / 'evaluation.html'}\n")
    page = Page((out / "evaluation.html").read_text())
    page.assert_complete()
    names = [str(run), "random initialisation"]
    accuracies = [f"{result['top1']:.2f}" for result in results_in(out)]
    rows = [cells for cells in page.cells if cells[0] in names]
    assert [cells[0] for cells in rows] == names
    assert [cells[-2] for cells in rows] == accuracies
    for top1 in accuracies:
        assert f"The vote of the 3 nearest neighbours is right for {top1}% of 12" in page.text
    assert f"--backbone_dir {run} --random_init" in page.text
    code, _, error = evaluate("--backbone", "test_resnet", "--report")
    assert code == 1
    assert error == "error: --report is written to a folder: give --output_dir.\n"
