"""A recipe on two processes: what each of them sees, draws, keeps and logs."""

import contextlib
import csv
import json
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.run_recipe import RECIPES, Program, Result, tiny_run

EPOCHS, STEPS, BATCH, RANKS, QUEUE = 2, 2, 5, 2, 32  # 24 images: 2 x 12, of which 2 x 10 are used
# What runs in each process instead of the recipe's file: the recipe, and notes of what passes by.
SPY = f"""
import sys
sys.path.insert(0, {str(RECIPES)!r})
import torch
from mixco_lightly import MixCoLoss
from mixco_lightly.data.batches import PixelBatches
import mixco_lightly.training.pretraining as pretrain
import mixco_lightly.training.progress as progress
import pytorch_lightning

notes = {{"images": [], "lam": [], "keys": [], "local": [], "logged": []}}

get_images = PixelBatches.__getitems__
def noted_images(self, indices):
    notes["images"] += map(int, indices)
    return get_images(self, indices)
PixelBatches.__getitems__ = noted_images

def start(self, trainer, module, batch, batch_idx):
    notes["lam"].append(batch[-1][0].lam.clone())
    if "queue" not in notes and module.criterion.queue is not None:
        notes["queue"] = module.criterion.queue.keys.clone()
progress.Speed.on_train_batch_start = start

components = MixCoLoss.forward_components
def noted_components(self, out0, out1, *args):
    loss = components(self, out0, out1, *args)
    notes["keys"].append(out1.detach().clone())
    notes["local"].append([float(part) for part in loss])
    return loss
MixCoLoss.forward_components = noted_components

log_dict = pytorch_lightning.LightningModule.log_dict
def noted_log(self, values, **kwargs):
    notes["logged"].append({{name: float(value) for name, value in values.items()}})
    return log_dict(self, values, **kwargs)
pytorch_lightning.LightningModule.log_dict = noted_log

def end(self, trainer, module):
    # BatchNorm's statistics are those of each process.
    state = module.state_dict()
    notes["state"] = {{n: x for n, x in state.items() if "running" not in n and "num_b" not in n}}
    torch.save(notes, f"{{sys.argv[-1]}}/rank{{trainer.global_rank}}.pt")
progress.Speed.on_train_end = end
import RECIPE
RECIPE.recipe.main()
"""


