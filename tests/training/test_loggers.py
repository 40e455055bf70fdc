"""TensorBoard, wandb and MLflow get the metrics of metrics.csv and the options, once."""

import csv
import json
import os
import struct

import pytest
import torch
import yaml
from pytorch_lightning.utilities import rank_zero_only
from safetensors.torch import load_file

import mixco_lightly.training.loggers as loggers
from mixco_lightly.training.metrics import MetricsFile
from mixco_lightly.training.pretraining import prepare, pretrain
from mixco_lightly.training.progress import EpochLines
from mixco_lightly.training.recipe import load_recipe
from mixco_lightly.training.run_folder import checkpoint_path, prepare_run
from tests.run_recipe import RECIPES, Program

ALL = ["tensorboard", "wandb", "mlflow"]
OPTIONS = {"dataset": "imagefolder", "image_size": 16, "backbone": "test_resnet", "epochs": 2}
OPTIONS |= {"batch_size": 12, "memory_bank_size": 64, "num_workers": 0, "precision": "32-true"}
OPTIONS |= {"knn_every_n_epochs": 1, "protocol": ["knn"], "random_init": False, "knn_k": 5}
OPTIONS |= {"keep_decoded": False, "backbone_kwargs": {"drop_rate": 0.0}}
DIGITS = ["--train_fraction", 0.1, "--batch_size", 32, "--memory_bank_size", 64, "--epochs", 2]
DIGITS += ["--num_workers", 0, "--precision", "32-true", "--protocol", "none"]
# Nothing leaves the machine.
OFFLINE = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
OFFLINE |= {"MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture
def offline(image_folder, monkeypatch, tmp_path):
    """Calls a run in this process; nothing leaves the machine."""
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("mixco_lightly.training.summary.draw_curves", lambda run: None)

    def call(name, run=pretrain, **options):
        recipe = load_recipe("moco")
        options |= {"data_dir": str(image_folder), "output_dir": str(tmp_path / name)}
        return run(recipe, recipe.config_class(**OPTIONS, **options))

    return call


class Killed(BaseException):
    """The program ends here."""


def die_in_epoch(number, monkeypatch):
    """Lets a run die at the end of an epoch, after its metrics and before its checkpoint."""
    inner = EpochLines.on_train_epoch_end

    def die(self, trainer, pl_module):
        inner(self, trainer, pl_module)
        if trainer.current_epoch + 1 == number:
            raise Killed

    monkeypatch.setattr(EpochLines, "on_train_epoch_end", die)


def read_csv(folder):
    """All values of metrics.csv, as (name, step, value)."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return sorted(
        (name, int(row["step"]), float(value))
        for row in rows
        for name, value in row.items()
        if name not in ("step", "epoch") and value
    )


def read_mlflow(folder):
    """The runs in a folder: status, options, and values as (name, step, value)."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient((folder / "mlruns").as_uri())
    experiments = [x.experiment_id for x in client.search_experiments()]
    for run in client.search_runs(experiments):
        values = [
            (name, point.step, point.value)
            for name in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, name)
        ]
        yield run.info, run.data.params, sorted(values)


def read_tensorboard(folder):
    """The hyperparameters' names, each time they were written, and the values that it shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.plugins.hparams import plugin_data_pb2

    hyperparameters = []
    for path in (folder / "tensorboard").glob("events*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    content = value.metadata.plugin_data.content
                    start = plugin_data_pb2.HParamsPluginData.FromString(content)
                    hyperparameters += [dict(start.session_start_info.hparams)]
    shown = EventAccumulator(str(folder / "tensorboard"))
    shown.Reload()
    values = [
        (name, event.step, event.value)
        for name in shown.Tags()["scalars"]
        for event in shown.Scalars(name)
    ]
    return [x for x in hyperparameters if x], sorted(values)


def read_wandb(folder):
    """The ids, and of the folders in the order of time the options and the values."""
    from wandb.proto.wandb_internal_pb2 import Record

    ids, options, values = [], [], []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for record in map(Record.FromString, read_records(path.read_bytes())):
            if record.WhichOneof("record_type") == "run":
                ids.append(record.run.run_id)
            config = {x.key or x.nested_key[0]: x.value_json for x in record.config.update}
            options += [{name: json.loads(x) for name, x in config.items()}] if config else []
            row = {x.key or "/".join(x.nested_key): x.value_json for x in record.history.item}
            step = int(row.pop("trainer/global_step", -1))
            values += [
                (name, step, float(x))
                for name, x in row.items()
                if name[0] != "_" and name != "epoch"
            ]
    return ids, options, values


def read_records(data):
    """The records of LevelDB's log format, of which a long one has several chunks."""
    position, record = 7, b""
    while position + 7 <= len(data):
        left = -position % 2**15
        if 0 < left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole, or its last chunk
            yield record
            record = b""


