"""Which dataset a recipe takes, where --dataset does not say it."""

from __future__ import annotations

from mixco_lightly.data.catalogue import find_dataset
from mixco_lightly.training.processes import print_on_rank_zero


def choose_dataset(dataset: str | None, data_dir: str | None) -> tuple[str, str]:
    """Completes --dataset and --data_dir, and prints a line if it finds the dataset out.

    Args:
        dataset: The dataset's name. Default: what ``data_dir`` has, or digits without it.
        data_dir: Folder of the data. Default: data.

    Returns:
        The dataset's name and the folder.

    Raises:
        ValueError: If the folder has several datasets.
        OSError: If it has none, or cannot be read.
    """
    if dataset is None and data_dir is not None:
        dataset, found = find_dataset(data_dir)
        print_on_rank_zero(f"Found {found} in {data_dir}: --dataset {dataset}.")
    return dataset or "digits", "data" if data_dir is None else data_dir
