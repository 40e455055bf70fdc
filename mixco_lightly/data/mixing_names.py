"""The names of mixings and pairings, for options: ``--help`` must not wait for torch."""

from typing import Literal

MixingName = Literal["mixup", "cutmix", "mask", "mixup-or-cutmix"]
PairingName = Literal["halves", "permuted", "reversed"]
