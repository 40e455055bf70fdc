"""What the machine can do, set both ways; and the allocator, by the page faults it avoids."""

import os
import platform
import subprocess
import sys

import pytest
import torch

import mixco_lightly.machine as machine

# Ten times 64 MiB are taken, written to and freed; printed are the faults after the first time.
PROGRAM = f"""
import ctypes, resource, runpy, sys, types
sys.modules["torch"] = types.ModuleType("torch")  # its import takes seconds and is not needed
machine = runpy.run_path({machine.__file__!r})
done = machine["keep_freed_memory"]() if sys.argv[1] == "keep" else False
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def use():
    block = ctypes.c_void_p(libc.malloc(1 << 26))
    libc.memset(block, 1, 1 << 26)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode, **environment):
    clean = {name: x for name, x in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM, mode]
    output = subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, check=True
    ).stdout.split()
    return output[0] == "True", int(output[1])


def test_freed_memory_is_used_again_without_a_page_fault_where_glibc_allocates():
    done, kept = faults("keep")
    assert done == (platform.libc_ver()[0] == "glibc")
    if done:
        # Of 4 KiB or of 2 MiB, in 640 MiB.
        assert kept < 100 < faults("leave")[1]


def test_a_setting_of_the_users_own_is_left_alone():
    done, _ = faults("keep", MALLOC_MMAP_THRESHOLD_="1048576")
    assert not done


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16"])
def test_bfloat16_is_fast_on_a_cpu_that_says_so(capability, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True}, raising=False)
    assert machine.has_fast_bfloat16(torch.device("cpu"))


def test_bfloat16_is_slow_on_a_cpu_with_avx2_alone_and_on_unknown_devices(monkeypatch):
    capabilities = {"avx2": True, "avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert not machine.has_fast_bfloat16(torch.device("cpu"))
    assert not machine.has_fast_bfloat16(torch.device("meta"))


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_bfloat16_is_as_fast_with_a_torch_that_knows_single_capabilities(avx512, amx, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert machine.has_fast_bfloat16(torch.device("cpu")) == (avx512 or amx)
    assert not machine.has_fast_bfloat16(torch.device("meta"))


@pytest.mark.parametrize("emulated", [False, True])
def test_bfloat16_is_fast_on_a_gpu_that_does_not_emulate_it(emulated, monkeypatch):
    def is_supported(including_emulation):
        return including_emulation or not emulated

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert machine.has_fast_bfloat16(torch.device("cuda")) == (not emulated)


@pytest.mark.parametrize(
    ("has_cuda", "accelerator", "is_fast", "expected"),
    [
        (False, "auto", False, "32-true"),
        (False, "auto", True, "bf16-mixed"),
        (False, "cpu", True, "bf16-mixed"),
        (True, "cpu", False, "32-true"),
        (True, "auto", True, "bf16-mixed"),
        (True, "gpu", False, "16-mixed"),
        (True, "cuda", True, "bf16-mixed"),
        (False, "mps", True, "32-true"),
    ],
)
def test_precision_auto_is_the_fastest_that_is_safe(
    has_cuda, accelerator, is_fast, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_cuda)
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda device: is_fast)
    assert machine.choose_precision("auto", accelerator) == expected
    assert machine.choose_precision("32-true", accelerator) == "32-true"


@pytest.mark.parametrize(("processors", "workers"), [(1, 1), (3, 3), (8, 8), (64, 8)])
def test_workers_follow_the_processors_that_the_process_may_use(processors, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 99)
    assert machine.available_processors() == processors
    assert machine.default_num_workers(None) == workers
    assert machine.default_num_workers(0) == 0


def test_processors_are_counted_where_no_affinity_is_known(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.available_processors() == 6
