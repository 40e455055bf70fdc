"""The allocator setting of the recipes, by the page faults that it is to avoid."""

import os
import platform
import subprocess
import sys
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"

# Ten times 64 MiB are taken, written to and freed; printed are the faults after the first time.
PROGRAM = """
import ctypes, resource, sys
sys.path.insert(0, sys.argv[1])
from allocator import keep_freed_memory
done = keep_freed_memory() if sys.argv[2] == "keep" else False
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
    command = [sys.executable, "-c", PROGRAM, str(RECIPES), mode]
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
