"""Which mixer a recipe trains with, and that runs with it resume bit for bit."""

import dataclasses
import importlib
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixco_lightly import Mixer, mix_pairs
from mixco_lightly.training.pretraining import create_data
from mixco_lightly.training.resolve import resolve
from mixco_lightly.training.run_folder import CheckpointFiles
from tests.run_recipe import RECIPES, tiny_run

LAST = Path("checkpoints", "last.ckpt")


@pytest.fixture(scope="module")
def pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        yield {name: importlib.import_module(name) for name in ("moco", "simclr", "imix", "unmix")}


@pytest.fixture(scope="module")
def resolved(pages):
    return resolve(pages["moco"].MoCoConfig(augment="device"))


def data_of(pages, resolved, recipe, **options):
    """The batches of a recipe on the digits with some options."""
    config = pages[recipe].recipe.config_class(
        augment="device", image_size=32, min_scale=0.5, num_workers=0, **options
    )
    return create_data(pages[recipe].recipe, config, resolved.images)


MIXERS = [
    ("moco", {}, Mixer.mixco()),
    ("moco", {"mixing": "cutmix", "alpha": 0.5}, Mixer("cutmix", "halves", 0.5)),
    ("simclr", {"mixing": "mask"}, Mixer("mask", "halves")),
    ("imix", {}, Mixer("mixup", "permuted", folded=True)),
    ("imix", {"mixing": "cutmix"}, Mixer("cutmix", "permuted", shared_weight=True, folded=True)),
    ("unmix", {}, Mixer("mixup-or-cutmix", "reversed", shared_weight=True)),
    ("unmix", {"mixing": "mask"}, Mixer("mask", "reversed", math.inf, shared_weight=True)),
    ("unmix", {"mixing": "mask", "alpha": 2.0}, Mixer("mask", "reversed", 2.0, shared_weight=True)),
    ("unmix", {"mixing": "mixup", "pairing": "halves"}, Mixer("mixup", "halves")),
]


@pytest.mark.parametrize(("recipe", "options", "mixer"), MIXERS)
def test_a_recipe_mixes_by_its_options_with_its_authors_pairs_and_weights(
    recipe, options, mixer, pages, resolved
):
    data = data_of(pages, resolved, recipe, **options)
    assert data.mixer == mixer
    assert tuple(data.mixed_views) == ((0, 1) if recipe == "simclr" else (0,))


@pytest.mark.parametrize("recipe", ["moco", "unmix"])
def test_without_weight_nothing_is_mixed(recipe, pages, resolved):
    data = data_of(pages, resolved, recipe, mix_weight=0.0)
    batch = data.on_after_batch_transfer([torch.zeros(4, 3, 32, 32, dtype=torch.uint8), None], 0)
    assert batch[-1] == []


class Epoch:
    """What the batches ask a trainer for."""

    world_size = 2

    def __init__(self, epoch, rank):
        self.current_epoch, self.global_rank = epoch, rank


def mixed_steps(data, epoch, rank, steps=200):
    """Which steps of an epoch are mixed, and the random number that comes after them."""
    data.trainer = Epoch(epoch, rank)
    data.train_dataloader()
    data.device_transform = None  # the decision alone
    views = [torch.zeros(2, 3, 4, 4)] * 2
    return [bool(data.on_after_batch_transfer([views, None], 0)[-1]) for _ in range(steps)]


def test_a_part_of_the_steps_is_mixed_in_all_processes_the_same_and_by_seed_and_epoch(
    pages, resolved
):
    data = data_of(pages, resolved, "moco", mix_probability=0.3)
    first = mixed_steps(data, epoch=0, rank=0)
    assert 0.2 < sum(first) / len(first) < 0.4  # three standard deviations
    assert mixed_steps(data, epoch=0, rank=1) == first
    assert mixed_steps(data, epoch=1, rank=0) != first
    assert mixed_steps(data, epoch=0, rank=0) == first  # as after a resume
    other = data_of(pages, resolved, "moco", mix_probability=0.3, seed=1)
    assert mixed_steps(other, epoch=0, rank=0) != first
    assert all(mixed_steps(data_of(pages, resolved, "moco"), epoch=0, rank=0))


