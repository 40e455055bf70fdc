"""Damaged files: what is loaded equals what was saved, or there is one error that names the file.

No damage may run code or write elsewhere: one of the mutations puts a pickle into the file that
would leave a trace.
"""

import json
import pickle
import random
import zipfile

import pytest
import torch
from PIL import Image

from mixco_lightly import create_backbone, export_backbone, load_backbone
from mixco_lightly.data.catalogue import create_train_test
from tests.run_recipe import RECIPES

WEIGHTS, CONFIG = "model.safetensors", "backbone.json"


class Planted:
    """Unpickled, it writes a file."""

    def __reduce__(self):
        return exec, ("open('planted', 'w').write('')",)


def flip(data, rng):
    data = bytearray(data)
    # Headers and directories are at the ends; most bytes are numbers.
    ends = [range(min(600, len(data))), range(max(0, len(data) - 600), len(data))]
    where = rng.choice([*ends, range(len(data))])
    for _ in range(rng.choice([1, 1, 1, 8])):
        data[rng.choice(where)] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwrite(data, rng):
    start = rng.randrange(len(data))
    length = min(rng.choice([1, 4, 8, 100, 4096]), len(data) - start)
    filler = rng.choice([b"\0", b"\xff", rng.randbytes(1)])
    return data[:start] + filler * length + data[start + length :]


def truncate(data, rng):
    return data[: rng.choice([0, 1, 7, 8, len(data) - 1, rng.randrange(len(data))])]


def delete(data, rng):
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice([1, 8, 64, 1000]) :]


def insert(data, rng):
    start = rng.choice([0, len(data), rng.randrange(len(data))])
    return data[:start] + rng.randbytes(rng.choice([1, 8, 64, 1000])) + data[start:]


def splice(data, rng):
    source, target = rng.randrange(len(data)), rng.randrange(len(data))
    piece = data[source : source + rng.choice([8, 64, 1000])]
    return data[:target] + piece + data[target + len(piece) * rng.randrange(2) :]


def plant(data, rng):
    """The file is a pickle that runs code, or contains one, under torch's name if it is a zip."""
    code = pickle.dumps(Planted())
    start = rng.randrange(len(data))
    return rng.choice([code, code + data, data[:start] + code + data[start + len(code) :]])


MUTATIONS = [flip, flip, flip, overwrite, truncate, delete, insert, splice, plant]


def mutate(data, rng):
    for _ in range(rng.choice([1, 1, 2, 3])):
        data = rng.choice(MUTATIONS)(data, rng) or b"\0"
    return data


def with_planted_pickle(path):
    """A zip as torch's whose pickle runs code."""
    damaged = path.with_suffix(".damaged")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(damaged, "w") as new:
        for name in old.namelist():
            data = pickle.dumps(Planted()) if name.endswith("data.pkl") else old.read(name)
            new.writestr(name, data)
    return damaged.read_bytes()


def check(trials, path, load, is_equal, folder, monkeypatch, extra=()):
    """Damages a file many times; gives how often it was refused."""
    monkeypatch.chdir(folder)
    whole = path.read_bytes()
    refused = 0
    for trial in range(trials):
        rng = random.Random(trial)
        damaged = extra[trial] if trial < len(extra) else mutate(whole, rng)
        path.write_bytes(damaged)
        before = {x: x.stat().st_mtime_ns for x in folder.parent.rglob("*")}
        error = ""
        try:
            loaded = load()
        except (ValueError, OSError) as raised:
            error = str(raised)
        if error:
            assert str(path) in error, f"trial {trial}: {error}"
            assert "\n" not in error, f"trial {trial}: {error}"
            refused += 1
        else:
            assert is_equal(loaded), f"trial {trial}: something else was loaded"
        after = {x: x.stat().st_mtime_ns for x in folder.parent.rglob("*")}
        assert after == before, f"trial {trial} wrote a file"
    path.write_bytes(whole)
    assert is_equal(load())
    return refused


