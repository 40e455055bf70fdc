"""A pretended GPU: tensors that say ``cuda:0``, keep their values on the CPU, and count waits.

    with pretended_gpu() as gpu:
        criterion.to("cuda")
        loss = criterion(x.to("cuda", non_blocking=True), y.to("cuda", non_blocking=True))
        loss.backward()
        assert gpu.waits == []
    assert gpu.values(loss) == expected

It raises where CUDA raises: an operator with tensors of both devices, a generator of the other
device. The bodies of ``torch.library.custom_op`` run and are checked too. It counts where CUDA
makes the processor wait: values that Python reads, results whose shape depends on values, copies
between the devices without ``non_blocking``, ``torch.cuda.synchronize``. Random numbers of the
pretended device come from a generator of its own, which ``torch.manual_seed`` seeds as the CPU's:
the same seed gives the same numbers.

To C++ the tensors are of the CPU, so that autograd needs no driver. Hence autocast to half
precision on "cuda" leaves layers in float32, and what C++ decides by the device is decided as for
a CPU. Threads that are started inside see no GPU (a DataLoader that pins memory).
"""

import contextlib
import copy
import linecache
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
_Generator = torch.Generator  # the class is patched
_ROOT = Path(__file__).resolve().parents[1]
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_INDEXING = {
    *(torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default),
    *(torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default),
}
_LIKE_ANOTHER = {torch.Tensor.to, torch.Tensor.type_as}
_WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class GpuTensor(torch.Tensor):
    """A tensor that says it is on the GPU; ``inner`` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
        )
        tensor.inner = inner
        return tensor

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self):
        return DEVICE.index

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on a tensor of the pretended GPU, which is switched off.")

    def to(self, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            return self.to(args[0].device, args[0].dtype, *args[1:], **kwargs)
        is_copied = kwargs.pop("copy", False)
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        options = {} if memory_format is None else {"memory_format": memory_format}
        if device is not None and device.type == "cpu":
            return torch.ops.aten._to_copy(
                self, dtype=dtype, device=device, non_blocking=non_blocking, **options
            )
        if not is_copied and memory_format is None and dtype in (None, self.dtype):
            return self
        return torch.ops.aten._to_copy(self, dtype=dtype, **options)

    def cuda(self, device=None, non_blocking=False):
        return self

    def cpu(self):
        return self.to("cpu")

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force=False):
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu().")
        return self.detach().cpu().numpy()

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
        dtype, device = dtype or self.dtype, device or self.device
        return torch.tensor(data, dtype=dtype, device=device, requires_grad=requires_grad)

    def __setitem__(self, index, value):
        if isinstance(value, (bool, int, float)):  # C++ would make it on the CPU
            value = torch.full((), value, dtype=self.dtype, device=DEVICE)
        super().__setitem__(index, value)

    def __repr__(self, *, tensor_contents=None):
        return f"GpuTensor({self.inner!r})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            new = GpuTensor(self.inner.clone())
            new.__dict__.update(
                {k: copy.deepcopy(v, memo) for k, v in self.__dict__.items() if k != "inner"}
            )
            memo[id(self)] = new.requires_grad_(self.requires_grad)
            if self.grad is not None:
                new.grad = copy.deepcopy(self.grad, memo)
        return memo[id(self)]


class GpuGenerator(_Generator):
    """A generator that says it is on the GPU."""

    def __new__(cls, device="cpu"):
        is_gpu = torch.device(device).type == "cuda"
        return super().__new__(cls if is_gpu else _Generator)

    device = property(lambda self: DEVICE)

    def manual_seed(self, seed):
        super().manual_seed(seed)
        return self  # not a new object of the base class


class PretendedGpu(TorchDispatchMode):
    """What happens on the pretended GPU.

    Attributes:
        waits: One text for each wait: the operator and the line that called it.
    """

    def __init__(self):
        super().__init__()
        self.waits = []
        self.rng_state = torch.Generator().manual_seed(torch.initial_seed()).get_state()

    def values(self, tensor):
        """The values of a tensor, without a wait, detached and on the CPU."""
        return tensor.inner.clone() if isinstance(tensor, GpuTensor) else tensor.detach().clone()

    def wait(self, name):
        """Notes a wait at the innermost line of this repository that is not in this file.

        An environment inside the repository (``.venv-floors/lib/.../site-packages``) is not of it.
        """
        frame = sys._getframe(1)
        place = "?"
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if (
                path.parts[: len(_ROOT.parts)] == _ROOT.parts
                and path != Path(__file__)
                and "site-packages" not in path.parts
            ):
                line = linecache.getline(str(path), frame.f_lineno).strip()
                place = f"{path.relative_to(_ROOT)}:{frame.f_lineno}: {line}"
                break
            frame = frame.f_back
        self.waits.append(f"{name} at {place}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        on_gpu = [x for x in leaves if isinstance(x, GpuTensor)]
        on_cpu = [x for x in leaves if type(x) is not GpuTensor and isinstance(x, torch.Tensor)]
        device = kwargs.get("device")
        if on_gpu and func is not torch.ops.aten._to_copy.default:
            device = None  # C++ asks for that of the tensor, as it knows it
        to_gpu = bool(on_gpu) if device is None else device.type == "cuda"
        if not on_gpu and not to_gpu:
            return func(*args, **kwargs)
        if func in _COPIES:
            self._check_copy(func, args, kwargs, bool(on_gpu), to_gpu)
        else:
            _check_devices(func, args, on_cpu)
        definition = torch._library.custom_ops.OPDEFS.get(func._schema.name)
        if definition is not None:
            with _Arguments(), self:
                return definition._init_fn(*args, **kwargs)
        self._count_wait(func, args, kwargs)
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        if "device" in kwargs:
            inner_kwargs["device"] = torch.device("cpu")
        inner_kwargs.pop("pin_memory", None)
        with self._own_random_numbers(func, leaves):
            out = func(*inner_args, **inner_kwargs)
        if not to_gpu:
            return out
        out = tree_map(lambda x: GpuTensor(x) if isinstance(x, torch.Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if on_gpu else out

    def _check_copy(self, func, args, kwargs, from_gpu, to_gpu):
        if func is torch.ops.aten.copy_.default:
            to_gpu, from_gpu = (isinstance(x, GpuTensor) for x in args[:2])
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        else:
            non_blocking = kwargs.get("non_blocking", False)
        if from_gpu == to_gpu:
            return
        if not non_blocking:
            self.wait("a blocking copy " + ("to the GPU" if to_gpu else "from the GPU"))
        elif from_gpu:
            raise RuntimeError(
                "A copy from the GPU with non_blocking=True: its values could be read too early."
            )

    def _count_wait(self, func, args, kwargs):
        if func in _INDEXING:
            indices = [x for x in args[1] if x is not None]
            if any(type(x) is not GpuTensor for x in indices):
                self.wait("an index copied to the GPU")
            elif any(x.dtype in (torch.bool, torch.uint8) for x in indices) and not (
                # One value is put by masked_fill.
                func is not torch.ops.aten.index.Tensor and args[2].numel() == 1
            ):
                self.wait("an index that is a mask")
        elif func is torch.ops.aten._linalg_check_errors.default or (
            _WAITING_TAGS & set(func.tags) and kwargs.get("output_size") is None
        ):
            self.wait(func._schema.name)

    @contextlib.contextmanager
    def _own_random_numbers(self, func, leaves):
        given = any(isinstance(x, _Generator) for x in leaves)
        if given or torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        state = torch.get_rng_state()
        torch.set_rng_state(self.rng_state)
        try:
            yield
        finally:
            self.rng_state = torch.get_rng_state()
            torch.set_rng_state(state)

    def seed(self, seed):
        """Seeds the device's own generator."""
        self.rng_state = torch.Generator().manual_seed(seed).get_state()

    def set_rng_state(self, state, device=0):
        """Sets the device's own generator."""
        self.rng_state = state.clone()


