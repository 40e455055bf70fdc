"""The files of a release: archives of exports, checksums and an index."""

import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import timm
import torch
import yaml

import mixco_lightly.backbones.release as release_module
import mixco_lightly.files as files
from mixco_lightly import create_backbone, export_backbone, load_backbone
from mixco_lightly.backbones import build_release
from mixco_lightly.backbones.model_card import create_model_card

TRAINING = {
    "method": "moco",
    "dataset": "cifar10",
    "data_dir": "/home/alice/images",
    "output_dir": "/home/alice/runs/moco",
    "epochs": 30,
    "learning_rate": None,
    "precision": "bf16-mixed",
    "seed": 3,
    "knn_k": 20,
}
METRICS = {"linear_top1": 71.2345, "knn_top1": 68.0, "random_init_knn_top1": 31.5}
ARCHIVED = ["README.md", "backbone.json", "config.json", "model.safetensors", "options.yaml"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two exports: timm loads the ViT, and not the ResNet with its small stem."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, (name, network) in enumerate([("vit", "test_vit"), ("resnet", "test_resnet")]):
        torch.manual_seed(seed)
        backbone = create_backbone(network, 32, stem="small").eval()
        facts = {"training": TRAINING, "metrics": METRICS} if name == "vit" else {}
        export_backbone(backbone, folder / name, mean=(0.5,) * 3, std=(0.25,) * 3, **facts)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def refuses(error, match, runs, folder, *directories, **options):
    """The build raises one line and leaves the folder's parent as it was."""
    before = {path: path.is_dir() or path.read_bytes() for path in folder.parent.rglob("*")}
    with pytest.raises(error, match=match) as caught:
        build_release([runs / name for name in directories], folder, **options)
    assert "\n" not in str(caught.value)
    assert before == {path: path.is_dir() or path.read_bytes() for path in folder.parent.rglob("*")}


def test_the_same_exports_give_the_same_bytes_whatever_their_folders_times_and_modes(
    runs, tmp_path
):
    copy = shutil.copytree(runs, tmp_path / "elsewhere" / "runs")
    for path in copy.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700)
    (copy / "vit" / "curves.png").write_text("not part of the export")
    mask = os.umask(0o077)
    try:
        build_release([copy / "vit", copy / "resnet"], tmp_path / "second")
    finally:
        os.umask(mask)
    archives = build_release([runs / "vit", runs / "resnet"], tmp_path / "first")
    assert archives == [tmp_path / "first" / "vit.tar", tmp_path / "first" / "resnet.tar"]
    first = contents(tmp_path / "first")
    assert first == contents(tmp_path / "second")
    assert sorted(first) == ["SHA256SUMS", "index.md", "resnet.tar", "vit.tar"]


def test_an_archive_has_the_export_its_card_and_options_and_no_path_of_the_machine(runs, tmp_path):
    (archive,) = build_release([runs / "vit"], tmp_path / "out", license="mit")
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
    assert [member.name for member in members] == [f"vit/{name}" for name in ARCHIVED]
    for member in members:
        assert (member.mode, member.uid, member.gid, member.uname) == (0o644, 0, 0, "")
        assert member.mtime == 315_532_800
    shutil.unpack_archive(archive, tmp_path, filter="data")
    unpacked = tmp_path / "vit"
    assert (unpacked / "README.md").read_text() == create_model_card(unpacked, license="mit")
    assert (unpacked / "options.yaml").read_text().splitlines() == [
        'dataset: "cifar10"',
        "epochs: 30",
        'precision: "bf16-mixed"',
        "seed: 3",
        "knn_k: 20",
    ]
    assert b"alice" not in archive.read_bytes()


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_an_unpacked_archive_loads_here_and_in_timm_with_equal_features(name, runs, tmp_path):
    (archive,) = build_release([runs / name], tmp_path / "out", names=["net.v1"])
    shutil.unpack_archive(archive, tmp_path, filter="data")
    unpacked = tmp_path / "net.v1"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = load_backbone(runs / name)(images)
        assert torch.equal(load_backbone(unpacked)(images), expected)
        if name == "vit":
            model = timm.create_model(f"local-dir:{unpacked}", pretrained=True, num_classes=0)
            assert torch.equal(model.eval()(images), expected)
        else:
            with pytest.raises(RuntimeError, match="use mixco_lightly's load_backbone"):
                timm.create_model(f"local-dir:{unpacked}", pretrained=True, num_classes=0)


