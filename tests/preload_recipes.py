"""What the recipes import, for the process that tests.run_recipe forks them from."""

import sys

import tests.forced_machine  # noqa: F401
from tests.run_recipe import RECIPES

sys.path.insert(0, str(RECIPES))
import kornia  # noqa: F401
import matplotlib.figure  # noqa: F401
import pretrain  # noqa: F401

sys.path.remove(str(RECIPES))
