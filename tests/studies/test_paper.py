"""make paper: its presets at a tiny scale, planned, in slices, killed, resumed and reported."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from mixco_lightly.evaluation import evaluator
from mixco_lightly.studies import execute, minutes, report, slices
from mixco_lightly.studies.minutes import Minutes, Plan, measure_minutes
from mixco_lightly.studies.plan import Run
from mixco_lightly.studies.published import check_published
from mixco_lightly.studies.scale import scale_epochs
from mixco_lightly.studies.slices import Slice
from mixco_lightly.training import MixCoConfig, step_timer
from mixco_lightly.training.command_line import check_options
from tests.conftest import end_of
from tests.run_recipe import RECIPES, ForkedProcess, Program

ROOT = RECIPES.parent
# What makes a run of a preset tiny; all else is as in the preset.
TINY = {
    "dataset": "imagefolder",
    "data_dir": "images",
    "image_size": 16,
    "backbone": "test_resnet",
    "backbone_kwargs": {},
    "stem": "timm",
    "batch_size": 12,
    "num_workers": 0,
    "knn_k": 5,
    "report": False,
    "accelerator": "cpu",
    "precision": "32-true",
}


@pytest.fixture
def paper(monkeypatch):
    """The command paper.py, as a module."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("paper")


def read(name):
    return yaml.safe_load((RECIPES / "presets" / f"{name}.yaml").read_text())


