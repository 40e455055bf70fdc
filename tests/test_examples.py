"""The examples train on what they say: each projection is of the image that the loss takes it for.

Each runs on a few fake images and a tiny network; tests/run_example.py lists what is changed.
"""

import importlib.util
import json
import re

import pytest
import torch
from pytorch_lightning.strategies import StrategyRegistry
from torch.nn.functional import normalize

from mixco_lightly import MixCoLoss, Mixer, Mixture, mix_pairs
from tests.run_example import BATCH, EPOCHS, EXAMPLES, STEPS, Notes, key_of, run_example
from tests.training.test_devices import start_ranks

NAMES = ["mixco_moco", "mixco_simclr", "imix", "unmix"]
FOLDERS = ["pytorch", "pytorch_lightning", "pytorch_lightning_distributed"]
SCRIPTS = {f"{folder}/{name}.py" for folder in FOLDERS for name in NAMES}
MARKS = {"mixco_moco": "MixCo", "mixco_simclr": "MixCo", "imix": "i-Mix", "unmix": "Un-Mix"}
# What the loss is called with: names of what a projection must be of, or of the mixture itself.
ARGUMENTS = {
    "mixco_moco": ["view 0", "key 1", "mixed 0", "mixture 0"],
    "mixco_simclr": ["view 0", "view 1", "mixed 0", "mixture 0", "mixed 1", "mixture 1"],
    "imix": ["mixed 0", "key 1", "mixture 0"],
    "unmix": ["view 0", "key 1", "mixed 0", "mixture 0"],
}


def check_steps(name, notes, images):
    """Every row that the loss got is the projection of the image that it stands for."""
    assert len(notes.batches) == len(notes.steps) == EPOCHS * STEPS
    for batch, (arguments, loss) in zip(notes.batches, notes.steps, strict=True):
        assert 0 < float(loss) < 100
        for argument, text in zip(arguments, ARGUMENTS[name], strict=True):
            kind, view = text.split()
            mixture = batch[-1][int(view)] if kind[0] == "m" else None
            if kind == "mixture":
                assert all(map(torch.equal, argument, mixture))
                continue
            expected = mixture.images if kind == "mixed" else batch[0][int(view)]
            for projection, image in zip(argument, expected, strict=True):
                found, is_momentum = images[key_of(projection)]
                assert torch.equal(found, image)
                assert is_momentum == (kind == "key")


def check_mixtures(name, notes):
    """The mixtures are those of the method, of the views that are mixed."""
    if name.startswith("mixco"):
        assert notes.collate.mixer.func is mix_pairs
    else:
        assert notes.collate.mixer == {"imix": Mixer.imix(), "unmix": Mixer.unmix()}[name]
    assert notes.collate.views == ((0, 1) if name == "mixco_simclr" else (0,))


