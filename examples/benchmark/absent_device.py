"""A CUDA device that is not there, for a PyTorch that was built without CUDA.

Autograd asks the device of its tensors for guards and streams; a build without CUDA has none and ends the process.
These do nothing, which is enough for tensors that only say ``cuda:0``: those of FakeTensorMode (shapes without
values) and of user_dir_tests/fake_cuda.py (values on the CPU). g++ compiles them in seconds. They must be loaded
before torch is imported: use a process of its own.
"""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DEVICE = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;

struct Guard final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static Device here() { return Device(DeviceType::CUDA, 0); }
  Device exchangeDevice(Device) const override { return here(); }
  Device getDevice() const override { return here(); }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, here()); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, here()); }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

namespace at {
struct CUDAHooks final : CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at
"""


class CannotLoad(Exception):
    """Why there can be no such device here, in one line."""


def torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        raise CannotLoad("PyTorch is not installed")
    return Path(found.submodule_search_locations[0])


def objection() -> str:
    """Why it cannot be loaded; empty if it can, as far as can be told without trying."""
    if shutil.which("g++") is None:
        return "g++, which makes the device, is not installed"
    if list((torch_folder() / "lib").glob("libtorch_cuda.*")):
        return "this PyTorch is built with CUDA and has a device of its own"
    return ""


def load_device() -> None:
    """Raises CannotLoad, also where this version of PyTorch has other interfaces."""
    if "torch" in sys.modules:
        raise CannotLoad("the device must be loaded before torch is imported")
    if objection():
        raise CannotLoad(objection())
    torch = torch_folder()
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "device.cpp", Path(folder) / "device.so"
        source.write_text(DEVICE)
        lib = torch / "lib"
        command = ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", f"-I{torch / 'include'}", "-o", str(library),
                   str(source), f"-L{lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{lib}"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:])
            raise CannotLoad(f"g++ cannot build the device with this PyTorch: {reason}")
        ctypes.CDLL(str(library))
