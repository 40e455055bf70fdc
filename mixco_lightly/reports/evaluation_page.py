"""evaluation.html: what evaluate.py measured, and what the backbones' features know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixco_lightly.evaluation.evaluator import Extraction
from mixco_lightly.evaluation.records import package_versions
from mixco_lightly.evaluation.subjects import Subject
from mixco_lightly.evaluation.tables import list_records, name_dataset
from mixco_lightly.reports.network_section import NetworkSection, create_section, embed
from mixco_lightly.reports.page import load_map_script, write_or_warn, write_page

# Beside evaluation.json. report.html is the run's own, and has what an evaluation cannot know.
EVALUATION_PAGE = "evaluation.html"


class EvaluationPage:
    """The page of a folder, which is written again with each backbone.

    Args:
        folder: The folder. None: nothing is written.
        command: The command, to say how to repeat it.
        seed: Decides which images are shown, and the maps.
        knn_k: Number of neighbours that vote.
    """

    def __init__(self, folder: Path | None, command: str, seed: int, knn_k: int) -> None:
        self._folder = folder
        self._command = command
        self._seed = seed
        self._knn_k = knn_k
        self._sections: list[NetworkSection] = []
        self._records: list[Mapping[str, Any]] = []

    def add(
        self, subject: Subject, extraction: Extraction, records: Sequence[Mapping[str, Any]]
    ) -> None:
        """Adds a backbone and writes the page; an error is a line and fails nothing.

        Args:
            subject: The backbone and the dataset.
            extraction: Its features.
            records: All records so far; those of the subject are added.
        """
        if self._folder is None:
            return
        of = (subject.name, subject.source.name)
        self._records += [x for x in records if (x["backbone"], x["dataset"]) == of]
        path = self._folder / EVALUATION_PAGE

        def write() -> None:
            dataset = name_dataset(subject.source.name, subject.source.data_dir)
            name = f"{subject.name} on {dataset}"
            embedded = embed(name, extraction, subject.facts, self._knn_k)
            key = f"network-{len(self._sections) + 1}"
            self._sections.append(create_section(embedded, key, self._seed))
            write_page(
                path,
                "evaluation.html",
                title="Evaluation",
                listing=list_records(self._records),
                command=self._command,
                versions=package_versions(),
                sections=self._sections,
                map_script=load_map_script(),
            )

        write_or_warn(path, f"{subject.name}, map and neighbours", write, names_path=False)
