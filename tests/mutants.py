"""Mutants of the code, each of which a named test must fail on: python tests/mutants.py [NAME ...]

A mutant is the code with one small mistake of a kind that is really made. A mutant that lives says
that a test does not test what it is named for. The tests must also pass without a mutant, and the
text that a mutant changes must be there exactly once: else the gate fails too.

Everything runs in a copy of the repository. Each run of tests is forked from this process, which
has imported the libraries but not the package, so that it takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PARTS = ["mixco_lightly", "recipes", "examples", "tests", "pyproject.toml", "README.md"]
PARTS += ["CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "Makefile", ".ci", ".github"]
# What the package and its tests are built on.
LIBRARIES = ["datasets", "hypothesis", "kornia", "lightly.loss", "lightly.models.modules"]
LIBRARIES += ["lightly.transforms", "matplotlib.figure", "pytest", "pytorch_lightning"]
LIBRARIES += ["safetensors.torch", "sklearn.linear_model", "timm", "torch.utils.checkpoint"]
TIME_LIMIT = 200  # seconds for a run of tests

CONTRASTIVE = ("tests/loss/test_contrastive.py",)
MIXCO = ("tests/loss/test_mixco_loss.py",)
IMIX = ("tests/loss/test_imix_loss.py",)
UNMIX = ("tests/loss/test_unmix_loss.py",)
SHARED = ("tests/loss/test_queue_loss.py", "-k", "not compile")
HAND_SET = ("tests/loss/test_mixco_loss.py", "-k", "hand_set")
QUEUE = ("tests/loss/test_key_queue.py",)
SELFCON = ("tests/loss/test_selfcon_loss.py",)
RANKS = ("tests/loss/test_distributed.py", "-k", "2 and processes")
MIXTURE = ("tests/data/test_mixture.py",)
COLLATE = ("tests/data/test_collate.py",)
MIXERS = ("tests/data/test_mixers.py",)
MODULES = ("tests/models/test_lightning_modules.py",)
FAMILY = ("tests/models/test_family.py",)
MIXING = ("tests/training/test_mixing.py", "-k", "recipe_mixes")
OPTIMIZER = ("tests/models/test_optimizer.py", "-k", "decay")
WARM_UP = ("tests/training/test_optimiser.py", "-k", "depthwise")
RATES = ("tests/training/test_optimiser.py", "-k", "base_learning_rate")
FOREST = ("tests/studies/test_forest.py",)
_FOREST = "mixco_lightly/studies/forest.py"
FILES = ("tests/training/test_resume.py", "-k", "sweep or failed or metrics")
OPTIONS = ("tests/training/test_resume.py", "-k", "options")
EARLIER = ("tests/training/test_mixing.py", "-k", "begun_before")
KILLS = ("tests/training/test_resume.py", "-k", "two_kills and moco")
DEVICES = ("tests/training/test_devices.py", "-k", "simclr_on_two_processes")
SECTIONS = ("tests/reports/test_sections.py",)
RUN_REPORT = ("tests/training/test_run_report.py", "-k", "ends_with or every_kind")
STUDY_PAGE = ("tests/studies/test_study_page.py",)
COMMAND_LINE = ("tests/training/test_command_line.py", "-k", "not ctrl_c")
EXPORT = ("tests/backbones/test_export.py",)
HUB = ("tests/backbones/test_hub.py",)
FORMATS = ("tests/backbones/test_formats.py", "-k", "not page")
EXPORT_PAGE = ("tests/backbones/test_formats.py", "-k", "only_if_told")
ASSETS = ("tests/backbones/test_release.py",)
ON_GPU = ("tests/loss/test_on_pretended_gpu.py",)
AUGMENTED_ON_GPU = ("tests/data/test_device_transforms.py", "-k", "gpu")
COMPILED = ("tests/loss/test_compile.py",)
BATCHES = ("tests/models/test_batches.py",)
SHARDS = ("tests/data/test_tar_shards.py",)
SHARES = ("tests/data/test_image_stream.py",)
TABLES = ("tests/data/test_hugging_face.py",)
OWN = ("tests/data/test_own_code.py",)
OWN_RECIPE = ("tests/training/test_own_data.py", "-k", "recipes_own")
RECORDED = ("tests/test_security.py", "-k", "recorded_function")
PUSHED = ("tests/backbones/test_hub.py", "-k", "paths_of_the_machine")
STREAMS = ("tests/training/test_streams.py",)
UNLABELLED = ("tests/data/test_image_folder.py",)
CHUNKS = ("tests/models/test_chunks.py",)
PROBE = ("tests/training/test_online_probe.py", "-k", "not run")
PROBE_RESUMED = ("tests/training/test_online_probe.py", "-k", "resumes")
LOGGED = ("tests/training/test_loggers.py", "-k", "all_loggers")
LOGGERS = ("tests/training/test_loggers.py", "-k", "not all_loggers")
MIX_CHOICE = ("tests/training/test_mixing.py", "-k", "steps_is_mixed or decision")
MIX_LOG = ("tests/models/test_step_log.py", "-k", "steps_that_are_mixed")
PRECISION = ("tests/evaluation/test_evaluation_precision.py", "-k", "moco")
CALIBRATION = ("tests/evaluation/test_calibration.py",)
IMAGE_CALIBRATION = ("tests/evaluation/test_image_probes.py", "-k", "calibration")
FEW_SHOT = ("tests/evaluation/test_few_shot.py",)
OUTLIERS = ("tests/evaluation/test_outliers.py",)
IMAGE_SETS = ("tests/evaluation/test_image_sets.py", "-k", "not exits")
CORRUPTIONS = ("tests/data/test_corruptions.py",)
ROBUSTNESS = ("tests/studies/test_robustness.py",)
_PAPER = "tests/studies/test_paper.py"
SCALE = (_PAPER, "-k", "scale_multiplies")
PUBLISHED = (_PAPER, "-k", "published")
SLICES = (_PAPER, "-k", "slice_ends or each_slice")
MINUTES = (_PAPER, "-k", "minutes_are or epochs_of_a_probe or device_is_warm")
PARENT = (_PAPER, "-k", "works_for")
AUTO = ("tests/studies/test_compare.py", "-k", "for_auto")
EXAMPLES = ("tests/test_examples.py", "-k", "gets_the_projections")
EXAMPLES_ON_TWO = ("tests/test_examples.py", "-k", "two_processes")
NOTEBOOKS = ("tests/test_examples.py", "-k", "are_those_of_the_scripts")

_CALIBRATION = "mixco_lightly/evaluation/calibration.py"
_IMAGE_TRAINING = "mixco_lightly/evaluation/image_training.py"
_FEW_SHOT = "mixco_lightly/evaluation/few_shot.py"
_OUTLIERS = "mixco_lightly/evaluation/outliers.py"
_FURTHER = "mixco_lightly/evaluation/further_protocols.py"
_IMAGE_SETS = "mixco_lightly/evaluation/image_sets.py"
_CORRUPTIONS = "mixco_lightly/data/corruptions.py"
_BLOCKWISE = "mixco_lightly/loss/blockwise.py"
_EXPORT = "mixco_lightly/backbones/export.py"
_HUB = "mixco_lightly/backbones/hub.py"
_FORMATS = "mixco_lightly/backbones/formats.py"
_RELEASE = "mixco_lightly/backbones/release.py"
_TIMM_CONFIG = "mixco_lightly/backbones/timm_config.py"
_CONTRASTIVE = "mixco_lightly/loss/contrastive.py"
_TWO_TERMS = "mixco_lightly/loss/plain_and_mixed_loss.py"
_QUEUE_LOSS = "mixco_lightly/loss/queue_loss.py"
_MIXCO = "mixco_lightly/loss/mixco_loss.py"
_IMIX = "mixco_lightly/loss/imix_loss.py"
_UNMIX = "mixco_lightly/loss/unmix_loss.py"
_CHECKS = "mixco_lightly/loss/argument_checks.py"
_QUEUE = "mixco_lightly/loss/key_queue.py"
_GATHER = "mixco_lightly/loss/gather.py"
_SELFCON = "mixco_lightly/loss/selfcon_loss.py"
_MIXTURE = "mixco_lightly/data/mixture.py"
_MIXING = "mixco_lightly/data/mixing.py"
_MIXERS = "mixco_lightly/data/mixers.py"
_COLLATE = "mixco_lightly/data/collate.py"
_MOCO = "mixco_lightly/models/moco.py"
_MOMENTUM = "mixco_lightly/models/momentum_module.py"
_IMIX_MODULES = "mixco_lightly/models/imix.py"
_SIMCLR = "mixco_lightly/models/simclr.py"
_CHUNKS = "mixco_lightly/models/chunks.py"
_STEP_LOG = "mixco_lightly/models/step_log.py"
_PROBE = "mixco_lightly/training/online_probe.py"
_LOGGERS = "mixco_lightly/training/loggers.py"
_DATA = "mixco_lightly/training/data_module.py"
_TARS = "mixco_lightly/data/tar_shards.py"
_STREAM = "mixco_lightly/data/image_stream.py"
_TABLES = "mixco_lightly/data/hugging_face.py"
_COLUMNS = "mixco_lightly/data/hugging_face_columns.py"
_OWN_CODE = "mixco_lightly/data/own_code.py"
_OWN_DATASET = "mixco_lightly/data/own_dataset.py"
_OWN_TRANSFORM = "mixco_lightly/data/own_transform.py"
_PASSES = "mixco_lightly/training/stream_batches.py"
_LENGTH = "mixco_lightly/training/run_length.py"
_TRAINER = "mixco_lightly/training/trainer.py"
_RUN = "mixco_lightly/training/run_folder.py"
_PARSER = "mixco_lightly/training/option_parser.py"
_METRICS = "mixco_lightly/training/metrics.py"
_PROCESSES = "mixco_lightly/training/processes.py"
_STEP_TIMER = "mixco_lightly/training/step_timer.py"
_EXECUTE = "mixco_lightly/studies/execute.py"
_MINUTES = "mixco_lightly/studies/minutes.py"
_PUBLISHED = "mixco_lightly/studies/published.py"
_REPORT = "mixco_lightly/studies/report.py"
_RESULTS = "mixco_lightly/studies/results.py"
_SCALE = "mixco_lightly/studies/scale.py"
_SLICES = "mixco_lightly/studies/slices.py"
SDIST = ("tests/test_wheel.py", "-k", "sdist_is")
WHEEL = ("tests/test_wheel.py", "-k", "wheel_is or requirements")
RELEASE = ("tests/test_release.py",)
_PUBLISH = ".github/workflows/publish.yml"
_SMOKE = "tests/smoke_release.py"


class Mutant(NamedTuple):
    """A mistake, and pytest's arguments for the tests that are there to notice it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = [
    # The first one is that of the default run: its tests are the fastest.
    Mutant(
        "the mean over the two mixtures is a sum", _TWO_TERMS,
        "mix = mix + term / len(mixed)", "mix = mix + term", HAND_SET,
    ),
    Mutant(
        "a wrapped batch piles up in the last row", _QUEUE,
        "device=self.keys.device)) % size", "device=self.keys.device)).clamp(max=size - 1)", QUEUE,
    ),
    Mutant(
        "the weights of first and second are exchanged in the image", _MIXTURE,
        "images[num_pairs : 2 * num_pairs], images[:num_pairs], weight",
        "images[:num_pairs], images[num_pairs : 2 * num_pairs], weight", MIXTURE,
    ),
    # Cross-entropies
    Mutant(
        "a row without direction is scaled up", _CONTRASTIVE,
        "(norm * scale > _MIN_NORM)", "(norm > _MIN_NORM)", CONTRASTIVE,
    ),
    Mutant(
        "rows are scaled in their own precision", _CONTRASTIVE,
        "x = x if x.dtype == torch.float64 else x.float()", "x = x * 1", CONTRASTIVE,
    ),
    Mutant(
        "the mean key is not rescaled with the maximum", _BLOCKWISE,
        "mean_key *= rescale.unsqueeze(1)", "mean_key *= 1.0", CONTRASTIVE,
    ),
    Mutant(
        "the sum is not rescaled with the maximum", _BLOCKWISE,
        "total *= rescale\n", "total *= 1.0\n", CONTRASTIVE,
    ),
    Mutant(
        "the pass over the queue never takes a maximum", _BLOCKWISE,
        "needs_maximum = max_logit > _MAX_PLAIN_LOGIT", "needs_maximum = False", CONTRASTIVE,
    ),
    Mutant(
        "an epsilon in the logarithm", _BLOCKWISE,
        "(maximum - target + total.log2())", "(maximum - target + (total + 1e-6).log2())",
        CONTRASTIVE,
    ),
    Mutant(
        "an anchor is a candidate of itself", _BLOCKWISE,
        "weights.scatter_(1, itself[rows].unsqueeze(1), -math.inf)", "pass", CONTRASTIVE,
    ),
    Mutant(
        "only the first view's anchors leave themselves out", _CONTRASTIVE,
        "torch.cat([row, row + len(all_z0)])", "torch.cat([row, row])", CONTRASTIVE,
    ),
    Mutant(
        "the keys get no gradient as negatives", _BLOCKWISE,
        "grad_keys.addmm_(weights.T, queries[rows] * share)", "pass", CONTRASTIVE,
    ),
    Mutant(
        "the queue's gradient is a sum, not a mean", _BLOCKWISE,
        "(queue * share).squeeze(1)", "(queue / total).squeeze(1)", CONTRASTIVE,
    ),
    Mutant(
        "the target is pushed away", _BLOCKWISE,
        "(-grad / n).expand(n)", "(grad / n).expand(n)", CONTRASTIVE,
    ),
    Mutant(
        "the positive is not in the denominator", _CONTRASTIVE,
        "torch.logaddexp(queue_lse, positive) - positive", "queue_lse - positive", CONTRASTIVE,
    ),
    Mutant(
        "lam weights the second key", _CONTRASTIVE,
        "torch.lerp(keys[second], keys[first],", "torch.lerp(keys[first], keys[second],",
        CONTRASTIVE,
    ),
    Mutant(
        "the keys get no gradient as targets", _CONTRASTIVE,
        "torch.lerp(keys[second], keys[first],",
        "torch.lerp(keys[second].detach(), keys[first].detach(),", CONTRASTIVE,
    ),
    Mutant(
        "the rows of a process start at row 0 of all", _CONTRASTIVE,
        "torch.arange(len(z0), device=z0.device) + offset",
        "torch.arange(len(z0), device=z0.device)", CONTRASTIVE,
    ),
    # MixCo's loss
    Mutant(
        "the bound on the logits is that of the higher temperature", _TWO_TERMS,
        "min(self.temperature", "max(self.temperature", MIXCO,
    ),
    Mutant(
        "mix_weight is left out", _TWO_TERMS,
        "total = contrast + self.mix_weight * mix", "total = contrast + mix", MIXCO,
    ),
    Mutant(
        "mixtures are contrasted with their own view", _TWO_TERMS,
        "(unit_rows(mixed0), mixture0, all_z1)", "(unit_rows(mixed0), mixture0, all_z0)", MIXCO,
    ),
    Mutant(
        "mixtures have the temperature of plain images", _MIXCO,
        "self.mix_temperature, queue_lse", "self.temperature, queue_lse", MIXCO,
    ),
    Mutant(
        "evaluation extends the queue", _QUEUE_LOSS,
        "self.training and queries.requires_grad", "queries.requires_grad", SHARED,
    ),
    Mutant(
        "a frozen query extends the queue", _QUEUE_LOSS,
        "self.training and queries.requires_grad", "self.training", SHARED,
    ),
    Mutant(
        "a repeated forward finds the queue of the next step", _QUEUE_LOSS,
        "self.queue.keys_before(keys) if step.is_repeated else self.queue.keys", "self.queue.keys",
        SHARED,
    ),
    Mutant(
        "autocast reaches the positives", _TWO_TERMS,
        "out0.device.type, enabled=False)",
        "out0.device.type, enabled=torch.is_autocast_enabled(out0.device.type))", SHARED,
    ),
    # The losses of i-Mix and Un-Mix
    Mutant(
        "only the mixture's first key counts", _CONTRASTIVE,
        "(lam * first_loss + (1 - lam) * second_loss)", "first_loss", UNMIX,
    ),
    Mutant(
        "both keys have the weight of the first", _CONTRASTIVE,
        "lam * first_loss + (1 - lam) * second_loss", "lam * first_loss + lam * second_loss", UNMIX,
    ),
    Mutant(
        "the second key is the first", _CONTRASTIVE,
        "_key_cross_entropies(queries, keys[source], temperature, queue_lse)  # n",
        "_key_cross_entropies(queries, keys[first], temperature, queue_lse)  # n", UNMIX,
    ),
    Mutant(
        "Un-Mix's two keys compete", _UNMIX,
        "return weighted_key_cross_entropy(",
        "from mixco_lightly.loss.contrastive import mixed_cross_entropy as compete\n"
        "            return compete(", UNMIX,
    ),
    Mutant(
        "a mixture is a candidate of itself", _CONTRASTIVE,
        "itself = torch.cat([row, first, second])", "itself = torch.cat([first, first, second])",
        UNMIX,
    ),
    Mutant(
        "the keys of mixtures are no anchors", _CONTRASTIVE,
        "torch.cat([torch.ones_like(lam), lam, 1 - lam]) / (2 * len(lam))",
        "torch.cat([torch.ones_like(lam), 0 * lam, 0 * lam]) / len(lam)", UNMIX,
    ),
    Mutant(
        "the keys of mixtures have the weight of mixtures", _CONTRASTIVE,
        "torch.cat([torch.ones_like(lam), lam, 1 - lam]) / (2 * len(lam))",
        "torch.ones(3 * len(lam)).to(lam) / (3 * len(lam))", UNMIX,
    ),
    Mutant(
        "mixtures are no candidates of mixtures", _CONTRASTIVE,
        "candidates = torch.cat([keys, all_mixed])",
        "candidates = torch.cat([keys, all_mixed[row - len(keys)] * 0])", UNMIX,
    ),
    Mutant(
        "the mixtures of a process start at row 0 of all", _UNMIX,
        "(all_z,), offset = self._gather(z)", "(all_z,), offset = self._gather(z)[0], 0", RANKS,
    ),
    Mutant(
        "mixtures of other processes are no candidates", _UNMIX,
        "(all_z,), offset = self._gather(z)", "all_z, offset = z, 0", RANKS,
    ),
    Mutant(
        "the queue gives i-Mix's keys a gradient", _IMIX,
        "keys = keys.detach()", "pass", IMIX,
    ),
    Mutant(
        "i-Mix's keys have no gradient without a queue", _IMIX,
        "self._gather(unit_rows(keys))", "self._gather(unit_rows(keys.detach()))", IMIX,
    ),
    Mutant(
        "i-Mix leaves the queue out of its candidates", _IMIX,
        "self.temperature, queue_lse)", "self.temperature, None)", IMIX,
    ),
    Mutant(
        "i-Mix's queue has a temperature of 1", _IMIX,
        "queries = z / self.temperature", "queries = z", IMIX,
    ),
    Mutant(
        "i-Mix enqueues the mixtures", _IMIX,
        "self._finish(all_keys, step)", "self._finish(z.detach(), step)", SHARED,
    ),
    Mutant(
        "i-Mix extends its queue by the keys' gradient", _IMIX,
        "step = self._start(mixed)", "step = self._start(keys)", SHARED,
    ),
    Mutant(
        "autocast reaches i-Mix's targets", _IMIX,
        "mixed.device.type, enabled=False)",
        "mixed.device.type, enabled=torch.is_autocast_enabled(mixed.device.type))", SHARED,
    ),
    Mutant(
        "i-Mix's keys are those of one process", _IMIX,
        "(all_keys,), offset = self._gather(unit_rows(keys))",
        "all_keys, offset = unit_rows(keys), 0", RANKS,
    ),
    Mutant(
        "a mixture of another batch is accepted", _CHECKS,
        "if pairs.min() < 0 or pairs.max() >= n:", "if pairs.min() < 0:", SHARED,
    ),
    # Queue
    Mutant(
        "of a large batch the oldest keys stay", _QUEUE,
        "newest = keys[-size:]", "newest = keys[:size]", QUEUE,
    ),
    Mutant(
        "the position moves by the batch and not by what was written", _QUEUE,
        "(self.position + len(newest)) % size", "(self.position + len(keys)) % size", QUEUE,
    ),
    Mutant(
        "the keys are not saved", _QUEUE,
        'self.register_buffer("keys", keys)',
        'self.register_buffer("keys", keys, persistent=False)', QUEUE,
    ),
    Mutant(
        "the position is not saved", _QUEUE,
        'self.register_buffer("position", torch.zeros((), dtype=torch.int64))',
        'self.register_buffer("position", torch.zeros((), dtype=torch.int64), persistent=False)',
        QUEUE,
    ),
    Mutant(
        "bad keys enter where the look comes later", _QUEUE,
        "torch.where(finite[-size:], newest, overwritten)", "newest", QUEUE,
    ),
    Mutant(
        "module.half() rounds the keys", _QUEUE,
        "if self.keys.dtype in (torch.float16, torch.bfloat16):", "if False:", QUEUE,
    ),
    # Ranks
    Mutant(
        "gathered rows have no gradient", _GATHER,
        "torch.cat(dist.gather(x))", "torch.cat(dist.gather(x)).detach()", RANKS,
    ),
    Mutant(
        "gathered rows are in another order than the ranks", _GATHER,
        "torch.cat(dist.gather(x))", "torch.cat(dist.gather(x)[::-1])", RANKS,
    ),
    Mutant(
        "pairs are those of the first process", _QUEUE_LOSS,
        "return first + offset", "return first", RANKS,
    ),
    Mutant(
        "a process enqueues its own keys alone", _TWO_TERMS,
        "self._finish(all_z1, step)", "self._finish(z1, step)", RANKS,
    ),
    Mutant(
        "the first view is not gathered", _TWO_TERMS,
        "(all_z0, all_z1), offset = self._gather(z0, z1)",
        "all_z0, ((all_z1,), offset) = z0, self._gather(z1)", RANKS,
    ),
    Mutant(
        "without labels the images of all processes have the same", _SELFCON,
        "labels = labels + images * dist.rank()", "pass", RANKS,
    ),
    Mutant(
        "processes with few anchors weigh as much as others", _SELFCON,
        "has_positive * (world_size / total.clamp_min(1))",
        "has_positive / has_positive.sum().clamp_min(1)", RANKS,
    ),
    Mutant(
        "the order of a resumed epoch is left to Lightning", _DATA,
        "sampler.set_epoch(epoch)", "pass", KILLS,
    ),
    Mutant(
        "the processes draw the same", _DATA,
        "SeedSequence((self.seed, epoch, rank))", "SeedSequence((self.seed, epoch))",
        DEVICES,
    ),
    # SelfCon's loss
    Mutant(
        "an output is a positive of itself", _SELFCON,
        "is_positive.scatter(1, row, False)", "is_positive", SELFCON,
    ),
    Mutant(
        "the anchor is counted among its positives", _SELFCON,
        "in_other_rows.sum(dim=1) + e - 1", "in_other_rows.sum(dim=1) + e", SELFCON,
    ),
    Mutant(
        "the ratio of the temperatures is left out", _SELFCON,
        "return self.temperature / self.base_temperature * loss", "return loss", SELFCON,
    ),
    Mutant(
        "another exit than the anchor's is left out", _SELFCON,
        "itself = row * e + torch.arange(num_anchor_exits, device=device)",
        "itself = row * e + torch.arange(num_anchor_exits, device=device).flip(0)", SELFCON,
    ),
    Mutant(
        "the sub-networks' weight is left out", _SELFCON,
        "backbone + self.subnetwork_weight * subnetworks", "backbone + subnetworks", SELFCON,
    ),
    # Mixing
    Mutant(
        "one weight for the whole batch", _MIXTURE,
        "lam = torch.rand(count, dtype=dtype, device=device, generator=generator)",
        "lam = torch.rand(1, device=device, generator=generator).expand(count)",
        MIXTURE,
    ),
    Mutant(
        "the generator is not used", _MIXTURE,
        "lam = torch.rand(count, dtype=dtype, device=device, generator=generator)",
        "lam = torch.rand(count, dtype=dtype, device=device)", MIXTURE,
    ),
    Mutant(
        "alpha is doubled", _MIXTURE,
        "(count, 2), alpha,", "(count, 2), 2 * alpha,", MIXTURE,
    ),
    Mutant(
        "an image is mixed with its neighbour", _MIXTURE,
        "second = first + num_pairs", "second = first + 1", MIXTURE,
    ),
    Mutant(
        "both mixtures are of the first view", _COLLATE,
        "[self.mixer(views[view]) for", "[self.mixer(views[0]) for", COLLATE,
    ),
    # Mixers
    Mutant(
        "a cut mixture keeps the drawn weight", _MIXING,
        "return Mixture(mixed, first, second, _one_each(_area(is_first, lam), first))\n\n\n"
        "@torch.no_grad()\ndef mask_mix(",
        "return Mixture(mixed, first, second, _one_each(lam, first))\n\n\n"
        "@torch.no_grad()\ndef mask_mix(", MIXERS,
    ),
    Mutant(
        "mixup or cutmix forgets the area", _MIXING,
        "torch.where(is_mixup, lam, _area(is_first, lam))", "lam", MIXERS,
    ),
    Mutant(
        "the box has the area of the first image", _MIXING,
        "side = (1 - lam).sqrt()", "side = lam.sqrt()", MIXERS,
    ),
    Mutant(
        "the box's side is its area", _MIXING,
        "side = (1 - lam).sqrt()", "side = 1 - lam", MIXERS,
    ),
    Mutant(
        "the box is one pixel too large", _MIXING,
        "(offset < half[:, None])", "(offset <= half[:, None])", MIXERS,
    ),
    Mutant(
        "rows and columns of a box are exchanged", _MIXING,
        "~(rows[:, None, :, None] & columns[:, None, None, :])",
        "~(columns[:, None, :, None] & rows[:, None, None, :])", MIXERS,
    ),
    Mutant(
        "boxes lie inside the image", _MIXING,
        "torch.arange(length, device=lam.device) - centre[:, None]",
        "torch.arange(length, device=lam.device) - centre.clamp(1, length - 1)[:, None]", MIXERS,
    ),
    Mutant(
        "the blocks show the second image", _MIXING,
        "(rank < count)", "(rank >= count)", MIXERS,
    ),
    Mutant(
        "cells are filled without regard to the blocks", _MIXING,
        "(4 * grid * block + along)", "along", MIXERS,
    ),
    Mutant(
        "the last block is cut from the top", _MIXING,
        "angle = 2 * math.pi * torch.rand(", "angle = 0 * torch.rand(", MIXERS,
    ),
    Mutant(
        "a permutation on the CPU for images on a GPU", _MIXING,
        "torch.randperm(count, device=device, generator=generator)",
        "torch.randperm(count, generator=generator)", MIXERS,
    ),
    Mutant(
        "folded weights favour the second image", _MIXTURE,
        "torch.maximum(lam, 1 - lam)", "torch.minimum(lam, 1 - lam)", MIXERS,
    ),
    Mutant(
        "each pair has a weight although it is shared", _MIXERS,
        "1 if self.shared_weight else len(first)", "len(first)", MIXERS,
    ),
    Mutant(
        "i-CutMix has a box for each image", _MIXERS,
        'shared_weight=mixing != "mixup", folded', "folded", MIXERS,
    ),
    Mutant(
        "the mixer reads its coin on the CPU", _MIXING,
        "torch.where(is_mixup, lam.view(-1, 1, 1, 1), is_first)",
        "lam.view(-1, 1, 1, 1) if is_mixup else is_first", MIXERS,
    ),
    Mutant(
        "two views of an image pass for two images", _MIXING,
        "image, image, _area", "image, image.flip(0), _area", MIXERS,
    ),
    # Networks
    Mutant(
        "the momentum encoder moves by m and not by 1 - m", _MOMENTUM,
        "get_ema_multi_avg_fn(self.current_momentum())",
        "get_ema_multi_avg_fn(1 - self.current_momentum())", MODULES,
    ),
    Mutant(
        "AdamW and LARS decay everything", "mixco_lightly/models/optimizer.py",
        '"weight_decay": 0.0}', '"weight_decay": weight_decay}', OPTIMIZER,
    ),
    Mutant(
        "tokens and scales with more than one dimension decay",
        "mixco_lightly/backbones/optimiser_facts.py",
        'and name.endswith("weight")', "and True", OPTIMIZER,
    ),
    Mutant(
        "depthwise networks do not warm up", "mixco_lightly/backbones/optimiser_facts.py",
        "1 < layer.groups == layer.in_channels", "1 < layer.groups < layer.in_channels", WARM_UP,
    ),
    Mutant(
        "AdamW's rate is scaled linearly", "mixco_lightly/training/optimiser.py",
        'if optimizer == "adamw" else', 'if optimizer == "adam" else', RATES,
    ),
    Mutant(
        "the momentum encoder stands still", _MOMENTUM,
        "if is_first_batch_of_step(self, batch_idx):", "if False:", MODULES,
    ),
    Mutant(
        "the momentum encoder moves with every accumulated batch", _MOMENTUM,
        "if is_first_batch_of_step(self, batch_idx):", "if True:", MODULES,
    ),
    Mutant(
        "the views' mixtures are exchanged", _SIMCLR,
        "(z0, z1, mixed0, mixture0, mixed1, mixture1)",
        "(z0, z1, mixed1, mixture0, mixed0, mixture1)", MODULES,
    ),
    # Hosts of the family
    Mutant(
        "i-Mix's queries are plain images", _IMIX_MODULES,
        "        _, key_images = find_views(batch, count=2)\n"
        "        (mixture,) = find_mixtures(batch, count=1, check_views=batch_idx == 0)\n"
        "        self.update_momentum_encoder(batch_idx)\n"
        "        features = self.backbone(mixture.images)\n",
        "        images, key_images = find_views(batch, count=2)\n"
        "        (mixture,) = find_mixtures(batch, count=1, check_views=batch_idx == 0)\n"
        "        self.update_momentum_encoder(batch_idx)\n"
        "        features = self.backbone(images)\n", FAMILY,
    ),
    Mutant(
        "i-Mix's momentum encoder moves after the keys", _IMIX_MODULES,
        "        self.update_momentum_encoder(batch_idx)\n"
        "        features = self.backbone(mixture.images)\n"
        "        self.step_features = features.detach()\n"
        "        mixed = self.projection_head(features)\n"
        "        keys = self.compute_keys(key_images)\n",
        "        features = self.backbone(mixture.images)\n"
        "        self.step_features = features.detach()\n"
        "        mixed = self.projection_head(features)\n"
        "        keys = self.compute_keys(key_images)\n"
        "        self.update_momentum_encoder(batch_idx)\n", FAMILY,
    ),
    Mutant(
        "N-pair's keys have no gradient", _IMIX_MODULES,
        "self.criterion(mixed, keys, mixture)\n        if is_logged",
        "self.criterion(mixed, keys.detach(), mixture)\n        if is_logged", FAMILY,
    ),
    Mutant(
        "N-pair's keys have a forward of their own", _IMIX_MODULES,
        "features = self.backbone(images)\n        self.step_features = features[len",
        "features = torch.cat([self.backbone(x) for x in "
        "images.split([len(mixture.images), len(key_images)])])\n"
        "        self.step_features = features[len", FAMILY,
    ),
    Mutant(
        "i-Mix logs the similarity of the second image's key", _IMIX_MODULES,
        "keys[mixture.first], self.criterion", "keys[mixture.second], self.criterion", FAMILY,
    ),
    Mutant(
        "queries and mixtures are split in the other order", _MOCO,
        "queries, mixed = projections.split([len(query_images), len(mixture.images)])",
        "mixed, queries = projections.split([len(mixture.images), len(query_images)])", FAMILY,
    ),
    Mutant(
        "the images of the first shard are read for all", _TARS,
        "shard, offset, size = self.spans[path]",
        "shard, offset, size = next(iter(self.spans.values())).shard, *self.spans[path][1:]",
        SHARDS,
    ),
    Mutant(
        "a changed shard is not noticed", _TARS,
        "loader=SpanReader(spans), sources=sources)", "loader=SpanReader(spans))", SHARDS,
    ),
    Mutant(
        "a damaged header ends a shard silently", _TARS,
        "            _check_end(file, shard)\n", "", SHARDS,
    ),
    Mutant(
        "a link in a shard is skipped silently", _TARS,
        "if not member.isreg() or member.issparse():", "if member.issparse():", SHARDS,
    ),
    Mutant(
        "classes are numbers although only some occur", _TARS,
        "[target[number] for number in numbers]", "list(numbers)", SHARDS,
    ),
    Mutant(
        "labels without test shards count", _TARS,
        "if number is not None and shards.test:", "if number is not None:", SHARDS,
    ),
    Mutant(
        "an archive beside images is taken for shards", _TARS,
        "if named or any(find_images(root)):", "if named:", SHARDS,
    ),
    Mutant(
        "every loader process reads the whole stream", _STREAM,
        "first, step = self.rank * count + index, self.world_size * count", "first, step = 0, 1",
        SHARES,
    ),
    Mutant(
        "the devices read the same part of a stream", _STREAM,
        "first, step = self.rank * count + index, self.world_size * count",
        "first, step = index, count", SHARES,
    ),
    Mutant(
        "what shares itself out is shared out twice", _STREAM,
        "            first, step = 0, 1\n", "", SHARES,
    ),
    Mutant(
        "broken images are counted over all passes", _STREAM,
        "self._is_started, self._num_broken.value = True, 0", "self._is_started = True", SHARES,
    ),
    Mutant(
        "broken images are listed in every pass", _STREAM,
        "            self.broken_list = None\n", "            pass\n", SHARES,
    ),
    Mutant(
        "a row of a table opens any file", _TABLES,
        "Path(path).resolve().is_relative_to(x.resolve())", "True", TABLES,
    ),
    Mutant(
        "a row of a table leads out of its folder by two dots", _TABLES,
        "Path(path).resolve().is_relative_to(x.resolve())", "Path(path).is_relative_to(x)", TABLES,
    ),
    Mutant(
        "the classes of a table are those of each split", _TABLES,
        "read_classes(splits.train, splits.label_column)",
        "read_classes(rows, splits.label_column)", TABLES,
    ),
    Mutant(
        "training.parquet is the split train", _TABLES, "(?![a-zA-Z])", "", TABLES,
    ),
    Mutant(
        "test images alone are a table to train on", _TABLES,
        'groups["train"][0] if "train" in groups else None',
        "next(iter(groups.values()))[0] if groups else None", TABLES,
    ),
    Mutant(
        "the hidden labels of a contest are labels", _COLUMNS,
        " and not all(x in (None, -1) for x in _read(rows, label))", "", TABLES,
    ),
    Mutant(
        "labels are numbered as they come", _COLUMNS,
        "sorted(set(_read(train, label)) - {None})",
        "dict.fromkeys(x for x in _read(train, label) if x is not None)", TABLES,
    ),
    Mutant(
        "the user's file runs again for each name in it", _OWN_CODE,
        "@cache\ndef _load_file", "def _load_file", OWN,
    ),
    Mutant(
        "a user's file replaces an installed module", _OWN_CODE,
        "sys.path.append(folder)", "sys.path.insert(0, folder)", OWN,
    ),
    Mutant(
        "an error names a line of a library", _OWN_CODE,
        "frame.filename == frames[0].filename", "True", OWN,
    ),
    Mutant(
        "the labels of a user's classes are numbered anew", _OWN_DATASET,
        "if classes is not None and kinds == {int}:", "if kinds == {int}:", OWN,
    ),
    Mutant(
        "a broken item is not named", _OWN_DATASET,
        "        except OSError as error:\n", "        except KeyError as error:\n", OWN,
    ),
    Mutant(
        "a user's dataset is opened for each use", _OWN_DATASET,
        "if (root, train) not in self._parts:", "if True:", OWN,
    ),
    Mutant(
        "the trial of a transform draws the run's random numbers", _OWN_TRANSFORM,
        "with torch.random.fork_rng(devices=[]):", "with torch.no_grad():", OWN,
    ),
    Mutant(
        "a transform may make any number of views", _OWN_TRANSFORM,
        "* num_views):", "* len(views)):", OWN,
    ),
    Mutant(
        "a recipe's own transform comes before the option",
        "mixco_lightly/training/pretraining.py",
        "transform=config.transform or name", "transform=name", OWN_RECIPE,
    ),
    Mutant(
        "a function that an export names runs", "mixco_lightly/evaluation/subjects.py",
        'if ":" in name:', "if not name:", RECORDED,
    ),
    Mutant(
        "a pushed export names the folder of the user's code",
        "mixco_lightly/backbones/public_copy.py",
        "os.path.basename(training[option])", "os.path.normpath(training[option])", PUSHED,
    ),
    Mutant(
        "every epoch begins a stream anew", _DATA,
        "self._stream_batches = self._stream_batches or StreamBatches(self._open_pass)",
        "self._stream_batches = StreamBatches(self._open_pass)", STREAMS,
    ),
    Mutant(
        "every pass draws the same random numbers", _DATA,
        "return self._create_loader(self.stream, self._first_pass + num_passes)",
        "return self._create_loader(self.stream, self._first_pass)", STREAMS,
    ),
    Mutant(
        "a resumed stream repeats its first pass", _DATA,
        "self._first_pass = self.trainer.global_step", "self._first_pass = 0", STREAMS,
    ),
    Mutant(
        "every device draws the same random numbers of a stream", _DATA,
        "SeedSequence((self.seed, epoch, rank))", "SeedSequence((self.seed, epoch))", STREAMS,
    ),
    Mutant(
        "a pass that gives no batch is tried for ever", _PASSES,
        "if batch is None:\n                raise ImageError(",
        "if batch is None:\n                return next(self)\n                raise ImageError(",
        STREAMS,
    ),
    Mutant(
        "max_steps counts the images without train_fraction", _LENGTH,
        "len(choose_part(targets, config.train_fraction, config.seed))", "len(targets)", STREAMS,
    ),
    Mutant(
        "max_steps leaves the last, short epoch out", _LENGTH,
        "epochs=math.ceil(config.max_steps / steps)",
        "epochs=max(config.max_steps // steps, 1)", STREAMS,
    ),
    Mutant(
        "a resumed run of max_steps lacks a step", _TRAINER,
        "    trainer.fit_loop._iteration_based_training = lambda: False", "    lambda: False",
        STREAMS,
    ),
    Mutant(
        "an epoch of a stream ignores accumulate", _TRAINER,
        "config.steps_per_epoch * config.accumulate if", "config.steps_per_epoch if", STREAMS,
    ),
    Mutant(
        "the option --mixing decides nothing", "mixco_lightly/training/pretraining.py",
        "Mixer.mixco(config.mixing, config.alpha)", "Mixer.mixco(alpha=config.alpha)", MIXING,
    ),
    Mutant(
        "the recipe's mixer is not asked", "mixco_lightly/training/pretraining.py",
        "(recipe.create_mixer or create_mixer)(config)", "create_mixer(config)", MIXING,
    ),
    Mutant(
        "a run of an earlier version does not resume", _RUN,
        '_EARLIER = {"mixing": "mixup", ', "_EARLIER = {", EARLIER,
    ),
    # Resume
    Mutant(
        "the weights of the batches go on from another random state", _DATA,
        "        pl.seed_everything(epoch_seed, verbose=False)\n", "", KILLS,
    ),
    Mutant(
        "an epoch is told from another by the moment it starts at", _DATA,
        "sampler.set_epoch(epoch)", "sampler.set_epoch(__import__('time').time_ns())",
        KILLS,
    ),
    Mutant(
        "workers have the seeds that the loader draws", _DATA,
        "            worker_init_fn=partial(seed_worker, epoch_seed),\n", "", KILLS,
    ),
    Mutant(
        "a checkpoint is written over the last one", _RUN,
        "with replace_file(Path(path)) as file:", 'with Path(path).open("wb") as file:', FILES,
    ),
    Mutant(
        "torn writes beside the checkpoint stay", _RUN,
        "for folder in (run, checkpoint_path(run).parent):", "for folder in (run,):", FILES,
    ),
    Mutant(
        "a run goes on with other options", _RUN,
        "value != before.get(name)", "False", OPTIONS,
    ),
    Mutant(
        "the steps after the checkpoint stay in the metrics", _METRICS,
        'if int(row["step"]) < finished_steps', 'if row["step"]', FILES,
    ),
    Mutant(
        "a torn line of metrics is read", _METRICS,
        'lines = [line for line in file if line.endswith("\\n")]', "lines = list(file)", FILES,
    ),
    Mutant(
        "foreign weights are loaded as far as they fit", _EXPORT,
        "load_state_dict(state, strict=True)", "load_state_dict(state, strict=False)", EXPORT,
    ),
    # GPUs, precision, Lightning, unlabelled images
    Mutant(
        "a queue alone stays where it was made", _QUEUE,
        "        self.follow(keys.device)\n", "", ON_GPU,
    ),
    Mutant(
        "the loss's queue stays where it was made", _QUEUE_LOSS,
        "self.queue.follow(queries.device)", "pass", ON_GPU,
    ),
    Mutant(
        "a mixture is moved with blocking copies", _MIXTURE,
        "torch.device(device).type not in _BLOCKING_DEVICES", "False", COLLATE,
    ),
    Mutant(
        "augmentations wait for their parameters", "mixco_lightly/data/device_transforms.py",
        "drawn.to(images.device, non_blocking=True)", "drawn.to(images.device)", AUGMENTED_ON_GPU,
    ),
    Mutant(
        "products are rounded where the user allows it", _BLOCKWISE,
        'backend.fp32_precision = "ieee"', "pass", (*CONTRASTIVE, "-k", "precision"),
    ),
    Mutant(
        "float64 rows are multiplied in bfloat16", _QUEUE_LOSS,
        "and queries.dtype == torch.float32", "", (SHARED[0], "-k", "float64_projections"),
    ),
    Mutant(
        "compile leaves forward_components eager", _TWO_TERMS,
        "self.forward_components = compiled", "self._compiled = compiled", COMPILED,
    ),
    Mutant(
        "the momentum encoder moves with every batch", "mixco_lightly/models/step_log.py",
        "batch_idx % module.trainer.accumulate_grad_batches == 0",
        "bool(module.trainer.accumulate_grad_batches)", MODULES,
    ),
    Mutant(
        "mixtures of another view are taken", _COLLATE,
        "if is_of(view):", "if False:", BATCHES,
    ),
    Mutant(
        "small stems are exported under timm's names", _EXPORT,
        "    if not differences:\n", "    if True:\n", (*EXPORT, "-k", "small_stem"),
    ),
    # weights that travel: timm, the Hub, the model card
    Mutant(
        "timm pairs new weights with the old description", _EXPORT,
        "        (directory / TIMM_CONFIG_NAME).unlink(missing_ok=True)\n", "",
        (*EXPORT, "-k", "kill"),
    ),
    Mutant(
        "an earlier export's weights stay beside the new ones", _EXPORT,
        "    (directory / EARLIER_WEIGHTS_NAME).unlink(missing_ok=True)\n", "",
        (*EXPORT, "-k", "is_replaced"),
    ),
    Mutant(
        "another tool's config.json is replaced", _EXPORT,
        "    refuse_foreign_config(directory / TIMM_CONFIG_NAME)\n", "",
        (*EXPORT, "-k", "another_tools"),
    ),
    Mutant(
        "weights of earlier exports are looked for under today's name",
        "mixco_lightly/backbones/description.py",
        '_WEIGHTS_NAMES[config["format"]]', "WEIGHTS_NAME", (*EXPORT, "-k", "earlier_version"),
    ),
    Mutant(
        "timm is not told the arguments of its network", _TIMM_CONFIG,
        'config["model_args"] = arguments', "pass", (*EXPORT, "-k", "timm_loads"),
    ),
    Mutant(
        "more weights alone count as another shape", _TIMM_CONFIG,
        "shapes.get(name, tensor.shape) == tensor.shape", "shapes.get(name) == tensor.shape",
        (*EXPORT, "-k", "names_are_those"),
    ),
    Mutant(
        "timm 1.0.26 fits weights of other channels once more", _TIMM_CONFIG,
        " if backbone.in_chans == 3 else None", "", (*EXPORT, "-k", "first_convolution"),
    ),
    Mutant(
        "timm resizes to a pixel less", _TIMM_CONFIG,
        "while math.floor(crop / part) < resize:", "while False:", (*EXPORT, "-k", "timms_"),
    ),
    Mutant(
        "two files of two pushes are downloaded", _HUB,
        "WEIGHTS_NAME, revision=commit)", "WEIGHTS_NAME, revision=revision or None)",
        (*HUB, "-k", "between_two_downloads"),
    ),
    Mutant(
        "a name on the Hub may go on", _HUB,
        "_REPO_ID.fullmatch(repo_id)", "_REPO_ID.match(repo_id)", (*HUB, "-k", "a_name_that"),
    ),
    Mutant(
        "a revision may leave its folder", _HUB,
        ' or ".." in revision', "", (*HUB, "-k", "a_name_that"),
    ),
    Mutant(
        "a token that may not write is any error", _HUB,
        "if status in (401, 403)", "if status == 401", (*HUB, "-k", "may_not_write"),
    ),
    Mutant(
        "paths of the machine are pushed", "mixco_lightly/backbones/public_copy.py",
        " if k not in LOCAL_OPTIONS", "", (*HUB, "-k", "paths_of_the_machine"),
    ),
    Mutant(
        "the card forgets the license", "mixco_lightly/backbones/model_card.py",
        "        license=license,\n", "", (*HUB, "-k", "a_license_only_if_given"),
    ),
    # Other runtimes, and releases
    Mutant(
        "a runtime gets the network in training mode", _FORMATS,
        "torch.float32).eval()", "torch.float32)", FORMATS,
    ),
    Mutant(
        "a runtime gets the network's precision", _FORMATS,
        '.to("cpu", torch.float32)', ".cpu()", FORMATS,
    ),
    Mutant(
        "a runtime's batches have one size", _FORMATS,
        "dynamic_shapes=({0: batch},)", "dynamic_shapes=None", FORMATS,
    ),
    Mutant(
        "an ONNX file does not say how to prepare images", _FORMATS,
        "        converted.model.metadata_props.update(describe_input(backbone))\n", "", FORMATS,
    ),
    Mutant(
        "features that are NaN are equal", _FORMATS,
        "if not difference <= TOLERANCE:", "if difference > TOLERANCE:", FORMATS,
    ),
    Mutant(
        "a file with other features stays", _FORMATS, "        Path(path).unlink()\n", "", FORMATS,
    ),
    Mutant(
        "onnxscript may be missing", _FORMATS,
        'for name in ("onnx", "onnxscript")', 'for name in ("onnx",)', FORMATS,
    ),
    Mutant(
        "the export command replaces files unasked", "recipes/export.py",
        "if existing and not config.overwrite:", "if False:", EXPORT_PAGE,
    ),
    Mutant(
        "an archive has the files' times", _RELEASE,
        "st_size, _TIME", "st_size, int(source.stat().st_mtime)", ASSETS,
    ),
    Mutant(
        "names of archives may differ in case alone", _RELEASE,
        "key = name.casefold()", "key = name", ASSETS,
    ),
    Mutant(
        "an archive's name may be a path", _RELEASE, "_NAME.fullmatch(name)", "_NAME.match(name)",
        ASSETS,
    ),
    Mutant(
        "a release replaces another unasked", _RELEASE, "if not overwrite:", "if False:", ASSETS,
    ),
    Mutant(
        "a release replaces a folder of other files", _RELEASE, "    if others:", "    if False:",
        ASSETS,
    ),
    Mutant(
        "a release's cards forget the license", _RELEASE,
        "create_model_card(folder, license=license)", "create_model_card(folder)", ASSETS,
    ),
    Mutant(
        "a text of an export makes cells of the index", _RELEASE,
        '.replace("|", "\\\\|")', "", ASSETS,
    ),
    Mutant(
        "the index has no checksum", _RELEASE,
        'for name in names), INDEX_NAME]', 'for name in names)]', ASSETS,
    ),
    Mutant(
        "the method is an option of the run", "mixco_lightly/backbones/model_card.py",
        ' and name != "method"', "", ASSETS,
    ),
    Mutant(
        "a failed replacement loses the old folder", "mixco_lightly/files.py",
        "if old.exists() and not path.exists():", "if False:", ASSETS,
    ),
    Mutant(
        "a failed replacement leaves its files", "mixco_lightly/files.py",
        "        shutil.rmtree(temporary, ignore_errors=True)", "        pass", ASSETS,
    ),
    Mutant(
        "a number's range is not checked", _PARSER, "    PositiveInt: checked.PositiveInt,\n", "",
        COMMAND_LINE,
    ),
    Mutant(
        "a child's option leaves its parent's group", _PARSER, " and x.name not in seen]", "]",
        COMMAND_LINE,
    ),
    Mutant(
        "a preset wins over a file of its name", _PARSER,
        "if os.path.isdir(values) or not (is_yaml or os.path.exists(values)):",
        "if not is_yaml and not os.path.isabs(values):", COMMAND_LINE,
    ),
    Mutant(
        "a further process would run without options", "mixco_lightly/__main__.py",
        "[str(page), *options]", "[str(page)]", COMMAND_LINE,
    ),
    Mutant(
        "folders without test folders are labels", "mixco_lightly/data/image_folder.py",
        "next((folder for folder in tests if _has_folders(folder)), None)", "root", UNLABELLED,
    ),
    Mutant(
        "a run is evaluated in its training precision", "mixco_lightly/training/summary.py",
        "knn_k=config.knn_k,", "knn_k=config.knn_k, precision=config.precision,", PRECISION,
    ),
    Mutant(
        "a mixture's share is that of its second image", "mixco_lightly/reports/mixing_effect.py",
        "(shares, first),", "(shares, second),", SECTIONS,
    ),
    Mutant(
        "confusions are counted by the predicted class", "mixco_lightly/reports/confusion.py",
        "targets * size + predicted", "predicted * size + targets", SECTIONS,
    ),
    Mutant(
        "an image is its own neighbour", "mixco_lightly/reports/network_section.py",
        "if train is test:  #", "if train is not test:  #", SECTIONS,
    ),
    Mutant(
        "names in a page are not escaped", "mixco_lightly/reports/page.py",
        "autoescape=True", "autoescape=False", RUN_REPORT,
    ),
    Mutant(
        "a report shows the first exit", "mixco_lightly/reports/network_section.py",
        "(part,) = (part for part in parts if part.name == BACKBONE)", "part = parts[0]",
        SECTIONS,
    ),
    Mutant(
        "a study's page links runs without a report", "mixco_lightly/studies/study_page.py",
        "(output_dir / page).is_file()", "True", STUDY_PAGE,
    ),
    Mutant(
        "settings that share their plain runs count as two", _FOREST,
        "(one.base_runs | one.arm_runs)", "one.arm_runs", FOREST,
    ),
    Mutant(
        "a setting that links two others joins one of them", _FOREST,
        "*(x for each in linked for x in each)", "*(linked or [[]])[0]",
        FOREST,
    ),
    Mutant(
        "a setting that two studies show is drawn twice", _FOREST,
        "if runs not in shown", "if setting not in shown", FOREST,
    ),
    Mutant(
        "a repetition of a study is independent of it", _FOREST,
        ' if name != "protocol"', "", FOREST,
    ),
    Mutant(
        "longer plain training is drawn as a method", _FOREST,
        'arm.split(",")[0] == PLAIN', "arm == PLAIN", FOREST,
    ),
    Mutant(
        "two settings are pooled", _FOREST,
        "if len(means) >= MIN_POOLED_SETTINGS", "if len(means) > 1", FOREST,
    ),
    Mutant(
        "the pooled interval is that of a single setting", "mixco_lightly/studies/statistics.py",
        "* deviation / math.sqrt(n))", "* deviation)", FOREST,
    ),
    Mutant("the interval is half as wide", _FOREST, "xerr=half,", "xerr=half / 2,", FOREST),
    # make paper
    Mutant("scaled epochs are rounded down", _SCALE, "math.ceil(", "math.floor(", SCALE),
    Mutant(
        "0.07 of 100 epochs are 8", _SCALE,
        "math.ceil(round(epochs * scale, 6))", "math.ceil(epochs * scale)", SCALE,
    ),
    Mutant(
        "the warm-up is not scaled", _SCALE,
        'round(scaled["warmup_epochs"] * scale, 6)', 'scaled["warmup_epochs"]', SCALE,
    ),
    Mutant(
        "a published figure is looked up without its group", _PUBLISHED,
        ".get(name_arm(group, arm))", ".get(arm)", PUBLISHED,
    ),
    Mutant(
        "an unknown figure is a blank", _PUBLISHED,
        'UNKNOWN = "unknown"', 'UNKNOWN = ""', PUBLISHED,
    ),
    Mutant(
        "the published column of a scaled study does not name its epochs", _PUBLISHED,
        "if scale == 1:", "if scale <= 1:", PUBLISHED,
    ),
    Mutant(
        "the title of a scaled study does not say so", _REPORT,
        'f" (scale {scale:g})" if scale else ""', '""', PUBLISHED,
    ),
    Mutant(
        "a slice ends a run at an old checkpoint", _SLICES,
        "if before is not None and written != before:", "if written:", SLICES,
    ),
    Mutant(
        "a slice ends a run before its time", _SLICES,
        "if checkpoint is None or not self.is_over():", "if checkpoint is None:", SLICES,
    ),
    Mutant(
        "a slice that is over evaluates nothing", _EXECUTE,
        "if has_run and part.is_over():", "if part.is_over():", SLICES,
    ),
    Mutant(
        "a slice that is over goes on with the evaluations", _EXECUTE,
        "if has_run and part.is_over():", "if False:", SLICES,
    ),
    Mutant(
        "the minutes are of one epoch", _MINUTES,
        "timer.seconds_per_step * batches * prepared.config.epochs",
        "timer.seconds_per_step * batches", MINUTES,
    ),
    Mutant(
        "the minutes are of one seed", _MINUTES,
        "return self.runs * (self.training + self.evaluation)",
        "return self.training + self.evaluation", MINUTES,
    ),
    Mutant(
        "the minutes of a probe are of a part of the images", _MINUTES,
        "/ 2 / part * epochs", "/ 2 * epochs", MINUTES,
    ),
    Mutant(
        "the minutes of a probe count its start in each epoch", _MINUTES,
        "max(0.0, three - one) / 2", "three / 3", MINUTES,
    ),
    Mutant(
        "the warm-up is timed", _STEP_TIMER,
        "if self._steps in (0, self._warm_up):", "if self._steps == 0:", MINUTES,
    ),
    Mutant(
        "a run goes on when its study is killed", _PROCESSES,
        "os.environ.get(STUDY_PROCESS if is_first else _FIRST_PROCESS)",
        "None if is_first else os.environ.get(_FIRST_PROCESS)", PARENT,
    ),
    Mutant(
        "a study takes what its runs chose for another study", _RESULTS,
        ' or value == "auto"', "", AUTO,
    ),
    # Chunks, the probe beside the training, and steps that are not mixed
    Mutant(
        "a repeated chunk moves the running statistics again", _CHUNKS,
        "nullcontext(), _unchanged_buffers(network)", "nullcontext(), nullcontext()", CHUNKS,
    ),
    Mutant(
        "all chunks keep their activations", _CHUNKS,
        "checkpoint(network, chunk, use_reentrant=False, context_fn=contexts)", "network(chunk)",
        CHUNKS,
    ),
    Mutant(
        "a repeated chunk drops other paths", _CHUNKS,
        "use_reentrant=False,", "use_reentrant=False, preserve_rng_state=False,", CHUNKS,
    ),
    Mutant(
        "the last chunk is what is left", _CHUNKS,
        "images.tensor_split(count)", "images.split(chunk_size)", CHUNKS,
    ),
    Mutant(
        "the probe learns the labels that it is measured on", _PROBE,
        "rows = self._rows[batch_idx]", "rows = torch.arange(len(batch[1]))", PROBE,
    ),
    Mutant(
        "the probe takes a place in the part for one in all images", _PROBE,
        "torch.tensor(loader.dataset.indices)[list(loader.sampler)]",
        "torch.tensor(list(loader.sampler))", PROBE,
    ),
    Mutant(
        "the probe draws from the training's generator", _PROBE,
        "with torch.random.fork_rng(devices=[]):", "if True:", PROBE,
    ),
    Mutant(
        "infinite features end the probe", _PROBE, ".nan_to_num(0.0, 0.0, 0.0)", "", PROBE,
    ),
    Mutant(
        "a resumed probe forgets its optimiser", _PROBE,
        'self._optimizer.load_state_dict(self._restored["optimizer"])', "pass", PROBE_RESUMED,
    ),
    Mutant(
        "metrics.csv has to be asked for", _LOGGERS,
        'dict.fromkeys(("csv", *names))', "dict.fromkeys(names)", LOGGERS,
    ),
    Mutant(
        "a missing logger's package is noticed late", _LOGGERS,
        "if not _is_installed(_PACKAGES[name])]", "if False]", LOGGERS,
    ),
    Mutant(
        "each process starts the loggers", "mixco_lightly/training/pretraining.py",
        "prepare_on_rank_zero(trainer, prepare_folder)", "prepare_folder()", LOGGERS,
    ),
    Mutant(
        "a run that replaces one goes on in its wandb run", _RUN,
        '    "loggers.json",\n', "", LOGGERS,
    ),
    Mutant(
        "a resumed run logs its options again", _LOGGERS,
        "is_new = name not in ids", "is_new = True", LOGGED,
    ),
    Mutant("a resumed run is a second one in wandb", _LOGGERS, "id=known,\n        r", "r", LOGGED),
    Mutant(
        "a resumed run is a second one in MLflow", _LOGGERS,
        "run_id=known", "run_id=None", LOGGED,
    ),
    Mutant(
        "the second run of a program is in the first one's MLflow folder", _LOGGERS,
        'os.environ.pop("MLFLOW_TRACKING_URI", None)', "pass", LOGGED,
    ),
    Mutant(
        "TensorBoard shows repeated steps twice", _LOGGERS,
        "purge_step=finished_steps", "purge_step=None", LOGGED,
    ),
    Mutant(
        "the kNN of the summary is taken for the training's", _LOGGERS,
        'f"summary/{name}"', "name", LOGGED,
    ),
    Mutant(
        "the probe sees mixtures as plain images", _MOCO,
        "features[: len(query_images)].detach()", "features.detach()", BATCHES,
    ),
    Mutant(
        "the probe sees mixtures in place of keys", _IMIX_MODULES,
        "features[len(mixture.images) :].detach()", "features[: len(key_images)].detach()", BATCHES,
    ),
    Mutant(
        "each process decides for itself which steps are mixed", _DATA,
        "np.random.SeedSequence((self.seed, epoch), spawn_key=(1,))",
        "np.random.SeedSequence((self.seed, epoch, rank), spawn_key=(1,))", MIX_CHOICE,
    ),
    Mutant(
        "the decision to mix takes a random number of the views", _DATA,
        "self._mix_choices.random() <", "torch.rand(()) <", MIX_CHOICE,
    ),
    Mutant(
        "a plain step logs the mixtures' term of an earlier one", _STEP_LOG,
        "        forget_mixed_step(module)\n", "", MIX_LOG,
    ),
    Mutant(
        "i-Mix takes a batch without mixtures", _COLLATE,
        "if may_be_plain and not mixtures:", "if not mixtures:", BATCHES,
    ),
    Mutant(
        "runs from before there was a probability do not resume", _RUN,
        '"mix_probability": 1.0, ', "", EARLIER,
    ),
    # Further protocols
    Mutant(
        "logits are taken for probabilities", _CALIBRATION,
        "logits.float().softmax(dim=1)", "logits.float()", CALIBRATION,
    ),
    Mutant(
        "ten bins instead of fifteen", _CALIBRATION,
        "NUM_BINS = 15", "NUM_BINS = 10", CALIBRATION,
    ),
    Mutant(
        "logits of training batches count in the calibration", _IMAGE_TRAINING,
        "if not module.training:", "if True:", IMAGE_CALIBRATION,
    ),
    Mutant(
        "targets of earlier epochs are kept", _IMAGE_TRAINING,
        "        self._targets.clear()", "        pass", IMAGE_CALIBRATION,
    ),
    Mutant(
        "class means of features that are not normalised", _FEW_SHOT,
        "normalize(part.features, dim=1)", "part.features", FEW_SHOT,
    ),
    Mutant(
        "the nearest mean without its length", _FEW_SHOT,
        "means.square().sum(dim=1) - 2", "-2", FEW_SHOT,
    ),
    Mutant(
        "each episode draws the first features", _FEW_SHOT,
        "[torch.randperm(len(rows), generator=generator)[:shots]]", "[:shots]", FEW_SHOT,
    ),
    Mutant(
        "the interval is of an episode, not of the mean", _FEW_SHOT,
        " / math.sqrt(len(values))", "", FEW_SHOT,
    ),
    Mutant(
        "the distance is to the nearest neighbour", _OUTLIERS,
        "values[:, -1]", "values[:, 0]", OUTLIERS,
    ),
    Mutant(
        "the ROC curve is turned round", _OUTLIERS,
        "torch.zeros_like(test), torch.ones_like(outliers)",
        "torch.ones_like(test), torch.zeros_like(outliers)", OUTLIERS,
    ),
    Mutant(
        "fewer than 95 percent are accepted", _OUTLIERS,
        "-(-95 * len(test) // 100)", "95 * len(test) // 100", OUTLIERS,
    ),
    Mutant(
        "an outlier at the threshold is rejected", _OUTLIERS,
        "outliers <= threshold", "outliers < threshold", OUTLIERS,
    ),
    Mutant(
        "the classifier is tested on the plain test images", _FURTHER,
        "part._replace(test=part.further[self.image_set])", "part", IMAGE_SETS,
    ),
    Mutant(
        "test images are compared with themselves", _FURTHER,
        "(part.test, part.further[self.image_set])", "(part.test, part.test)", OUTLIERS,
    ),
    Mutant(
        "a shifted dataset may have other classes", _IMAGE_SETS,
        "    if list(shifted) == list(classes):\n", "    if shifted:\n", IMAGE_SETS,
    ),
    Mutant(
        "contrast is reduced around black", _CORRUPTIONS,
        "mean + strength * (pixels - mean)", "strength * pixels", CORRUPTIONS,
    ),
    Mutant(
        "blur is in pixels", _CORRUPTIONS,
        "strength * min(pixels.shape[1:])", "strength", CORRUPTIONS,
    ),
    Mutant(
        "every image has the same noise", _CORRUPTIONS,
        "[self._seed, condition, self._chosen[row]]", "[self._seed, condition]", CORRUPTIONS,
    ),
    Mutant(
        "jpeg rounds down before it compresses", _CORRUPTIONS,
        "(pixels * 255).round().byte()", "(pixels * 255).byte()", CORRUPTIONS,
    ),
    Mutant(
        "corrupted images are not rounded to eight bits", _CORRUPTIONS,
        "(corrupted * 255).round() / 255", "corrupted", CORRUPTIONS,
    ),
    Mutant(
        "a study shows intervals over episodes", "mixco_lightly/studies/results.py",
        'if not measure.endswith(" interval"):', "if measure:", ROBUSTNESS,
    ),
    Mutant(
        "an example takes the mixtures' projections for the queries'",
        "examples/pytorch/unmix.py", "query, mixed = model", "mixed, query = model", EXAMPLES,
    ),
    Mutant(
        "an example computes the keys of the mixed view",
        "examples/pytorch_lightning/imix.py", "batch[0][1]", "batch[0][0]", EXAMPLES,
    ),
    Mutant(
        "an example computes the keys with the query encoder",
        "examples/pytorch/mixco_moco.py",
        "key = model.forward_momentum(x_key)", "key = model(x_key).detach()", EXAMPLES,
    ),
    Mutant(
        "an example on several devices has negatives of its own only",
        "examples/pytorch_lightning_distributed/mixco_simclr.py",
        "gather_distributed=True,", "gather_distributed=False,", EXAMPLES_ON_TWO,
    ),
    Mutant(
        "an example on several devices leaves the keys shuffled",
        "examples/pytorch_lightning_distributed/mixco_moco.py",
        "return batch_unshuffle(key, shuffle, distributed=True)", "return key", EXAMPLES_ON_TWO,
    ),
    Mutant(
        "a notebook on several devices has a strategy that notebooks cannot use",
        "examples/create_notebooks.py",
        "'strategy=\"ddp_notebook\"'", "'strategy=\"ddp\"'", NOTEBOOKS,
    ),
    Mutant(
        "the sdist has no workflows", "MANIFEST.in",
        "graft .github\n", "", SDIST,
    ),
    Mutant(
        "what the sdist has is in the wheel", "pyproject.toml",
        "include-package-data = false", "include-package-data = true", WHEEL,
    ),
    Mutant(
        "the wheel has no presets", "pyproject.toml",
        '"mixco_lightly.recipes" = ["presets/*.yaml"]', '"mixco_lightly.recipes" = []', WHEEL,
    ),
    Mutant(
        "Lightly 2 is allowed", "pyproject.toml",
        '"lightly>=1.6,<2"', '"lightly>=1.6"', WHEEL,
    ),
    Mutant(
        "the citation is of the version before", "CITATION.cff",
        "version: 0.2.0", "version: 0.1.0", RELEASE,
    ),
    Mutant(
        "any tag that starts with the version is published", _SMOKE,
        'tag != f"v{version[1]}"', 'not tag.startswith("v1")', RELEASE,
    ),
    Mutant(
        "a version without a date in the changelog is published", _SMOKE,
        "if f\"\\n## [{tag.removeprefix('v')}] - \" not in", "if tag in", RELEASE,
    ),
    Mutant(
        "what was built is published before it ran", _PUBLISH,
        "needs: smoke", "needs: build", RELEASE,
    ),
    Mutant(
        "a pull request publishes", _PUBLISH,
        "on:\n  push:", "on:\n  pull_request:\n  push:", RELEASE,
    ),
    Mutant(
        "the build may write to the repository", _PUBLISH,
        "  build:\n    runs-on: ubuntu-latest\n    permissions:\n      contents: read",
        "  build:\n    runs-on: ubuntu-latest\n    permissions:\n      contents: write", RELEASE,
    ),
    Mutant(
        "an action is taken from a tag, which can be moved", _PUBLISH,
        "gh-action-pypi-publish@ed0c53931b1dc9bd32cbe73a98c7f6766f8a527e",
        "gh-action-pypi-publish@v1.13.0", RELEASE,
    ),
]  # fmt: skip


