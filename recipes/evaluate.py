"""Evaluate backbones: linear probes, nearest neighbours, the paper's protocol, fine-tuning.

    python recipes/evaluate.py --backbone_dir runs/moco
    python recipes/evaluate.py --backbone resnet18 --dataset digits

Transfer of two runs to two datasets, with all labels, a tenth and a hundredth of them:

    python recipes/evaluate.py --backbone_dir runs/moco runs/simclr --dataset cifar10 cifar100
        --data_dir data --label_fractions 1 0.1 0.01 --output_dir runs/transfer

Protocols. Three use features of the frozen backbone, which are extracted once: torch (a linear
classifier whose learning rate is chosen on a tenth of the training images), sklearn (logistic
regression, C chosen likewise) and knn. Two train on images that are cropped and flipped anew in
each epoch: paper (the authors' linear evaluation: frozen backbone, SGD without weight decay,
learning rate 3.0, divided by ten after 60% and 80% of 100 epochs) and finetune (trains a copy of
the backbone too, with Lightly's FinetuneClassifier). torch, paper and finetune also report the
expected calibration error (ECE, 15 bins). These two report the last epoch and the best
one, which is chosen on the test images, as in the authors' evaluation, and labelled so. All other
figures are the last epoch's.

Four more use features of other images or of few labels: corruptions and shift (torch's classifier,
tested on corrupted images, or on another dataset with the same classes), ood (how well the distance
to the training features detects the images of a second dataset) and few-shot (nearest class means):

    python recipes/evaluate.py --backbone_dir runs/moco --protocol torch corruptions few-shot ood
        --ood_data_dir data/tiny-imagenet-200

mutual-information reads a SelfCon run's checkpoints. For each it estimates, by three estimators,
the mutual information of each sub-network's features and the backbone's, and measures the accuracy
of all exits. It writes mutual_information.json, .md and a plot over the epochs, .png:

    python recipes/selfcon.py --keep_every_n_epochs 5 --output_dir runs/selfcon
    python recipes/evaluate.py --backbone_dir runs/selfcon --protocol mutual-information

Images: the shorter side is resized to image_size up to 64 pixels, and to 8/7 of image_size above;
then the centre square of image_size pixels is cropped. An image that is not square loses its
margins. Pixels are normalised by the dataset's statistics, or by those of published weights.
Features and probes are computed in float32, unless --precision says otherwise.

The tables are printed and written to --output_dir (default: the backbone's folder) as
evaluation.json and evaluation.md, each result as soon as it is measured. Earlier results stay in
the files; results with other settings are replaced only with --overwrite. --report also writes
evaluation.html there: the table, maps of the test images, neighbours and mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mixco_lightly.training.command_line import parse_options, print_table, typed_command
from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.interrupts import end_in_one_line
from mixco_lightly.training.option_types import NonNegativeInt, PositiveInt
from mixco_lightly.training.protocol_options import ProtocolOptions

if TYPE_CHECKING:
    from mixco_lightly.evaluation.subjects import Source, Subject
    from mixco_lightly.studies.exit_information import Checkpoints


@dataclass(frozen=True)
class BackboneOptions:
    """Backbones.

    Args:
        backbone_dir: One or more folders of runs, or folders that export_backbone wrote.
        backbone: One or more timm names instead, for backbones without a run. Their weights are
            random, or published ones with --pretrained.
        pretrained: Whether to load timm's published weights (with --backbone). Images are then
            normalised by the statistics of these weights.
        random_init: Whether to measure the initialisation of each backbone_dir too, once if
            several runs share it.
    """

    backbone_dir: list[str] = field(default_factory=list)
    backbone: list[str] = field(default_factory=list)
    pretrained: bool = False
    random_init: bool = False


@dataclass(frozen=True)
class ImageOptions:
    """Data.

    Args:
        dataset: One or more datasets, as for a recipe. Default: that of the first backbone.
            Without one, or if that was digits: the one found in data_dir, or digits without it.
        data_dir: Folder of the data: one for all datasets, or one for each. Default: the folder
            that the first backbone was trained from, else data.
        image_column: Column of the images, for huggingface. Default: found by its type or name.
        label_column: Column of the labels, for huggingface. Default: likewise.
        download: Whether to download CIFAR if it is missing.
        keep_decoded: Whether to keep the decoded images of a folder in data_dir/.decoded.
        max_broken_images: How many images may be left out because they cannot be opened, of the
            training and of the test images each; the tables say how many were. With 0 the first
            broken image is an error.
        label_fractions: Fractions of the training images whose labels are used, in (0, 1], the
            same of every class. The seed alone decides which; a larger one contains a smaller one.
        image_size: Image height and width. Default: the backbone's; with --backbone the dataset's.
    """

    dataset: list[str] = field(default_factory=list)
    data_dir: list[str] = field(default_factory=list)
    image_column: str | None = None
    label_column: str | None = None
    download: bool = False
    keep_decoded: bool = True
    max_broken_images: NonNegativeInt = 0
    label_fractions: list[float] = field(default_factory=lambda: [1.0])
    image_size: PositiveInt | None = None


@dataclass(frozen=True)
class RunOptions:
    """Run.

    Args:
        batch_size: Images in a batch of the feature extraction and of the tests.
        num_workers: Processes that load images. Default: the number of processors, 8 at most.
        seed: Seed of protocols and label fractions, and of random weights with --backbone.
        device: Where to compute, such as cpu or cuda. Default: cuda if there is one.
        precision: Precision of the networks. The default float32 is the precision in which every
            run is evaluated at its end; 16-mixed and bf16-mixed are faster on a GPU.
        output_dir: Where evaluation.json and evaluation.md are written. Default: in each
            backbone_dir; with --backbone nothing is written.
        overwrite: Whether results may replace those of other settings or weights.
        report: Whether to write evaluation.html beside evaluation.json: the table and, for each
            backbone, a map of the test images, neighbours and mistakes.
    """

    batch_size: PositiveInt = 256
    num_workers: NonNegativeInt | None = None
    seed: NonNegativeInt = 0
    device: str | None = None
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    output_dir: str | None = None
    overwrite: bool = False
    report: bool = False


@dataclass(frozen=True)
class EvaluateConfig(RunOptions, ProtocolOptions, ImageOptions, BackboneOptions):
    """Options of an evaluation."""


def main() -> None:
    """Evaluates backbones on datasets."""
    end_in_one_line()
    config = parse_options(EvaluateConfig, __doc__)
    # Functions import what takes seconds, so that --help and a wrong option answer at once.
    from mixco_lightly.training.processes import end_with_parent
    from mixco_lightly.training.trainer import quieten_lightning

    end_with_parent()
    quieten_lightning()
    with fail_in_one_line():
        evaluate(config)


def evaluate(config: EvaluateConfig) -> None:
    """Opens everything, checks it, and then measures, prints and writes."""
    from mixco_lightly.evaluation.evaluator import choose_device, extract, measure
    from mixco_lightly.evaluation.image_sets import create_image_sets, open_second_datasets
    from mixco_lightly.evaluation.records import Record, Report, add_record, complete_record
    from mixco_lightly.evaluation.subjects import describe_subject, open_images
    from mixco_lightly.evaluation.tables import list_records
    from mixco_lightly.reports.evaluation_page import EVALUATION_PAGE, EvaluationPage

    common: dict[str, Any] = {
        "num_workers": config.num_workers,
        "device": choose_device(config.device, config.precision),
        "precision": config.precision,
    }
    opening: dict[str, Any] = {
        "download": config.download,
        "keep_decoded": config.keep_decoded,
        "max_broken_images": config.max_broken_images,
    }
    fractions = list(dict.fromkeys(config.label_fractions))
    sources = choose_sources(config)
    opened = open_images(sources, label_fractions=fractions, **opening)
    others, other_names = open_second_datasets(config.second_datasets, **opening)
    protocols = config.choose_protocols(other_names)
    subjects = open_subjects(config, sources)
    runs: list[Checkpoints] = []
    if "mutual-information" in config.protocol:
        from mixco_lightly.studies.exit_evaluation import open_exits, report_exits

        runs = open_exits(subjects)
    reports = {subject.folder: Report(subject.folder) for subject in subjects}
    pages = {
        folder: EvaluationPage(folder, typed_command(), config.seed, config.knn_k)
        for folder in reports
    }
    plans = []
    for subject in subjects:
        plan = describe_subject(
            subject, protocols, fractions, seed=config.seed, precision=config.precision
        )
        if not config.overwrite:
            reports[subject.folder].check_settings(plan.values())
        plans.append(plan)
    folders = sorted(folder for folder in reports if folder is not None)
    for folder in folders:
        # Now, so that results are not lost because a folder cannot be created.
        folder.mkdir(parents=True, exist_ok=True)

    image_sets = [
        create_image_sets(
            protocols, opened[subject.source][1], subject.facts, others, seed=config.seed
        )
        for subject in subjects
    ]
    for subject, checkpoints in zip(subjects, runs, strict=False):
        report_exits(
            subject,
            checkpoints,
            opened[subject.source],
            steps=config.information_steps,
            overwrite=config.overwrite,
            batch_size=config.batch_size,
            seed=config.seed,
            **common,
        )
    if not protocols:
        return
    records: list[Record] = []
    for subject, plan, sets in zip(subjects, plans, image_sets, strict=True):
        extraction = extract(
            subject.backbone,
            *opened[subject.source],
            subject.facts,
            image_size=subject.image_size,
            batch_size=config.batch_size,
            further=sets,
            **common,
        )
        for measurement in measure(
            extraction,
            protocols,
            label_fractions=fractions,
            seed=config.seed,
            title=f"{subject.name}, {subject.source.name}, ",
            **common,
        ):
            record = plan[measurement.label_fraction, measurement.protocol.name]
            add_record(records, complete_record(record, measurement))
            reports[subject.folder].add(records[-1])
        if config.report:
            pages[subject.folder].add(subject, extraction, records)
    table = list_records(records)
    print_table(f"Test images; {', '.join(table.same)}", table.columns, table.rows)
    print("".join(f"{note}\n" for note in table.notes), end="")
    for folder in folders:
        print(f"Written to {folder / 'evaluation.md'} and evaluation.json.")
        if config.report and (folder / EVALUATION_PAGE).is_file():
            print(f"Report: {folder / EVALUATION_PAGE}")


def choose_sources(config: EvaluateConfig) -> list[Source]:
    """Chooses the datasets; ValueError if options contradict each other."""
    if bool(config.backbone_dir) == bool(config.backbone):
        raise ValueError("Give either --backbone_dir (a run or an export) or --backbone (timm).")
    if config.random_init and config.backbone:
        raise ValueError("--random_init goes with --backbone_dir; --backbone alone is random.")
    if config.report and config.backbone and not config.output_dir:
        raise ValueError("--report is written to a folder: give --output_dir.")
    if "mutual-information" in config.protocol:
        what = "--protocol mutual-information"
        if config.backbone:
            raise ValueError(f"{what} reads a run: give --backbone_dir, not --backbone.")
        if len(config.backbone_dir) > 1 and config.output_dir:
            raise ValueError(f"{what} writes beside each of several runs: leave out --output_dir.")
    from mixco_lightly.backbones.description import read_config
    from mixco_lightly.data.catalogue import get_dataset
    from mixco_lightly.evaluation.subjects import match_sources, recorded_dataset
    from mixco_lightly.training.resolve import choose_dataset

    trainings = [read_config(folder).get("training", {}) for folder in config.backbone_dir]
    first = trainings[0] if trainings else {}
    names = config.dataset or [recorded_dataset(first)]
    if not config.dataset and config.data_dir and get_dataset(names[0]).is_embedded:
        names = [choose_dataset(None, folder)[0] for folder in config.data_dir]
    folders = config.data_dir or [str(first.get("data_dir", "data"))]
    recorded = {} if config.dataset else first
    columns = (getattr(config, x) or recorded.get(x) for x in ("image_column", "label_column"))
    return match_sources(names, folders, *columns)


def open_subjects(config: EvaluateConfig, sources: Sequence[Source]) -> list[Subject]:
    """Opens every backbone for every dataset."""
    from mixco_lightly.evaluation.subjects import create_subjects, open_runs

    output_dir = Path(config.output_dir) if config.output_dir else None
    if config.backbone:
        return create_subjects(
            config.backbone,
            sources,
            pretrained=config.pretrained,
            image_size=config.image_size,
            seed=config.seed,
            output_dir=output_dir,
        )
    return open_runs(
        config.backbone_dir,
        sources,
        image_size=config.image_size,
        random_init=config.random_init,
        seed=config.seed,
        output_dir=output_dir,
    )


if __name__ == "__main__":
    main()
