"""The SelfCon loss, which contrasts the exits of one network, with SupCon and SimCLR as cases.

Shapes in the comments: n rows on this process, m rows of all processes, e exits, a exits of
anchors, c dimensions. A row is one view of one image.
"""

from __future__ import annotations

import math

import torch
from lightly.utils import dist
from torch import Tensor, distributed, nn

from mixco_lightly.loss.argument_checks import check_temperature
from mixco_lightly.loss.blockwise import mean_cross_entropy, product
from mixco_lightly.loss.contrastive import unit_rows
from mixco_lightly.loss.gather import check_equal_sizes, gather_rows, warn_without_process_group


def positives_cross_entropy(
    z: Tensor,
    all_z: Tensor,
    is_positive: Tensor,
    offset: int,
    temperature: float,
    num_anchor_exits: int,
    gather_distributed: bool = False,
) -> Tensor:
    """Computes the cross-entropy of each anchor with each of its positives.

    SupCon, 2020, https://arxiv.org/abs/2004.11362, L_out in Eq. 2, averaged over the anchors that
    have a positive. An anchor's candidates are the outputs of all rows at all exits, without
    itself.

    Args:
        z: Unit rows of this process, shape (n, e, c).
        all_z: Unit rows of all processes, shape (m, e, c).
        is_positive: Which rows are positives of each other, bool, shape (n, m). The outputs of a
            row at its other exits are positives in any case.
        offset: Row of ``all_z`` at which this process's rows start.
        temperature: Divides all similarities.
        num_anchor_exits: The outputs of the first ``num_anchor_exits`` exits are anchors.
        gather_distributed: If True, scales the result so that its average over the processes is
            the mean over the anchors of all processes.

    Returns:
        Mean over the anchors that have a positive, scalar. If none has one, 0 with a graph.
    """
    n, e, _ = z.shape
    device = z.device
    row = torch.arange(n, device=device).unsqueeze(1) + offset  # n x 1
    # The mean similarity with the positives is the similarity with their mean. The positives are
    # the outputs of other rows at all exits and the row's own outputs at its other exits.
    in_other_rows = is_positive.scatter(1, row, False)  # n x m
    count = e * in_other_rows.sum(dim=1) + e - 1  # n
    positives = product(in_other_rows.to(z.dtype), all_z.sum(dim=1))  # nm,mc->nc
    anchors = z[:, :num_anchor_exits]  # n x a x c
    at_other_exits = z.sum(dim=1, keepdim=True) - anchors
    mean_positive = (positives.unsqueeze(1) + at_other_exits) / count.clamp_min(1).view(n, 1, 1)
    target_logits = (anchors * mean_positive).sum(dim=2) / temperature  # nac,nac->na
    itself = row * e + torch.arange(num_anchor_exits, device=device)  # n x a

    weights = None
    if e == 1:  # with more exits the row's other outputs are positives of each anchor
        # Selecting the anchors that have a positive makes a GPU wait; a weight of 0 does not.
        has_positive = (count > 0).to(z.dtype)  # n
        total, world_size = has_positive.sum(), 1
        if gather_distributed:
            distributed.all_reduce(total)
            world_size = dist.world_size()
        weights = has_positive * (world_size / total.clamp_min(1))
    queries = anchors.flatten(0, 1) / temperature  # na x c
    candidates = all_z.flatten(0, 1)  # me x c
    return mean_cross_entropy(
        queries, candidates, target_logits.flatten(), itself.flatten(), query_weights=weights
    )