def write_tiny(name, folder, seeds=(0,), groups=None, changes=None, epochs=None):
    """Writes a preset with a tiny network and images of 16 pixels; gives its file."""
    study = read(name)
    study["base"] |= TINY
    study["base"]["epochs"] = epochs or study["base"]["epochs"]
    if "learning_rate" in study["base"]:
        study["base"]["learning_rate"] = 0.01  # the preset's is for batches of 1,024
    study["seeds"] = list(seeds)
    for part, chosen in [("groups", groups), ("changes", changes)]:
        if chosen is not None:
            study[part] = {key: study[part][key] for key in chosen}
    for options in study.get("groups", {}).values():
        if "memory_bank_size" in options:
            options["memory_bank_size"] = 48
    for options in study.get("transfer", {}).values():
        options |= {"dataset": "imagefolder", "data_dir": "images", "image_size": 16}
        options |= {"num_workers": 0, "device": "cpu"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def planned(runs, log):
    """Stands for the measurement of the minutes."""
    log.write_text("measured")
    arms = dict.fromkeys((run.group, run.arm) for run in runs)
    return Plan("a test", [Minutes(*arm, 1, 1.25, 0.5) for arm in arms])


@pytest.fixture
def call(paper, monkeypatch, capsys, image_folder, tmp_path):
    """Calls paper.py on the fixture's images, in 0.02 of the epochs; its programs are forked."""
    started = []

    class Recorded(ForkedProcess):
        def __init__(self, command, **options):
            started.append([Path(command[1]).stem, command[-1]])
            super().__init__(command, **options)

    monkeypatch.setattr(execute, "subprocess", SimpleNamespace(Popen=Recorded, STDOUT=None))
    monkeypatch.setattr(slices, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(report, "draw", lambda results, file: None)
    monkeypatch.setattr(minutes, "measure_apart", planned)

    def call(*options):
        words = ["--data_root", tmp_path, "--output_dir", tmp_path / "runs", "--scale", 0.02]
        monkeypatch.setattr(sys, "argv", ["paper.py", *map(str, [*words, *options])])
        started.clear()
        return *end_of(paper.main, capsys), list(started)

    return call


def test_selfcons_table_at_a_tiny_scale_is_planned_stopped_resumed_and_shown_beside_the_papers(
    call, tmp_path
):
    file = write_tiny("paper-selfcon-study", tmp_path, changes=["SelfCon in one stage"], epochs=100)
    code, printed, error, started = call("--studies", file, "--slice_minutes", 1e-6)
    folder = tmp_path / "runs" / "selfcon-scale-0.02"
    run = folder / "all" / "cross-entropy" / "seed-0"
    assert (code, error, started) == (0, "", [["selfcon", "--overwrite"]])
    # The slice is over at once, but the first run goes on to its first checkpoint.
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert not (run / "summary.json").exists()
    assert printed.splitlines()[-1] == (
        "Stopped after 1e-06 minutes: 0 of 2 runs are finished. Go on with the same command."
    )
    before, _, _ = printed.partition("0 of them finished")
    assert re.search(r"┃ planned minutes +┃ runs ┃ training ┃ evaluation ┃ all ┃", before)
    assert re.search(r"│ SelfCon in one stage +│ +1 │ +1.2 │ +0.5 │ 1.8 │", before)
    assert re.search(r"│ total +│ +2 │ +2.5 │ +1.0 │ 3.5 │", before)
    assert "measured on a test, for one run at a time" in before
    assert "All 2 runs: 3.5 minutes, one run at a time." in before
    plan = json.loads((folder / "minutes.json").read_text())
    assert plan["arms"][1] == ["", "SelfCon in one stage", 1, 1.25, 0.5]
    assert "| total | 2 | 2.5 | 1.0 | 3.5 |" in (folder / "minutes.md").read_text()

    code, printed, error, started = call("--studies", file)
    assert (code, error) == (0, "")
    assert started == [["selfcon", "--resume"], ["selfcon", "--overwrite"]]
    lines = printed.splitlines()
    assert any(line.startswith("2/2  SelfCon in one stage, seed 0: ") for line in lines)
    assert "Stopped" not in printed
    assert "Is SelfCon in one stage better than cross-entropy on CIFAR-100? (scale 0.02)" in printed
    assert json.loads((run / "summary.json").read_text())["epochs"] == 2
    table = (folder / "results.md").read_text().splitlines()
    head, plain, selfcon = ([x.strip() for x in table[i].split("|")[1:-1]] for i in (2, 4, 5))
    ours = head.index("classifier, top-1 %, ours")
    assert head[ours + 1] == "paper, all epochs"
    assert (plain[ours + 1], selfcon[ours + 1]) == ("72.09", "76.45")
    assert 0 <= float(plain[ours]) <= 100
    assert "sub-network classifier, top-1 %" in head
    assert any("abstract of SelfCon, arXiv 2106.15499" in line for line in table)

    # Once more: everything is finished, and the minutes are known.
    (folder / "logs" / "minutes.log").unlink()
    code, again, _, started = call("--studies", file)
    assert (code, started) == (0, [])
    assert "2 runs, 2 of them finished" in again
    assert not (folder / "logs" / "minutes.log").exists()


@pytest.mark.slow
def test_all_tables_at_a_tiny_scale_run_to_their_end(paper, call, tmp_path):
    files = [write_tiny(name, tmp_path) for name in paper.STUDIES]
    stops = 0
    while True:
        code, printed, error, _ = call("--studies", *files, "--slice_minutes", 0.1)
        assert code == 0, error
        if "Stopped after" not in printed:
            break
        stops += 1
    assert 1 <= stops < 50
    assert "All 15 runs: " in printed
    for name in ("tiny-imagenet", "cifar10", "cifar100"):
        table = (tmp_path / "runs" / f"{name}-scale-0.02" / "results.md").read_text()
        assert table.count("| unknown |") == 4 * (3 if name == "tiny-imagenet" else 1)
        assert ("paper, 100 epochs" in table) == (name == "tiny-imagenet")
        assert "linear evaluation on " in table
    for folder in (tmp_path / "runs").glob("*/*/*/seed-0/transfer/*"):
        (record,) = json.loads((folder / "evaluation.json").read_text())["results"]
        assert record["settings"]["epochs"] == 2  # of 100


@pytest.mark.slow
def test_a_table_whose_command_is_killed_leaves_no_program_behind_and_goes_on(
    image_folder, tmp_path
):
    file = write_tiny("paper-selfcon-study", tmp_path, changes=["SelfCon in one stage"], epochs=400)
    command = [sys.executable, RECIPES / "paper.py", "--studies", file, "--scale", "0.1"]
    command += ["--data_root", tmp_path, "--output_dir", tmp_path / "runs"]
    checkpoint = tmp_path / "runs/selfcon-scale-0.1/all/cross-entropy/seed-0/checkpoints/last.ckpt"
    first = subprocess.Popen(list(map(str, command)))
    deadline = time.monotonic() + 300
    while not checkpoint.is_file():
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    time.sleep(2)
    written = checkpoint.stat().st_mtime
    time.sleep(2)
    assert checkpoint.stat().st_mtime == written, "the run goes on without its study"
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert "2/2  SelfCon in one stage, seed 0: " in done.stdout
    summary = json.loads((checkpoint.parents[1] / "summary.json").read_text())
    assert summary["epochs"] == 40


def test_each_slice_gets_on_by_one_program_of_a_run_and_repeats_none(monkeypatch, tmp_path):
    done = []

    def run_program(command, *_):
        done.append(command)
        if command == "moco":
            (tmp_path / "summary.json").touch()
        return ""

    monkeypatch.setattr(execute, "write_command", lambda name, options, *_: name)
    monkeypatch.setattr(execute, "_run_program", run_program)
    monkeypatch.setattr(execute, "is_evaluated", lambda run, name: len(done) > "ab".index(name) + 1)
    transfer = {"a": {}, "b": {}}
    run = Run("", "plain", "moco", {"seed": 0}, tmp_path, transfer)
    over = Slice(1e-9)
    for count in (1, 2, 3, 3):
        assert execute.run_one(run, 1, tmp_path / "log", over) == ""
        assert done == ["moco", "evaluate", "evaluate"][:count]
    (tmp_path / "summary.json").unlink()
    done.clear()
    assert execute.run_one(run, 1, tmp_path / "log", Slice()) == ""
    assert done == ["moco", "evaluate", "evaluate"]


def test_a_program_ends_with_the_process_that_it_works_for(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(
        "import os, sys, time\n"
        "from mixco_lightly.training.processes import STUDY_PROCESS, end_with_parent\n"
        "os.environ[STUDY_PROCESS] = str(os.getppid() + int(sys.argv[1]))\n"
        "end_with_parent()\n"
        "time.sleep(1.5)\n"
        "print('alive')\n"
    )
    programs = [Program(file, away, cwd=tmp_path) for away in (0, 1)]
    ends = [program.wait() for program in programs]
    assert [(end.returncode, end.stdout) for end in ends] == [(0, "alive\n"), (1, "")]


class Endless:
    """A program that runs until it is killed, and writes a checkpoint at some polls."""

    def __init__(self, checkpoint, writes):
        self.checkpoint, self.writes = checkpoint, writes
        self.polls, self.killed_at = 0, None

    def wait(self, timeout=None):
        if self.killed_at is not None:
            return -9
        self.polls += 1
        assert self.polls < 20
        if self.polls in self.writes:
            self.checkpoint.touch()
            os.utime(self.checkpoint, (self.polls, self.polls))
        raise subprocess.TimeoutExpired("program", timeout)

    def kill(self):
        self.killed_at = self.polls


def test_a_slice_ends_a_run_at_its_first_checkpoint_after_the_time(tmp_path, monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(slices.time, "monotonic", lambda: float(next(now)))
    part = Slice(minutes=5 / 60)  # from 0 to 5
    program = Endless(tmp_path / "last.ckpt", writes=[2, 3, 9, 11])
    assert part.wait(program, program.checkpoint)
    assert program.killed_at == 9
    # One that has no checkpoint ends by itself, and so does every program without a slice.
    for endless, checkpoint in [(Slice(1e-9), None), (Slice(), program.checkpoint)]:
        program = Endless(tmp_path / "last.ckpt", writes=range(20))
        with pytest.raises(AssertionError):
            endless.wait(program, checkpoint)
        assert program.killed_at is None


def test_the_minutes_are_of_all_steps_epochs_seeds_and_evaluations(
    paper, image_folder, tmp_path, monkeypatch
):
    file = write_tiny("paper-cifar10-study", tmp_path, seeds=[0, 1], groups=["MoCo v2"])
    config = paper.PaperConfig(data_root=str(tmp_path), output_dir=str(tmp_path / "runs"))
    table = paper.open_table(str(file), config)
    monkeypatch.setattr(minutes, "WARM_UP_STEPS", 3)
    monkeypatch.setattr(minutes, "TIMED_STEPS", 5)
    clock = SimpleNamespace(perf_counter=Clock())
    monkeypatch.setattr(minutes, "time", clock)
    monkeypatch.setattr(step_timer, "time", clock)
    measured = measure_minutes(table.runs, tmp_path / "log")
    assert [arm[:3] for arm in measured.arms] == [("MoCo v2", "plain", 2), ("MoCo v2", "MixCo", 2)]
    # The clock is read once before and once after the steps: a second for 5 of 100 * 2 steps.
    assert [arm.training for arm in measured.arms] == [pytest.approx(1 / 5 * 200 / 60)] * 2
    # A second for each extraction and protocol; three and one epoch take the same, so 100 are free.
    assert [arm.evaluation for arm in measured.arms] == [pytest.approx(3 / 60)] * 2
    assert measured.total == pytest.approx(4 * (40 + 3) / 60)
    assert "precision 32-true" in (tmp_path / "log").read_text()


class Clock:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_the_epochs_of_a_probe_follow_from_those_on_a_part_of_the_images(
    paper, image_folder, tmp_path, monkeypatch
):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(minutes, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(minutes, "PROBE_IMAGES", 6)

    def extract(*_, **__):
        clock.now += 5

    def measure(_, protocols, *, label_fractions=(1.0,), **__):
        (protocol,) = protocols
        if protocol.name == "knn":
            clock.now += 7
            return []
        # A second for each image of an epoch, and a start that takes as long as it likes.
        clock.now += 11 + 24 * label_fractions[0] * protocol.epochs
        return []

    monkeypatch.setattr(evaluator, "extract", extract)
    monkeypatch.setattr(evaluator, "measure", measure)
    options = {**TINY, "data_dir": str(image_folder)}
    config = check_options(MixCoConfig, options)
    evaluation = minutes.Evaluation(
        "imagefolder", str(image_folder), None, (("knn", 0), ("paper", 100))
    )
    seconds = minutes.time_evaluation(config, evaluation, torch.device("cpu"))
    assert seconds == pytest.approx(5 + 7 + 100 * 24)


def test_a_run_that_ends_before_the_device_is_warm_is_timed_from_its_first_step(monkeypatch):
    monkeypatch.setattr(step_timer, "time", SimpleNamespace(perf_counter=Clock()))
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")), should_stop=False
    )
    for steps in (1, 3, 4, 8):
        timer = step_timer.StepTimer(3, 5)
        trainer.should_stop = False
        for step in range(steps):
            timer.on_train_batch_start(trainer, None, None, step)
            timer.on_train_batch_end(trainer, None, None, None, step)
            assert trainer.should_stop == (step == 7)
        timer.on_train_end(trainer, None)
        assert timer.seconds_per_step == 1 / (steps if steps <= 3 else steps - 3)


def test_a_study_of_compare_is_planned_scaled_and_stopped_too(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(RECIPES))
    compare = importlib.import_module("compare")
    monkeypatch.setattr(minutes, "measure_apart", planned)
    monkeypatch.setattr(execute, "run_one", lambda run, threads, log, part: "")
    words = ["compare.py", "--config", RECIPES / "presets" / "paper-cifar10-study.yaml"]
    words += ["--output_dir", tmp_path / "study", "--scale", 0.5, "--plan_minutes"]
    words += ["--slice_minutes", 1e-6]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    code, printed, error = end_of(compare.main, capsys)
    assert (code, error) == (0, "")
    assert re.search(r"│ MoCo v2: plain +│ +1 │ +1.2 │", printed)
    assert (tmp_path / "study-scale-0.5" / "minutes.md").is_file()
    assert printed.splitlines()[-1] == (
        "Stopped after 1e-06 minutes: 0 of 12 runs are finished. Go on with the same command and "
        "--resume."
    )


@pytest.mark.parametrize(
    ("options", "scale", "expected"),
    [
        ({"epochs": 100, "warmup_epochs": 10}, 0.1, {"epochs": 10, "warmup_epochs": 1}),
        ({"epochs": 100}, 0.07, {"epochs": 7}),
        ({"epochs": 7, "warmup_epochs": 2}, 0.1, {"epochs": 1, "warmup_epochs": 0.2}),
        ({"epochs": 25}, 0.1, {"epochs": 3}),
        ({"epochs": 7}, 1, {"epochs": 7}),
        ({}, 0.5, {"epochs": 15}),  # half of the default
        ({"epochs": 100}, 2, {"epochs": 200}),
    ],
)
def test_a_scale_multiplies_epochs_and_warm_up_and_rounds_epochs_up(options, scale, expected):
    assert scale_epochs(options, MixCoConfig, scale) == expected


def test_a_scaled_study_scales_every_arm_and_evaluation_and_says_so(paper, tmp_path):
    config = paper.PaperConfig(output_dir=str(tmp_path), scale=0.1)
    folders = set()
    for name in paper.STUDIES:
        table = paper.open_table(name, config)
        folders.add(table.folder.name)
        for run in table.runs:
            assert run.options["epochs"] == (50 if "selfcon" in name else 10)
            assert run.options["warmup_epochs"] == (1 if "selfcon" in name else 0)
            assert all(options["paper_epochs"] == 10 for options in run.transfer.values())
        assert table.study.content()["scale"] == 0.1
    assert len(folders) == 4
    assert all(folder.endswith("-scale-0.1") for folder in folders)
    whole = paper.open_table(paper.STUDIES[0], paper.PaperConfig(output_dir=str(tmp_path)))
    assert whole.folder == tmp_path / "cifar10"
    assert "scale" not in whole.study.content()


GOOD = {"source": "a paper", "values": {"SimCLR: MixCo": 50}, "epochs": 100}


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"linear": GOOD}, "published, linear: there is no such figure: choose from linear_top1"),
        ({"linear_top1": {**GOOD, "value": 1}}, "must have source, values and epochs"),
        ({"linear_top1": {**GOOD, "source": " "}}, "needs a source"),
        ({"linear_top1": {"values": {}}}, "needs a source"),
        ({"linear_top1": {**GOOD, "values": [1]}}, "values must be a mapping of arms"),
        ({"linear_top1": {**GOOD, "values": {"MixCo": 1}}}, "no arm 'MixCo': choose from SimCLR: "),
        ({"linear_top1": {**GOOD, "values": {"SimCLR: MixCo": "50"}}}, "must be a number"),
        ({"linear_top1": {**GOOD, "epochs": 0.5}}, "epochs must be a whole number"),
    ],
)
def test_published_figures_that_cannot_be_shown_are_refused(published, message):
    check_published({"linear_top1": GOOD}, ["SimCLR: MixCo"], ["linear_top1"])
    with pytest.raises(ValueError, match=re.escape(message)):
        check_published(published, ["SimCLR: MixCo"], ["linear_top1"])


