"""Runs of a number of steps, and runs on streams."""

import csv
import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import IterableDataset

from mixco_lightly.data import ImageError, Mixer
from mixco_lightly.training import MixCoConfig
from mixco_lightly.training.data_module import PretrainData
from mixco_lightly.training.options import OptimiserOptions
from mixco_lightly.training.run_length import count_steps
from tests.run_recipe import TINY, tiny_run

OWN_STREAM = """
import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset

class Noise(IterableDataset):
    def __init__(self):
        self.number = 0
    def set_epoch(self, number):
        self.number = number
        print("pass", number, flush=True)
    def __iter__(self):
        rng = np.random.default_rng(self.number)
        for index in range(25):
            pixels = rng.integers(256, size=(16 + index % 2, 16, 3), dtype=np.uint8)
            yield Image.fromarray(pixels), index % 2

def create(data_dir, train):
    return Noise() if train else None
"""
STREAM = [*TINY, "--image_size", 16, "--batch_size", 4, "--memory_bank_size", 8]


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def lines_of(printed, start):
    return [line for line in printed.splitlines() if line.startswith(f"{start} ")]


def state(run, name="last"):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_a_stream_is_trained_on_for_max_steps_and_a_resumed_run_goes_on_from_its_last_checkpoint(
    tmp_path, run_here
):
    (tmp_path / "noise.py").write_text(OWN_STREAM)
    run = tmp_path / "run"
    options = ["--dataset", f"{tmp_path / 'noise.py'}:create", "--output_dir", run]
    options += ["--max_steps", 8, "--steps_per_epoch", 3, "--keep_every_n_epochs", 1]
    options += ["--accumulate", 2]
    code, printed, error = run_here("moco", *STREAM, *options)
    assert code == 0, error
    assert ": a stream of images of 16 pixels" in printed
    assert "8 steps (3 epochs)" in printed
    assert (
        "No kNN while training and no probes at the end: the training images are a str" in printed
    )
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("epoch ")] == [
        "1/3",
        "2/3",
        "3/3",
    ]
    # A pass has six whole batches of the 16, and an epoch does not begin one anew.
    assert lines_of(printed, "pass") == ["pass 0", "pass 1", "pass 2"]
    assert [state(run, f"epoch-{n:04}")["global_step"] for n in (1, 2, 3)] == [3, 6, 8]
    assert state(run)["global_step"] == 8
    assert json.loads((run / "summary.json").read_text())["epochs"] == 3
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert (recorded["max_steps"], recorded["epochs"], recorded["steps_per_epoch"]) == (8, 3, 3)
    rates = [float(row["learning_rate"]) for row in rows(run)]
    assert rates[0] > rates[-1]

    (run / "checkpoints" / "epoch-0002.ckpt").replace(run / "checkpoints" / "last.ckpt")
    code, printed, error = run_here("moco", "--config", run / "config.yaml", "--resume")
    assert code == 0, error
    # The stream begins anew, in another order than any before.
    assert lines_of(printed, "pass") == ["pass 6"]
    assert state(run)["global_step"] == 8


class Numbered(IterableDataset):
    """Grey images whose level is their number."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        for value in range(self.count):
            yield Image.new("RGB", (4, 4), (value,) * 3)


class Trainer:
    """What the batches ask a trainer for."""

    def __init__(self, global_step=0, global_rank=0, world_size=1):
        self.global_step, self.current_epoch = global_step, 0
        self.global_rank, self.world_size = global_rank, world_size


def levels(image):
    """Two views: the image's level, and random numbers."""
    return [torch.tensor(np.asarray(image)[0, 0, 0]), torch.rand(())]


def create_data(images, trainer, workers=0, batch_size=4):
    data = PretrainData(
        images,
        levels,
        on_device=False,
        mixed_views=(),
        mixer=Mixer.mixco(),
        train_fraction=1.0,
        batch_size=batch_size,
        num_workers=workers,
        seed=0,
    )
    data.trainer = trainer
    return data


def test_an_epoch_goes_on_where_the_last_one_ended_and_a_pass_gives_each_image_once():
    data = create_data(Numbered(10), Trainer())
    epochs = [next(iter(data.train_dataloader()))[0][0].tolist() for _ in range(3)]
    # The two images behind the whole batches are left out, as at the end of any epoch.
    assert epochs == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def draws(trainer, workers, batches=6):
    data = create_data(Numbered(24), trainer, workers)
    loader = iter(data.train_dataloader())
    drawn = [next(loader)[0][1] for _ in range(batches)]
    data.teardown("fit")
    return torch.cat(drawn).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_seed_pass_rank_and_worker_decide_every_random_number(workers):
    first = draws(Trainer(), workers, batches=12)  # of two passes of 24 images
    assert first == draws(Trainer(), workers, batches=12)
    assert len(set(first)) == 48
    others = [Trainer(global_step=5)]
    if not workers:  # else a device's share is no whole batch for each
        others += [Trainer(global_rank=0, world_size=2), Trainer(global_rank=1, world_size=2)]
    taken = [draws(trainer, workers, batches=3) for trainer in others]
    assert not set(taken[0]) & set(first)
    if not workers:
        assert not set(taken[1]) & set(taken[2])


