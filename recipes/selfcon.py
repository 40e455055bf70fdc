"""SelfCon and what it is compared with: pretrain a timm backbone with sub-networks.

    python recipes/selfcon.py
    python recipes/selfcon.py --objective supcon
    python recipes/selfcon.py --config cifar100-selfcon

Objectives (s: one view of each image, m: two views, u: without labels):

    selfcon-s selfcon-m selfcon-su selfcon-mu   the exits of one network contrasted
    supcon-s supcon                             the backbone alone, with labels
    simclr                                      the backbone alone, without
    cross-entropy                               a classifier on the backbone
    one-stage                                   classifiers on all exits and SelfCon's loss

At the end each --protocol measures the backbone and every sub-network. torch and sklearn also
measure their ensemble, the mean of the linear classifiers' scores. cross-entropy and one-stage
train classifiers of their own, which are measured as well. The augmentations are the authors':
crops of at least 20% of the area, flips, colour jitter and grey without blur; crops and flips for
cross-entropy and one-stage.

MixCo and SelfCon compose without labels: --mix_weight 1 adds MixCo's term for mixtures to
selfcon-su, selfcon-mu and simclr. With labels they do not compose: MixCo's term takes images of the
same class for negatives.

Without options it trains SelfCon-S on the digits images that scikit-learn embeds: a minute on two
CPU cores, linear probe 98.7% on the backbone, 99.1% on the sub-network, 99.1% for both (random
initialisation 90.6%), kNN 98.4% (66.4%); seed 0, last of 30 epochs, in float32 (--precision
32-true). If the loss stays at temperature / base_temperature * log(candidates), all projections are
the same; BatchNorm in the projection heads (--head_batch_norm, the default, not the authors') and
warm-up epochs prevent that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from mixco_lightly import backbones, evaluation, loss, models
from mixco_lightly.training import (
    MixCoConfig,
    NonNegativeFloat,
    NonNegativeInt,
    OptimiserDefaults,
    PositiveFloat,
    Recipe,
    optimiser_arguments,
)

if TYPE_CHECKING:
    from mixco_lightly.training.method import EvaluateNetwork, Results


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


@dataclass(frozen=True)
class SelfConConfig(MixCoConfig):
    """SelfCon.

    Args:
        objective: What is trained; see above.
        exits: Stages of the backbone after which a sub-network leaves, from 1; ignored by the
            objectives without sub-networks.
        subnetwork: Kind of sub-network: fc, a linear layer on the pooled map; small or same, copies
            of a ResNet's remaining stages with half the blocks or all.
        head_batch_norm: Whether the projection heads have BatchNorm. The authors' have none, and
            take longer to leave the state where all projections are one.
        temperature: Divides the similarities.
        base_temperature: The loss is multiplied by temperature / base_temperature, as in the
            authors' code.
        subnetwork_weight: Weight of the sub-networks' anchors in the methods with a star, the
            authors' alpha. Default: the methods without.
        positive_views: Whether the other view is a positive in selfcon-mu. In the authors' code it
            is a negative.
        exit_weight: Weight of the sub-networks' cross-entropies in one-stage.
        contrast_weight: Weight of SelfCon's loss in one-stage.
        mix_weight: Weight of MixCo's term in the objectives without labels.
        chunk_size: Most images that the network keeps activations of, for large batches on little
            memory; the step takes up to 4/3 of the time. BatchNorm then has each chunk's
            statistics. 0 for all images.
    """

    sgd_defaults = OptimiserDefaults(0.02, 1e-4)

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
    temperature: PositiveFloat = 0.1
    base_temperature: PositiveFloat = 0.07
    subnetwork_weight: NonNegativeFloat | None = None
    positive_views: bool = False
    exit_weight: NonNegativeFloat = 1.0
    contrast_weight: NonNegativeFloat = 0.8
    mix_temperature: PositiveFloat = 0.5
    mix_weight: NonNegativeFloat = 0.0
    chunk_size: NonNegativeInt = 0
    output_dir: str = "runs/selfcon"


def check(config: SelfConConfig) -> SelfConConfig:
    """Returns the options without the exits that the objective does not have.

    Says which protocols do not measure the ensemble.

    Raises:
        ValueError: If options do not go with the objective.
    """
    from mixco_lightly.training.processes import print_on_rank_zero

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
    alone = [x for x, protocol in evaluation.PROTOCOLS.items() if not protocol.has_ensemble]
    alone = [name for name in alone if name in config.protocol]
    if config.exits and alone:
        print_on_rank_zero(
            f"Not measured for the ensemble: {', '.join(alone)}. It is the mean of linear "
            "classifiers' scores and has no features of its own."
        )
    return config


def specialise(
    recipe: Recipe[SelfConConfig], config: SelfConConfig, classes: Sequence[str]
) -> Recipe[SelfConConfig]:
    """Returns the recipe of the objective."""
    objective = OBJECTIVES[config.objective]
    if objective.classifies:
        create = partial(create_classifier, num_classes=len(classes))
        recipe = replace(recipe, create_model=create, transform="cross-entropy")
    return replace(
        recipe,
        method=config.objective,
        num_views=objective.num_views,
        mixed_views=tuple(range(objective.num_views)),
        needs_labels=objective.supervised,
    )


def create_model(backbone: backbones.Backbone, config: SelfConConfig) -> models.SelfCon:
    """Wires network, heads and losses."""
    mix_criterion = loss.MixCoLoss(
        mix_temperature=config.mix_temperature,
        mix_weight=config.mix_weight,
        gather_distributed=config.num_processes > 1,
    )
    return models.SelfCon(
        create_network(backbone, config),
        create_criterion(config),
        supervised=OBJECTIVES[config.objective].supervised,
        batch_norm=config.head_batch_norm,
        mix_criterion=mix_criterion if config.mix_weight > 0 else None,
        projection_dim=config.projection_dim,
        chunk_size=config.chunk_size,
        **optimiser_arguments(config),
    )


def create_classifier(
    backbone: backbones.Backbone, config: SelfConConfig, num_classes: int
) -> models.SelfConClassifier:
    """Wires network, classifiers and losses."""
    return models.SelfConClassifier(
        create_network(backbone, config),
        num_classes,
        create_criterion(config) if OBJECTIVES[config.objective].has_exits else None,
        exit_weight=config.exit_weight,
        contrast_weight=config.contrast_weight,
        projection_dim=config.projection_dim,
        chunk_size=config.chunk_size,
        **optimiser_arguments(config),
    )


def create_network(
    backbone: backbones.Backbone, config: SelfConConfig
) -> backbones.MultiExitBackbone:
    """Puts the sub-networks on the backbone."""
    return backbones.MultiExitBackbone.from_backbone(backbone, config.exits, config.subnetwork)


def create_criterion(config: SelfConConfig) -> loss.SelfConLoss:
    """Creates SelfCon's loss."""
    # Labels say which views belong together. Without them SelfCon's authors take each for itself.
    pairs_views = config.objective == "simclr" or config.positive_views
    return loss.SelfConLoss(
        temperature=config.temperature,
        base_temperature=config.base_temperature,
        subnetwork_weight=config.subnetwork_weight,
        num_views=2 if pairs_views else 1,
        gather_distributed=config.num_processes > 1,
    )


def measure(
    model: models.SelfCon | models.SelfConClassifier,
    backbone: backbones.Backbone,
    evaluate: EvaluateNetwork,
) -> Results:
    """Measures backbone, sub-networks, their ensemble and the classifiers that were trained."""
    trained = model.network
    # Around the backbone as it was exported; it is not compiled.
    network = backbones.MultiExitBackbone.from_backbone(backbone, trained.exits, trained.subnetwork)
    network.load_state_dict(trained.state_dict())
    results, extraction = evaluate(network if network.exits else backbone)
    if not isinstance(model, models.SelfConClassifier):
        return results
    own = evaluation.measure_classifiers(model.classifiers, extraction.test)
    classified = dict(zip(evaluation.name_parts(network), own, strict=True))
    return {
        part: {**results.get(part, {}), "classifier": classified[part]}
        for part in dict.fromkeys([*results, *classified])
    }


recipe = Recipe(
    "selfcon",
    SelfConConfig,
    create_model,
    transform="selfcon",
    check=check,
    specialise=specialise,
    measure=measure,
)

if __name__ == "__main__":
    recipe.main()
