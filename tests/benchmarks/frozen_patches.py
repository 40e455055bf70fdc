"""MoCo v2 with a frozen random patch projection, as MoCo v3 trains ViTs (arXiv 2104.02057).

    python tests/benchmarks/frozen_patches.py --backbone test_vit --protocol knn

The options are those of recipes/moco.py, whose run is the comparison. docs/backbones.md has both.
"""

from timm.layers import PatchEmbed

from mixco_lightly.training import Recipe
from mixco_lightly.training.recipe import load_recipe

moco = load_recipe("moco")


def create_model(backbone, config):
    """Creates moco.py's model, and freezes the patch projections of its query encoder."""
    model = moco.create_model(backbone, config)
    patches = [layer for layer in model.backbone.modules() if isinstance(layer, PatchEmbed)]
    if not patches:
        raise ValueError(f"{backbone.name} has no patch projection to freeze.")
    for layer in patches:
        layer.requires_grad_(False)
    return model


recipe = Recipe("moco", moco.config_class, create_model, mixed_views=(0,))

if __name__ == "__main__":
    recipe.main()