class SelfConLoss(nn.Module):
    """Contrasts the outputs at several exits of one network: SelfCon [0].

    A row is one view of one image. Each output of a row at an exit is an anchor. Its positives are
    all other outputs of the rows with its label, at all exits. Its candidates are all other
    outputs. With one exit the loss is SupCon [1], or SimCLR [2] without labels:

    ============  ====  ====  ===================  ==========================================
    Method        E     N     labels               settings
    ============  ====  ====  ===================  ==========================================
    SelfCon-S     >= 2  B     labels               the defaults
    SelfCon-M     >= 2  2 B   labels.repeat(2)     the defaults
    SelfCon-SU    >= 2  B     None                 the defaults
    SelfCon-MU    >= 2  2 B   None                 the defaults; see below
    SelfCon-S*    >= 2  B     labels               subnetwork_weight
    SelfCon-M*    >= 2  2 B   labels.repeat(2)     subnetwork_weight
    SelfCon-SU*   >= 2  B     None                 subnetwork_weight
    SelfCon-MU*   >= 2  2 B   None                 subnetwork_weight, num_views=2
    SupCon-S      1     B     labels               the defaults
    SupCon        1     2 B   labels.repeat(2)     the defaults
    SimCLR        1     2 B   None                 num_views=2, base_temperature=temperature
    ============  ====  ====  ===================  ==========================================

    B is the number of images. Methods with S have one view of each, methods with M two, with the
    rows ``torch.cat([view0, view1])``.

    SelfCon-MU follows the authors' code: the other view of an image is a negative. With
    ``num_views=2`` it is a positive at all exits. The paper's text allows both readings.

    The starred methods do not contrast the backbone's anchors with the sub-networks. Their loss is
    the loss of the backbone's exit alone plus ``subnetwork_weight`` times the loss of the
    sub-networks' anchors among the outputs of all exits. In SelfCon-SU* the first term is 0,
    because none of its anchors has a positive.

    The mean leaves out anchors without a positive. These exist only with one exit, as rows whose
    label no other row of the batch has. If no anchor is left, the loss and its gradients are 0, so
    that a run survives small batches of many classes.

    - [0]: SelfCon, 2021, https://arxiv.org/abs/2106.15499. The sets, the mean over anchors and the
      scale follow raymin0223/self-contrastive-learning at commit 5e7c2c5.
    - [1]: SupCon, 2020, https://arxiv.org/abs/2004.11362, L_out in Eq. 2
    - [2]: SimCLR, 2020, https://arxiv.org/abs/2002.05709, Eq. 1

    Args:
        temperature: Divides the similarities. The authors' scripts use the default 0.1.
        base_temperature: The loss is multiplied by ``temperature / base_temperature``. The default
            0.07 is that of the authors' code and of SupCon's. Learning rates depend on it.
        subnetwork_weight: None for plain SelfCon, or the weight of the sub-networks' anchors in
            the starred methods. It is the authors' alpha, except that they write 0 for None.
        num_views: Without labels, the number of views of each image that are positives of each
            other: rows i and i + N / num_views show one image. With the default 1 each row is an
            image of its own. Has no effect with labels.
        gather_distributed: If True, the outputs of all processes are candidates. All processes
            must have batches of one size. The average over processes then equals the loss of the
            whole batch on one process. The loss warns if there is no process group.

    A second derivative raises an error. torch.compile makes one graph of the loss, except for the
    gathering from several processes.

    Raises:
        ValueError: If a temperature is not positive and finite, if subnetwork_weight is negative
            or not finite, or if num_views is not a positive integer.

    Examples:
        >>> import torch
        >>> from mixco_lightly import SelfConLoss
        >>> middle, last = torch.nn.Linear(48, 16), torch.nn.Linear(48, 16)
        >>> images, labels = torch.rand(8, 48), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> criterion = SelfConLoss()
        >>> criterion(torch.stack([middle(images), last(images)], dim=1), labels).backward()
    """

    def __init__(
        self,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        subnetwork_weight: float | None = None,
        num_views: int = 1,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        for name, value in [("temperature", temperature), ("base_temperature", base_temperature)]:
            check_temperature(name, value)
        if subnetwork_weight is not None and not (
            isinstance(subnetwork_weight, (int, float)) and 0 <= subnetwork_weight < math.inf
        ):
            raise ValueError(
                "subnetwork_weight must be None or a finite number of at least 0, got "
                f"{subnetwork_weight!r}."
            )
        if not (isinstance(num_views, int) and num_views >= 1):
            raise ValueError(f"num_views must be a positive integer, got {num_views!r}.")
        self.temperature = temperature
        self.base_temperature = base_temperature
        self.subnetwork_weight = subnetwork_weight
        self.num_views = num_views
        self.gather_distributed = gather_distributed

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes the loss.

        Computed in float32 even under autocast, and in float64 for float64 features.

        Args:
            features: Projections of N rows at E exits, not normalised, shape (N, E, D). The
                sub-networks come first, the backbone last.
            labels: Class of each row, integers, shape (N,), or None for the unsupervised methods.

        Returns:
            The loss, scalar, float32 (float64 for float64 features).

        Raises:
            ValueError: If shapes do not agree, if labels are not integers, if there are fewer than
                two images, if no anchor can have a positive (one exit, one view, no labels), if
                subnetwork_weight is set but there is only one exit, or, with gather_distributed,
                if the processes' batches differ in size.
        """
        self._check(features, labels)
        if self.gather_distributed:
            warn_without_process_group()
        # Autocast would run all products in half precision.
        with torch.autocast(device_type=features.device.type, enabled=False):
            z = unit_rows(features.flatten(0, 1)).view(features.shape)
            n, e, _ = z.shape
            if labels is None:  # each image is a class of its own
                images = n // self.num_views
                labels = torch.arange(images, device=z.device).repeat(self.num_views)
                labels = labels + images * dist.rank()
            labels = labels.to(z.device, torch.int64, non_blocking=True)
            all_z, all_labels, offset = z, labels, 0
            gathers = self.gather_distributed and dist.world_size() > 1
            if gathers:
                check_equal_sizes(n)
                all_z, all_labels = gather_rows(z), gather_rows(labels)
                offset = dist.rank() * n
            is_positive = labels.unsqueeze(1) == all_labels  # n x m

            def contrast(exits: slice, num_anchor_exits: int) -> Tensor:
                return positives_cross_entropy(
                    z[:, exits],
                    all_z[:, exits],
                    is_positive,
                    offset,
                    self.temperature,
                    num_anchor_exits,
                    gathers,
                )

            if self.subnetwork_weight is None:
                loss = contrast(slice(None), e)
            else:
                backbone = contrast(slice(e - 1, None), 1)
                subnetworks = contrast(slice(None), e - 1)
                loss = backbone + self.subnetwork_weight * subnetworks
            return self.temperature / self.base_temperature * loss

    def _check(self, features: Tensor, labels: Tensor | None) -> None:
        shape = tuple(features.shape)
        if len(shape) != 3 or not features.numel() or not features.is_floating_point():
            raise ValueError(
                "features must be floating point numbers of shape (N, E, D), N rows at E exits, "
                f"got shape {shape} and {features.dtype}."
            )
        n, e, _ = shape
        if labels is not None:
            if labels.shape != (n,) or labels.is_floating_point() or labels.is_complex():
                raise ValueError(
                    f"labels must be integers of shape ({n},), one for each row of features, got "
                    f"shape {tuple(labels.shape)} and {labels.dtype}."
                )
        else:
            if n % self.num_views:
                raise ValueError(
                    f"num_views={self.num_views}, but the number of rows {n} is not a multiple of "
                    "it. Pass all views of each image."
                )
            if e == 1 and self.num_views == 1:
                raise ValueError(
                    "With one exit and num_views=1 no row has a positive without labels. Pass "
                    "labels, or num_views=2 for SimCLR."
                )
        world_size = dist.world_size() if self.gather_distributed else 1
        images = n * world_size // (self.num_views if labels is None else 1)
        if images < 2:
            raise ValueError(f"The batch needs at least 2 images, got {images}.")
        if e == 1 and self.subnetwork_weight is not None:
            raise ValueError(
                f"subnetwork_weight={self.subnetwork_weight} needs at least 2 exits, but features "
                f"of shape {shape} have 1."
            )

    def extra_repr(self) -> str:
        """Shows the settings in the module's printed form."""
        return (
            f"temperature={self.temperature}, base_temperature={self.base_temperature}, "
            f"subnetwork_weight={self.subnetwork_weight}, num_views={self.num_views}, "
            f"gather_distributed={self.gather_distributed}"
        )
