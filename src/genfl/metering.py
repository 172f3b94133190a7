"""What work costs: time, memory and energy, read from the counters of the machine.

Nothing is estimated. What no counter shows is None: not measured.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
"""The folder in which Linux shows the energy counters of processors (RAPL)."""

SAVE_INTERVAL = 5.0
"""Seconds between two times that a running stage's cost is saved."""

Values = Mapping[str, Any]
"""The cost of some work as plain values; see `genfl.results.schema.WorkCost`."""


class Rapl:
    """The energy of the machine's processors, by the files of Linux's powercap.

    Only whole packages are read, so that nothing counts twice. Memory counts where it is a part of them.

    Args:
        folder: The folder of the counters.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._ranges: dict[Path, int] = {}
        for zone in sorted(folder.glob("*-rapl:*")):
            with contextlib.suppress(OSError, ValueError):
                if (zone / "name").read_text().startswith("package"):
                    (zone / "energy_uj").read_text()  # only root may read it on many machines
                    self._ranges[zone] = int((zone / "max_energy_range_uj").read_text())
        self._last = self._read()

    def __bool__(self) -> bool:
        """Return whether there is a counter that may be read."""
        return bool(self._ranges)

    def _read(self) -> dict[Path, int]:
        return {zone: int((zone / "energy_uj").read_text()) for zone in self._ranges}

    def spent(self) -> float:
        """Return the joules since the last call. A counter may have started over once in between."""
        now = self._read()
        total = 0
        for zone, count in now.items():
            used = count - self._last[zone]
            total += used if used >= 0 else used + self._ranges[zone]
        self._last = now
        return total / 1e6


def gpu_energy() -> dict[str, int]:
    """Return the millijoules that each GPU has spent since its driver was loaded, by its UUID.

    It is empty where NVIDIA's management library (pynvml), a driver or such a counter is missing.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return {
            str(pynvml.nvmlDeviceGetUUID(handle)): int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
            for handle in handles
        }
    except Exception:  # pynvml has an error class of its own for each cause
        return {}


class Meter:
    """Measures the cost of work in this process, and of its worker processes as far as energy counts.

    Args:
        before: The cost of earlier starts in the same folder, to which this adds; None for the first start.
        save: Called with the cost so far, every few seconds.
        powercap: The folder of the processors' energy counters.
    """

    def __init__(
        self, before: Values | None, save: Callable[[Values], object], powercap: Path = POWERCAP
    ) -> None:
        self._before, self._save = before, save
        self._complete = True
        self._began = self._saved = time.perf_counter()
        self._rapl, self._gpu_energy = Rapl(powercap), gpu_energy()
        self._joules: dict[str, float] = {}
        self._high = _memory("VmHWM")
        self._peak = _memory("VmRSS")
        self._gpus: set[int] = set()
        self._gpu_peak = 0
        if cuda := _cuda():
            for device in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(device)
        self._look()

    def _look(self) -> None:
        """Read all counters."""
        if self._rapl:
            with contextlib.suppress(OSError, ValueError):  # the next look includes what this one missed
                self._joules["rapl"] = self._joules.get("rapl", 0.0) + self._rapl.spent()
        if cuda := _cuda():
            peaks = {device: cuda.max_memory_allocated(device) for device in range(cuda.device_count())}
            self._gpus |= {device for device, peak in peaks.items() if peak}
            self._gpu_peak = max(self._gpu_peak, sum(peaks.values()))
            now, used = gpu_energy(), [_gpu_id(device) for device in self._gpus]
            if used and all(name in now and name in self._gpu_energy for name in used):
                self._joules["nvml"] = sum(now[name] - self._gpu_energy[name] for name in used) / 1e3
        high, resident = _memory("VmHWM"), _memory("VmRSS")
        if high is not None and resident is not None:
            # A new high of the process was in this stage. Else what was seen at the looks is known.
            rose = high if self._high is not None and high > self._high else resident
            self._peak = max(self._peak or 0, rose)

    def miss(self) -> None:
        """Say that a part of the work was done elsewhere, so that this meter knows no whole cost."""
        self._complete = False

    def tick(self) -> None:
        """Read the counters and save the cost, if `SAVE_INTERVAL` has passed."""
        if time.perf_counter() - self._saved >= SAVE_INTERVAL:
            self._saved = time.perf_counter()
            self._save(self.cost())

    def cost(self) -> dict[str, Any]:
        """Return the cost so far, with that of earlier starts."""
        self._look()
        seconds = time.perf_counter() - self._began
        now = {
            "seconds": round(seconds, 3),
            "devices": [_processor(), *(_gpu_name(device) for device in sorted(self._gpus))],
            "gpu_seconds": round(seconds * len(self._gpus), 3),
            "peak_memory": self._peak,
            "peak_gpu_memory": self._gpu_peak if self._gpus else None,
            **_energy({name: round(joules, 3) for name, joules in self._joules.items()}),
            "complete": self._complete,
        }
        return add_costs([self._before, now] if self._before else [now])


