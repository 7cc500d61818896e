"""Which device, and which number format on it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch
from joblib import cpu_count

from src.core.console import InputError, StageError, short
from src.core.settings import Experiment

NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO_AMP = "AUTO_AMP"  # environment variable: what `train.amp: auto` means on any hardware


def pick_device(exact: bool = False) -> torch.device:
    """The first GPU that this torch can drive, else the CPU. Raises InputError for a GPU without
    kernels in this build. `exact`: the same results every time, where cuDNN would otherwise choose
    its kernels by how fast they happen to be."""
    if not torch.cuda.is_available():
        keep_freed_memory()
        return torch.device("cpu")
    capability = torch.cuda.get_device_capability(0)
    if not has_kernels(capability, torch.cuda.get_arch_list()):
        name = torch.cuda.get_device_name(0)
        raise InputError(
            f"this torch {torch.__version__} has no kernels for {name} "
            f"(sm_{capability[0]}{capability[1]})",
            "",
            "Choose another accelerator, install a torch built for it, or run on "
            "the CPU with CUDA_VISIBLE_DEVICES=-1",
            code="gpu_not_supported",
        )
    torch.backends.cudnn.benchmark = not exact
    torch.backends.cudnn.deterministic = exact
    return torch.device("cuda")


def keep_freed_memory() -> None:
    """Let glibc keep large blocks for the next step. By default each goes back to the system and is
    zeroed again, which makes a step on the CPU longer: docs/results.md (mallopt(3):
    M_TRIM_THRESHOLD is -1, M_MMAP_THRESHOLD -3, at most 32 MB). Elsewhere nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-3, 32 * 2**20)
        mallopt(-1, 2**31 - 1)


def has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether code built for `built_for` (sm_80, compute_90, …) runs on a GPU of this compute
    capability: binaries run on the same major and an equal or higher minor version, PTX
    (compute_…) on anything equal or newer (CUDA programming guide, binary and PTX
    compatibility)."""
    for arch in built_for:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        version = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and version[0] == capability[0] and version <= capability:
            return True
        if kind == "compute" and version <= capability:
            return True
    return False


def amp_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The number format of every network, in training as in prediction. `auto`: AUTO_AMP, else
    bfloat16 where the hardware has it, float16 on older GPUs, float32 elsewhere."""
    if setting == "auto":
        setting = os.environ.get(AUTO_AMP) or hardware_format(device)
    if setting not in NUMBERS:
        raise InputError(
            f"no such number format: {setting}",
            f"environment variable {AUTO_AMP}",
            f"Take {', '.join(NUMBERS)}, or unset it",
            code="invalid_value",
        )
    return NUMBERS[setting]


def hardware_format(device: torch.device) -> str:
    """The fastest number format that this device has without emulation."""
    if device.type != "cuda":
        return "bfloat16" if cpu_has_bfloat16() else "float32"
    # a T4 has bfloat16 by emulation, which is slower than float32
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def cpu_has_bfloat16() -> bool:
    """AMX or avx512_bf16; elsewhere bfloat16 is emulated and slower than float32."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return False
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags.split())


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def worker_count(setting: int | None, device: torch.device) -> int:
    """Loader processes: up to eight for a GPU. None beside training on the CPU: augmentation takes
    a hundredth of a step, and a process that takes one core for that long makes the other cores
    wait."""
    if setting is not None:
        return setting
    return min(8, max(1, cpu_count() - 1)) if device.type == "cuda" else 0


def out_of_memory(error: BaseException) -> bool:
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "you tried to allocate" in str(error)


def memory_advice(experiment: Experiment, file: Path) -> StageError:
    """The settings that halve the memory with the same effective batch."""
    size, t = experiment.image_size, experiment.train
    if t.batch_size >= 4:  # below two images BatchNorm has nothing to average
        halved = f"--set train.batch_size={t.batch_size // 2}"
        advice = (
            f"{halved} --set train.accumulate={t.accumulate * 2} halves it with the same effective "
            f"batch (in {short(file)} for this experiment alone)"
        )
    else:
        smaller = max(32, size * 3 // 4 // 32 * 32)
        advice = f"The batch is small already: --set image_size={smaller} or a smaller encoder"
    return StageError(
        f"out of memory at batch {t.batch_size}, {size} px. {advice}", code="out_of_memory"
    )
