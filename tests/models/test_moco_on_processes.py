"""A queue on two processes under Lightning: equal with gathered keys, each its own without."""

import os
import socket
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import multiprocessing

from mixco_lightly import IMixLoss, MixCoCollate, MixCollate, MixCoLoss, Mixer, create_backbone
from mixco_lightly.models.imix import IMixMoCo
from mixco_lightly.models.moco import MoCo

RANKS, BATCH, STEPS, QUEUE, DIM = 2, 4, 3, 32, 16
TIME_LIMIT = 120.0  # seconds, for importing torch in both processes and for all runs


class Notes(pl.Callback):
    """What passes by in one process."""

    def __init__(self):
        self.notes = {"keys": []}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if "start" not in self.notes:
            self.notes["start"] = module.criterion.queue.keys.clone()
            self.notes["broadcast"] = [
                name
                for name, buffer in module.named_buffers()
                if any(buffer is sent for sent in trainer.strategy.model.modules_buffers)
            ]
            compute_keys = module.compute_keys

            def noted_keys(images):
                keys = compute_keys(images)
                self.notes["keys"].append(torch.nn.functional.normalize(keys, dim=1))
                return keys

            module.compute_keys = noted_keys

    def on_train_end(self, trainer, module):
        self.notes["end"] = module.criterion.queue.keys.clone()
        self.notes["position"] = int(module.criterion.queue.position)


def train(gather, rank, folder, ckpt_path=None, imix=False):
    """Fits a module whose queue starts otherwise in each process; returns the process's notes."""
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", image_size=16)
    torch.manual_seed(1 + rank)
    loss = IMixLoss if imix else MixCoLoss
    criterion = loss(memory_bank_size=(QUEUE, DIM), gather_distributed=gather)
    collate_fn = MixCollate(Mixer.imix()) if imix else MixCoCollate()
    samples = [([torch.rand(3, 16, 16)] * 2, 0) for _ in range(STEPS * BATCH)]
    loader = torch.utils.data.DataLoader(samples, batch_size=BATCH, collate_fn=collate_fn)
    notes = Notes()
    trainer = pl.Trainer(
        max_epochs=1 if ckpt_path is None else 2,
        accelerator="cpu",
        devices=RANKS,
        strategy="ddp",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            notes,
            pl.callbacks.ModelCheckpoint(
                folder, "imix" if imix else f"gather={gather}", enable_version_counter=False
            ),
        ],
    )
    model = (IMixMoCo if imix else MoCo)(backbone, criterion)
    trainer.fit(model, loader, ckpt_path=ckpt_path, weights_only=True)
    return notes.notes


def process(rank, folder, port):
    variables = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    variables |= {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    torch.set_num_threads(1)
    result = {gather: train(gather, rank, folder) for gather in (True, False)}
    result["imix"] = train(True, rank, folder, imix=True)
    # A checkpoint of this process's own, as where each node has a disk of its own.
    own = f"{folder}/rank{rank}.ckpt"
    checkpoint = torch.load(f"{folder}/gather=True.ckpt", weights_only=True)
    keys = checkpoint["state_dict"]["criterion.queue.keys"]
    keys.copy_(keys.roll(rank, dims=0))
    torch.save(checkpoint, own)
    result["resumed"] = train(True, rank, folder, ckpt_path=own)
    torch.save(result, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.start_processes(
        process, (str(folder), port), nprocs=RANKS, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + TIME_LIMIT
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > deadline:
                pytest.fail(f"The processes were not done after {TIME_LIMIT} s.")
    finally:
        for one in context.processes:
            if one.is_alive():
                one.kill()
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("run", [True, False, "resumed", "imix"])
def test_ddp_broadcasts_the_networks_buffers_and_not_the_queue(results, run):
    for result in results:
        names = result[run]["broadcast"]
        assert not [name for name in names if name.startswith("criterion.queue")]
        assert any("running_mean" in name for name in names)


@pytest.mark.parametrize("run", [True, "resumed", "imix"])
def test_with_gathered_keys_the_queue_is_that_of_the_first_process_and_stays_equal(results, run):
    first, second = (result[run] for result in results)
    assert torch.equal(first["start"], second["start"])
    assert not torch.equal(first["keys"][0], second["keys"][0])
    assert torch.equal(first["end"], second["end"])
    # All keys, in the order of the ranks.
    both = [notes["keys"][step] for step in range(STEPS) for notes in (first, second)]
    newest = torch.cat(both)
    rows = (first["position"] - len(newest) + torch.arange(len(newest))) % QUEUE
    torch.testing.assert_close(first["end"][rows], newest)


def test_without_gathered_keys_each_process_keeps_its_own(results):
    for result in results:
        notes = result[False]
        own = torch.cat(notes["keys"])
        assert len(own) == notes["position"] == STEPS * BATCH
        torch.testing.assert_close(notes["end"][: len(own)], own)
        assert torch.equal(notes["end"][len(own) :], notes["start"][len(own) :])
    first, second = (result[False] for result in results)
    assert not torch.equal(first["start"], second["start"])
    assert not torch.isclose(first["end"], second["end"]).all(dim=1).any()