def test_a_pass_without_a_whole_batch_is_an_error_and_no_endless_loop():
    with pytest.raises(ImageError, match="no whole batch of 4 images in any of 1 loader process"):
        next(create_data(Numbered(3), Trainer()).train_dataloader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--max_steps, the length of the run"),
        (["--max_steps", 4, "--train_fraction", 0.5], "--train_fraction 0.5 needs images whose"),
        (["--max_steps", 4, "--augment", "device"], "use --augment workers"),
        (["--max_steps", 4, "--steps_per_epoch", 2, "--warmup_epochs", 2], "got 2 and 2 of --max"),
    ],
)
def test_options_that_a_stream_cannot_have_are_one_line(options, message, tmp_path, run_here):
    (tmp_path / "noise.py").write_text(OWN_STREAM)
    own = ["--dataset", f"{tmp_path / 'noise.py'}:create", "--output_dir", tmp_path / "run"]
    code, _, error = run_here("moco", *STREAM, *own, *options)
    assert code == 1
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_methods_with_labels_and_evaluate_refuse_a_stream_in_one_line(tmp_path, run_here, evaluate):
    (tmp_path / "noise.py").write_text(OWN_STREAM)
    own = ["--dataset", f"{tmp_path / 'noise.py'}:create"]
    options = [*TINY, *own, "--image_size", 16, "--max_steps", 2, "--objective", "supcon"]
    code, _, error = run_here("selfcon", *options, "--output_dir", tmp_path / "run")
    assert (code, len(error.splitlines())) == (1, 1)
    assert "trains with labels, and the training images are a stream" in error
    code, _, error = evaluate("--backbone", "test_resnet", "--image_size", 16, *own)
    assert (code, len(error.splitlines())) == (1, 1)
    assert "returned a stream for train=True" in error


def test_max_steps_ends_a_run_in_the_middle_of_an_epoch_and_decides_epochs_and_schedule(
    image_folder, tmp_path, run_here
):
    # Half of 24 images are six of each class: two batches of 5, a step of each with accumulate 1.
    run = tmp_path / "run"
    options = ["--batch_size", 5, "--train_fraction", 0.5, "--memory_bank_size", 8]
    options += ["--max_steps", 3, "--epochs", 99, "--knn_every_n_epochs", 2, "--protocol", "knn"]
    options += ["--warmup_epochs", 0, "--random_init", "false", "--output_dir", run]
    options += ["--keep_every_n_epochs", 1]
    code, printed, error = run_here("moco", *tiny_run(image_folder, *options))
    assert code == 0, error
    assert "moco on imagefolder: 12 images" in printed
    assert "3 steps (2 epochs)" in printed
    assert "epoch 2/2" in printed
    assert state(run)["global_step"] == 3
    # A last, short epoch is an epoch: nearest neighbours are measured and a checkpoint is written.
    (knn,) = [row for row in rows(run) if row["knn_top1"]]
    assert (knn["epoch"], knn["step"]) == ("1", "2")
    assert state(run)["epoch"] == 1
    (schedule,) = state(run)["lr_schedulers"]
    assert schedule["last_epoch"] == 3
    assert schedule["_last_lr"][0] < 1e-8  # the cosine is at its end
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 2

    code, _, error = run_here("moco", "--config", run / "config.yaml", "--resume")
    assert code == 0, error
    code, _, error = run_here("moco", "--config", run / "config.yaml", "--resume", "--max_steps", 4)
    assert code == 1
    assert "max_steps 3, not 4" in error


def test_steps_per_epoch_and_a_warm_up_as_long_as_the_steps_are_refused(
    image_folder, tmp_path, run_here
):
    options = ["--memory_bank_size", 8, "--output_dir", tmp_path / "run"]
    for more, message in [
        (
            ["--steps_per_epoch", 5],
            "--steps_per_epoch is for streams; here an epoch is",
        ),
        (["--max_steps", 2, "--warmup_epochs", 1], "got 1 and 1 of --max_steps 2."),
    ]:
        code, _, error = run_here("moco", *tiny_run(image_folder, *options, *more))
        assert (code, len(error.splitlines())) == (1, 1)
        assert message in error