class _Arguments(TorchFunctionMode):
    """Mends what C++ would get wrong about devices, and checks those of generators."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda and type(args[0]) is not GpuTensor:
            options = {"non_blocking": kwargs.get("non_blocking", len(args) > 2 and args[2])}
            return args[0].to(DEVICE, **options)
        if func in _LIKE_ANOTHER and len(args) > 1 and isinstance(args[1], torch.Tensor):
            return args[0].to(args[1].device, args[1].dtype, *args[2:], **kwargs)
        if kwargs.get("device") is not None or func is torch.Tensor.to:
            # Of cuda alone C++ asks the driver which one is meant.
            args, kwargs = tree_map(_first_device, (args, kwargs))
        generator, device = kwargs.get("generator"), kwargs.get("device")
        on_gpu = isinstance(args[0], GpuTensor) if device is None and args else device == DEVICE
        if generator is not None and isinstance(generator, GpuGenerator) != on_gpu:
            raise RuntimeError("The generator is on another device than the tensor.")
        return func(*args, **kwargs)


def _check_devices(func, args, on_cpu):
    """Raises where CUDA does: CPU tensors may be of no dimension, or indices."""
    if func in _INDEXING:
        on_cpu = [x for x in on_cpu if not any(x is index for index in args[1])]
        if not isinstance(args[0], GpuTensor):
            on_cpu = [args[0]]
    written = [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    is_written = any(x is y for x in on_cpu for y in tree_leaves(written))
    is_joined = func in (torch.ops.aten.cat.default, torch.ops.aten.stack.default)
    if any(x.dim() > 0 for x in on_cpu) or (on_cpu and (is_written or is_joined)):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({func}, shapes on the CPU: {[tuple(x.shape) for x in on_cpu]})"
        )


def _inner(x):
    return x.inner if isinstance(x, GpuTensor) else x


def _first_device(x):
    return DEVICE if x in ("cuda", torch.device("cuda")) else x


@contextlib.contextmanager
def pretended_gpu():
    """Pretends that there is one GPU; see the module."""
    gpu = PretendedGpu()
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: contextlib.nullcontext(),
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "pretended",
        "is_current_stream_capturing": lambda: False,  # torch 2.10's optimizers ask here
        "synchronize": lambda device=None: gpu.wait("torch.cuda.synchronize"),
        "manual_seed": gpu.seed,
        "manual_seed_all": gpu.seed,
        "get_rng_state": lambda device=0: gpu.rng_state.clone(),
        "get_rng_state_all": lambda: [gpu.rng_state.clone()],
        "set_rng_state": gpu.set_rng_state,
        "set_rng_state_all": lambda states: gpu.set_rng_state(states[0]),
        "empty_cache": lambda: None,
    }
    accelerator = {
        "is_available": lambda: True,
        "current_accelerator": lambda *_, **__: DEVICE,
        "current_stream": lambda *_: SimpleNamespace(is_capturing=lambda: False),
    }
    group_tensors = torch._C._group_tensors_by_device_and_dtype

    def group(tensors, with_indices):
        groups = group_tensors(tensors, with_indices)
        return {
            (lists[0][0].device, dtype): (lists, indices)
            for (_, dtype), (lists, indices) in groups.items()
        }

    lifts = torch._C._only_lift_cpu_tensors()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with (
        patch.multiple(torch.cuda, **cuda),
        patch.multiple(torch.accelerator, **accelerator),
        patch.object(torch, "Generator", GpuGenerator),
        patch.object(torch._C, "_group_tensors_by_device_and_dtype", group),
        _Arguments(),
        gpu,
    ):
        # torch.tensor(..., device="cuda") then makes its copy where the mode sees it.
        torch._C._set_only_lift_cpu_tensors(True)
        # A moved module gets new parameters: C++ would put the values into the old ones.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield gpu
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts)
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