def test_the_decision_to_mix_takes_no_random_number_of_views_and_mixtures(pages, resolved):
    ends = []
    for probability in (1.0, 0.999999):
        data = data_of(pages, resolved, "moco", mix_probability=probability)
        assert all(mixed_steps(data, epoch=0, rank=0, steps=20))
        ends.append(float(torch.rand(())))
    assert ends[0] == ends[1]


def test_the_default_mixtures_are_those_of_mix_pairs_bit_by_bit(pages, resolved):
    data = data_of(pages, resolved, "moco")
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    torch.manual_seed(0)
    views, _, (mixture,) = data.on_after_batch_transfer([images, None], 0)
    torch.manual_seed(0)
    expected = mix_pairs(data.device_transform(images)[0])
    assert all(torch.equal(a, b) for a, b in zip(mixture, expected, strict=True))
    assert views[0].shape == (6, 3, 32, 32)


def assert_same_weights(part, whole):
    states = [torch.load(run / LAST, weights_only=True)["state_dict"] for run in (part, whole)]
    weights = [load_file(run / "model.safetensors") for run in (part, whole)]
    for one, other in (states, weights):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("recipe", "mixing"), [("imix", "cutmix"), ("unmix", "mask")])
def test_a_run_that_resumes_after_an_epoch_is_the_uninterrupted_one(
    recipe, mixing, image_folder, tmp_path, run_here
):
    options = tiny_run(image_folder, "--memory_bank_size", 32, "--protocol", "none")
    options += ["--mixing", mixing, "--keep_every_n_epochs", 1]
    options += ["--mix_probability", 0.5] if recipe == "unmix" else []
    code, _, error = run_here(recipe, *options, "--output_dir", tmp_path / "whole")
    assert code == 0, error
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.copy(tmp_path / "part" / "checkpoints" / "epoch-0001.ckpt", tmp_path / "part" / LAST)
    resume = ["--config", tmp_path / "part" / "config.yaml", "--resume"]
    code, printed, error = run_here(recipe, *resume, "--output_dir", tmp_path / "part")
    assert code == 0, error
    assert "epoch 2/2" in printed
    assert "epoch 1/2" not in printed
    assert_same_weights(tmp_path / "part", tmp_path / "whole")


def test_a_run_begun_before_there_was_a_choice_of_mixings_resumes_with_mixup_only(
    image_folder, tmp_path, run_here
):
    options = tiny_run(image_folder, "--memory_bank_size", 32, "--protocol", "none")
    run = tmp_path / "run"
    code, _, error = run_here("moco", *options, "--output_dir", run)
    assert code == 0, error
    # As that version wrote the files.
    config = run / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    later = {"mixing: mixup\n", "mix_probability: 1.0\n"}
    assert later <= set(lines)
    config.write_text("".join(line for line in lines if line not in later))
    checkpoint = torch.load(run / LAST, weights_only=True)
    now = checkpoint.pop("options")
    before = {name: x for name, x in now.items() if name not in ("mixing", "mix_probability")}
    CheckpointFiles(before).save_checkpoint(checkpoint, run / LAST)

    resume = ["--config", config, "--resume"]
    code, _, error = run_here("moco", *resume, "--mixing", "cutmix")
    assert code == 1
    assert "was started with mixing mixup, not cutmix" in error
    code, _, error = run_here("moco", *resume)
    assert code == 0, error


def test_every_option_of_a_mixing_is_a_field_of_its_recipe_and_no_more(pages):
    def own(recipe):
        return {field.name for field in dataclasses.fields(pages[recipe].recipe.config_class)}

    queue = {"memory_bank_size", "momentum", "final_momentum"}
    mixco = {"temperature", "mix_temperature", "mix_weight", "mix_probability", "alpha", "mixing"}
    assert own("moco") - own("simclr") == queue
    assert own("simclr") - own("moco") == {"chunk_size"}
    assert own("moco") & own("imix") >= queue | {"temperature", "alpha", "mixing"}
    assert own("moco") - own("imix") == {"mix_temperature", "mix_weight", "mix_probability"}
    assert own("moco") - own("unmix") == {"mix_temperature"}
    assert own("unmix") - own("moco") == {"pairing"}
    assert mixco <= own("simclr")