def launch(launcher, program, *options, cwd):
    """Starts two processes of a program and waits for them; gives the first one's result.

    By "lightning" and "torchrun" as a user does, by "fork" as torchrun does, with its variables.
    """
    if launcher != "fork":
        start = [sys.executable]
        if launcher == "torchrun":
            start += ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2"]
            start += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
        return subprocess.run(
            [*start, str(program), *map(str, options)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=200,
        )
    first, second = (program.wait() for program in start_ranks(program, *options, cwd=cwd))
    assert first.returncode == second.returncode, second.stderr
    return Result(first.returncode, first.stdout + second.stdout, first.stderr + second.stderr)


def start_ranks(program, *options, cwd):
    """Starts a program in two processes, as torchrun does."""
    variables = {
        **{"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GROUP_RANK": "0"},
    }
    return [
        Program(
            program,
            *options,
            cwd=cwd,
            environment={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(RANKS)
    ]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def watch(recipe, launcher, image_folder, tmp_path):
    """A recipe's run on two processes: the notes of both ranks, and its folder."""
    folder = tmp_path / launcher
    folder.mkdir()
    (folder / "spy.py").write_text(SPY.replace("RECIPE", recipe))
    options = tiny_run(image_folder, "--epochs", EPOCHS, "--batch_size", BATCH)
    options += ["--devices", RANKS, "--accelerator", "cpu", "--knn_every_n_epochs", 0]
    options += ["--protocol", "knn", "--random_init=false"]
    if recipe == "moco":
        options += ["--memory_bank_size", QUEUE]
    result = launch(launcher, "spy.py", *options, "--output_dir", folder / "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Trained for") == 1
    notes = [
        torch.load(folder / "run" / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)
    ]
    return notes, folder / "run"


def check_images(notes):
    for epoch in range(EPOCHS):
        used = slice(epoch * STEPS * BATCH, (epoch + 1) * STEPS * BATCH)
        first, second = (set(note["images"][used]) for note in notes)
        assert len(first) == len(second) == STEPS * BATCH
        assert not first & second
        assert first | second <= set(range(24))
    for note in notes:  # another order in each epoch
        assert len(note["images"]) == EPOCHS * STEPS * BATCH
        assert note["images"][: STEPS * BATCH] != note["images"][STEPS * BATCH :]


def check_queue(notes):
    """Both queues hold the newest keys of both ranks, as one process with all of them would."""
    expected = list(notes[0]["queue"])
    assert torch.equal(notes[0]["queue"], notes[1]["queue"])
    position = 0
    for step in range(EPOCHS * STEPS):
        for note in notes:
            for key in torch.nn.functional.normalize(note["keys"][step], dim=1):
                expected[position] = key
                position = (position + 1) % QUEUE
    for note in notes:
        queue = note["state"]["criterion.queue.keys"]
        torch.testing.assert_close(queue, torch.stack(expected), rtol=0, atol=1e-6)
        assert int(note["state"]["criterion.queue.position"]) == position


def check_logs(notes, folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 3]
    for index, row in enumerate(rows):
        local = [note["local"][int(row["step"])] for note in notes]
        assert local[0] != local[1]
        for name, values in zip(("loss", "contrast", "mix"), zip(*local, strict=True), strict=True):
            assert float(row[name]) == pytest.approx(sum(values) / RANKS, rel=1e-6)
        logged = [note["logged"][index] for note in notes]
        assert {"positive_similarity", "negative_similarity", "lam"} < logged[0].keys()
        for name in logged[0]:
            mean = sum(values[name] for values in logged) / RANKS
            assert float(row[name]) == pytest.approx(mean, rel=1e-5, abs=1e-7)
    # Nothing is exchanged for the logs in the other steps.
    assert all(len(note["logged"]) == len(rows) for note in notes)


def check(recipe, notes, folder):
    assert notes[0]["state"].keys() == notes[1]["state"].keys()
    for name, value in notes[0]["state"].items():
        assert torch.equal(value, notes[1]["state"][name]), name
    assert not torch.equal(torch.cat(notes[0]["lam"]), torch.cat(notes[1]["lam"]))
    check_images(notes)
    check_logs(notes, folder)
    if recipe == "moco":
        check_queue(notes)
    assert json.loads((folder / "summary.json").read_text())["epochs"] == EPOCHS


def check_moco(launchers, image_folder, tmp_path):
    runs = [watch("moco", how, image_folder, tmp_path) for how in launchers]
    for notes, folder in runs:
        check("moco", notes, folder)
    for first, second in zip(*(notes for notes, _ in runs), strict=True):
        assert all(map(torch.equal, first["lam"], second["lam"]))
        assert first["images"] == second["images"]
    weights = [load_file(folder / "model.safetensors") for _, folder in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_moco_on_two_processes_is_right_and_the_same_again(image_folder, tmp_path):
    check_moco(["lightning", "fork"], image_folder, tmp_path)


@pytest.mark.slow
def test_moco_started_by_torchrun_is_right_and_the_same(image_folder, tmp_path):
    check_moco(["torchrun", "fork"], image_folder, tmp_path)


def test_simclr_on_two_processes_is_right(image_folder, tmp_path):
    check("simclr", *watch("simclr", "fork", image_folder, tmp_path))


def check_error(launcher, image_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("not mine")
    options = tiny_run(image_folder, "--devices", 2, "--accelerator", "cpu")
    options += ["--output_dir", tmp_path / "run"]
    result = launch(launcher, RECIPES / "moco.py", *options, cwd=tmp_path)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "--overwrite" in lines[0]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    return result.stderr


def test_an_error_of_the_first_process_is_one_line_and_ends_both(image_folder, tmp_path):
    assert "Traceback" not in check_error("fork", image_folder, tmp_path)


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_torchrun(image_folder, tmp_path):
    check_error("torchrun", image_folder, tmp_path)


def test_another_number_of_processes_than_devices_is_refused(
    image_folder, tmp_path, run_here, monkeypatch
):
    # As torchrun --nproc_per_node 4 sets them.
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    options = tiny_run(image_folder, "--devices", 2, "--output_dir", tmp_path / "run")
    code, _, error = run_here("moco", *options)
    assert code == 1
    assert "4 processes were started for --devices 2 --num_nodes 1" in error
    assert not (tmp_path / "run").exists()


def test_srun_with_another_number_of_tasks_is_refused_and_its_requeueing_is_off(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from mixco_lightly.training.processes import check_processes, find_launcher

    variables = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "mixco", "SLURM_PROCID": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="--ntasks-per-node"):
        find_launcher()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert not find_launcher().auto_requeue
    check_processes(devices=2, num_nodes=2)
    with pytest.raises(ValueError, match="4 processes were started for --devices 1 --num_nodes 1"):
        check_processes(devices=1, num_nodes=1)


def test_a_run_in_a_slurm_job_loads_no_stray_checkpoint(
    image_folder, tmp_path, run_here, monkeypatch
):
    variables = {"NTASKS": 1, "NTASKS_PER_NODE": 1, "JOB_NAME": "mixco", "JOB_ID": 1}
    for name, value in {**variables, "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("of another program")
    options = tiny_run(image_folder, "--epochs", 1, "--protocol", "knn", "--accelerator", "cpu")
    code, _, error = run_here("simclr", *options, "--output_dir", "run")
    assert code == 0, error


FAILING = f"""
import sys
sys.path.insert(0, {str(RECIPES)!r})
import mixco_lightly.training.progress as progress
def start(self, trainer, module, batch, batch_idx):
    if trainer.global_rank == 1 and trainer.global_step == 1:
        raise RuntimeError("the second process fails")
progress.Speed.on_train_batch_start = start
import moco
moco.recipe.main()
"""


def test_where_one_process_fails_the_other_one_ends_too_and_does_not_wait(image_folder, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    options = tiny_run(image_folder, "--devices", RANKS, "--accelerator", "cpu")
    options += ["--batch_size", BATCH, "--memory_bank_size", QUEUE, "--output_dir", "run"]
    programs = start_ranks("failing.py", *options, cwd=tmp_path)
    # After the time limit wait kills a process, whose code is then -9.
    first, second = (program.wait(timeout=60) for program in programs)
    assert second.returncode == 1
    assert "the second process fails" in second.stderr
    assert first.returncode == 1
    assert "Trained for" not in first.stdout


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on_with_equal_weights_and_metrics(
    image_folder, tmp_path
):
    options = tiny_run(image_folder, "--batch_size", BATCH, "--epochs", 8, "--memory_bank_size", 32)
    options += ["--devices", RANKS, "--accelerator", "cpu"]
    whole = launch("fork", RECIPES / "moco.py", *options, "--output_dir", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    programs = start_ranks(RECIPES / "moco.py", *options, "--output_dir", "part", cwd=tmp_path)
    checkpoint = tmp_path / "part" / "checkpoints" / "last.ckpt"
    while not checkpoint.exists():
        assert all(program.is_running() for program in programs)
        time.sleep(0.01)
    for program in programs:
        program.kill()
    resume = ["--config", "part/config.yaml", "--resume"]
    part = launch("fork", RECIPES / "moco.py", *resume, cwd=tmp_path)
    assert part.returncode == 0, part.stderr
    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "part")]
    assert metrics[0] == metrics[1]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "part")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("several", [False, True])
def test_the_processes_of_a_node_open_the_data_one_after_the_other(several, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from mixco_lightly.training.processes import one_at_a_time

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if several:
        monkeypatch.setenv("LOCAL_RANK", "1")
    inside, most, both = [], [], threading.Barrier(3, timeout=0.3)

    def open_data(name):
        with one_at_a_time(tmp_path / "data", create=several):
            inside.append(name)
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait()
            most.append(len(inside))
            inside.remove(name)

    threads = [threading.Thread(target=open_data, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == (1 if several else 3)


@pytest.mark.parametrize("create", [False, True])
def test_a_missing_data_folder_is_made_only_for_a_download(create, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from mixco_lightly.training.processes import one_at_a_time

    monkeypatch.setenv("LOCAL_RANK", "0")
    with one_at_a_time(tmp_path / "absent", create=create):
        pass
    assert (tmp_path / "absent").exists() == create