def test_the_checksums_are_those_of_every_file_and_find_a_changed_byte(runs, tmp_path):
    out = tmp_path / "out"
    build_release([runs / "vit", runs / "resnet"], out)
    lines = (out / "SHA256SUMS").read_text().splitlines()
    assert lines == [
        f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}"
        for name in ["index.md", "resnet.tar", "vit.tar"]
    ]
    check = ["sha256sum"] if shutil.which("sha256sum") else ["shasum", "-a", "256"]
    check += ["-c", "SHA256SUMS"]
    assert subprocess.run(check, cwd=out, capture_output=True).returncode == 0
    with (out / "vit.tar").open("r+b") as file:
        file.seek(2000)
        file.write(b"x")
    assert subprocess.run(check, cwd=out, capture_output=True).returncode == 1


def test_the_index_has_a_row_for_each_network_with_its_figures_protocol_and_command(runs, tmp_path):
    build_release([runs / "vit", runs / "resnet"], tmp_path / "out")
    lines = (tmp_path / "out" / "index.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert rows[0] == ["name", "what", "on which images", "figures, %", "trained by"]
    vit, resnet = rows[2:]
    assert vit == [
        "`vit`",
        "timm's `test_vit` by `moco`, 64 features, 1.1 MB, loads also in timm",
        "`cifar10`, 32x32 pixels, 3 channels",
        "linear probe, top-1: 71.23 (random initialisation not measured); kNN, top-1: 68.00 "
        "(random initialisation 31.50); cifar10, test images; kNN with k = 20; trained in "
        "bf16-mixed, measured in float32; one run with seed 3",
        "`mixco-lightly moco --config vit/options.yaml`",
    ]
    assert resnet[1].endswith("loads not in timm alone")
    assert resnet[2:] == ["32x32 pixels, 3 channels", "none recorded", "not recorded"]


def test_a_text_of_the_export_stays_in_its_cell(tmp_path):
    export_backbone(
        create_backbone("test_vit", 32), tmp_path / "x", training={"dataset": "a|b\n| c"}
    )
    build_release([tmp_path / "x"], tmp_path / "out")
    index = (tmp_path / "out" / "index.md").read_text()
    assert "| `a\\|b \\| c`, 32x32 pixels, 3 channels |" in index


def test_names_that_clash_are_refused_also_in_another_case(runs, tmp_path):
    out = tmp_path / "out"
    refuses(ValueError, r"vit and .*vit would both be vit\.tar", runs, out, "vit", "vit")
    options = {"names": ["net", "Net"]}
    refuses(ValueError, r"would both be Net\.tar", runs, out, "vit", "resnet", **options)
    with pytest.raises(ValueError, match="would both be"):
        build_release([str(runs / "vit")] * 2, out)


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "a b", "-x", "a\n", "ä"])
def test_a_name_that_is_no_file_of_a_release_is_refused(name, runs, tmp_path):
    refuses(ValueError, "needs another name than ", runs, tmp_path / "out", "vit", names=[name])


def test_too_few_names_and_no_folders_are_refused(runs, tmp_path):
    out, options = tmp_path / "out", {"names": ["a"]}
    refuses(
        ValueError, "each of the 2 folders a name, got 1", runs, out, "vit", "resnet", **options
    )
    refuses(ValueError, "Give folders of runs", runs, out)


