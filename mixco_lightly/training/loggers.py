"""Records a run in TensorBoard, Weights & Biases or MLflow, beside metrics.csv."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import Logger

from mixco_lightly.files import replace_file
from mixco_lightly.training.metrics import MetricsFile
from mixco_lightly.training.options import LoggerName, PretrainConfig, options_of_use

# Not looked for as modules: wandb's folder in the current one looks like a module.
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
_PROJECT = "mixco-lightly"
# What each logger calls the run, for a resumed run to go on there.
_IDS = "loggers.json"


class _WandbRun(WandbLogger):
    """Ends the wandb run when the training fails; otherwise the summary is still to come."""

    def finalize(self, status: str) -> None:
        """Marks a run that fails as failed. A resumed one goes on in it."""
        super().finalize(status)
        if status != "success":
            self.experiment.finish(exit_code=1)


def choose_loggers(names: Sequence[LoggerName]) -> list[LoggerName]:
    """Returns the loggers, each once, csv first: the run itself reads metrics.csv.

    Raises:
        ValueError: If a package is missing.
    """
    chosen: list[LoggerName] = [*dict.fromkeys(("csv", *names))]
    missing = [name for name in chosen[1:] if not _is_installed(_PACKAGES[name])]
    if missing:
        packages = [_PACKAGES[name] for name in missing]
        raise ValueError(
            f"--logger {' '.join(missing)} needs packages that are not installed "
            f"({', '.join(packages)}): pip install {' '.join(packages)}"
        )
    return chosen


def start_loggers(config: PretrainConfig, method: str, finished_steps: int) -> list[Logger]:
    """Starts the run in all its loggers but metrics.csv, or goes on there; for the first process.

    A logger that the run has not been in yet gets the options, as hyperparameters.

    Args:
        config: The completed options.
        method: The method's name.
        finished_steps: Steps of the checkpoint that the run resumes from; 0 for a new run.

    Raises:
        ValueError: If a logger cannot start, for example because nobody is logged in.
        OSError: If the run's folder cannot be written to.
    """
    run = Path(config.output_dir)
    ids = _read_ids(run / _IDS)
    command = options_of_use("command")
    options = {name: value for name, value in asdict(config).items() if name not in command}
    loggers: list[Logger] = []
    for name in config.logger:
        if name == "csv":
            continue
        is_new = name not in ids
        try:
            logger, ids[name] = _start(name, run, ids.get(name), finished_steps)
            if is_new:
                logger.log_hyperparams({"method": method, **options})
        except Exception as error:  # the packages' errors have no class in common
            reason = " ".join(str(error).split()).rstrip(".")[:500] or type(error).__name__
            if is_new:
                again = "--resume" if finished_steps else "--overwrite, as nothing was trained"
                message = f"did not start: {reason}. Then repeat the command with {again}."
            else:
                message = (
                    f"cannot continue its run {ids[name]}: {reason}. Remove {run / _IDS} to log"
                )
                message += " to a new one."
            raise ValueError(f"--logger {name} {message}") from error
        loggers.append(logger)
        with replace_file(run / _IDS) as file:
            file.write((json.dumps(ids, indent=2) + "\n").encode())
    return loggers


def end_loggers(loggers: Sequence[Logger], figures: Mapping[str, Any], step: int) -> None:
    """Logs the numbers of a run's summary as ``summary/NAME``, and ends the run in wandb.

    metrics.csv does not get them. The prefix keeps the kNN of the test images apart from the
    training's, which has the same name.

    Args:
        loggers: The run's loggers.
        figures: What summary.json has.
        step: The last step.
    """
    numbers = {f"summary/{name}": x for name, x in figures.items() if isinstance(x, (int, float))}
    for logger in loggers:
        if isinstance(logger, MetricsFile):
            continue
        logger.log_metrics(numbers, step)
        logger.finalize("success")  # again, as Lightning does after the training
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _read_ids(path: Path) -> dict[str, str]:
    """Returns what each logger calls the run; empty for a new run."""
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: remove it to start anew in the loggers.") from error


def _start(
    name: LoggerName, run: Path, known: str | None, finished_steps: int
) -> tuple[Logger, str]:
    """Starts a logger, and returns what it calls the run."""
    if name == "tensorboard":
        # TensorBoard shows the second time of steps that are repeated.
        return TensorBoardLogger(run, name=name, version="", purge_step=finished_steps), name
    return _start_wandb(run, known) if name == "wandb" else _start_mlflow(run, known)


def _start_wandb(run: Path, known: str | None) -> tuple[Logger, str]:
    import wandb

    # Not Lightning's call, which would take over a run that the caller's own program has open.
    tracked = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=os.environ.get("WANDB_NAME", run.resolve().name),
        dir=run,
        id=known,
        resume="allow" if known else None,
        reinit="create_new",
    )
    tracked.define_metric("trainer/global_step")
    tracked.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return _WandbRun(experiment=tracked), tracked.id


def _start_mlflow(run: Path, known: str | None) -> tuple[Logger, str]:
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        # Since version 3.7 MLflow writes to a folder only if this is set.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        logger = MLFlowLogger(
            os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
            run_name=run.resolve().name,
            tracking_uri=given or (run / "mlruns").resolve().as_uri(),
            run_id=known,
        )
        tracked = logger.run_id  # starts it
    finally:
        if not given:
            # MLflow sets it, and a second run of this program would write to this one's folder.
            os.environ.pop("MLFLOW_TRACKING_URI", None)
    assert tracked is not None
    return logger, tracked