_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextlib.contextmanager
def metered(meter: Meter) -> Iterator[Meter]:
    """Let the progress of a block tick a meter, and save the cost if the block is interrupted.

    Args:
        meter: The meter.
    """
    token = _meter.set(meter)
    try:
        yield meter
    except BaseException:
        with contextlib.suppress(Exception):  # such as a full disk: the first error says why
            meter._save(meter.cost())
        raise
    finally:
        _meter.reset(token)


def tick() -> None:
    """Tell the meter of the work that is under way, if there is one, that a unit is finished."""
    if meter := _meter.get():
        meter.tick()


def miss() -> None:
    """Tell the meter of the work that is under way, if there is one, that a part was done elsewhere."""
    if meter := _meter.get():
        meter.miss()


def add_costs(costs: Sequence[Values]) -> dict[str, Any]:
    """Return the cost of several pieces of work together, of which none ran at once.

    The energy of a counter is left out if one piece, however short, did not have it: a part would look like
    the whole. A piece that used no GPU has 0 of NVML.

    Args:
        costs: At least one.
    """
    energy = {}
    for name in {name for cost in costs for name in cost.get("energy", {})}:
        parts = [
            cost.get("energy", {}).get(name, 0.0 if name == "nvml" and not cost["gpu_seconds"] else None)
            for cost in costs
        ]
        if None not in parts:
            energy[name] = round(sum(parts), 3)
    return {
        "seconds": round(sum(cost["seconds"] for cost in costs), 3),
        "devices": list(dict.fromkeys(name for cost in costs for name in cost["devices"])),
        "gpu_seconds": round(sum(cost["gpu_seconds"] for cost in costs), 3),
        "peak_memory": _largest([cost["peak_memory"] for cost in costs]),
        "peak_gpu_memory": _largest([cost["peak_gpu_memory"] for cost in costs]),
        **_energy(energy),
        "complete": all(cost.get("complete", True) for cost in costs),
    }


def _energy(energy: Mapping[str, float]) -> dict[str, Any]:
    """Return the joules of each counter, their sum, and the counters' names."""
    return {
        "energy": dict(sorted(energy.items())),
        "joules": round(sum(energy.values()), 3) if energy else None,
        "counters": sorted(energy),
    }


def _largest(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _memory(field: str) -> int | None:
    """Return a field of this process's memory in bytes, as Linux shows it; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def _cuda() -> Any:
    """Return `torch.cuda` if this process uses a GPU. It is not initialised here: forks could not use it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_initialized() else None


def _gpu_id(device: int) -> str:
    """Return the UUID of a GPU as NVIDIA's management library writes it."""
    return f"GPU-{_cuda().get_device_properties(device).uuid}"


def _gpu_name(device: int) -> str:
    return str(_cuda().get_device_name(device))


def _processor() -> str:
    """Return the name of the processor, as well as it is known."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
