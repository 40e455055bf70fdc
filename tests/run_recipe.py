"""Runs recipes as their users do, in processes of their own.

To import torch, Lightning and the rest takes most of the time of a tiny run. A server that has
imported them forks such a process; what it runs is the recipe's file, as ``python FILE`` would.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

RECIPES = Path(__file__).parent.parent / "recipes"
# The precision is pinned, so that a run is the same on every processor.
TINY = ["--backbone", "test_resnet", "--num_workers", "0", "--knn_k", "5"]
# The report takes longer than the rest of a tiny run.
TINY += ["--precision", "32-true", "--report=false"]

# A process has one such server: tests that start processes with the method "forkserver" share it.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.preload_recipes"])


class Result(NamedTuple):
    """What a program that has ended leaves; the code is -9 after a kill."""

    returncode: int
    stdout: str
    stderr: str


class Program:
    """A Python file that runs in a session of its own, from its start on.

    Args:
        file: The Python file.
        options: Its arguments.
        cwd: Folder to run in.
        environment: Variables beyond those of this process.
    """

    def __init__(self, file, *options, cwd, environment=None):
        self.outputs = [
            Path(cwd) / f".{name}-{os.getpid()}-{id(self)}" for name in ("stdout", "stderr")
        ]
        arguments = ([str(file), *map(str, options)], str(cwd), self.outputs, environment or {})
        self.process = _server.Process(target=_run_file, args=arguments)
        self.process.start()

    def is_running(self):
        """Whether it has not ended."""
        return self.process.is_alive()

    def kill(self):
        """As kill -9 of the program and its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def wait(self, timeout=200):
        """Waits for its end."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.kill()
        stdout, stderr = (path.read_text() for path in self.outputs)
        return Result(self.process.exitcode, stdout, stderr)


class ForkedProcess:
    """Stands for subprocess.Popen where a study starts a command.

    Args:
        command: The command line.
        env: Its environment.
        stdout: The open file of its output.
        stderr: Not used; it goes there too.
    """

    def __init__(self, command, env, stdout, stderr):
        self.returncode = None
        self._output = stdout
        # The server is the parent of the process, not the study.
        environment = {key: text for key, text in env.items() if key != "MIXCO_STUDY_PROCESS"}
        folder = Path(stdout.name).parent
        self._program = Program(*command[1:], cwd=folder, environment=environment)

    def wait(self, timeout=None):
        """Waits for its end, as Popen does."""
        self._program.process.join(timeout)
        if self._program.is_running():
            raise subprocess.TimeoutExpired("program", timeout)
        if self.returncode is None:
            result = self._program.wait()
            self.returncode = result.returncode
            self._output.write(result.stdout + result.stderr)
        return self.returncode

    def kill(self):
        """As kill -9."""
        self._program.kill()


def _run_file(argv, cwd, outputs, environment):
    os.setsid()
    # Where the tests run in the background, SIGINT may be ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)  # not this server's, which imports anew
    os.chdir(cwd)
    os.environ.update(environment)
    for descriptor, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    sys.argv = argv
    sys.path.insert(0, str(RECIPES))
    runpy.run_path(argv[0], run_name="__main__")


def command(recipe, *options):
    """The command line of a recipe."""
    return [sys.executable, str(RECIPES / f"{recipe}.py"), *map(str, options)]


def run(recipe, *options, cwd):
    """Runs a recipe to its end, which must be a good one; gives what it printed."""
    result = Program(RECIPES / f"{recipe}.py", *options, cwd=cwd).wait()
    assert result.returncode == 0, result.stderr
    return result.stdout


def tiny_run(folder, *options):
    """Options of a run of two epochs on the images of the fixture image_folder."""
    return [
        *TINY,
        *("--dataset", "imagefolder", "--data_dir", folder, "--image_size", 16),
        *("--epochs", 2, "--batch_size", 10),
        *options,
    ]
