"""SelfCon and what it is compared with: pretrain a timm backbone with sub-networks.

    python recipes/selfcon.py
    python recipes/selfcon.py --objective supcon
    python recipes/selfcon.py --config recipes/presets/cifar100-selfcon.yaml

Objectives; s and m have one view of each image and two, u means without labels:

    selfcon-s selfcon-m selfcon-su selfcon-mu   the exits of one network contrasted
    supcon-s supcon                             the backbone alone, with labels
    simclr                                      the backbone alone, without
    cross-entropy                               a classifier on the backbone
    one-stage                                   classifiers on all exits and SelfCon's loss

At the end each --protocol measures the backbone and every sub-network. torch and sklearn measure
their ensemble too, the mean of the linear classifiers' scores. cross-entropy and one-stage train
classifiers of their own, which are measured as well. The augmentations are the authors': crops of
at least 20% of the area, flips, colour jitter and grey without blur; for cross-entropy and
one-stage crops and flips.

MixCo and SelfCon compose without labels: with --mix_weight 1 selfcon-su, selfcon-mu and simclr
get MixCo's term for mixtures beside their own. With labels they do not: MixCo's term takes images
of the same class for negatives.

Without options it trains SelfCon-S on the digits images that scikit-learn embeds: a minute on two
CPU cores, linear probe 98.7% on the backbone, 99.1% on the sub-network, 99.1% for both (random
initialisation 90.7%), kNN 98.4% (66.4%); seed 0, last of 30 epochs, in float32 (--precision
32-true). Where the loss stays at temperature / base_temperature * log(candidates), all projections
are the same; BatchNorm in the projection heads (--head_batch_norm, the default, not the authors')
and warm-up epochs prevent that.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mixco_lightly.training.interrupts import end_in_one_line

    end_in_one_line()

from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch

from mixco_lightly import (
    Features,
    MixCoLoss,
    MultiExitBackbone,
    ProbeResult,
    SelfConLoss,
)
from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.data.datasets import create_train_test
from mixco_lightly.evaluation.evaluator import (
    ENSEMBLE_PROTOCOLS,
    Protocol,
    evaluate_parts,
    name_parts,
)
from mixco_lightly.evaluation.linear import rank_scores
from mixco_lightly.evaluation.records import PROTOCOL_LABELS
from mixco_lightly.models.selfcon import SelfCon, SelfConClassifier
from mixco_lightly.training.command_line import fail_in_one_line, parse_options
from mixco_lightly.training.option_types import NonNegativeFloat, PositiveFloat
from mixco_lightly.training.pretraining import PretrainConfig, pretrain
from mixco_lightly.training.processes import print_on_rank_zero


class Objective(NamedTuple):
    """What an objective needs.

    Attributes:
        num_views: Views of each image.
        supervised: Whether the labels are used.
        has_exits: Whether sub-networks are trained.
        classifies: Whether classifiers are trained, and not projections alone.
    """

    num_views: int
    supervised: bool
    has_exits: bool
    classifies: bool = False


OBJECTIVES = {
    "selfcon-s": Objective(1, True, True),
    "selfcon-m": Objective(2, True, True),
    "selfcon-su": Objective(1, False, True),
    "selfcon-mu": Objective(2, False, True),
    "supcon-s": Objective(1, True, False),
    "supcon": Objective(2, True, False),
    "simclr": Objective(2, False, False),
    "cross-entropy": Objective(1, True, False, classifies=True),
    "one-stage": Objective(1, True, True, classifies=True),
}


@dataclass
class SelfConConfig(PretrainConfig):
    """Options of SelfCon.

    Args:
        objective: What is trained; see above.
        exits: Stages of the backbone after which a sub-network leaves, from 1; not for the
            objectives without sub-networks.
        subnetwork: Kind of sub-network: fc, a linear layer on the pooled map; small or same,
            copies of a ResNet's remaining stages with half the blocks or all.
        head_batch_norm: Whether the projection heads have BatchNorm. The authors' have none, and
            take longer to leave the state where all projections are one.
        temperature: Divides the similarities.
        base_temperature: The loss is multiplied by temperature / base_temperature, as in the
            authors' code.
        subnetwork_weight: Weight of the sub-networks' anchors in the methods with a star, the
            authors' alpha. Default: the methods without.
        positive_views: Whether the other view is a positive in selfcon-mu. In the authors' code
            it is a negative.
        exit_weight: Weight of the sub-networks' cross-entropies in one-stage.
        contrast_weight: Weight of SelfCon's loss in one-stage.
        mix_temperature: Divides the similarities of mixtures.
        mix_weight: Weight of MixCo's term in the objectives without labels.
    """

    objective: Literal[
        "selfcon-s",
        "selfcon-m",
        "selfcon-su",
        "selfcon-mu",
        "supcon-s",
        "supcon",
        "simclr",
        "cross-entropy",
        "one-stage",
    ] = "selfcon-s"
    exits: list[int] = field(default_factory=lambda: [2])
    subnetwork: Literal["fc", "small", "same"] = "fc"
    head_batch_norm: bool = True
    learning_rate: PositiveFloat = 0.02
    weight_decay: NonNegativeFloat = 1e-4
    temperature: PositiveFloat = 0.1
    base_temperature: PositiveFloat = 0.07
    subnetwork_weight: NonNegativeFloat | None = None
    positive_views: bool = False
    exit_weight: NonNegativeFloat = 1.0
    contrast_weight: NonNegativeFloat = 0.8
    mix_temperature: PositiveFloat = 0.5
    mix_weight: NonNegativeFloat = 0.0
    output_dir: str = "runs/selfcon"


def check_options(config: SelfConConfig) -> SelfConConfig:
    """The options without the exits that the objective does not have; ValueError for others."""
    objective = OBJECTIVES[config.objective]
    if not objective.has_exits:
        config = replace(config, exits=[])
    elif not config.exits:
        raise ValueError(f"--objective {config.objective} needs --exits.")
    if config.mix_weight and objective.supervised:
        raise ValueError(
            f"--mix_weight {config.mix_weight:g} needs an objective without labels, and "
            f"{config.objective} has them: MixCo's term takes images of one class for negatives."
        )
    if config.positive_views and config.objective != "selfcon-mu":
        raise ValueError(f"--positive_views is for selfcon-mu, not for {config.objective}.")
    if config.subnetwork_weight is not None and (objective.classifies or not objective.has_exits):
        raise ValueError(
            f"--subnetwork_weight is for SelfCon's objectives, not for {config.objective}."
        )
    return config


def create_model(backbone: Backbone, config: SelfConConfig) -> SelfCon | SelfConClassifier:
    """Wires network and losses."""
    objective = OBJECTIVES[config.objective]
    gather_distributed = config.devices * config.num_nodes > 1
    network = MultiExitBackbone.from_backbone(backbone, config.exits, config.subnetwork)
    # Labels say which views belong together. Without them SelfCon's authors take each for itself.
    pairs_views = config.objective == "simclr" or config.positive_views
    criterion = SelfConLoss(
        temperature=config.temperature,
        base_temperature=config.base_temperature,
        subnetwork_weight=config.subnetwork_weight,
        num_views=2 if pairs_views else 1,
        gather_distributed=gather_distributed,
    )
    schedule: dict[str, Any] = {
        "projection_dim": config.projection_dim,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "warmup_epochs": config.warmup_epochs,
    }
    if objective.classifies:
        assert config.dataset is not None
        assert config.data_dir is not None
        images, _ = create_train_test(
            config.dataset,
            config.data_dir,
            download=config.download,
            keep_decoded=config.keep_decoded,
            max_broken_images=config.max_broken_images,
        )
        return SelfConClassifier(
            network,
            len(images.classes),
            criterion if objective.has_exits else None,
            exit_weight=config.exit_weight,
            contrast_weight=config.contrast_weight,
            **schedule,
        )
    mix_criterion = MixCoLoss(
        mix_temperature=config.mix_temperature,
        mix_weight=config.mix_weight,
        gather_distributed=gather_distributed,
    )
    return SelfCon(
        network,
        criterion,
        supervised=objective.supervised,
        batch_norm=config.head_batch_norm,
        mix_criterion=mix_criterion if config.mix_weight > 0 else None,
        **schedule,
    )


def evaluate_exits(
    model: SelfCon | SelfConClassifier,
    backbone: Backbone,
    dataset: str,
    data_dir: str,
    protocols: list[Protocol],
    **options: Any,
) -> dict[str, dict[str, ProbeResult]]:
    """Measures backbone, sub-networks and their ensemble with one extraction of all features.

    The options are those of evaluate_parts.
    """
    trained = model.network
    # Around the backbone as it was exported; it is not compiled.
    network = MultiExitBackbone.from_backbone(backbone, trained.exits, trained.subnetwork)
    network.load_state_dict(trained.state_dict())
    parts, extraction = evaluate_parts(
        network if network.exits else backbone, dataset, data_dir, protocols, **options
    )
    results: dict[str, dict[str, ProbeResult]] = {
        name: {str(protocol): result for protocol, result in part.items()}
        for name, part in parts.items()
    }
    if isinstance(model, SelfConClassifier):
        own = measure_classifiers(model, extraction.test)
        for name, result in zip(name_parts(network), own, strict=True):
            results.setdefault(name, {})["classifier"] = result
    return results


@torch.no_grad()
def measure_classifiers(model: SelfConClassifier, test: Features) -> list[ProbeResult]:
    """Measures the classifiers that were trained, and the mean of their logits.

    Args:
        model: The trained module.
        test: Features of all exits (N, E, D), or of the backbone alone (N, D).

    Returns:
        The results of the exits in their order and, of several, the ensemble's.
    """
    classifiers = model.classifiers.cpu()
    exits = test.features.unbind(1) if test.features.dim() == 3 else [test.features]
    logits = [classifier(x) for classifier, x in zip(classifiers, exits, strict=True)]
    if len(logits) > 1:
        logits.append(torch.stack(logits).mean(dim=0))
    return [rank_scores(x, test.targets) for x in logits]


def main() -> None:
    """Pretrains, exports and evaluates."""
    config = parse_options(SelfConConfig, __doc__)
    with fail_in_one_line():
        config = check_options(config)
    objective = OBJECTIVES[config.objective]
    alone = [x for x in PROTOCOL_LABELS if x in config.protocol and x not in ENSEMBLE_PROTOCOLS]
    if config.exits and alone:
        print_on_rank_zero(
            f"Not measured for the ensemble: {', '.join(alone)}. It is the mean of linear "
            "classifiers' scores and has no features of its own."
        )
    pretrain(
        config.objective,
        config,
        create_model,
        mixed_views=tuple(range(objective.num_views)),
        transform="cross-entropy" if objective.classifies else "selfcon",
        num_views=objective.num_views,
        evaluate=evaluate_exits,
        needs_labels=objective.supervised,
    )


if __name__ == "__main__":
    main()