def check_training(name, notes, steps):
    """The network is trained, and the momentum encoder follows it; ``steps`` are all processes'."""
    start, end, momentum = notes.weights
    assert not torch.equal(start, end)
    if name == "mixco_simclr":
        assert not notes.queue
        return
    # After two steps of an epoch with momentum 0.996 it has made 0.004 of the first step.
    assert not torch.equal(momentum, start)
    assert (momentum - start).norm() < 0.1 * (end - start).norm()
    keys = torch.cat([arguments[1] for arguments, _ in steps])
    assert int(notes.queue["queue.position"]) == len(keys)
    torch.testing.assert_close(notes.queue["queue.keys"][: len(keys)], normalize(keys, dim=1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", FOLDERS[:2])
def test_the_loss_gets_the_projections_of_its_images_and_the_keys_are_queued(folder, name, capsys):
    notes = run_example((EXAMPLES / folder / f"{name}.py").read_text())
    check_steps(name, notes, notes.images)
    check_mixtures(name, notes)
    check_training(name, notes, notes.steps)
    if folder == "pytorch":
        # The mean over the steps of an epoch is printed.
        losses = [float(loss) for _, loss in notes.steps]
        means = [sum(losses[i : i + STEPS]) / STEPS for i in range(0, len(losses), STEPS)]
        printed = re.findall(r"^epoch: (\d\d), loss: ([\d.]+)$", capsys.readouterr().out, re.M)
        assert [int(epoch) for epoch, _ in printed] == list(range(EPOCHS))
        assert [float(x) for _, x in printed] == pytest.approx(means, abs=1e-4)


def check_loss_of_the_whole_batch(both):
    """The mean of the processes' losses is the loss of all images in one process."""
    for (first, loss0), (second, loss1) in zip(*(notes.steps for notes in both), strict=True):
        whole = []
        for x, y in zip(first, second, strict=True):
            if isinstance(x, Mixture):
                y = y._replace(first=y.first + BATCH, second=y.second + BATCH)
                whole.append(Mixture(*map(torch.cat, zip(x, y, strict=True))))
            else:
                whole.append(torch.cat([x, y]))
        expected = MixCoLoss(temperature=0.5, mix_temperature=0.5)(*whole)
        torch.testing.assert_close((loss0 + loss1) / 2, expected)


# One start of two processes runs several examples.
TOGETHER = [
    pytest.param(("mixco_moco", "mixco_simclr"), id="mixco"),
    pytest.param(("imix", "unmix"), id="imix and unmix", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("names", TOGETHER)
def test_two_processes_train_one_network_with_the_keys_of_both(names, tmp_path):
    paths = [f"pytorch_lightning_distributed/{name}.py" for name in names]
    program = EXAMPLES.parent / "tests" / "run_example.py"
    for process in start_ranks(program, tmp_path, *paths, cwd=tmp_path):
        result = process.wait()
        assert result.returncode == 0, result.stderr
    for name in names:
        files = [tmp_path / f"{name}-{rank}.pt" for rank in (0, 1)]
        check_two_processes(name, [Notes(**torch.load(f, weights_only=False)) for f in files])


def check_two_processes(name, both):
    """They have images of their own, and all else together."""
    images = both[0].images | both[1].images  # the shuffle exchanges the images of the keys
    steps = [step for pair in zip(*(notes.steps for notes in both), strict=True) for step in pair]
    for notes in both:
        check_steps(name, notes, images)
        check_mixtures(name, notes)
        check_training(name, notes, steps)
        assert bool(notes.synchronised) == (name == "mixco_simclr")
    first, second = both
    for x, y in zip(first.weights, second.weights, strict=True):
        assert torch.equal(x, y)
    for key, value in first.queue.items():
        assert torch.equal(value, second.queue[key])
    own = [{int(x) for batch in notes.batches[:STEPS] for x in batch[1]} for notes in both]
    assert len(own[0] | own[1]) == 2 * STEPS * BATCH
    if name == "mixco_simclr":
        check_loss_of_the_whole_batch(both)
    else:
        # Some keys of the first process were computed by the second. 24 are shuffled in all.
        keys = [key_of(key) for arguments, _ in first.steps for key in arguments[1]]
        assert not all(key in first.images for key in keys)
        assert any(key in first.images for key in keys)


def marked_lines(script, mark):
    """Lines of a script with its mark at their end, and the others."""
    lines = script.partition("\n\n")[2].splitlines()
    marked = [line for line in lines if re.search(rf"  # {mark}($|;)", line)]
    return marked, [line for line in lines if line not in marked]


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_marked_lines_are_the_change(script):
    text = (EXAMPLES / script).read_text()
    assert len(text.splitlines()) <= 85  # a page
    marked, others = marked_lines(text, MARKS[script.split("/")[1].removesuffix(".py")])
    assert 7 <= len(marked) <= 9
    ours = re.compile(r"mixco_lightly|[Mm]ix|create_backbone")
    allowed = "            mix_temperature=0.5,"  # in a marked call of several lines
    assert not [line for line in others if ours.search(line) and line != allowed]


def hunks_of_the_readme():
    """Pairs of what the README's diff takes from Lightly's pipeline and what it puts there."""
    (diff,) = re.findall(r"```diff\n(.*?)```", (EXAMPLES / "README.md").read_text(), re.DOTALL)
    for hunk in diff.split("...\n"):
        lines = hunk.splitlines()
        yield tuple("".join(f"{line[1:]}\n" for line in lines if line[:1] != sign) for sign in "+-")


def test_without_the_readmes_diff_moco_trains_and_nothing_is_left_of_mixco():
    code = re.sub(r"  # MixCo.*$", "", (EXAMPLES / "pytorch/mixco_moco.py").read_text(), flags=re.M)
    for old, new in hunks_of_the_readme():
        assert code.count(new) == 1
        code = code.replace(new, old)
    code = code.replace("import MixCoCollate, MixCoLoss, create_backbone", "import create_backbone")
    assert not re.search("MixCo|mixture|mixed", code.partition("\n\n")[2])
    notes = run_example(f"from lightly.loss import NTXentLoss\n{code}")
    assert not notes.batches
    start, end, momentum = notes.weights
    assert not torch.equal(start, end)
    assert not torch.equal(start, momentum)


@pytest.fixture(scope="module")
def notebooks():
    """The module that writes the notebooks."""
    path = EXAMPLES / "create_notebooks.py"
    spec = importlib.util.spec_from_file_location("create_notebooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notebooks_are_those_of_the_scripts(notebooks):
    paths = notebooks.notebook_paths()
    assert {path.relative_to(EXAMPLES).as_posix() for path in paths} == SCRIPTS
    # `make notebooks` writes them anew.
    assert {path: path.read_text() for path in paths.values()} == {
        path: notebooks.create_notebook(script.read_text()) for script, path in paths.items()
    }
    assert set((EXAMPLES / "notebooks").rglob("*.ipynb")) == set(paths.values())


def cells_of(path):
    """The code cells of a notebook: the installation, and the others as one text."""
    cells = json.loads(path.read_text())["cells"]
    install, *code = ["".join(x["source"]) for x in cells if x["cell_type"] == "code"]
    return install, "\n\n".join(code)


def test_a_notebook_installs_the_package_and_has_the_code_of_its_script(notebooks):
    for script, path in notebooks.notebook_paths().items():
        install, code = cells_of(path)
        assert install == "%pip install mixco-lightly"
        expected = script.read_text().replace('strategy="ddp"', 'strategy="ddp_notebook"')
        lines = [line.split() for line in expected.partition("\n\n")[2].splitlines()]
        guard = ["if", "__name__", "==", '"__main__":']
        expected = [words for words in lines if words and words[:4] != guard]
        assert [line.split() for line in code.splitlines() if line.split()] == expected


def test_a_notebook_trains_as_its_script_does(notebooks):
    _, code = cells_of(EXAMPLES / "notebooks/pytorch/imix.ipynb")
    notes = run_example(code)
    check_steps("imix", notes, notes.images)
    check_training("imix", notes, notes.steps)


def test_lightning_knows_the_strategy_of_the_notebooks():
    assert "ddp_notebook" in StrategyRegistry.available_strategies()