def check_weights(trials, folder, monkeypatch):
    backbone = create_backbone("test_resnet", image_size=32, stem="timm")
    expected = backbone.model.state_dict()
    export_backbone(backbone, folder)

    def is_equal(loaded):
        state = loaded.model.state_dict()
        return state.keys() == expected.keys() and all(
            torch.equal(state[name], expected[name]) for name in expected
        )

    load = lambda: load_backbone(folder)  # noqa: E731
    return check(trials, folder / WEIGHTS, load, is_equal, folder, monkeypatch)


def check_description(trials, folder, monkeypatch):
    """The description is a text that people may edit: it is followed as it stands, or refused."""
    backbone = create_backbone("test_resnet", image_size=32, stem="timm")
    expected = backbone.model.state_dict()
    export_backbone(backbone, folder, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    path = folder / CONFIG

    def is_equal(loaded):
        says = json.loads(path.read_text())
        state = loaded.model.state_dict()
        size = loaded.image_size
        features = loaded(torch.zeros(1, loaded.in_chans, size, size))
        return (
            features.shape == (1, loaded.feature_dim)
            and (loaded.name, size, loaded.mean, loaded.std)
            == (says["name"], says["image_size"], says.get("mean"), says.get("std"))
            and all(torch.equal(state[name], expected[name]) for name in expected)
        )

    return check(trials, path, lambda: load_backbone(folder), is_equal, folder, monkeypatch)


def check_checkpoint(trials, folder, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from mixco_lightly.training.run_folder import CheckpointFiles, checkpoint_path, read_steps

    path = checkpoint_path(folder)
    path.parent.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    saved = {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"layer.{i}": torch.rand(7, 5, generator=generator) for i in range(8)},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(7)}}, "lr": 0.1}],
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
    }
    CheckpointFiles().save_checkpoint(saved, path)

    def load():
        steps = read_steps(path)
        # What Lightning goes on with, then.
        return steps, torch.load(path, weights_only=True)

    def is_equal(loaded):
        steps, state = loaded
        tensors = state.pop("state_dict")
        [momentum] = [x["state"][0].pop("momentum_buffer") for x in state["optimizer_states"]]
        rest = {name: x for name, x in saved.items() if name != "state_dict"}
        rest |= {"optimizer_states": [{"state": {0: {}}, "lr": 0.1}]}
        return (
            steps == 40
            and {name: state.get(name) for name in rest} == rest
            and torch.equal(momentum, torch.ones(7))
            and tensors.keys() == saved["state_dict"].keys()
            and all(torch.equal(x, saved["state_dict"][name]) for name, x in tensors.items())
        )

    extra = [with_planted_pickle(path)]
    return check(trials, path, load, is_equal, folder, monkeypatch, extra)


def check_decoded(trials, folder, monkeypatch):
    """Decoded images are made anew where they or their description are damaged."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            Image.linear_gradient("L").resize((8, 8)).save(folder / part / name / "0.png")
    load = lambda: create_train_test("imagefolder", folder, keep_decoded=True)[0]  # noqa: E731
    expected = [image.tobytes() for image, _ in map(load().__getitem__, range(2))]
    for trial in range(trials):
        rng = random.Random(trial)
        path = folder / ".decoded" / rng.choice(["train.npy", "train.json"])
        path.write_bytes(mutate(path.read_bytes(), rng))
        images = load()
        assert [images[i][0].tobytes() for i in range(2)] == expected, f"trial {trial}"
        assert not (folder / "planted").exists()
    return trials


CHECKS = {
    "weights": (check_weights, 1),
    "description": (check_description, 1),
    "checkpoint": (check_checkpoint, 4),
    "decoded images": (check_decoded, 1),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_damaged_files_are_refused_or_load_what_was_saved(kind, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    run_check, factor = CHECKS[kind]
    assert run_check(20 * factor, tmp_path / "run", monkeypatch) > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
def test_a_thousand_damaged_files_are_refused_or_load_what_was_saved(kind, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    run_check, _ = CHECKS[kind]
    assert run_check(1000, tmp_path / "run", monkeypatch) > 500
