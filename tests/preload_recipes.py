"""What recipes and tests of processes import, for the server that they are forked from."""

import gc

import kornia  # noqa: F401
import matplotlib.backends.backend_agg  # noqa: F401
import pytest  # noqa: F401
import sklearn.datasets  # noqa: F401

import mixco_lightly.evaluation.image_probes
import mixco_lightly.evaluation.linear_sklearn
import mixco_lightly.evaluation.subjects
import mixco_lightly.models.imix
import mixco_lightly.models.moco
import mixco_lightly.models.selfcon
import mixco_lightly.models.simclr
import mixco_lightly.studies.execute
import mixco_lightly.training.option_parser
import mixco_lightly.training.pretraining
import mixco_lightly.training.recipe  # noqa: F401
import tests.forced_machine  # noqa: F401
from mixco_lightly.training.option_parser import OptionParser
from mixco_lightly.training.options import MixCoConfig

OptionParser(MixCoConfig)  # jsonargparse imports half a second of libraries on first use

gc.collect()
gc.freeze()  # or each forked process would look through all of this again
