"""What goes wrong around a run is one line that names the file, and nothing is lost."""

import csv
import errno
import json
import math
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from pytorch_lightning.plugins import MixedPrecision
from safetensors.torch import load_file

from mixco_lightly.training.pretraining import Run, fit
from tests.run_recipe import RECIPES, Program, tiny_run

LAST = Path("checkpoints", "last.ckpt")
QUICK = ["--memory_bank_size", 8, "--protocol", "knn", "--random_init=false"]


@pytest.fixture
def recipe_modules(monkeypatch):
    """Lets a test import the recipes' modules."""
    monkeypatch.syspath_prepend(str(RECIPES))


def contents(folder):
    """The bytes of every file below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def last_line(error):
    return error.strip().splitlines()[-1]


def assert_one_line(code, error, *named):
    assert code == 1
    assert "Traceback" not in error
    for text in named:
        assert str(text) in last_line(error)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run of one epoch on digits, and the options that made it."""
    folder = tmp_path_factory.mktemp("faults") / "run"
    options = ["--train_fraction", 0.05, "--batch_size", 16, "--epochs", 1, "--num_workers", 0]
    options += [*QUICK, "--knn_k", 5, "--knn_every_n_epochs", 0, "--report=false"]
    options += ["--output_dir", folder]
    result = Program(RECIPES / "moco.py", *options, cwd=folder.parent).wait()
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_ctrl_c_says_how_to_go_on_or_that_there_is_nothing_to_resume(
    has_checkpoint, tmp_path, capsys
):
    def stop(*args, **kwargs):
        raise SystemExit(1)  # Lightning's after Ctrl-C

    if has_checkpoint:
        (tmp_path / LAST).parent.mkdir()
        (tmp_path / LAST).touch()
    strategy = SimpleNamespace(launcher=None)
    trainer = SimpleNamespace(
        strategy=strategy, node_rank=0, num_devices=1, current_epoch=2, callbacks=[], fit=stop
    )
    config = SimpleNamespace(output_dir=str(tmp_path), resume=False)
    with pytest.raises(SystemExit):
        fit(Run(None, config, None, None, None, trainer, None, None), "mixco-lightly moco")
    printed = capsys.readouterr().out
    assert ("Go on with:\n  mixco-lightly moco --config " in printed) == has_checkpoint
    assert ("had a checkpoint. Start again with --overwrite." in printed) == (not has_checkpoint)


def flip_bit(path, where):
    """Flips one bit of the byte at a part of the file, from 0 to 1."""
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def save_foreign(path):
    torch.save({"global_step": 1, "state_dict": {"weight": torch.ones(2)}}, path)


class Payload:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def save_of_another_run(path):
    """A whole checkpoint of these recipes, of a run with another temperature."""
    from mixco_lightly.training.run_folder import CheckpointFiles

    options = yaml.safe_load((path.parent.parent / "config.yaml").read_text())
    checkpoint = torch.load(path, weights_only=True)
    CheckpointFiles({**options, "temperature": 0.3}).save_checkpoint(checkpoint, path)


CHECKPOINT_FAULTS = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "empty": (lambda path: path.write_bytes(b""), "does not end with a checksum"),
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        "does not end with a checksum",
    ),
    "truncated by a byte": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "checksum"),
    "a byte too many": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "checksum"),
    **{
        f"a bit at {where}": (lambda path, where=where: flip_bit(path, where), "SHA-256 is not")
        for where in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)
    },
    "text": (lambda path: path.write_text("not a checkpoint"), "checksum"),
    "foreign": (save_foreign, "checksum"),
    "pickle": (lambda path: torch.save(Payload(), path), "checksum"),
    "another run": (save_of_another_run, "temperature 0.3, not 0.2"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
}


@pytest.mark.parametrize("fault", CHECKPOINT_FAULTS)
def test_a_checkpoint_that_is_not_as_it_was_written_is_one_line_and_nothing_is_changed(
    fault, finished_run, tmp_path, run_here, recipe_modules, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    for path, content in contents(finished_run).items():
        copy = folder / path.relative_to(finished_run)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    break_it, named = CHECKPOINT_FAULTS[fault]
    break_it(folder / LAST)
    before = contents(folder)
    options = ["--config", folder / "config.yaml", "--output_dir", folder, "--resume"]
    code, _, error = run_here("moco", *options)
    assert_one_line(code, error, folder / LAST, named)
    assert contents(folder) == before
    assert not (tmp_path / "unpickled").exists()


def test_every_flipped_byte_of_a_checkpoint_is_found(tmp_path, recipe_modules):
    from mixco_lightly.training.run_folder import CheckpointFiles, read_steps

    path = tmp_path / "last.ckpt"
    CheckpointFiles({"seed": 1}).save_checkpoint({"global_step": 7, "x": torch.ones(8)}, path)
    whole = path.read_bytes()
    assert read_steps(path, {"seed": 1}) == 7
    assert torch.load(path, weights_only=True)["global_step"] == 7  # an ordinary file of torch's
    for index in range(0, len(whole), 5):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 16]) + whole[index + 1 :])
        with pytest.raises(ValueError, match="damaged or not a checkpoint"):
            read_steps(path)


