"""The logged similarities against loops over all pairs, and the steps that pay for them."""

import pytest
import pytorch_lightning as pl
import torch

from mixco_lightly import MixCoCollate, MixCoLoss, create_backbone
from mixco_lightly.models.moco import MoCo
from mixco_lightly.models.simclr import SimCLR
from mixco_lightly.models.step_log import batch_similarities, is_logged_step, queue_similarities


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_queue_similarities_are_means_over_pairs_of_a_query_with_its_key_and_with_the_queue(n):
    generator = torch.Generator().manual_seed(n)
    queries, keys, queue = (
        torch.randn(rows, 4, dtype=torch.float64, generator=generator) for rows in (n, n, 7)
    )
    queue = torch.nn.functional.normalize(queue, dim=1)
    found = queue_similarities(queries, keys, queue)
    positive = mean(cosine(q, k) for q, k in zip(queries, keys, strict=True))
    negative = mean(cosine(q, k) for q in queries for k in queue)
    assert float(found["positive_similarity"]) == pytest.approx(positive, abs=1e-12)
    assert float(found["negative_similarity"]) == pytest.approx(negative, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_batch_similarities_are_means_over_views_of_one_and_of_two_images(n):
    generator = torch.Generator().manual_seed(n)
    out = [torch.randn(n, 4, dtype=torch.float64, generator=generator) for _ in range(2)]
    found = batch_similarities(*out)
    views = [(i, row) for view in out for i, row in enumerate(view)]
    positive = mean(cosine(a, b) for a, b in zip(*out, strict=True))
    negative = mean(cosine(a, b) for i, a in views for j, b in views if i != j)
    assert float(found["positive_similarity"]) == pytest.approx(positive, abs=1e-12)
    assert float(found["negative_similarity"]) == pytest.approx(negative, abs=1e-12)


def create_model(method, mix_weight):
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", image_size=16)
    if method == "simclr":
        return SimCLR(backbone, MixCoLoss(mix_weight=mix_weight), projection_dim=16)
    criterion = MixCoLoss(mix_weight=mix_weight, memory_bank_size=(10, 16))
    return MoCo(backbone, criterion, momentum=0.9)


class Recorder(pl.loggers.Logger):
    """Keeps what Lightning logs."""

    name = version = ""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step):
        self.rows[step] = metrics


@pytest.mark.parametrize("method", ["moco", "simclr"])
@pytest.mark.parametrize("mix_weight", [0.0, 0.5])
def test_similarities_and_mean_weight_are_computed_in_the_logged_steps_only(
    method, mix_weight, monkeypatch
):
    from mixco_lightly.models import moco, simclr

    module, name = {
        "moco": (moco, "queue_similarities"),
        "simclr": (simclr, "batch_similarities"),
    }[method]
    original, computed_at, weights, queues = getattr(module, name), [], [], []
    model = create_model(method, mix_weight)

    def spy(*args):
        computed_at.append(model.trainer.global_step)
        queues.append(args[-1].clone())
        return original(*args)

    monkeypatch.setattr(module, name, spy)
    before = []

    class Spy(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            weights.append([m.lam for m in batch[-1]])
            if method == "moco":
                before.append(module.criterion.queue.keys.clone())

    samples = [([torch.rand(3, 16, 16), torch.rand(3, 16, 16)], 0) for _ in range(20)]
    views = (0,) if method == "moco" else (0, 1)
    loader = torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=MixCoCollate(views))
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=recorder,
        log_every_n_steps=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Spy()],
    )
    trainer.fit(model, loader)
    assert computed_at == [1, 3]  # of steps 0 to 4
    assert list(recorder.rows) == [1, 3]
    for step, row in recorder.rows.items():
        names = {"loss", "contrast", "mix", "positive_similarity", "negative_similarity", "epoch"}
        assert row.keys() == names | ({"lam"} if mix_weight else set())
        assert row["loss"] == pytest.approx(row["contrast"] + mix_weight * row["mix"], rel=1e-5)
        assert -1 <= row["negative_similarity"] <= 1
        if mix_weight:
            assert row["lam"] == pytest.approx(float(torch.cat(weights[step]).mean()), abs=1e-6)
    if method == "moco":  # the queue without the keys of the step
        assert all(torch.equal(queues[i], before[step]) for i, step in enumerate(computed_at))


@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_the_mixtures_term_is_logged_in_the_steps_that_are_mixed(method):
    samples = [([torch.rand(3, 16, 16), torch.rand(3, 16, 16)], i // 4) for i in range(20)]
    mix = MixCoCollate((0,) if method == "moco" else (0, 1))

    def collate_fn(batch):
        views, targets, mixtures = mix(batch)
        return [views, targets, mixtures if targets[0] in (0, 3) else []]

    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=recorder,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=collate_fn)
    trainer.fit(create_model(method, 0.5), loader)
    assert [step for step, row in recorder.rows.items() if "mix" in row] == [0, 3]
    assert [step for step, row in recorder.rows.items() if "lam" in row] == [0, 3]
    for row in recorder.rows.values():
        assert row["loss"] == pytest.approx(row["contrast"] + 0.5 * row.get("mix", 0), rel=1e-5)


def test_no_step_is_logged_without_a_trainer():
    assert not is_logged_step(create_model("moco", 1.0))
