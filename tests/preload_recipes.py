"""What the recipes import, for the process that tests.run_recipe forks them from."""

import kornia  # noqa: F401
import matplotlib.figure  # noqa: F401

import mixco_lightly.training.pretraining  # noqa: F401
import tests.forced_machine  # noqa: F401
