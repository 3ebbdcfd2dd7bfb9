"""Reading: every format round trip, the zoo of broken files, and the libraries behind it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

trimesh = pytest.importorskip("trimesh")

import multicoca_points.open3d_loader as loader  # noqa: E402
from multicoca_points.ply import write_ply  # noqa: E402
from multicoca_points.reader import SUFFIXES, read_points, suffix_of  # noqa: E402
from patience import DEADLINE_S
from PIL import Image  # noqa: E402

from multicoca.modality import UnreadableFileError  # noqa: E402

NUM_POINTS = 200


@pytest.fixture
def points() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, size=(NUM_POINTS, 3)) / 255
    return rng.normal(size=(NUM_POINTS, 3)).astype(np.float32), colors.astype(np.float32)


def open3d_cloud(open3d, xyz: np.ndarray, rgb: np.ndarray | None):
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz.astype(np.float64)))
    if rgb is not None:
        cloud.colors = open3d.utility.Vector3dVector(rgb.astype(np.float64))
    return cloud


@pytest.fixture
def write_with_open3d(open3d):
    def write(path: Path, xyz: np.ndarray, rgb: np.ndarray | None, **options: bool) -> Path:
        assert open3d.io.write_point_cloud(str(path), open3d_cloud(open3d, xyz, rgb), **options)
        return path

    return write


@pytest.mark.parametrize(
    ("suffix", "options", "colored"),
    [
        (".ply", {}, True),
        (".ply", {"write_ascii": True}, True),
        (".ply", {}, False),
        (".pcd", {}, True),
        (".pcd", {"write_ascii": True}, True),
        (".pcd", {"compressed": True}, True),
        (".xyz", {}, False),
        (".xyzrgb", {}, True),
        (".pts", {}, True),
    ],
)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_scans_round_trip(write_with_open3d, tmp_path, points, suffix, options, colored, as_bytes):
    xyz, rgb = points[0], points[1] if colored else None
    path = write_with_open3d(tmp_path / f"scan{suffix}", xyz, rgb, **options)
    cloud = read_points(path.read_bytes(), suffix) if as_bytes else read_points(path)
    np.testing.assert_allclose(cloud.xyz, xyz, atol=1e-5)  # open3d writes six digits
    assert cloud.xyz.dtype == np.float64
    if colored:
        np.testing.assert_allclose(cloud.rgb, rgb, atol=0.51 / 255)
    else:
        assert cloud.rgb is None


def test_own_ply_writer_is_read_exactly(points):
    cloud = read_points(write_ply(*points), ".ply")
    np.testing.assert_array_equal(cloud.xyz, points[0])
    np.testing.assert_allclose(cloud.rgb, points[1], atol=1e-6)


@pytest.mark.parametrize(("full", "dtype"), [(1.0, "float"), (255.0, "float"), (65535, "ushort")])
def test_ply_colors_of_other_types(full, dtype):
    header = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
    header += "".join(f"property {dtype} {name}\n" for name in ("red", "green", "blue")) + "end_header\n"
    number = int if dtype == "ushort" else float
    values = [number(full), number(0), number(full // 5 if full > 1 else 0.2)]
    rows = "".join(f"{i} 0 0 {values[0]} {values[1]} {values[2]}\n" for i in range(2))
    np.testing.assert_allclose(read_points((header + rows).encode(), ".ply").rgb, [[1, 0, 0.2]] * 2, atol=1e-5)


@pytest.mark.parametrize("with_colors", [False, True])
def test_npy_round_trip(tmp_path, points, with_colors):
    array = np.concatenate(points, axis=1) if with_colors else points[0]
    np.save(tmp_path / "cloud.npy", array.astype(np.float64))
    cloud = read_points(tmp_path / "cloud.npy")
    np.testing.assert_array_equal(cloud.xyz, points[0])
    assert (cloud.rgb is None) != with_colors
    if with_colors:
        np.testing.assert_allclose(cloud.rgb, points[1], atol=1e-6)


@pytest.mark.parametrize(("xyz_key", "rgb_key"), [("xyz", "rgb"), ("points", "colors")])
def test_npz_round_trip_with_byte_colors(tmp_path, points, xyz_key, rgb_key):
    bytes_per_color = (points[1] * 255).round().astype(np.uint8)
    np.savez(tmp_path / "cloud.npz", **{xyz_key: points[0], rgb_key: bytes_per_color})
    cloud = read_points((tmp_path / "cloud.npz").read_bytes(), ".npz")
    np.testing.assert_array_equal(cloud.xyz, points[0])
    np.testing.assert_allclose(cloud.rgb, points[1], atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"places": np.zeros((4, 3))}, "positions must be under 'xyz', 'points'"),
        ({"xyz": np.zeros((4, 4))}, r"shape is \[4, 4\]"),
        ({"xyz": np.zeros((4, 3)), "rgb": np.zeros((5, 3))}, r"\[5, 3\]"),
        ({"xyz": np.zeros((4, 3)), "rgb": -np.ones((4, 3))}, "normals"),
        ({"xyz": np.array([["a", "b", "c"]])}, "numbers"),
        ({"xyz": np.array([[{}, {}, {}]])}, "allow_pickle=False"),
    ],
)
def test_wrong_arrays_name_the_reason(tmp_path, arrays, message):
    np.savez(tmp_path / "cloud.npz", **arrays)
    with pytest.raises(UnreadableFileError, match=message):
        read_points(tmp_path / "cloud.npz")


@pytest.mark.parametrize("suffix", [".obj", ".glb", ".off", ".stl", ".ply"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_meshes_are_sampled_on_their_surface(tmp_path, suffix, as_bytes):
    path = tmp_path / f"box{suffix}"
    trimesh.creation.box(extents=(2, 4, 6)).export(path)
    file = path.read_bytes() if as_bytes else path
    cloud = read_points(file, suffix, num_surface_points=500, seed=1)
    assert cloud.xyz.shape == (500, 3)
    np.testing.assert_allclose(np.abs(cloud.xyz / (1, 2, 3)).max(axis=1), 1, atol=1e-5)  # on a face of the box
    np.testing.assert_array_equal(read_points(file, suffix, 500, 1).xyz, cloud.xyz)
    assert not np.array_equal(read_points(file, suffix, 500, 2).xyz, cloud.xyz)


def test_mesh_parts_are_placed_and_weighted_by_area(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(trimesh.creation.box(extents=(1, 1, 1)))
    scene.add_geometry(
        trimesh.creation.box(extents=(2, 2, 2)), transform=trimesh.transformations.translation_matrix((10, 0, 0))
    )
    scene.export(tmp_path / "two.glb")
    cloud = read_points(tmp_path / "two.glb", num_surface_points=2000)
    on_large = cloud.xyz[:, 0] > 5
    np.testing.assert_allclose(cloud.xyz[on_large].mean(axis=0), (10, 0, 0), atol=0.1)
    assert on_large.mean() == pytest.approx(0.8, abs=0.03)


def _painted_box(kind: str):
    box = trimesh.creation.box()
    paint = np.array([255, 0, 51, 255], dtype=np.uint8)
    if kind == "vertex":
        box.visual.vertex_colors = np.tile(paint, (len(box.vertices), 1))
    elif kind == "face":
        box.visual.face_colors = np.tile(paint, (len(box.faces), 1))
    elif kind == "texture":
        image = Image.new("RGB", (4, 4), tuple(paint[:3].tolist()))
        box.visual = trimesh.visual.TextureVisuals(
            uv=np.random.default_rng(0).random((len(box.vertices), 2)), image=image
        )
    else:
        box.visual = trimesh.visual.TextureVisuals(material=trimesh.visual.material.PBRMaterial(baseColorFactor=paint))
    return box


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("vertex", ".ply"), ("vertex", ".glb"), ("face", ".ply"), ("texture", ".glb"), ("material", ".glb")],
)
def test_mesh_colors_reach_the_points(tmp_path, kind, suffix):
    _painted_box(kind).export(tmp_path / f"box{suffix}")
    cloud = read_points(tmp_path / f"box{suffix}", num_surface_points=50)
    np.testing.assert_allclose(cloud.rgb, [[1, 0, 0.2]] * 50, atol=0.01)


def test_parts_without_color_have_nan_beside_parts_with_color(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(_painted_box("vertex"))
    plain = trimesh.creation.box()
    scene.add_geometry(plain, transform=trimesh.transformations.translation_matrix((5, 0, 0)))
    scene.export(tmp_path / "two.glb")
    cloud = read_points(tmp_path / "two.glb", num_surface_points=100)
    is_plain = cloud.xyz[:, 0] > 2
    assert 0 < is_plain.sum() < 100
    np.testing.assert_array_equal(np.isnan(cloud.rgb).all(axis=1), is_plain)


def test_mesh_without_faces_gives_its_vertices(tmp_path):
    (tmp_path / "v.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    np.testing.assert_array_equal(read_points(tmp_path / "v.obj").xyz, [[0, 0, 0], [1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html><body>404 not found</body></html>\n"])
def test_empty_and_html_files_are_unreadable(tmp_path, suffix, content):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match="cannot read points from"):
        read_points(path)
    with pytest.raises(UnreadableFileError, match="cannot read points from"):
        read_points(content, suffix)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_files_are_unreadable(tmp_path, suffix):
    with pytest.raises(UnreadableFileError, match=f"nothing{suffix}.*No such file"):
        read_points(tmp_path / f"nothing{suffix}")


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".ply", {}), (".ply", {"write_ascii": True}), (".pcd", {}), (".pcd", {"write_ascii": True}), (".pts", {})],
)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_cut_off_scans_are_unreadable(write_with_open3d, tmp_path, points, suffix, options, share):
    path = write_with_open3d(tmp_path / f"whole{suffix}", *points, **options)
    content = path.read_bytes()
    with pytest.raises(UnreadableFileError):
        read_points(content[: int(len(content) * share)], suffix)


@pytest.mark.parametrize("suffix", [".glb", ".stl", ".ply"])
def test_cut_off_meshes_are_unreadable(tmp_path, suffix):
    trimesh.creation.box().export(tmp_path / f"box{suffix}")
    with pytest.raises(UnreadableFileError):
        read_points((tmp_path / f"box{suffix}").read_bytes()[:-20], suffix)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_cut_off_arrays_are_unreadable(tmp_path, points, suffix):
    path = tmp_path / f"cloud{suffix}"
    np.save(path, points[0]) if suffix == ".npy" else np.savez(path, xyz=points[0])
    with pytest.raises(UnreadableFileError):
        read_points(path.read_bytes()[:-100], suffix)


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".ply"])
def test_a_ply_with_another_ending_is_unreadable(points, suffix):
    with pytest.raises(UnreadableFileError):
        read_points(write_ply(*points), suffix)


def test_unknown_endings_are_listed():
    with pytest.raises(UnreadableFileError, match=r"'\.las'; the endings are \.ply"):
        read_points(b"anything", ".las")


def test_points_that_are_not_finite_are_dropped_with_their_colors(points):
    xyz, rgb = points[0].copy(), points[1]
    xyz[3, 1], xyz[7, 0] = np.nan, np.inf
    cloud = read_points(write_ply(xyz, rgb), ".ply")
    kept = np.delete(np.arange(NUM_POINTS), [3, 7])
    np.testing.assert_array_equal(cloud.xyz, xyz[kept])
    np.testing.assert_allclose(cloud.rgb, rgb[kept], atol=1e-6)


def test_a_cloud_of_nan_is_unreadable():
    with pytest.raises(UnreadableFileError, match="none of its 5 points is finite"):
        read_points(write_ply(np.full((5, 3), np.nan), np.zeros((5, 3))), ".ply")


def test_a_ply_without_points_is_unreadable():
    with pytest.raises(UnreadableFileError, match="holds no points"):
        read_points(write_ply(np.zeros((0, 3)), np.zeros((0, 3))), ".ply")


def test_reading_says_nothing_on_the_console(write_with_open3d, points, capfd, tmp_path):
    path = write_with_open3d(tmp_path / "scan.pts", *points)  # open3d warns whenever it reads this format
    read_points(path)
    with pytest.raises(UnreadableFileError):
        read_points(b"<html>", ".xyz")
    assert capfd.readouterr() == ("", "")


def _run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    ).stdout


def test_importing_the_package_imports_no_reader():
    loaded = _run_python("import sys, multicoca_points; print([n for n in ('open3d', 'trimesh') if n in sys.modules])")
    assert loaded.strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the loaded libraries from /proc")
@pytest.mark.usefixtures("open3d")
def test_open3d_uses_the_libusb_that_the_package_carries():
    code = (
        "from multicoca_points import load_open3d; load_open3d()\n"
        "lines = open('/proc/self/maps').read().splitlines()\n"
        "print(sorted({line.split()[-1] for line in lines if 'libusb' in line}))"
    )
    loaded = _run_python(code)
    assert "libusb_package" in loaded
    assert loaded.count("libusb-1.0") == 1  # no second copy from the system


@pytest.mark.parametrize(("library", "package"), [("libGL.so.1", "libgl1"), ("libEGL.so.1", "libegl1")])
def test_a_missing_system_library_names_its_package(monkeypatch, library, package):
    def fail(name: str, extra: str):
        if name == "open3d":
            raise ImportError(f"{library}: cannot open shared object file: No such file or directory")
        return __import__(name)

    monkeypatch.setattr(loader, "require", fail)
    with pytest.raises(ImportError, match=rf"{library}.*apt-get install {package} .*multicoca\[points\]"):
        loader.load_open3d.__wrapped__()


def test_a_missing_open3d_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(ImportError, match=r"pip install 'multicoca\[points\]'"):
        loader.load_open3d.__wrapped__()


@pytest.mark.parametrize("suffix", [".ply", ".glb", ".off", ".npy", ".npz", ".stl"])
def test_the_first_bytes_show_the_format(suffix, points, tmp_path):
    xyz, rgb = points
    path = tmp_path / f"file{suffix}"
    if suffix == ".ply":
        path.write_bytes(write_ply(xyz, rgb))
    elif suffix == ".npy":
        np.save(path, xyz)
    elif suffix == ".npz":
        np.savez(path, xyz=xyz)
    else:
        kind = {"file_type": "stl_ascii"} if suffix == ".stl" else {}
        trimesh.creation.box().export(path, **kind)
    data = path.read_bytes()
    assert suffix_of(data[:1024]) == suffix
    np.testing.assert_array_equal(read_points(data, suffix_of(data[:1024])).xyz, read_points(path).xyz)


@pytest.mark.parametrize(
    "head", [b"# .PCD v.7 - Point Cloud Data", b"VERSION .7\nFIELDS x y z\n", b"# no\nVERSION 0.7\nFIELDS x"]
)
def test_the_header_of_a_pcd_file_is_known(head):
    assert suffix_of(head) == ".pcd"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"1 2 3\n4 5 6\n",
        b"v 0 0 0\n",
        b"plywood",
        b"OFFER",
        b"solid ground",
        b"VERSION 2\nnothing",
        b"\n\n",
        b"#\n",
    ],
)
def test_the_first_bytes_of_other_files_show_nothing(head):
    assert suffix_of(head) == ""
