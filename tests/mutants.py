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
PARTS = ["mixco_lightly", "recipes", "tests", "pyproject.toml", "README.md"]
# What the package and its tests are built on.
LIBRARIES = ["hypothesis", "kornia", "lightly.loss", "lightly.models.modules"]
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
KILLS_MOCO = ("tests/training/test_resume.py", "-k", "two_kills and moco")
KILLS_WORKERS = ("tests/training/test_resume.py", "-k", "two_kills and simclr")
DEVICES = ("tests/training/test_devices.py", "-k", "simclr_on_two_processes")
SECTIONS = ("tests/reports/test_sections.py",)
RUN_REPORT = ("tests/training/test_run_report.py", "-k", "ends_with or every_kind")
STUDY_PAGE = ("tests/studies/test_study_page.py",)
COMMAND_LINE = ("tests/training/test_command_line.py", "-k", "not ctrl_c")
EXPORT = ("tests/backbones/test_export.py",)
HUB = ("tests/backbones/test_hub.py",)
ON_GPU = ("tests/loss/test_on_pretended_gpu.py",)
AUGMENTED_ON_GPU = ("tests/data/test_device_transforms.py", "-k", "gpu")
COMPILED = ("tests/loss/test_compile.py",)
BATCHES = ("tests/models/test_batches.py",)
UNLABELLED = ("tests/data/test_image_folder.py",)
CHUNKS = ("tests/models/test_chunks.py",)
PROBE = ("tests/training/test_online_probe.py", "-k", "not run")
PROBE_RESUMED = ("tests/training/test_online_probe.py", "-k", "resumes")
MIX_CHOICE = ("tests/training/test_mixing.py", "-k", "steps_is_mixed or decision")
MIX_LOG = ("tests/models/test_step_log.py", "-k", "steps_that_are_mixed")
PRECISION = ("tests/evaluation/test_evaluation_precision.py", "-k", "moco")
_PAPER = "tests/studies/test_paper.py"
SCALE = (_PAPER, "-k", "scale_multiplies")
PUBLISHED = (_PAPER, "-k", "published")
SLICES = (_PAPER, "-k", "slice_ends or each_slice")
MINUTES = (_PAPER, "-k", "minutes_are or epochs_of_a_probe or device_is_warm")
PARENT = (_PAPER, "-k", "works_for")
AUTO = ("tests/studies/test_compare.py", "-k", "for_auto")

_BLOCKWISE = "mixco_lightly/loss/blockwise.py"
_EXPORT = "mixco_lightly/backbones/export.py"
_HUB = "mixco_lightly/backbones/hub.py"
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
_DATA = "mixco_lightly/training/data_module.py"
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
        "sampler.set_epoch(epoch)", "pass", KILLS_WORKERS,
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
        "        pl.seed_everything(epoch_seed, verbose=False)\n", "", KILLS_MOCO,
    ),
    Mutant(
        "an epoch is told from another by the moment it starts at", _DATA,
        "sampler.set_epoch(epoch)", "sampler.set_epoch(__import__('time').time_ns())",
        KILLS_WORKERS,
    ),
    Mutant(
        "workers have the seeds that the loader draws", _DATA,
        "            worker_init_fn=partial(seed_worker, epoch_seed),\n", "", KILLS_WORKERS,
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
        "timm 1.0.22 fits weights of other channels once more", _TIMM_CONFIG,
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
        "paths of the machine are pushed", "mixco_lightly/backbones/upload.py",
        " if k not in LOCAL_OPTIONS", "", (*HUB, "-k", "paths_of_the_machine"),
    ),
    Mutant(
        "the card forgets the license", "mixco_lightly/backbones/model_card.py",
        "        license=license,\n", "", (*HUB, "-k", "a_license_only_if_given"),
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
        "if runs not in [", "if setting not in [", FOREST,
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
        log = self.folder / "log.txt"
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