class Gate:
    """A copy of the repository in which tests run with and without mutants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in PARTS:
            if (ROOT / part).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / part, folder / part, ignore=ignored)
            else:
                shutil.copy(ROOT / part, folder / part)
        self._passes: dict[tuple[str, ...], str] = {}

    def check(self, mutant: Mutant) -> str:
        """What is wrong with the tests of a mutant; "" if they pass without it and fail with it."""
        path = self.folder / mutant.file
        text = path.read_text()
        count = text.count(mutant.old)
        if count != 1:
            return f"the text it changes is {count} times in {mutant.file}"
        mutated = text.replace(mutant.old, mutant.new)
        if path.suffix == ".py":
            compile(mutated, mutant.file, "exec")
        if mutant.tests not in self._passes:
            code, output = self._run(mutant.tests)
            self._passes[mutant.tests] = f"they end with {code} without it:\n{output}" * (code != 0)
        if self._passes[mutant.tests]:
            return self._passes[mutant.tests]
        path.write_text(mutated)
        try:
            code, output = self._run(mutant.tests)
        finally:
            path.write_text(text)
        if code == 0:
            return "IT LIVES: the tests pass"
        # 1 is a failed test. All else proves nothing: no tests, a wrong import, the time limit.
        return "" if code == 1 else f"they end with {code} and not with a failed test:\n{output}"

    def _run(self, tests: tuple[str, ...]) -> tuple[int, str]:
        """Pytest's exit code and the end of what it printed."""
        log = self.folder / "runs" / "log.txt"
        log.parent.mkdir(exist_ok=True)
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = run_tests(self.folder, tests, log)
            finally:
                os._exit(code)
        deadline = time.monotonic() + TIME_LIMIT
        status = None
        while status is None and time.monotonic() < deadline:
            pid, ended = os.waitpid(child, os.WNOHANG)
            status = ended if pid else None
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what the tests have started, too
        if status is None:
            os.waitpid(child, 0)
            return -1, f"not done after {TIME_LIMIT} s"
        return os.waitstatus_to_exitcode(status), log.read_text()[-3000:]