def test_published_figures_stand_beside_the_measured_and_unknown_ones_are_called_unknown():
    rows = [
        {"group": "A", "arm": arm, "seed": 0, "images": 10, "seconds": 1, "linear_top1": 40.0}
        for arm in ("plain", "MixCo")
    ]
    block = {"source": "a paper.", "epochs": 100, "values": {"A: MixCo": 68}}
    study = {"published": {"linear_top1": block}}
    results = {"question": "Does it?", "base_name": "plain", "jobs": 1, "processors": 2}
    results |= {"study": study, "runs": rows}
    lines = report.render(results).splitlines()
    assert lines[0] == "## Does it?"
    assert "| linear, top-1 %, ours | paper | minus plain [95%] |" in lines[2]
    assert "| A | plain | 1 | 40.00 | unknown |  |" in lines[4]
    assert "| A | MixCo | 1 | 40.00 | 68.00 | +0.00 (one pair) |" in lines[5]
    assert "Paper, linear_top1: a paper." in lines[7]
    study["scale"] = 0.1
    lines = report.render(results).splitlines()
    assert lines[0] == "## Does it? (scale 0.1)"
    assert "| paper, 100 epochs |" in lines[2]
    assert "Runs and evaluations have 0.1 of their epochs." in lines[7]


def test_missing_data_is_one_line_before_anything_runs_and_nothing_is_downloaded(
    paper, monkeypatch, capsys, tmp_path
):
    def refuse(*_, **__):
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    monkeypatch.setattr(minutes, "measure_apart", refuse)
    folder = tmp_path / "data"
    for study, name in [
        ("paper-cifar100-study", "cifar100"),
        ("paper-tiny-imagenet-study", "cifar10"),  # the first that is missing
    ]:
        words = ["paper.py", "--studies", study, "--data_root", folder]
        words += ["--output_dir", tmp_path / "runs"]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        code, printed, error = end_of(paper.main, capsys)
        assert (code, printed) == (1, "")
        (line,) = error.splitlines()
        archive = folder / f"{name.replace('cifar', 'cifar-')}-python.tar.gz"
        assert line.startswith(f"error: {name} is not in {folder}: expected {archive}, unpacked to")
        assert line.endswith("Put it there, or name another --data_root; nothing is downloaded.")
        assert "--download" not in line


def test_no_preset_of_the_tables_downloads_or_starts_from_published_weights(paper, tmp_path):
    for name in paper.STUDIES:
        config = paper.PaperConfig(output_dir=str(tmp_path))
        for run in paper.open_table(name, config).runs:
            for options in (run.options, *run.transfer.values()):
                assert not options.keys() & {"download", "pretrained"}


def test_make_paper_runs_the_command_with_its_settings():
    dry = ["make", "--dry-run", "--always-make", "paper", "PYTHON=false"]
    plain = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in plain.splitlines() if "paper.py" in line]
    assert line.endswith("recipes/paper.py --data_root data --scale 1 --jobs 1")
    given = [*dry, "DATA=/images", "SCALE=0.1", "JOBS=2", "MINUTES=50"]
    scaled = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in scaled.splitlines() if "paper.py" in line]
    words = line.split("recipes/paper.py ")[1]
    assert words == "--data_root /images --scale 0.1 --jobs 2 --slice_minutes 50"
