"""
Swap the backbone
=================

Any timm model by name, at the size of your images: what changes with the name, what the stem does,
and how the trained backbone leaves for other programs.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch
from lightly.models.modules import MoCoProjectionHead
from lightly.transforms import MoCoV2Transform
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms.functional import pil_to_tensor

from mixco_lightly import (
    MixCoLoss,
    create_backbone,
    export_backbone,
    load_backbone,
    mix_pairs,
)

# %%
# A name and a size
# -----------------
# A projection head needs the number of features. ``feature_dim`` is measured by a forward pass;
# timm's ``num_features`` differs from it for some models.

NAMES = [
    "resnet10t",
    "mobilenetv3_small_050",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "mixer_s32_224",
]
print(f"{'name':22} {'stem':6} {'feature_dim':>11} {'num_features':>12} {'parameters':>11}")
for name in NAMES:
    backbone = create_backbone(name, image_size=32)
    parameters = sum(x.numel() for x in backbone.parameters())
    print(
        f"{name:22} {backbone.stem:6} {backbone.feature_dim:11}"
        f" {backbone.model.num_features:12} {parameters:11,}"
    )

# %%
# An unknown name raises an error with the nearest names. If a size does not work, the error says
# what does:

for name, image_size in [("resnet_18", 32), ("inception_v3", 32)]:
    try:
        create_backbone(name, image_size, stem="timm")
    except ValueError as error:
        print(f"ValueError: {error}\n")

# %%
# What the stem does
# ------------------
# Published stems are made for 224 pixels. Of a small image they leave few positions.
# ``stem="small"`` removes strides at the start; ``stem="auto"`` chooses it for images of up to 64
# pixels. We send a photograph of 64 pixels through both. The weights are random: the pictures show
# how fine the last map is, not what a trained network finds.

photo = Image.fromarray(load_sample_image("flower.jpg")).crop((130, 0, 557, 427)).resize((64, 64))
image = pil_to_tensor(photo)[None] / 255


def last_map(backbone):
    with torch.inference_mode():
        return backbone.eval().model.forward_features(image)[0].mean(dim=0)


figure, axes = plt.subplots(1, 5, figsize=(9, 2.2))
axes[0].imshow(photo)
axes[0].set_title("64 pixels")
settings = [(name, stem) for name in ("resnet10t", "convnext_atto") for stem in ("timm", "small")]
for axis, (name, stem) in zip(axes[1:], settings):
    torch.manual_seed(0)
    positions = last_map(create_backbone(name, image_size=64, stem=stem))
    axis.imshow(positions)
    height, width = positions.shape
    axis.set_title(f"{name}\n{stem}: {height}x{width}", fontsize=9)
for axis in axes:
    axis.axis("off")
figure.tight_layout()

# %%
# The fine map has its price: each layer sees more positions. ``fit`` says which layers lost their
# stride, and the stride that is left:

small = create_backbone("resnet10t", image_size=64, stem="small")
print("lost their stride:", *small.fit.removed)
print("stride of the last map:", small.fit.output_stride)

# %%
# The same step with each backbone
# --------------------------------
# Nothing else in a MixCo step depends on the network:

torch.manual_seed(0)
transform = MoCoV2Transform(input_size=32, gaussian_blur=0.0)
pairs = [transform(photo) for _ in range(16)]
views = [torch.stack(view) for view in zip(*pairs)]
mixture = mix_pairs(views[0])
for name in ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"]:
    backbone = create_backbone(name, image_size=32)
    model = torch.nn.Sequential(backbone, MoCoProjectionHead(backbone.feature_dim, 64, 64))
    loss = MixCoLoss(temperature=0.5)(
        model(views[0]), model(views[1]), model(mixture.images), mixture
    )
    loss.backward()
    print(f"{name:18} feature_dim {backbone.feature_dim:4}   loss {loss.item():.3f}")

# %%
# The recipes take the same names: ``mixco-lightly moco --backbone vit_tiny_patch16_224``. Networks
# with attention or without BatchNorm need another optimiser than a ResNet, which recipes choose by
# themselves: :doc:`/backbones`.

# %%
# Export and load
# ---------------
# ``export_backbone`` writes the weights as safetensors, and descriptions in JSON. Give it the mean
# and standard deviation that the training normalised with; the loaded backbone then has the
# transform for its images.

scratch = tempfile.TemporaryDirectory()  # removed when Python ends
folder = Path(scratch.name)
backbone = create_backbone("resnet10t", image_size=64, stem="timm").eval()
export_backbone(
    backbone, folder / "timm-stem", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
for path in sorted((folder / "timm-stem").iterdir()):
    print(f"{path.name:18} {path.stat().st_size:10,} bytes")

loaded = load_backbone(folder / "timm-stem")
batch = loaded.transform(photo)[None]
with torch.inference_mode():
    print("features equal:", torch.equal(loaded(batch), backbone(batch)))

# %%
# timm reads the folder too, without this package:

model = timm.create_model(f"local-dir:{folder / 'timm-stem'}", pretrained=True).eval()
with torch.inference_mode():
    print("timm's features equal:", torch.equal(model(batch), backbone(batch)))

# %%
# A small stem is not timm's network. Its export does not pretend to be: timm refuses it, and
# ``load_backbone(...).model`` is the network, a plain module.

export_backbone(small, folder / "small-stem")
try:
    timm.create_model(f"local-dir:{folder / 'small-stem'}", pretrained=True)
except RuntimeError as error:
    print(f"timm: {type(error).__name__}")
model = load_backbone(folder / "small-stem").model
with torch.inference_mode():
    print("features equal:", torch.equal(model(batch), small.eval()(batch)))

# %%
# :doc:`/weights` shares a backbone on the Hub, and writes ONNX.
