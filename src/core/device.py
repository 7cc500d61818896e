"""Which device, and which number format on it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from src.core.console import InputError, StageError, short
from src.core.settings import Experiment


def pick_device(exact: bool = False) -> torch.device:
    """The first GPU that this torch can drive, else the CPU. A GPU without kernels in this build is refused by name. exact: the same answers every time,
    where cuDNN would otherwise choose its kernels by how fast they happen to be."""
    if torch.cuda.is_available():
        name, capability = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
        if not has_kernels(capability, torch.cuda.get_arch_list()):
            raise InputError(
                f"this torch {torch.__version__} has no kernels for {name} "
                f"(sm_{capability[0]}{capability[1]})",
                "",
                "Choose another accelerator, install a torch built for it, or run on "
                "the CPU with CUDA_VISIBLE_DEVICES=-1",
                code="gpu_not_supported",
            )
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = not exact, exact
        return torch.device("cuda")
    keep_freed_memory()
    return torch.device("cpu")


def keep_freed_memory() -> None:
    """Let glibc keep large blocks for the next step instead of giving each back to the system and having it zeroed again, which a CPU step
    is the longer for: docs/results.md (mallopt(3): M_TRIM_THRESHOLD is -1, M_MMAP_THRESHOLD -3, at most 32 MB). Elsewhere nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-3, 32 * 2**20)
        mallopt(-1, 2**31 - 1)


def has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether binaries for `built_for` (sm_80, compute_90, …) run on a GPU of this compute capability: binaries run on the same major and an
    equal or higher minor version, PTX (compute_…) on anything equal or newer (CUDA programming guide, binary and PTX compatibility)."""
    for arch in built_for:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        major, minor = int(digits[:-1]), int(digits[-1])
        if (
            kind == "sm"
            and major == capability[0]
            and minor <= capability[1]
            or kind == "compute"
            and (major, minor) <= tuple(capability)
        ):
            return True
    return False


NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

AUTO_AMP = (
    "AUTO_AMP"  # an environment variable: what `train.amp: auto` means, whatever the hardware
)


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
    if device.type == "cuda":
        # T4 says yes by emulation, which is slower than float32
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float16"
    return "bfloat16" if cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """AMX or avx512_bf16; elsewhere bfloat16 is emulated and slower than float32."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return False
    return bool({"amx_bf16", "avx512_bf16"} & set(flags.split()))


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def worker_count(setting: int | None, device: torch.device) -> int:
    """Loader processes: up to eight for a GPU. None beside CPU training: augmenting takes a hundredth of a step, and a process that takes a core away
    from it for that long makes the other cores wait."""
    if setting is not None:
        return setting
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(8, max(1, cores - 1)) if device.type == "cuda" else 0


def out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, torch.OutOfMemoryError)
        or isinstance(error, MemoryError)
        or "you tried to allocate" in str(error)
    )


def memory_advice(experiment: Experiment, file: Path) -> StageError:
    """The settings that halve the memory with the same effective batch."""
    e, t = experiment, experiment.train
    if t.batch_size >= 4:  # below two images BatchNorm has nothing to average
        advice = f"--set train.batch_size={t.batch_size // 2} --set train.accumulate={t.accumulate * 2} halves it with the same effective batch (in {short(file)} for this experiment alone)"
    else:
        advice = f"The batch is small already: --set image_size={max(32, e.image_size * 3 // 4 // 32 * 32)} or a smaller encoder"
    return StageError(
        f"out of memory at batch {t.batch_size}, {e.image_size} px. {advice}", code="out_of_memory"
    )