@pytest.mark.parametrize(
    ("images", "batch_size", "devices", "accumulate", "steps"),
    [(100, 10, 1, 1, 10), (109, 10, 1, 1, 10), (100, 10, 3, 1, 3), (100, 10, 1, 4, 3)],
)
def test_a_pass_has_the_whole_batches_of_each_device_rounded_up_to_steps(
    images, batch_size, devices, accumulate, steps
):
    config = MixCoConfig(batch_size=batch_size, devices=devices, accumulate=accumulate)
    assert count_steps(images, config) == steps
    with pytest.raises(ValueError, match="lower --batch_size"):
        count_steps(batch_size * devices - 1, config)


def test_the_length_in_words():
    options = OptimiserOptions(epochs=3)
    assert options.length == "3 epochs"
    assert replace(options, max_steps=1200).length == "1,200 steps (3 epochs)"


def write_shard(path, count, kind="png"):
    """Noise that is redder or greener by its class, of two sizes."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as file:
        for index in range(count):
            content = io.BytesIO()
            pixels = rng.integers(128, size=(16 + index % 2, 16, 3), dtype=np.uint8)
            pixels[..., index % 2] += 127
            Image.fromarray(pixels).save(content, "PNG")
            for ending, data in [(kind, content.getvalue()), ("cls", b"%d" % (index % 2))]:
                member = tarfile.TarInfo(f"{index:06}.{ending}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))


def test_tar_shards_train_with_probes_and_are_evaluated_by_their_recorded_name(
    tmp_path, run_here, evaluate
):
    write_shard(tmp_path / "shards" / "train-0.tar", 12)
    write_shard(tmp_path / "shards" / "train-1.tar", 12)
    write_shard(tmp_path / "shards" / "test-0.tar", 8)
    # The same names in two shards are different images.
    run = tmp_path / "run"
    options = ["--data_dir", tmp_path / "shards", "--epochs", 1, "--knn_every_n_epochs", 1]
    options += ["--random_init", "false", "--protocol", "knn", "--output_dir", run]
    code, printed, error = run_here("moco", *STREAM, *options)
    assert code == 0, error
    assert "Found train-0.tar in " in printed
    assert "moco on webdataset: 24 images of 16 pixels" in printed
    assert rows(run)[-1]["knn_top1"]
    top1 = json.loads((run / "summary.json").read_text())["knn_top1"]
    quiet = ["--num_workers", 0, "--knn_k", 5, "--protocol", "knn"]
    code, _, error = evaluate("--backbone_dir", run, *quiet)
    assert code == 0, error
    (record,) = json.loads((run / "evaluation.json").read_text())["results"]
    assert record["dataset"] == "webdataset"
    assert record["top1"] == top1


def test_webdatasets_reader_is_a_stream_that_shares_itself_out(tmp_path):
    import webdataset

    for index in range(2):
        write_shard(tmp_path / f"{index}.tar", 8)
    source = webdataset.WebDataset(
        [str(tmp_path / f"{index}.tar") for index in range(2)], shardshuffle=False
    ).to_tuple("png", "cls")
    source.splits_itself = True
    data = create_data(source, Trainer(), workers=2)
    batches = data.train_dataloader()
    targets = torch.cat([next(batches)[1] for _ in range(4)])  # a pass: 16 images
    data.teardown("fit")
    assert targets.tolist() == [0, 1] * 8
    assert data.stream.describe_reading(2).startswith("The stream shares itself out")


def test_a_broken_image_of_a_stream_ends_the_run_in_one_line_or_is_listed(tmp_path, run_here):
    code = OWN_STREAM.replace(
        "yield Image", 'yield (b"no image", 0) if index == 6 else Image'
    ).replace("), index % 2\n", ")\n")
    (tmp_path / "noise.py").write_text(code)
    run = tmp_path / "run"
    options = [*STREAM, "--dataset", f"{tmp_path / 'noise.py'}:create", "--max_steps", 8]
    code, _, error = run_here("moco", *options, "--output_dir", run)
    assert code == 1
    assert error.splitlines()[-1].startswith(
        "error: More than 0 images of the stream cannot be opened, the limit that "
        "--max_broken_images sets. The image number 7 of the stream cannot be opened: "
    )
    options += ["--output_dir", run, "--overwrite", "--max_broken_images", 1]
    code, printed, error = run_here("moco", *options)
    assert code == 0, error
    (line,) = (run / "broken_images.txt").read_text().splitlines()
    assert line.startswith("The image number 7 of the stream cannot be opened: ")
    assert f"Broken images are left out of the stream: {run / 'broken_images.txt'}" in printed
