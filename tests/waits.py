"""What would make a CPU wait for its GPU: operators whose result, or whose shape, is known from data alone."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# Tagged by nothing, and waiting: for an error code, for an address, for a value.
MORE = {"_linalg_check_errors", "_assert_scalar", "is_nonzero", "is_pinned", "_pin_memory", "segment_reduce"}
# Tagged, and waiting only where booleans (or bytes, which were booleans once) say which elements are meant.
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class Waits(RuntimeError):
    """An operator that waits for the device."""


class NoWait(TorchDispatchMode):
    """Raises at the first operator that would wait for a GPU if its tensors were there, those in C++ included.

    `names` counts what ran. It sees what passes through the dispatcher, so not what C++ reads from memory itself.
    """

    def __init__(self):
        super().__init__()
        self.names = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        why = reason(function, args, kwargs)
        if why:
            raise Waits(f"{function} waits for the device: {why}")
        result = function(*args, **kwargs)
        before, after = devices(args), devices(result)
        if before - {"cpu"} and after - before:
            raise Waits(f"{function} waits for the device: it copies from {before} to {after}")
        name = str(function._overloadpacket)
        self.names[name] = self.names.get(name, 0) + 1
        return result


def reason(function, args, kwargs):
    """Why `function` would wait for a GPU, "" where it would not."""
    name = function._schema.name.split("::")[1]
    to = kwargs.get("device")
    if to is not None and any(torch.device(to).type != kind for kind in devices(args)):
        return f"it copies to {to}"
    if name in ("copy_", "_copy_from") and len(devices(args)) > 1:
        return "it copies between devices"
    if name in MORE:
        return "it reads what the device wrote"
    if name in INDEXING:
        masks = [x for x in tensors(args[1]) if x.dtype in (torch.bool, torch.uint8)]
        return "a mask's elements are counted" if masks else ""
    if name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return ""
    tags = TAGS.intersection(function.tags)
    return f"it is tagged {', '.join(sorted(map(str, tags)))}" if tags else ""


def tensors(tree):
    return [x for x in tree_iter(tree) if isinstance(x, torch.Tensor)]


def devices(tree):
    """Kinds of device of all tensors but numbers wrapped as ones."""
    return {x.device.type for x in tensors(tree) if x.ndim or x.device.type != "cpu"}
