"""Kernels that come with a wheel: their archive, and how they are found and launched."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from helpers import fake_device
from helpers.bitwise import assert_same_bits
from helpers.fake_cuda_core import Core, HostMemory, parts

import fastdrop as fd
from fastdrop import _core
from fastdrop.backends.cuda import launch, libraries
from fastdrop.backends.cuda import prebuilt as cuda_prebuilt
from fastdrop.backends.cuda.arrays import DeviceArray

ROOT = Path(__file__).parents[3]
FEW = r"^(draw-float32-axes=0-.*source=bytes|dropout-float32-op=dropout-.*source=given|unpack)"


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """A few kernels, or all of those in the archive that FASTDROP_KERNELS names."""
    pytest.importorskip("numba_cuda", reason="pip install 'fastdrop[test-cuda]'")
    if given := os.environ.get("FASTDROP_KERNELS"):
        return given
    file = tmp_path_factory.mktemp("kernels") / "kernels.zip"
    return made(file)


def made(file, *more):
    script = ROOT / "dev" / "gpu" / "cuda_build.py"
    command = [sys.executable, script, "--only", FEW, "--out", file, *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=file.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr
    return str(file)


@pytest.fixture
def installed(archive, monkeypatch):
    """The archive is part of fastdrop, and there is a device."""
    core = Core(HostMemory())
    core.install(monkeypatch)
    monkeypatch.setattr(cuda_prebuilt, "FILE", archive)
    clear()
    yield core
    clear()


def clear():
    for cached in (
        *(cuda_prebuilt.manifest, cuda_prebuilt.why_not),
        *(launch._route, launch.where, launch._kernel),
    ):
        cached.cache_clear()


@pytest.mark.slow
def test_same_bytes_again(archive, tmp_path):
    """By another number of jobs, in another folder."""
    if "FASTDROP_KERNELS" not in os.environ:
        again = made(tmp_path / "again.zip", "--jobs", "1")
        assert Path(again).read_bytes() == Path(archive).read_bytes()


@pytest.mark.slow
def test_manifest(archive):
    manifest = cuda_prebuilt.read_manifest(archive)
    assert manifest["stream"] == fd.STREAM_VERSION
    assert manifest["fastdrop"] == fd.__version__
    assert manifest["code"] == [*(f"sm_{a}" for a in (75, 80, 90, 100, 120)), "compute_80"]
    assert set(manifest["compilers"]) == {"numba-cuda", "nvvm", "nvfatbin"}
    assert {"backends/cuda/kernels/dropout.py", "rng.py", "reference/noise.py"} < set(
        manifest["sources"]
    )
    with ZipFile(archive) as file:
        assert file.namelist() == ["manifest.json", *manifest["kernels"]]
        for name in manifest["kernels"]:
            kinds = [(kind, arch) for kind, arch, _ in parts(file.read(name))]
            assert kinds == [(2, 75), (2, 80), (2, 90), (2, 100), (2, 120), (1, 80)]


@pytest.mark.slow
def test_compiled_from_these_sources(archive):
    """That the code does what they say is seen when it is executed."""
    assert cuda_prebuilt.stale(cuda_prebuilt.read_manifest(archive), cuda_prebuilt.FOLDER) is None


@pytest.mark.slow
def test_executed(installed):
    """A draw, and a backward pass from its bits, as on the CPU; grid, block and stream."""
    assert fd.cuda.is_available()
    assert launch.where() == "prebuilt"
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    _, ctx = fd.dropout(x, 0.3, rng=fd.Rng(5, 7))
    there = fake_device.to_fake(x, stream=77)
    assert_same_bits(ctx.backward(there).host, ctx.backward(x))
    assert installed.launched == [(3, 128, 77)]


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_keep_mask_without_numba(installed, monkeypatch, p):
    """In an array that says where it is, and comes to the host."""
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    for n in (0, 1, 5000):
        mask = fd.cuda.keep_mask(n, p, rng=fd.Rng(5, 7))
        assert isinstance(mask, cuda_prebuilt.Array)
        assert mask.__cuda_array_interface__["typestr"] == "|b1"
        assert_same_bits(mask.copy_to_host(), fd.keep_mask(n, p, rng=fd.Rng(5, 7)))
    packed = fd.cuda.keep_mask(5003, p, rng=fd.Rng(5, 7), packed=True)
    expected = fd.keep_mask(5003, p, rng=fd.Rng(5, 7), packed=True)
    assert_same_bits(packed.copy_to_host(), expected)
    with pytest.raises(IndexError, match=r"only \[:n\] is known here"):
        packed[3:]
    sent = libraries.KINDS["fastdrop"].send(mask, np.arange(6.0).reshape(2, 3))
    assert_same_bits(sent.copy_to_host(), np.arange(6.0).reshape(2, 3))
    with pytest.raises(TypeError, match="know no bfloat16"):
        libraries.KINDS["fastdrop"].empty(mask, (1,), "bfloat16", (2,))


@pytest.mark.slow
def test_the_present_device_stays(installed):
    installed.present = 1
    with cuda_prebuilt._present(3):
        assert installed.present == 4
    assert installed.present == 1
    with cuda_prebuilt._present(None):
        assert installed.present == 1


@pytest.mark.slow
def test_what_was_not_built(installed, monkeypatch):
    """Numba is not asked, as FASTDROP_CUDA leaves it out."""
    monkeypatch.setenv("FASTDROP_CUDA", "prebuilt")
    x = DeviceArray(fake_device.to_fake(np.ones((2,) * 10, np.float32)))
    with pytest.raises(RuntimeError, match=r"'copy' for float32 .* 5, .* FASTDROP_CUDA=prebuilt"):
        launch.launch("copy", x, 1, {"axes": 5, "small": True}, n=1)
    with pytest.raises(RuntimeError, match=r"'add_rows' for float32 was built ahead with {}"):
        launch.launch("add_rows", x, 1, {}, n=1)


def test_an_array_knows_its_device_and_stream(monkeypatch):
    """Wherever it is asked: with another device present, or, as in another thread, none."""
    core = Core(HostMemory(1 << 16))
    core.install(monkeypatch)
    kind = libraries.KINDS["fastdrop"]
    core.present = 3
    there = kind.send(None, np.arange(6.0).reshape(2, 3))
    assert kind.device(there) == 2
    assert core.present == 3
    for present in (0, 1):
        core.present = present
        assert_same_bits(there.copy_to_host(), np.arange(6.0).reshape(2, 3))
        more = kind.empty(there, (5,), "float32", (4,))
        assert kind.device(more) == 2
    assert there.__cuda_array_interface__["stream"] == 1
    x = fake_device.to_fake(np.arange(12.0).reshape(3, 4), stream=77)
    owner = kind.empty(x, (5,), "float32", (4,))
    assert owner.__cuda_array_interface__["stream"] == 77
    assert owner.owner is x
    assert kind.empty(owner, (5,), "float32", (4,)).owner is x  # not a chain of arrays
    assert more.owner is None
    back = kind.fetch(fake_device.FakeArray(x.host[::-1, 1:3]))
    assert_same_bits(back, np.arange(12.0).reshape(3, 4)[::-1, 1:3])


@pytest.mark.slow
def test_stale_kernels_are_refused(archive, tmp_path, monkeypatch):
    """By fastdrop, and by setup.py."""
    shutil.copytree(ROOT / "fastdrop", tmp_path / "fastdrop", ignore=shutil.ignore_patterns("*.so"))
    source = tmp_path / "fastdrop" / "backends/cuda/kernels/rows.py"
    source.write_text(source.read_text() + "\n# another\n")
    alone = runpy.run_path(str(tmp_path / "fastdrop" / "backends" / "cuda" / "prebuilt.py"))
    found = alone["read_manifest"](archive)
    assert alone["stale"](found, alone["FOLDER"]) == "backends/cuda/kernels/rows.py"
    shutil.copy(archive, tmp_path / "fastdrop" / "kernels.zip")
    assert alone["why_not"]().startswith(
        "backends/cuda/kernels/rows.py has changed since they were compiled"
    )
    shutil.copytree(ROOT / "src", tmp_path / "src")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py"],
        cwd=tmp_path,
        env=os.environ | {"FASTDROP_KERNELS": archive},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "backends/cuda/kernels/rows.py has changed since" in done.stderr


@pytest.fixture
def nothing_cached():
    clear()
    yield
    clear()


@pytest.mark.usefixtures("nothing_cached")
class TestWithoutKernels:
    def test_none_came(self, monkeypatch, tmp_path):
        monkeypatch.setattr(cuda_prebuilt, "FILE", str(tmp_path / "none.zip"))
        assert cuda_prebuilt.manifest() is None
        assert cuda_prebuilt.why_not() == "this build of fastdrop has none"

    def test_no_cuda_core(self, monkeypatch, tmp_path):
        file = tmp_path / "kernels.zip"
        with ZipFile(file, "w", ZIP_DEFLATED) as archive:
            manifest = {"sources": {}, "kernels": {}, "parts": _core.PARTS, "code": ["sm_75"]}
            archive.writestr("manifest.json", json.dumps(manifest))
        monkeypatch.setattr(cuda_prebuilt, "FILE", str(file))
        monkeypatch.setitem(sys.modules, "cuda.core", None)
        assert "pip install 'fastdrop[cuda13]'" in cuda_prebuilt.why_not()

    def test_an_error_of_the_driver(self, monkeypatch, tmp_path):
        self.test_no_cuda_core(monkeypatch, tmp_path)
        core = Core(HostMemory(1 << 16))
        core.install(monkeypatch)
        sys.modules["cuda.bindings.driver"].cuInit = lambda flags: (100,)
        cuda_prebuilt.why_not.cache_clear()
        assert cuda_prebuilt.why_not() == "CUDA driver: 100"
        sys.modules["cuda.bindings.driver"].cuInit = lambda flags: (0,)
        sys.modules["cuda.bindings.driver"].cuDeviceGetCount = lambda: (0, 0)
        cuda_prebuilt.why_not.cache_clear()
        assert cuda_prebuilt.why_not() == "there is no CUDA device"
        sys.modules["cuda.bindings.driver"].cuDeviceGetCount = lambda: (0, 2)
        core.capability = 7, 0
        cuda_prebuilt.why_not.cache_clear()
        assert "capability 7.5 on, and this is 7.0" in cuda_prebuilt.why_not()
        core.capability = 7, 5
        cuda_prebuilt.why_not.cache_clear()
        assert cuda_prebuilt.why_not() is None
        monkeypatch.setattr(_core, "PARTS", 16)
        cuda_prebuilt.why_not.cache_clear()
        assert "they add in 32 parts, not in 16" in cuda_prebuilt.why_not()

    def test_one_route_is_asked_for(self, monkeypatch):
        monkeypatch.setenv("FASTDROP_CUDA", "numba")
        assert launch.routes()["prebuilt"] == "FASTDROP_CUDA=numba is set"
        launch._route.cache_clear()
        monkeypatch.setenv("FASTDROP_CUDA", "prebuilt")
        assert launch.routes()["numba"] == "FASTDROP_CUDA=prebuilt is set"
        launch._route.cache_clear()
        monkeypatch.setenv("FASTDROP_CUDA", "jit")
        with pytest.raises(ValueError, match="FASTDROP_CUDA must be prebuilt or numba, got 'jit'"):
            launch.routes()


def test_what_is_used_of_cuda_core_is_there():
    """The names that the tests replace; a launch needs a GPU."""
    core = pytest.importorskip("cuda.core", reason="pip install 'fastdrop[cuda12]'")
    from cuda.bindings import driver

    assert {"from_fatbin", "get_kernel"} <= set(dir(core.ObjectCode))
    assert {"from_handle", "sync", "handle"} <= set(dir(core.Stream))
    assert {"memory_resource", "set_current", "device_id"} <= set(dir(core.Device))
    assert hasattr(core.DeviceMemoryResource, "allocate")
    assert core.LaunchConfig(grid=3, block=128).grid == (3, 1, 1)
    for name in ("cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute"):
        assert hasattr(driver, name)
    assert hasattr(driver, "cuCtxGetCurrent")
    assert hasattr(driver, "cuCtxSetCurrent")
    for part in ("MAJOR", "MINOR"):
        name = f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"
        assert hasattr(driver.CUdevice_attribute, name)
    assert hasattr(driver, "cuMemcpyDtoHAsync")
    assert hasattr(driver, "cuMemcpyHtoDAsync")