def test_a_folder_without_an_export_or_with_a_damaged_one_leaves_nothing(runs, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    refuses(FileNotFoundError, "no backbone.json in", runs, out, "vit", tmp_path / "empty")
    damaged = shutil.copytree(runs / "vit", tmp_path / "damaged")
    with (damaged / "model.safetensors").open("ab") as file:
        file.write(b"x")
    refuses(ValueError, "SHA-256 is not the recorded one", runs, out, "vit", damaged)


def test_a_folder_that_is_not_empty_is_refused_until_told_and_then_replaced_whole(runs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    build_release([runs / "vit"], out)  # an empty folder is none to refuse
    refuses(FileExistsError, "not empty: .*--overwrite", runs, out, "resnet")
    build_release([runs / "resnet"], out, overwrite=True)
    assert sorted(contents(out)) == ["SHA256SUMS", "index.md", "resnet.tar"]
    assert sorted(tmp_path.iterdir()) == [out]


def test_files_that_are_not_of_a_release_are_not_replaced(runs, tmp_path):
    out = tmp_path / "out"
    build_release([runs / "vit"], out)
    (out / "notes.txt").write_text("mine")
    refuses(FileExistsError, r"not of a release \(notes.txt\)", runs, out, "vit", overwrite=True)
    run = shutil.copytree(runs / "vit", tmp_path / "run")
    refuses(FileExistsError, "not of a release", runs, run, "vit", overwrite=True)
    (tmp_path / "file").write_text("mine")
    refuses(FileExistsError, "not a folder", runs, tmp_path / "file", "vit", overwrite=True)


@pytest.mark.parametrize("moment", ["second archive", "checksums", "last rename"])
def test_a_failed_write_leaves_the_old_release_whole_and_nothing_beside_it(
    moment, runs, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    build_release([runs / "vit"], out)
    if moment == "last rename":
        replace = os.replace

        def fail(source, target):
            if Path(source).name == "new":
                raise OSError(28, "No space left on device")
            replace(source, target)

        monkeypatch.setattr(files.os, "replace", fail)
    else:
        name = {"second archive": "resnet.tar", "checksums": "SHA256SUMS"}[moment]
        whole = release_module.replace_file

        def fail(path):
            if path.name == name:
                raise files.WriteError(f"{path} cannot be written: No space left on device")
            return whole(path)

        monkeypatch.setattr(release_module, "replace_file", fail)
    options = {"overwrite": True}
    refuses(files.WriteError, "No space left", runs, out, "vit", "resnet", **options)


def test_an_interruption_between_the_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    replace, calls = os.replace, []

    def interrupt(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt), files.replace_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("new")
    assert contents(tmp_path / "out") == {"old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_options_of_a_run_are_a_file_that_its_recipe_takes(tmp_path, run_here):
    _, printed, _ = run_here("moco", "--weight_decay", 0.00001, "--print_config")
    options = yaml.safe_load(printed)
    assert options["weight_decay"] == 1e-5
    training = {"method": "moco", **options, "data_dir": "/home/alice/images"}
    export_backbone(create_backbone("test_vit", 32), tmp_path / "x", training=training)
    (archive,) = build_release([tmp_path / "x"], tmp_path / "out")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    file = tmp_path / "unpacked" / "x" / "options.yaml"
    code, again, error = run_here("moco", "--config", file, "--print_config")
    assert (code, error) == (0, "")
    assert yaml.safe_load(again) == options


def test_the_command_writes_a_release_and_says_where(runs, tmp_path, run_here):
    folders = ("--backbone_dir", runs / "vit", runs / "resnet", "--output_dir", tmp_path / "out")
    code, printed, _ = run_here("release", *folders, "--names", "a", "b", "--license", "mit")
    assert code == 0
    assert f"{tmp_path / 'out' / 'a.tar'}: 1.1 MB" in printed
    assert sorted(contents(tmp_path / "out")) == ["SHA256SUMS", "a.tar", "b.tar", "index.md"]
    assert b"license: mit" in (tmp_path / "out" / "a.tar").read_bytes()
    code, _, error = run_here("release", *folders)
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith("error: ")
    assert "add --overwrite" in error
