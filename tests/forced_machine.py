"""Sets what the processor can do for a whole run of the tests, whatever it really is.

With MIXCO_TEST_FAST_BFLOAT16=1 this process, and those forked from it, take the processor for one
that is fast in bfloat16, with 0 for one that is not. Without the variable it is what it is.
"""

import os

import torch

_choice = os.environ.get("MIXCO_TEST_FAST_BFLOAT16", "")
if _choice:
    if _choice not in ("0", "1"):
        raise ValueError(f"MIXCO_TEST_FAST_BFLOAT16 must be 0 or 1, got {_choice!r}.")
    _found = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 has none
    _forced = dict.fromkeys(["avx512_bf16", "amx_bf16"], _choice == "1")
    # Where machine.has_fast_bfloat16 asks, so that its own tests can still set it.
    torch.cpu.get_capabilities = lambda: {**_found, **_forced}
