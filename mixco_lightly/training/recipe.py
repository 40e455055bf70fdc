"""A recipe: a method, its options and its model, which make a pretraining run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixco_lightly.training.command_line import parse_options, started_as
from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.interrupts import end_in_one_line
from mixco_lightly.training.method import Method
from mixco_lightly.training.options import Config
from mixco_lightly.training.recipe_files import load_page


@dataclass(frozen=True)
class Recipe(Method[Config]):
    """A method that is a command: its options, its model, and what pretraining needs to know.

    Args:
        method: The method's name. It also names the augmentations, unless ``transform`` does.
        config_class: The dataclass of the recipe's options.
        create_model: Makes the method's LightningModule from a backbone and the options.
        mixed_views: The views that are mixed, unless the option mix_weight is 0.
        create_mixer: Returns the mixer, such as ``Mixer.unmix()``, for given options. Default:
            MixCo's, by the options mixing and alpha.
        num_views: Number of views of each image.
        dataset: A function of your own that opens the images, as ``--dataset`` takes the name of
            one. Default: the options ``--dataset`` and ``--data_dir`` alone choose them.
        transform: The method whose augmentations are used: moco, simclr, selfcon or cross-entropy.
            Or a function of your own that creates the transform, as ``--transform`` takes the name
            of one. Default: ``method`` if it is one of these, else simclr.
        needs_labels: Whether the method trains with labels.
        count_negatives: Returns the number of negatives of a query, from which the chance level of
            the contrast term follows. Default: the run does not mention a chance level.
        check: Completes the method's own options before anything else happens; raises a ValueError
            for options that do not go together.
        specialise: Returns the recipe for given options and class names, for methods that differ in
            views or labels. Default: the recipe itself.
        measure: Measures the trained module. It is given the module, its exported backbone and a
            function that evaluates a network, and returns the results of the network's parts by
            name, the backbone's first. Default: the backbone alone.

    Examples:
        >>> from mixco_lightly import loss, models
        >>> from mixco_lightly.training import MixCoConfig, Recipe
        >>> def create_model(backbone, config):
        ...     criterion = loss.MixCoLoss(mix_weight=config.mix_weight)
        ...     return models.SimCLR(backbone, criterion, projection_dim=config.projection_dim)
        >>> recipe = Recipe("mine", MixCoConfig, create_model, mixed_views=(0, 1))
        >>> recipe.config_class().epochs
        30
    """

    def main(self) -> None:
        """Pretrains with the options of the command line; an error ends the program in one line.

        The help starts with the docstring of the module that has ``create_model``.
        """
        end_in_one_line()
        description = sys.modules[self.create_model.__module__].__doc__
        config = parse_options(self.config_class, description)
        # Imported only now, because --help and a wrong option need none of it.
        from lightning_fabric.utilities.exceptions import MisconfigurationException

        from mixco_lightly.training.pretraining import (
            TRAINING_ERRORS,
            fit,
            measure_and_write,
            prepare,
        )
        from mixco_lightly.training.processes import OtherProcessError, end_with_parent

        end_with_parent()
        try:
            with fail_in_one_line((ValueError, OSError, MisconfigurationException)):
                run = prepare(self, config)
            with fail_in_one_line(TRAINING_ERRORS):
                fit(run, started_as())
            with fail_in_one_line():
                measure_and_write(run, started_as())
        except OtherProcessError:  # which reports it
            sys.exit(1)


def load_recipe(name_or_path: str | Path) -> Recipe[Any]:
    """Loads a recipe by its name, such as ``moco``, or by the path of its file.

    Args:
        name_or_path: A recipe of this package, or a Python file of your own that has ``recipe``.
            The file is run.

    Returns:
        What the file calls ``recipe``.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If the file has no recipe.

    Examples:
        >>> from mixco_lightly.training.recipe import load_recipe
        >>> load_recipe("moco").method
        'moco'
    """
    page = load_page(name_or_path)
    recipe = getattr(page, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{page.__file__} has no recipe: it must define `recipe = Recipe(...)`.")
    return recipe
