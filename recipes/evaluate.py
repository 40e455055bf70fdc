"""Evaluate backbones: linear probes, nearest neighbours, the paper's protocol, fine-tuning.

    python recipes/evaluate.py --backbone_dir runs/moco
    python recipes/evaluate.py --backbone resnet18 --dataset digits
    python recipes/evaluate.py --backbone_dir runs/moco --protocol paper finetune

Transfer of two pretrainings to two datasets, with all labels, a tenth and a hundredth of them:

    python recipes/evaluate.py --backbone_dir runs/moco runs/simclr --dataset cifar10 cifar100
        --data_dir data --label_fractions 1 0.1 0.01 --output_dir runs/transfer

Protocols. On features of the frozen backbone, extracted once: torch (a linear classifier; its
learning rate is chosen on a tenth of the training images), sklearn (logistic regression, C chosen
likewise) and knn. On training images that are cropped and flipped anew in each epoch, so that the
backbone runs over them each time: paper (the authors' linear evaluation: SGD, learning rate 3.0,
divided by ten after 60% and 80% of 100 epochs, no weight decay, frozen backbone) and finetune (a
copy of the backbone is trained too, with Lightly's FinetuneClassifier). These two have figures of
the last epoch and of the best one; the best is chosen on the test images, as in the authors'
evaluation, and is named so. All other figures are those of the last epoch.

mutual-information is for SelfCon's runs: how much each sub-network's features tell of the
backbone's, by three estimators, and the accuracy of all exits, at each checkpoint that the run has
kept. It is written to mutual_information.json, .md and, drawn over the epochs with the loss, .png:

    python recipes/selfcon.py --keep_every_n_epochs 5 --output_dir runs/selfcon
    python recipes/evaluate.py --backbone_dir runs/selfcon --protocol mutual-information

Images: the shorter side is resized to image_size up to 64 pixels, and to 8/7 of image_size above;
then the centre square of image_size pixels is cropped. So an image that is not square loses its
margins. Pixels are normalised by the dataset's statistics, or as published weights want it.

Features and probes are computed in float32, whatever precision a run was trained in, unless
--precision says otherwise.

The tables are printed and written to --output_dir (default: the backbone's folder) as
evaluation.json and evaluation.md, each result as soon as it is measured. Earlier results stay in
the files. Results of other settings are replaced only with --overwrite.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mixco_lightly.training.interrupts import end_in_one_line

    end_in_one_line()

import logging

from mixco_lightly.evaluation.evaluator import (
    EvaluateConfig,
    accuracy_protocols,
    check_device,
    complete,
    describe,
    extract,
    measure,
    measure_information,
    open_information,
    open_subjects,
    print_records,
)
from mixco_lightly.evaluation.records import (
    Record,
    add_record,
    check_settings,
    read_report,
    write_report,
)
from mixco_lightly.training.command_line import parse_options
from mixco_lightly.training.errors import fail_in_one_line


def main() -> None:
    """Evaluates backbones on datasets."""
    config = parse_options(EvaluateConfig, __doc__)
    config.protocol = list(dict.fromkeys(config.protocol))
    config.label_fractions = list(dict.fromkeys(config.label_fractions))
    # What Lightning says about itself; warnings still come through.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with fail_in_one_line():
        device = check_device(config.device, config.precision)
        subjects = open_subjects(config)
        information = open_information(config, subjects)
        plans = [describe(subject, config) for subject in subjects]
        folders = {subject.folder for subject in subjects if subject.folder is not None}
        reports = {folder: read_report(folder) for folder in folders}
        for subject, plan in zip(subjects, plans, strict=True):
            if subject.folder is not None and not config.overwrite:
                check_settings(subject.folder, reports[subject.folder], plan.values())
        for folder in folders:
            # Before the work, so that a folder that cannot be written to does not lose it.
            folder.mkdir(parents=True, exist_ok=True)
        for subject, checkpoints in information:
            measure_information(subject, checkpoints, config, device)
        if not accuracy_protocols(config):
            return
        records: list[Record] = []
        for subject, plan in zip(subjects, plans, strict=True):
            extraction = extract(
                subject.backbone,
                subject.dataset,
                subject.data_dir,
                config,
                subject.image_size,
                device,
                subject.normalize,
            )
            title = f"{subject.name}, {subject.dataset}, "
            for measurement in measure(extraction, config, device, title):
                record = plan[measurement.label_fraction, measurement.protocol]
                add_record(records, complete(record, measurement))
                if subject.folder is not None:
                    add_record(reports[subject.folder], records[-1])
                    write_report(subject.folder, reports[subject.folder])
        print_records(records)
        for folder in sorted(folders):
            print(f"Written to {folder / 'evaluation.md'} and evaluation.json.")


if __name__ == "__main__":
    main()