def to_float32(values):
    return [(name, step, pytest.approx(value, rel=1e-6)) for name, step, value in values]


def test_all_loggers_get_metrics_and_options_of_a_run_and_a_resumed_one_goes_on_in_them(
    offline, monkeypatch, tmp_path
):
    offline("plain")
    with monkeypatch.context() as patch:
        die_in_epoch(2, patch)
        with pytest.raises(Killed):
            offline("run", logger=ALL)
    folder = tmp_path / "run"
    ids = json.loads((folder / "loggers.json").read_text())
    ((info, _, _),) = read_mlflow(folder)
    assert info.status == "FAILED"
    # logger may change: metrics.csv, which is always there, need not be named.
    summary = offline("run", logger=["mlflow", "csv", "wandb", "tensorboard"], resume=True)
    assert json.loads((folder / "loggers.json").read_text()) == ids

    # Training is the same with loggers and without, and metrics.csv is.
    plain, run = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "run"))
    assert all(torch.equal(plain[name], run[name]) for name in plain)
    expected = read_csv(folder)
    assert expected == read_csv(tmp_path / "plain")
    assert len([name for name, _, _ in expected if name == "loss"]) == 2
    assert len([name for name, _, _ in expected if name == "knn_top1"]) == 2
    last = max(step for _, step, _ in expected)
    assert last == 3
    figures = [(f"summary/{name}", last, x) for name, x in summary.items() if name != "versions"]
    assert "summary/knn_top1" in [name for name, _, _ in figures]
    once = sorted([*expected, *figures])
    # wandb and MLflow show the second epoch's steps twice.
    again = [x for x in expected if x[1] == 3]
    twice = sorted([*once, *again])

    options = yaml.safe_load((folder / "config.yaml").read_text())
    options = {"method": "moco", **options}
    assert options["logger"] == ["csv", *ALL]
    # A second run of this program does not write to this one's folder.
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert "resume" not in options

    ((info, params, values),) = read_mlflow(folder)
    assert (info.run_id, info.status, info.run_name) == (ids["mlflow"], "FINISHED", "run")
    flat = {"backbone_kwargs/drop_rate": 0.0, **options}
    del flat["backbone_kwargs"]
    assert params == {name: str(value) for name, value in flat.items()}
    assert [x for x in values if x[0] != "epoch"] == to_float32(twice)

    tracked, configs, values = read_wandb(folder)
    assert set(tracked) == {ids["wandb"]}
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 2
    configs = [config for config in configs if "seed" in config]
    assert configs == [options]
    assert sorted(values) == to_float32(twice)
    # The second folder has nothing of the first epoch.
    assert values[-len(again) - len(figures) :] == [x for x in values if x[1] == 3][len(again) :]

    hyperparameters, values = read_tensorboard(folder)
    (names,) = map(set, hyperparameters)
    assert names == flat.keys()
    shown = [x for x in values if x[0] not in ("epoch", "hp_metric")]
    assert shown == to_float32(once)