class Collection:
    """Notes whether a test file could not be imported: with -x pytest ends with 1 then, too."""

    failed = False

    def pytest_collectreport(self, report: Any) -> None:
        """Is called by pytest for each file."""
        self.failed |= report.failed


def run_tests(folder: Path, tests: tuple[str, ...], log: Path) -> int:
    """Runs tests of the copy in this process, which must have nothing of the package yet."""
    import hypothesis
    import pytest

    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # other libraries bring slow ones
    sys.path = [
        str(folder),
        *(x for x in sys.path if x not in ("", str(ROOT), str(ROOT / "tests"))),
    ]
    # Of the repository itself, if this module was imported from there.
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    # A failure is enough; the smallest one takes long to find.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", phases=phases, database=None)
    hypothesis.settings.load_profile("mutants")
    collection = Collection()
    arguments = ["-x", "-q", "-p", "no:cacheprovider", *tests]
    code = int(pytest.main(arguments, plugins=[collection]))
    import mixco_lightly

    if not Path(mixco_lightly.__file__).is_relative_to(folder):
        print(f"Tested was {mixco_lightly.__file__} and not the copy.", flush=True)
        return 98
    return 97 if collection.failed else code


def import_libraries() -> None:
    """Imports them, for the processes that are forked from this one."""
    sys.dont_write_bytecode = True  # a mutant of the same second would be taken for the original
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # pytest collects garbage, and what was imported is none
    assert "mixco_lightly" not in sys.modules


def main() -> None:
    """Checks all mutants, or those named; ends with 1 if one of them is not killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="names of mutants; default: all")
    parser.add_argument("--first", type=int, default=len(MUTANTS), help="only so many")
    options = parser.parse_args()
    unknown = set(options.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"there is no mutant named {', '.join(unknown)}")
    mutants = [m for m in MUTANTS if not options.names or m.name in options.names]
    mutants = mutants[: options.first]
    import_libraries()
    killed = 0
    with tempfile.TemporaryDirectory() as folder:
        gate = Gate(Path(folder).resolve())
        for mutant in mutants:
            start = time.monotonic()
            problem = gate.check(mutant)
            seconds = time.monotonic() - start
            killed += not problem
            outcome = f"NOT KILLED: {problem}" if problem else "killed"
            print(f"{seconds:5.1f} s  {mutant.name}: {outcome}", flush=True)
    print(f"{killed} of {len(mutants)} mutants killed.")
    sys.exit(killed < len(mutants))


if __name__ == "__main__":
    main()
