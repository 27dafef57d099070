"""Where models run and in which numbers: devices that are here, number types that are fast on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from transenc.errors import InputError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str | None) -> str:
    """Return the device to use.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", or None for the GPU if there is one, else the CPU.

    Returns:
        The name of a device that this machine has.

    Raises:
        InputError: An unknown name, or a device that is not here.

    Example:
        >>> resolve_device("cpu")
        'cpu'
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device must be cpu, cuda, cuda:<number> or mps, found {device!r}") from None
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(found.type, 0)
    if (found.index or 0) >= count:
        raise InputError(f"device {device!r} is not on this machine ({count} of that type here); try cpu")
    return device


def resolve_devices(devices: str | Sequence[str] | None) -> list[str]:
    """Return the devices to use: one or more, checked by `resolve_device`; all CPUs or all GPUs.

    Args:
        devices: names, in a list or with commas between them; the same one may stand there twice.

    Raises:
        InputError: no device, one that is not here, or different kinds, which differ in their arithmetic.

    Example:
        >>> resolve_devices("cpu,cpu")
        ['cpu', 'cpu']
    """
    names = devices.split(",") if isinstance(devices, str) else [None] if devices is None else list(devices)
    found = [resolve_device(None if name is None else name.strip()) for name in names]
    kinds = {name.partition(":")[0] for name in found}
    if len(kinds) != 1:
        raise InputError(f"expected one device, or several of one kind, found {devices!r}; e.g. cuda:0,cuda:1")
    return found


def resolve_precision(precision: str, *, device: str | None = None) -> str:
    """Return the number type for inference and training on a device.

    bfloat16 where the hardware computes in it (on a CPU it is slower than float32 otherwise), else float16 on a GPU
    and float32 on a CPU.

    Args:
        precision: "auto", or a number type, which is returned as it is.
        device: As for `resolve_device`.

    Returns:
        "float32", "bfloat16" or "float16".

    Raises:
        InputError: An unknown precision or device.

    Example:
        >>> resolve_precision("float32", device="cpu")
        'float32'
    """
    if precision != "auto":
        resolve_dtype(precision)
        return precision
    kind = torch.device(resolve_device(device)).type
    if kind == "cuda":
        # Before compute capability 8 bfloat16 is emulated, and slow.
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if kind == "cpu":
        return "bfloat16" if _cpu_has_bfloat16() else "float32"
    return "float16"


def _cpu_has_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):  # newer than the oldest torch that is supported
        abilities = torch.cpu.get_capabilities()
        return any(bool(abilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_dtype(precision: str) -> torch.dtype:
    """The number type of that name.

    Raises:
        InputError: An unknown name.

    Example:
        >>> resolve_dtype("float16")
        torch.float16
    """
    if precision not in _DTYPES:
        raise InputError(f"the number type must be one of {', '.join(_DTYPES)}, found {precision!r}")
    return _DTYPES[precision]
