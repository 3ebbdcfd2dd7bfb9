"""`multicoca doctor`: what it checks for real, on systems that lack something."""

import os
import subprocess
import sys

import pytest

from multicoca.cli import doctor

PLUGIN = {
    "fine": "",
    "broken": "raise ImportError('libstrange.so.1: cannot open shared object file')",
    # as open3d, where only libusb_package has the library
    "libusb": """
if "libusb" not in open("/proc/self/maps").read():
    raise ImportError("libusb-1.0.so.0: cannot open shared object file")
""",
}


@pytest.fixture
def plugin(tmp_path, monkeypatch, request):
    """An installed package with a plug-in for TensorBoard."""
    information = tmp_path / "strange-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[tensorboard_plugins]\nstrange = strange_plugin:Plugin\n")
    (tmp_path / "strange_plugin.py").write_text(f"{PLUGIN[request.param]}\nclass Plugin:\n    pass\n")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.mark.parametrize("plugin", ["broken"], indirect=True)
def test_a_plugin_that_stops_tensorboard_is_named_with_what_it_lacks(plugin):
    assert "libstrange.so.1" in doctor.tensorboard_problem()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("plugin", ["libusb"], indirect=True)
def test_the_command_that_doctor_gives_starts_tensorboard_without_libusb(plugin, open3d, monkeypatch, tmp_path):
    # the plug-ins of packages that are really installed, open3d among them, may bring libusb themselves
    check = "import strange_plugin"
    monkeypatch.setattr(doctor, "_LOAD_PLUGINS", check)
    problem = doctor.tensorboard_problem()
    assert "apt-get install libusb-1.0-0" in problem
    command = next(line for line in problem.splitlines() if "LD_PRELOAD=" in line).partition("LD_PRELOAD=")[2]
    preload = command.split()[0]
    done = subprocess.run([sys.executable, "-c", check], env={**os.environ, "LD_PRELOAD": preload})
    assert done.returncode == 0


@pytest.mark.parametrize("plugin", ["fine"], indirect=True)
def test_doctor_finds_nothing_where_tensorboard_starts(plugin, open3d):
    assert doctor.tensorboard_problem() is None


def test_a_plugin_that_never_ends_is_a_problem_in_time(monkeypatch):
    monkeypatch.setattr(doctor, "_LOAD_PLUGINS", "while True: pass")
    monkeypatch.setattr(doctor, "_PLUGINS_TIMEOUT_S", 1)
    assert "more than 1 s" in doctor.tensorboard_problem()


@pytest.mark.parametrize(
    ("python", "library", "says"),
    [
        ((3, 13), ("glibc", "2.31"), "glibc 2.35, this system has 2.31; use Python 3.11 or 3.12"),
        ((3, 14), ("glibc", "2.34"), "glibc 2.35"),
        ((3, 13), ("glibc", "2.35"), None),
        ((3, 12), ("glibc", "2.31"), None),
        ((3, 11), ("glibc", "2.28"), "glibc 2.31, this system has 2.28; use a newer system"),
        ((3, 13), ("", ""), None),  # macOS, Windows and musl
    ],
)
def test_an_old_glibc_is_the_reason_why_there_is_no_open3d(monkeypatch, python, library, says):
    monkeypatch.setattr(sys, "version_info", python)
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: library)
    found = doctor.no_open3d_wheel()
    assert found is None if says is None else says in found


def test_a_missing_open3d_is_reported_with_that_reason(monkeypatch):
    def nothing(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", nothing)
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: ("glibc", "2.17"))
    assert "this system has 2.17" in doctor._check_package("open3d")
    assert doctor._check_package("trimesh") == "MISSING"


VIDEO = ['decord; (sys_platform == "{system}") and extra == "video"', 'av; extra == "video"', "numpy"]


@pytest.mark.parametrize(("system", "says"), [(sys.platform, "is not installed"), ("solaris", "is not made for this")])
def test_videos_are_whole_without_decord(monkeypatch, capsys, system, says):
    monkeypatch.setattr(doctor, "requires", lambda name: [each.format(system=system) for each in VIDEO])
    monkeypatch.setattr(doctor, "_check_package", lambda name: "MISSING" if name == "decord" else "1.0")
    assert doctor._check_extra("video")
    line = capsys.readouterr().out
    assert f"decord {says}" in line
    assert "PyAV reads every video" in line
    assert "numpy" not in line