def test_a_missing_package_is_one_line_with_the_pip_command_before_anything_else(
    run_here, monkeypatch, tmp_path
):
    real = loggers.version

    def find(package):
        if package in ("wandb", "mlflow-skinny"):
            raise loggers.PackageNotFoundError
        return real(package)

    monkeypatch.setattr(loggers, "version", find)
    monkeypatch.setattr("mixco_lightly.training.resolve.open_images", None)
    (tmp_path / "wandb").mkdir()  # what a run of wandb leaves is no package
    monkeypatch.chdir(tmp_path)
    code, _, error = run_here("moco", "--logger", "mlflow", "tensorboard", "wandb")
    assert code == 1
    assert error == (
        "error: --logger mlflow wandb needs packages that are not installed "
        "(mlflow-skinny, wandb): pip install mlflow-skinny wandb\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["wandb"]


def test_csv_is_always_a_logger_and_none_is_one_twice():
    assert loggers.choose_loggers([]) == ["csv"]
    assert loggers.choose_loggers(["wandb", "wandb"]) == ["csv", "wandb"]
    assert loggers.choose_loggers(["mlflow", "csv"]) == ["csv", "mlflow"]


def test_a_logger_that_cannot_start_or_go_on_is_an_error_of_one_line(
    offline, monkeypatch, tmp_path
):
    def start(name, run, known, finished_steps):
        raise RuntimeError("nobody\nis logged in")

    monkeypatch.setattr(loggers, "_start", start)
    message = "^--logger wandb did not start: nobody is logged in. Then repeat the command with "
    with pytest.raises(ValueError, match=message + "--overwrite, as nothing was trained.$"):
        offline("run", prepare, logger=["wandb"])
    ids = tmp_path / "run" / "loggers.json"
    assert not ids.exists()
    recipe = load_recipe("moco")
    config = recipe.config_class(logger=["csv", "wandb"], output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=message + "--resume.$"):
        loggers.start_loggers(config, "moco", 8)
    config = recipe.config_class(logger=["csv", "mlflow"], output_dir=str(tmp_path / "run"))
    for text, message in [
        ('{"mlflow": "abc"}', f"continue its run abc: nobody is logged in. Remove {ids} to log"),
        ("{", f"{ids} is damaged: remove it"),
        ("[1]", f"{ids} is damaged: remove it"),
    ]:
        ids.write_text(text)
        with pytest.raises(ValueError, match=message):
            loggers.start_loggers(config, "moco", 0)
        assert ids.read_text() == text


def test_only_the_first_process_starts_the_loggers(offline, monkeypatch, tmp_path):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    run = offline("run", prepare, logger=["mlflow", "tensorboard"])
    assert list(map(type, run.trainer.loggers)) == [MetricsFile]
    assert not (tmp_path / "run").exists()


def test_overwrite_begins_a_new_run_in_the_loggers_and_keeps_the_old_one_there(tmp_path):
    prepare_run(tmp_path, {}, resume=False, overwrite=False)
    ids, kept = tmp_path / "loggers.json", tmp_path / "wandb"
    ids.write_text("{}")
    kept.mkdir()
    checkpoint_path(tmp_path).write_bytes(b"")
    prepare_run(tmp_path, {}, resume=True, overwrite=False)
    assert ids.exists()
    prepare_run(tmp_path, {}, resume=False, overwrite=True)
    assert not ids.exists()
    assert kept.exists()


@pytest.mark.slow
def test_two_processes_are_one_run_in_each_logger_and_one_set_of_options(monkeypatch, tmp_path):
    options = [*DIGITS, "--accelerator", "cpu", "--devices", 2, "--output_dir", "run"]
    # Reading MLflow's folder needs it here too.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    options += ["--logger", *ALL]
    program = Program(RECIPES / "moco.py", *options, cwd=tmp_path, environment=OFFLINE)
    result = program.wait()
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "run"
    expected = read_csv(folder)
    ((info, params, values),) = read_mlflow(folder)
    assert info.status == "FINISHED"
    assert params["devices"] == "2"
    names = {name for name, _, _ in expected}
    assert [x for x in values if x[0] in names] == to_float32(expected)
    ids, configs, values = read_wandb(folder)
    assert len(set(ids)) == 1
    assert len([config for config in configs if "seed" in config]) == 1
    assert sorted(x for x in values if x[0] in names) == to_float32(expected)
    hyperparameters, values = read_tensorboard(folder)
    assert len(hyperparameters) == 1
    assert [x for x in values if x[0] in names] == to_float32(expected)
