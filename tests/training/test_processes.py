"""Where one process of a run fails, all of them end, and one line says why."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.run_recipe import RECIPES, Program, tiny_run
from tests.training.test_devices import start_ranks

# What each process runs instead of the recipe's file. With Lightning's launcher the first process
# starts the other one: here by a fork, which has its imports already, unless REAL.
PLANTED = f"""
import multiprocessing, os, runpy, signal, sys, time
from types import SimpleNamespace
sys.path.insert(0, {str(RECIPES)!r})
from pytorch_lightning.strategies.launchers import subprocess_script
import torch
import mixco_lightly.training.progress as progress
from mixco_lightly.data.images import ImageError

class Forked:
    def __init__(self, command, env, cwd):
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=self.start, args=(command[1:], env))
        self.process.start()
        self.kill, self.pid = self.process.kill, self.process.pid
    def start(self, argv, env):
        os.environ.update(env)
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
    def poll(self):
        return self.process.exitcode
    returncode = property(poll)
    def send_signal(self, number):
        self.poll() is None and os.kill(self.pid, number)
    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.process.exitcode

if not REAL:
    subprocess_script.subprocess = SimpleNamespace(Popen=Forked)

def start(self, trainer, module, batch, batch_idx):
    if trainer.global_step == 3:
        rank = trainer.global_rank
        PLANT
progress.Speed.on_train_batch_start = start
import RECIPE
RECIPE.recipe.main()
"""
SLEEP = "open(f'asleep{rank}', 'w').close(); time.sleep(300)"


def start(plant, image_folder, folder, *options, recipe="simclr", real=False, ranks=False):
    """Starts two processes of a recipe, with Lightning's launcher or by themselves."""
    text = PLANTED.replace("PLANT", plant.replace("SLEEP", SLEEP))
    (folder / "planted.py").write_text(text.replace("RECIPE", recipe).replace("REAL", str(real)))
    options = tiny_run(image_folder, "--devices", 2, "--accelerator", "cpu", *options)
    options += ["--batch_size", 5, "--knn_every_n_epochs", 0, "--output_dir", folder / "run"]
    options += ["--protocol", "knn", "--random_init=false", "--precision", "32-true"]
    if ranks:
        return start_ranks("planted.py", *options, cwd=folder)
    return Program("planted.py", *options, cwd=folder)


def living(group):
    """Ids of the processes of a group that have not ended; zombies have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        state, _, its_group = text.rpartition(")")[2].split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_until(condition, seconds=150):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_ends_in_one_line(program, *named, code=1):
    result = program.wait(timeout=150)  # half the sleep, and much more than the imports take
    assert result.returncode == code, result.stderr
    left = living(program.process.pid)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    for text in named:
        assert text in lines[0]
    assert "Trained for" not in result.stdout
    return result


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_where_the_first_process_fails_the_one_that_sleeps_is_ended(real, image_folder, tmp_path):
    plant = """
        if rank == 1: SLEEP
        while not os.path.exists("asleep1"): time.sleep(0.05)
        raise ImageError("this image is broken")"""
    program = start(plant, image_folder, tmp_path, real=real)
    result = assert_ends_in_one_line(program, "error: this image is broken")
    assert "Stopped after 1 epochs. Go on with:" in result.stdout


@pytest.mark.parametrize(
    "first", ["if rank == 0: SLEEP", pytest.param("if rank == 0: return", marks=pytest.mark.slow)]
)
def test_where_the_second_process_fails_the_first_ends_whether_it_sleeps_or_not(
    first, image_folder, tmp_path
):
    plant = f"""
        {first}
        raise RuntimeError("nobody expected this")"""
    program = start(plant, image_folder, tmp_path)
    named = ("error: process 1 failed with RuntimeError: nobody expected this", "traceback.txt")
    result = assert_ends_in_one_line(program, *named)
    assert "Stopped after 1 epochs. Go on with:" in result.stdout
    assert "nobody expected this" in (tmp_path / "run" / "traceback.txt").read_text()


def test_an_error_that_every_process_has_is_said_once(image_folder, tmp_path):
    program = start("raise RuntimeError('a fault')", image_folder, tmp_path)
    assert_ends_in_one_line(program, "error: process 0 failed with RuntimeError: a fault")


def test_an_error_that_only_one_process_can_see_ends_both_in_its_line(image_folder, tmp_path):
    plant = """
        if rank == 0: SLEEP
        raise FloatingPointError("A key is NaN in step 7.")"""
    program = start(plant, image_folder, tmp_path, recipe="moco")
    assert_ends_in_one_line(program, "A key is NaN in step 7. It was step 4 of the run (process 1)")


def test_where_the_second_process_is_killed_the_first_says_so_and_ends(image_folder, tmp_path):
    plant = """
        if rank == 0: SLEEP
        os.kill(os.getpid(), signal.SIGKILL)"""
    program = start(plant, image_folder, tmp_path)
    assert_ends_in_one_line(program, "error: process 1 was killed by signal 9")


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_where_the_first_process_is_killed_the_second_ends(how, image_folder, tmp_path):
    program = start("SLEEP", image_folder, tmp_path)
    wait_until(lambda: (tmp_path / "asleep0").exists() and (tmp_path / "asleep1").exists())
    os.kill(program.process.pid, getattr(signal, how))
    result = program.wait(timeout=20)
    assert result.returncode == -getattr(signal, how)
    wait_until(lambda: not living(program.process.pid), seconds=20)
    assert "Traceback" not in result.stderr


# Control-C reaches all processes, but one that waits in a collective does not see it.
@pytest.mark.parametrize("asleep", [0, 1])
def test_control_c_ends_both_and_says_how_to_go_on(asleep, image_folder, tmp_path):
    plant = f"""
        if rank == {asleep}: signal.signal(signal.SIGINT, signal.SIG_IGN)
        SLEEP"""
    program = start(plant, image_folder, tmp_path)
    wait_until(lambda: (tmp_path / "asleep0").exists() and (tmp_path / "asleep1").exists())
    os.killpg(program.process.pid, signal.SIGINT)
    result = program.wait(timeout=30)
    assert result.returncode == 1
    assert not living(program.process.pid)
    assert "Stopped after 1 epochs. Go on with:" in result.stdout
    assert "Traceback" not in result.stderr
    assert "error" not in result.stderr


# Of its own alone: the other process has a loss that is finite.
NAN_LOSS = """
        open("planted", "w").close()
        if rank == 1:
            step = module.training_step
            module.training_step = lambda *args: step(*args) * float("nan")"""


def test_a_loss_that_is_not_finite_on_one_process_ends_both_in_one_line(image_folder, tmp_path):
    programs = start(NAN_LOSS, image_folder, tmp_path, ranks=True)
    first, second = (program.wait(timeout=150) for program in programs)
    assert time.time() - (tmp_path / "planted").stat().st_mtime < 20
    assert first.returncode == second.returncode == 1
    printed = first.stderr + second.stderr
    assert "Traceback" not in printed
    assert printed.count("error: ") == 1
    assert "error: The loss is nan at step 4 (process 1). " in first.stderr


def test_with_lightnings_launcher_such_a_loss_is_said_once_too(image_folder, tmp_path):
    program = start(NAN_LOSS, image_folder, tmp_path)
    assert_ends_in_one_line(program, "error: The loss is nan at step 4 (process 1). ")