def test_a_pickle_with_a_right_checksum_is_not_run(tmp_path, recipe_modules, monkeypatch):
    from mixco_lightly.training.run_folder import CheckpointFiles, read_steps

    # Turns the refusal off for who does not ask for it.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    CheckpointFiles().save_checkpoint({"global_step": 7, "payload": Payload()}, path)
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        read_steps(path)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("text", ["", "seed", "- 1", "a: [", "seed: !!python/name:os.getpid"])
def test_options_that_are_none_are_one_line(text, finished_run, run_here, tmp_path):
    folder = tmp_path / "run"
    (folder / LAST).parent.mkdir(parents=True)
    (folder / LAST).write_bytes((finished_run / LAST).read_bytes())
    (folder / "config.yaml").write_text(text)
    code, _, error = run_here("moco", "--output_dir", folder, "--resume")
    assert_one_line(code, error, folder / "config.yaml")


# The second checkpoint meets a limit of the file's size, which the kernel enforces.
LIMITED = """
import resource, runpy, sys
import mixco_lightly.training.run_folder as run_folder
save, count = run_folder.CheckpointFiles.save_checkpoint, 0
def save_under_a_limit(*args, **kwargs):
    global count
    count += 1
    if count == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    save(*args, **kwargs)
run_folder.CheckpointFiles.save_checkpoint = save_under_a_limit
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def assert_first_epoch_is_kept(folder):
    """The checkpoint of the first epoch of two is whole, and the only file."""
    from mixco_lightly.training.run_folder import read_steps

    assert read_steps(folder / LAST) == 2
    assert list((folder / LAST).parent.iterdir()) == [folder / LAST]


@pytest.mark.parametrize("limit", [10_000, 200_000])
def test_a_checkpoint_that_the_disk_does_not_take_is_one_line_and_the_last_one_is_kept(
    limit, image_folder, tmp_path, recipe_modules
):
    program = tmp_path / "limited.py"
    program.write_text(LIMITED.format(limit=limit))
    options = tiny_run(image_folder, *QUICK, "--output_dir", tmp_path / "run")
    result = Program(program, RECIPES / "moco.py", *options, cwd=tmp_path).wait()
    named = (tmp_path / "run" / LAST, f"cannot be written: {os.strerror(errno.EFBIG)}")
    assert_one_line(result.returncode, result.stderr, *named)
    assert_first_epoch_is_kept(tmp_path / "run")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_at_the_last_moment_is_one_line_and_the_last_one_is_kept(
    failing, image_folder, tmp_path, run_here, recipe_modules, monkeypatch
):
    call, count = getattr(os, failing), 0

    def fail(*args):
        nonlocal count
        # Of the checkpoints alone: the run's first file is config.yaml.
        count += (tmp_path / "run" / LAST).exists()
        if count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*args)

    monkeypatch.setattr(os, failing, fail)
    options = tiny_run(image_folder, *QUICK, "--knn_every_n_epochs", 0)
    code, _, error = run_here("moco", *options, "--output_dir", tmp_path / "run")
    assert_one_line(code, error, tmp_path / "run" / LAST, "No space left on device")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(RECIPES))
    assert_first_epoch_is_kept(tmp_path / "run")


def test_metrics_that_the_disk_does_not_take_are_named(tmp_path, recipe_modules):
    from mixco_lightly.training.metrics import MetricsFile

    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.log_metrics({"loss": 1.0}, 1)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"metrics\.csv cannot be written: No space left on device"):
        metrics.log_metrics({"loss": 1.0}, 2)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_cannot_be_written_to_is_found_before_anything_else(
    resume, finished_run, run_here, monkeypatch
):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    before = contents(finished_run)
    options = ["--config", finished_run / "config.yaml", "--resume" if resume else "--overwrite"]
    options += ["--dataset", "imagefolder", "--image_size", 16]
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    # No data is opened before the probe.
    code, _, error = run_here("moco", *options, "--data_dir", "nowhere")
    assert_one_line(code, error, finished_run, "Read-only file system")
    assert contents(finished_run) == before


def test_an_output_folder_below_a_file_is_one_line(tmp_path, run_here):
    (tmp_path / "file").write_text("")
    code, _, error = run_here("moco", "--output_dir", tmp_path / "file" / "run")
    assert_one_line(code, error, tmp_path / "file" / "run", "Not a directory")


@pytest.mark.parametrize("recipe", ["moco", "simclr"])
def test_a_batch_that_is_not_finite_stops_the_run_and_the_last_good_checkpoint_is_kept(
    recipe, image_folder, tmp_path, run_here, recipe_modules, monkeypatch
):
    from mixco_lightly import Mixer

    mix, steps = Mixer.__call__, 0

    def mix_with_a_nan(mixer, images):
        nonlocal steps
        steps += 1
        if steps > 4:  # in the second epoch: two steps of a mixture for each view
            images[0, 0, 0, 0] = float("nan")
        return mix(mixer, images)

    monkeypatch.setattr(Mixer, "__call__", mix_with_a_nan)
    options = tiny_run(image_folder, "--epochs", 3, "--protocol", "knn", "--knn_every_n_epochs", 0)
    code, _, error = run_here(recipe, *options, "--output_dir", tmp_path / "run")
    assert_one_line(code, error, "step ", "(process 0)", "checkpoints/last.ckpt")
    from mixco_lightly.training.run_folder import read_steps

    saved = torch.load(tmp_path / "run" / LAST, weights_only=True)
    assert read_steps(tmp_path / "run" / LAST) == saved["global_step"] > 0
    assert all(x.isfinite().all() for x in saved["state_dict"].values() if x.is_floating_point())


def run_in_16_mixed(bad_steps, batch_size, tmp_path, run_here, monkeypatch, image_folder):
    """Runs simclr.py with a GradScaler on the CPU, and with a NaN in the images of some steps."""
    import mixco_lightly.training.pretraining as pretrain
    from mixco_lightly import Mixer

    create_trainer, mix, calls = pretrain.create_trainer, Mixer.__call__, 0

    def create_trainer_with_scaler(*args):
        trainer = create_trainer(*args)
        # Lightning's Trainer takes bf16-mixed instead on a CPU.
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu")
        return trainer

    def mix_with_a_nan(mixer, images):
        nonlocal calls
        calls += 1  # one for each of two views
        if (calls + 1) // 2 in bad_steps:
            images[0, 0, 0, 0] = float("nan")
        return mix(mixer, images)

    monkeypatch.setattr(pretrain, "create_trainer", create_trainer_with_scaler)
    monkeypatch.setattr(Mixer, "__call__", mix_with_a_nan)
    options = tiny_run(image_folder, "--epochs", 3, "--batch_size", batch_size, "--protocol", "knn")
    options += ["--random_init=false", "--knn_every_n_epochs", 1, "--precision", "32-true"]
    return run_here("simclr", *options, "--output_dir", tmp_path / "run")


def test_in_16_mixed_a_few_steps_that_overflow_do_not_end_the_run_nor_remain_in_the_backbone(
    image_folder, tmp_path, run_here, recipe_modules, monkeypatch
):
    from mixco_lightly.training.metrics import draw_curves

    # The last step of the first epoch, which is logged, and the first step of the second.
    code, _, error = run_in_16_mixed({2, 3}, 10, tmp_path, run_here, monkeypatch, image_folder)
    assert code == 0, error
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert [math.isfinite(loss) for loss in losses] == [False, True, True]
    draw_curves(tmp_path / "run")  # with a loss that is infinite
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(x.isfinite().all() for x in weights.values() if x.is_floating_point())
    # And the statistics are of a training: those at initialisation are 0 and 1.
    assert all((x != 0).any() for name, x in weights.items() if name.endswith("running_mean"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["knn_top1"] > 0


def test_in_16_mixed_the_run_ends_after_more_than_20_steps_in_a_row_that_overflow(
    image_folder, tmp_path, run_here, recipe_modules, monkeypatch
):
    bad = range(5, 99)
    code, _, error = run_in_16_mixed(bad, 2, tmp_path, run_here, monkeypatch, image_folder)
    # Steps 5 to 25 are 21. An epoch has 12 steps, and the loss is looked at in the 10th and 12th.
    assert_one_line(code, error, "The loss is nan at step 34 (process 0). ", str(LAST))


def test_broken_images_are_left_out_listed_and_counted(
    image_folder, tmp_path, run_here, recipe_modules
):
    broken = [image_folder / "train/red/05.png", image_folder / "test/blue/02.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    options = tiny_run(image_folder, *QUICK, "--epochs", 1, "--output_dir", tmp_path / "run")
    code, printed, error = run_here("moco", *options, "--max_broken_images", 1)
    assert code == 0, error
    assert f"2 broken images are left out: {tmp_path / 'run' / 'broken_images.txt'}" in printed
    listed = (tmp_path / "run" / "broken_images.txt").read_text().splitlines()
    for path, line in zip(broken, listed, strict=True):
        assert str(path) in line
    assert "2 broken images are left out" in printed.split("Trained for")[0].split("broken_im")[-1]
    # The evaluation goes without them too, and the same run may be made anew without them.
    code, printed, _ = run_here(
        *("evaluate", "--backbone_dir", tmp_path / "run", "--protocol", "knn", "--knn_k", 5),
        *("--num_workers", 0, "--max_broken_images", 1),
    )
    assert code == 0
    assert "2 broken images are left out" in (tmp_path / "run" / "evaluation.json").read_text()
    Path(broken[0]).with_name("06.png").write_bytes(b"")
    code, _, error = run_here("moco", *options, "--max_broken_images", 1, "--overwrite")
    assert_one_line(code, error, "More than 1 images of train", broken[0])
    assert (tmp_path / "run" / "summary.json").exists()
