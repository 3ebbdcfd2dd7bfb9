"""Point files are read exactly or refused: small files that went wrong once, and others of each kind."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from multicoca_points.cloud import PointCloud
from multicoca_points.colors import unit_colors
from multicoca_points.processor import PointsProcessor
from multicoca_points.reader import read_points
from multicoca_points.table import _read_plainly, read_table
from PIL import Image

from multicoca.reading import UnreadableFileError

CASES = Path(__file__).parent.parent / "cases"
XYZ = np.load(CASES / "points_xyz.npy")
RGB = np.load(CASES / "points_rgb.npy") / 255


def centered(xyz: np.ndarray) -> np.ndarray:
    return xyz - xyz.mean(axis=0)


def on_unit_sphere(path: Path) -> np.ndarray:
    processor = PointsProcessor(num_points=5000)
    return processor.preprocess(processor.decode(path), False, torch.Generator())["xyz"].numpy()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ply_ascii_bad_token.ply", "line 208 is not a row of numbers"),
        ("pts_blank_line.pts", "declares 400 points and holds 399"),
        ("pcd_ascii_decimal_comma.pcd", "line 210 is not a row of numbers"),
        ("count_too_small.pts", "declares 100 points and holds 400"),
        ("mixed_bad_rows.xyz", "line 2 has 1 values where others have 3"),
        ("draco_one_of_two.glb", "KHR_draco_mesh_compression.*pip install DracoPy|KHR_draco_mesh_compression"),
        ("hostile/big_number.obj", "'v' lines, line 3 has 1 values"),
        ("hostile/fuzz_error.npz", "decompressing"),
        ("hostile/glbnobv.glb", "1000000000000 rows has no data"),
        ("hostile/npy1e12.npy", "takes 12000000000000 bytes"),
        ("hostile/npytok.npy", "TokenError"),
        ("hostile/facets_outside_of_a_solid.stl", "from 'solid' to 'endsolid'"),
        ("hostile/npzenc.npz", "encrypted"),
        ("hostile/pcdb1e12.pcd", "takes? 12000000000000 bytes"),
        ("hostile/plyneg2.ply", "declares -1000000000000000 rows"),
    ],
)
def test_a_file_that_cannot_be_read_whole_is_refused_with_its_reason(name, message):
    for file, suffix in ((CASES / name, ""), ((CASES / name).read_bytes(), Path(name).suffix)):
        with pytest.raises(UnreadableFileError, match=message):
            read_points(file, suffix)


@pytest.mark.parametrize(
    ("name", "colored", "digits"),
    [
        ("pcd_binary_double.pcd", False, 1e-12),
        ("utm_double.ply", True, 1e-8),
        ("c255.xyzrgb", True, 1e-5),
        ("float_color255_nan.ply", True, 1e-6),
        ("ushort_255.ply", True, 1e-6),
        ("diffuse.ply", True, 1e-6),
        ("six_columns.xyz", True, 1e-5),
        ("shapenet_nocount.pts", False, 1e-5),
        ("commas.xyz", False, 1e-5),
    ],
)
def test_the_points_and_colours_of_a_file_are_those_that_it_holds(name, colored, digits):
    cloud = read_points(CASES / name)
    np.testing.assert_allclose(centered(cloud.xyz), centered(XYZ), atol=digits)
    if not colored:
        assert cloud.rgb is None
        return
    is_known = np.isfinite(cloud.rgb)
    assert (~is_known).any(axis=1).sum() == (name == "float_color255_nan.ply")  # one point has no colour
    np.testing.assert_allclose(cloud.rgb[is_known], RGB[is_known], atol=1e-6)


@pytest.mark.parametrize("name", ["utm_double.ply", "utm_1m.npy"])
def test_map_coordinates_keep_the_shape_of_an_object(name):
    exact = np.load(CASES / name) if name.endswith("npy") else read_points(CASES / name).xyz
    exact = centered(exact)
    exact /= np.linalg.norm(exact, axis=1).max()
    np.testing.assert_allclose(on_unit_sphere(CASES / name), exact, atol=1e-6)


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".xyz", ".pts", ".npy", ".npz", ".obj", ".off", ".stl", ".glb"])
def test_every_format_keeps_map_coordinates(tmp_path, suffix):
    """A triangle of 1 m, a million metres away; STL and GLB hold float32, so theirs is moved by 1024 m alone."""
    far = 1024.0 if suffix in (".stl", ".glb") else 1e6
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]]) + (far, 4 * far, 0)
    text = "\n".join(" ".join(f"{v:.9f}" for v in row) for row in corners)
    path = tmp_path / f"far{suffix}"
    if suffix in (".npy", ".npz"):
        np.save(path, corners) if suffix == ".npy" else np.savez(path, xyz=corners)
    elif suffix in (".stl", ".glb"):
        trimesh = pytest.importorskip("trimesh")
        trimesh.Trimesh(corners - (far, 4 * far, 0), [[0, 1, 2]], process=False).apply_translation(
            (far, 4 * far, 0)
        ).export(path)
    else:
        header = {
            ".ply": "ply\nformat ascii 1.0\nelement vertex 3\nproperty double x\nproperty double y\nproperty double z\n"
            "element face 1\nproperty list uchar int vertex_indices\nend_header\n",
            ".pcd": "VERSION 0.7\nFIELDS x y z\nSIZE 8 8 8\nTYPE F F F\nWIDTH 3\nHEIGHT 1\nPOINTS 3\nDATA ascii\n",
            ".xyz": "", ".pts": "3\n", ".obj": "v " , ".off": "OFF\n3 1 0\n",
        }[suffix]  # fmt: skip
        body = text.replace("\n", "\nv ") + "\nf 1 2 3" if suffix == ".obj" else text
        path.write_text(header + body + ("\n3 0 1 2" if suffix in (".ply", ".off") else "") + "\n")
    xyz = read_points(path, num_surface_points=300).xyz - (far, 4 * far, 0)
    tolerance = 1e-3 if suffix in (".stl", ".glb") else 1e-8
    assert -tolerance <= xyz.min() <= xyz[:, :2].sum(axis=1).max() <= 1 + tolerance
    assert np.ptp(xyz[:, 0]) > 0.8


def test_quantized_positions_are_scaled():
    cloud = read_points(CASES / "quantized.glb")
    np.testing.assert_allclose(np.ptp(cloud.xyz, axis=0), 2, atol=0.01)
    np.testing.assert_allclose(np.abs(cloud.xyz).max(axis=1), 1, atol=1e-4)  # on the faces of the cube


def test_a_texture_that_cannot_be_read_is_no_colour_and_is_said():
    cloud = read_points(CASES / "tex_ktx2.glb")
    assert cloud.rgb is None
    assert any("texture cannot be read" in remark and "KHR_texture_basisu" in remark for remark in cloud.remarks)


def glb(header: dict, binary: bytes) -> bytes:
    content = json.dumps({"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}],
                          "nodes": [{"mesh": 0}], **header}).encode()  # fmt: skip
    content += b" " * (-len(content) % 4)
    binary += b"\0" * (-len(binary) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(content) + len(binary))
    return (
        head
        + struct.pack("<I4s", len(content), b"JSON")
        + content
        + struct.pack("<I4s", len(binary), b"BIN\0")
        + binary
    )


def square(mode: int, indices: list[int] | None, **primitive) -> bytes:
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4").tobytes()
    packed = np.array(indices or [], "<u2").tobytes()
    accessors = [{"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"}]
    views = [{"buffer": 0, "byteLength": 48}]
    if indices is not None:
        accessors.append({"bufferView": 1, "componentType": 5123, "count": len(indices), "type": "SCALAR"})
        views.append({"buffer": 0, "byteOffset": 48, "byteLength": len(packed)})
        primitive["indices"] = 1
    mesh = {"primitives": [{"attributes": {"POSITION": 0}, "mode": mode, **primitive}]}
    size = len(corners) + len(packed)
    return glb({"meshes": [mesh], "accessors": accessors, "bufferViews": views, "buffers": [{"byteLength": size}]},
               corners + packed)  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "indices"), [(4, [0, 1, 2, 0, 2, 3]), (5, [0, 1, 3, 2]), (6, [0, 1, 2, 3]), (6, None)]
)
def test_every_kind_of_triangles_covers_the_whole_square(mode, indices):
    xyz = read_points(square(mode, indices), ".glb", num_surface_points=2000).xyz
    assert (np.histogram2d(xyz[:, 0], xyz[:, 1], bins=2, range=[[0, 1], [0, 1]])[0] > 400).all()


def test_an_unknown_required_extension_is_named():
    data = square(4, [0, 1, 2])
    data = data.replace(b'"scene": 0,', b'"extensionsRequired": ["EXT_meshopt_compression"],')
    size = len(data) - len(square(4, [0, 1, 2]))
    content = struct.unpack_from("<I", data, 12)[0] + size
    data = data[:8] + struct.pack("<I", len(data)) + struct.pack("<I", content) + data[16:]
    with pytest.raises(UnreadableFileError, match="EXT_meshopt_compression"):
        read_points(data, ".glb")


def test_sparse_positions_are_put_in_their_places():
    base = np.zeros((3, 3), "<f4")
    changed = np.array([[1, 0, 0], [0, 1, 0]], "<f4")
    binary = base.tobytes() + np.array([1, 2], "<u2").tobytes() + changed.tobytes()
    sparse = {"count": 2, "indices": {"bufferView": 1, "componentType": 5123}, "values": {"bufferView": 2}}
    header = {
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "sparse": sparse}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}, {"buffer": 0, "byteOffset": 36, "byteLength": 4},
                        {"buffer": 0, "byteOffset": 40, "byteLength": 24}],
        "buffers": [{"byteLength": 64}],
    }  # fmt: skip
    xyz = read_points(glb(header, binary), ".glb", num_surface_points=500).xyz
    assert xyz[:, 0].max() > 0.8
    assert xyz[:, 1].max() > 0.8


# Colours: one rule for every reader.


@pytest.mark.parametrize(
    ("values", "scale", "is_said"),
    [
        (np.array([[0, 128, 255]], np.uint8), 255, False),
        (np.array([[0, 1, 1]], np.uint8), 255, False),
        (np.array([[0, 128, 255]], np.uint16), 255, True),
        (np.array([[0, 128, 65535]], np.uint16), 65535, False),
        (np.array([[0.0, 0.5, 1.0]], np.float32), 1, False),
        (np.array([[0.0, 128.5, 255.0]], np.float32), 255, True),
        (np.array([[0.0, 300.0, 65535.0]], np.float32), 65535, True),
        (np.array([[0, 128, 255]], np.int32), 255, False),
    ],
)
def test_the_type_decides_the_scale_of_colours_and_exceptions_are_said(values, scale, is_said):
    rgb, remarks = unit_colors(values)
    np.testing.assert_allclose(rgb, values / scale, atol=1e-6)
    assert bool(remarks) == is_said


@pytest.mark.parametrize("values", [[[-1.0, 0, 0]], [[0, 0, 1.4]], [[0, 0.5, 300.0]], [[0, 0, 1e6]]])
def test_colours_of_no_scale_are_refused(values):
    with pytest.raises(UnreadableFileError, match="its colours go from"):
        unit_colors(np.array(values))


def test_a_nan_or_infinite_colour_is_that_points_alone():
    rgb, _ = unit_colors(np.array([[0, 0, 255.0], [np.nan, 1, 2], [np.inf, 0, 0], [128, 0, 0]], np.float32))
    np.testing.assert_array_equal(np.isfinite(rgb).all(axis=1), [True, False, False, True])
    np.testing.assert_allclose(rgb[[0, 3]], [[0, 0, 1], [128 / 255, 0, 0]])


@pytest.mark.parametrize("names", ["red green blue", "Red Green Blue", "r g b", "R G B", "diffuse_red diffuse_green "
                                   "diffuse_blue", "scalar_red scalar_green scalar_blue"])  # fmt: skip
@pytest.mark.parametrize("axes", ["x y z", "X Y Z"])
def test_fields_of_a_ply_are_known_by_the_names_met_in_the_wild(names, axes):
    lines = ["ply", "format ascii 1.0", "element vertex 2"]
    lines += [f"property double {name}" for name in axes.split()]
    lines += [f"property uchar {name}" for name in names.split()]
    data = "\n".join([*lines, "end_header", "1 2 3 255 0 51", "4 5 6 0 255 0", ""]).encode()
    cloud = read_points(data, ".ply")
    np.testing.assert_array_equal(cloud.xyz, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(cloud.rgb, [[1, 0, 0.2], [0, 1, 0]])


def pcd(fields: str, sizes: str, types: str, encoding: str, body: bytes, count: int = 2) -> bytes:
    counts = " ".join("1" for _ in fields.split())
    lines = ["# .PCD v0.7", "VERSION 0.7", f"FIELDS {fields}", f"SIZE {sizes}", f"TYPE {types}", f"COUNT {counts}"]
    lines += [f"WIDTH {count}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {count}", f"DATA {encoding}", ""]
    return "\n".join(lines).encode() + body


@pytest.mark.parametrize("kind", ["F", "U", "I"])
@pytest.mark.parametrize("name", ["rgb", "rgba"])
def test_packed_colours_of_a_pcd(kind, name):
    packed = np.array([0xFF_FF0033, 0x00_00FF00], np.uint32)
    rows = np.zeros(2, np.dtype([("xyz", "<f4", 3), ("rgb", "<u4")]))
    rows["xyz"], rows["rgb"] = [[1, 2, 3], [4, 5, 6]], packed
    cloud = read_points(pcd(f"x y z {name}", "4 4 4 4", f"F F F {kind}", "binary", rows.tobytes()), ".pcd")
    np.testing.assert_allclose(cloud.rgb, [[1, 0, 0.2], [0, 1, 0]])
    np.testing.assert_array_equal(cloud.xyz, rows["xyz"])


@pytest.mark.parametrize("text", ["16711731", repr(float(np.uint32(0xFF0033).view(np.float32)))])
def test_packed_colours_in_the_text_of_a_pcd(text):
    """0xFF0033 as a whole number, and as the float with the same bits."""
    body = f"1 2 3 {text}\n4 5 6 {text}\n".encode()
    cloud = read_points(pcd("x y z rgb", "4 4 4 4", "F F F F", "ascii", body), ".pcd")
    np.testing.assert_allclose(cloud.rgb, [[1, 0, 0.2]] * 2)


def test_separate_colours_and_gaps_of_a_pcd():
    rows = np.zeros(2, np.dtype([("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("_", "u1"), ("r", "u1"), ("g", "u1"),
                                 ("b", "u1"), ("_2", "u1")]))  # fmt: skip
    rows["x"], rows["r"] = [1e6 + 0.1, 2], [255, 0]
    cloud = read_points(pcd("x y z _ r g b _", "8 8 8 1 1 1 1 1", "F F F U U U U U", "binary", rows.tobytes()), ".pcd")
    np.testing.assert_array_equal(cloud.xyz[:, 0], [1e6 + 0.1, 2])
    np.testing.assert_array_equal(cloud.rgb, [[1, 0, 0], [0, 0, 0]])


def test_colours_under_unknown_names_are_named():
    data = b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
    data += b"property uchar my_red\nproperty uchar my_green\nproperty uchar my_blue\nend_header\n1 2 3 4 5 6\n"
    cloud = read_points(data, ".ply")
    assert cloud.rgb is None
    assert cloud.remarks == ("its colours are not read: no known names in my_blue, my_green, my_red",)


# Text: every row or none.


@pytest.mark.parametrize(
    ("suffix", "text", "rows", "colored"),
    [
        (".xyz", "1 2 3\n4 5 6\n", 2, False),
        (".xyz", "\ufeff1 2 3\n4 5 6\n", 2, False),
        (".xyz", "1\t2\t3\r\n4\t5\t6\r\n", 2, False),
        (".xyz", "1 2 3\r4 5 6\r", 2, False),
        (".xyz", "1, 2, 3\n4, 5, 6", 2, False),
        (".xyz", "# a comment\n//X Y Z\n1 2 3\n\n4 5 6\n", 2, False),
        (".xyz", "x y z r g b\n1 2 3 255 0 0\n4 5 6 0 0 0\n", 2, True),
        (".xyz", "X,Y,Z,Intensity,Red,Green,Blue\n1,2,3,7,255,0,0\n4,5,6,7,0,0,0\n", 2, True),
        (".xyz", "x y z scalar nx ny nz\n1 2 3 7 0 0 1\n4 5 6 7 0 0 1\n", 2, False),
        (".xyz", "1 2 3 0 0 -1\n4 5 6 0 1 0\n", 2, False),  # normals
        (".xyz", "1 2 3 9\n4 5 6 9\n", 2, False),
        (".pts", "2\n1 2 3 -100 255 0 0\n4 5 6 -90 1 1 1\n", 2, True),
        (".pts", "1 2 3 255 0 0\n4 5 6 0 0 0\n", 2, True),
    ],
)
def test_rows_in_the_forms_met_in_the_wild(suffix, text, rows, colored):
    cloud = read_points(text.encode(), suffix)
    np.testing.assert_array_equal(cloud.xyz, [[1, 2, 3], [4, 5, 6]][:rows])
    assert (cloud.rgb is not None) == colored
    if colored:
        np.testing.assert_array_equal(cloud.rgb[0], [1, 0, 0])


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".xyz", "1 2 3\n4 5\n", "line 2 has 2 values"),
        (".xyz", "1 2 3\n4 5 6 7\n", "line 2 has 4 values"),
        (".xyz", "1 2 3\n\n4 five 6\n", "line 3 is not a row"),
        (".xyz", "1,5 2,5 3,5\n1,5 2,5 3,5\n", "line 1 is not a row"),
        (".xyz", "1,5;2,5;3,5\n", "line 1 is not a row"),
        (".xyz", "1 2 3\n4 5 0x10\n", "line 2 is not a row"),
        (".xyz", "1 2 3\n4 5 1_0\n", "line 2 is not a row"),
        (".xyz", "1 2 3\n4 5 True\n", "line 2 is not a row"),
        (".xyz", "1 2 3\n4 5 6\0\n", "line 2 is not a row"),
        (".xyz", "1 2 3 4 5\n", "its rows have 5 values"),
        (".xyz", "3\na molecule\nC 0 0 0\n", "line 2"),
        (".pts", "2\n1 2 3\n4 5 6\n2\n1 2 3\n4 5 6\n", "line 4 has 1 values"),
        (".pts", "3\n1 2 3\n4 5 6\n", "declares 3 points and holds 2"),
        (".pcd", "", "it is empty"),
    ],
)
def test_rows_that_are_not_whole_are_refused_by_line(suffix, text, message):
    with pytest.raises(UnreadableFileError, match=message):
        read_points(text.encode(), suffix)


def test_the_quick_table_gives_what_the_plain_one_gives():
    rng = np.random.default_rng(0)
    words = ["1", "-1.5", "+2", "1e5", ".5", "5.", "inf", "nan", "1e400", "4.9e-324", "0.1234567890123456789", "1_0",
             "0x1", "True", "--1", "1e", "1,5", "\x0b1", "1\0"]  # fmt: skip
    refused = read = 0
    for _ in range(1500):
        separator, commas = (", ", True) if rng.random() < 0.3 else (str(rng.choice([" ", "\t", "  "])), False)
        rows = []
        for _ in range(rng.integers(1, 4)):
            count = 3 if rng.random() < 0.9 else int(rng.integers(1, 5))
            rows.append(separator.join(str(rng.choice(words)) if rng.random() < 0.1 else repr(rng.normal() * 1e3)
                                       for _ in range(count)))  # fmt: skip
        text = str(rng.choice(["\n", "\r\n", "\n\n", "\r"])).join(rows).encode()
        results = []
        for parse in (read_table, _read_plainly):
            try:
                results.append(parse(text, 1, commas))
            except UnreadableFileError as error:
                results.append(str(error))
        if isinstance(results[1], str):
            refused += 1
            assert results[0] == results[1]
        else:
            read += 1
            np.testing.assert_array_equal(results[0], results[1])
    assert refused > 100
    assert read > 500


# Counts and sizes: what a header declares is compared with the file.


def ply_of(encoding: str, count: int, body: bytes, tail: str = "") -> bytes:
    lines = ["ply", f"format {encoding} 1.0", f"element vertex {count}", "property float x", "property float y",
             "property float z", *tail.split("|")]  # fmt: skip
    return "\n".join([line for line in lines if line] + ["end_header", ""]).encode() + body


ROWS = np.array([[1, 2, 3], [4, 5, 6]], "<f4")


@pytest.mark.parametrize("end", [b"\r\n", b"\r", b"\n"])
def test_every_end_of_line_of_a_ply_header(end):
    data = ply_of("ascii", 2, b"1 2 3\n4 5 6\n").replace(b"\n", end)
    np.testing.assert_array_equal(read_points(data, ".ply").xyz, ROWS)
    head, _, _ = ply_of("binary_big_endian", 2, b"").partition(b"BODY")
    data = head.replace(b"\n", end) + ROWS.astype(">f4").tobytes()
    np.testing.assert_array_equal(read_points(data, ".ply").xyz, ROWS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ply_of("ascii", 1, b"1 2 3\n4 5 6\n"), "its count is too small"),
        (ply_of("ascii", 3, b"1 2 3\n4 5 6\n"), "it is cut off"),
        (ply_of("ascii", 2, b"1 2\n4 5 6\n"), "line 9 has 3 values"),
        (ply_of("ascii", 2, b"1 2 3 4\n4 5 6 7\n"), "rows of 'vertex' hold 4 values"),
        (ply_of("binary_little_endian", 1, ROWS.tobytes()), "12 bytes follow"),
        (ply_of("binary_little_endian", 3, ROWS.tobytes()), "its points take 36 bytes, 24 are there"),
        (ply_of("binary_little_endian", 10**12, ROWS.tobytes()), "it is cut off"),
        (ply_of("ascii", 2, b"1 2 3\n4 5 6\n3 0 1 5\n", "element face 1|property list uchar int vertex_indices"),
         "names a vertex outside"),
        (ply_of("ascii", 2, b"1 2 3\n4 5 6\n3 0 1\n", "element face 1|property list uchar int vertex_indices"),
         "line 12 is no row of 'face'"),
        (pcd("x y z", "4 4 4", "F F F", "binary", ROWS.tobytes(), 1), "12 bytes follow its 1 points"),
        (pcd("x y z", "4 4 4", "F F F", "ascii", b"1 2 3\n4 5 6\n", 1), "its count is too small"),
        (pcd("x y z", "4 4 4", "F F F", "binary_compressed", struct.pack("<II", 10, 24) + bytes(4)), "cut off or"),
        (pcd("x y z", "4 4 4", "F F F", "binary_compressed", struct.pack("<II", 4, 2**31) + bytes(4)), "cut off or"),
        (pcd("x y", "4 4", "F F", "ascii", b"1 2\n3 4\n"), "it has no field z"),
    ],
)  # fmt: skip
def test_counts_that_are_not_those_of_the_file_are_refused(data, message):
    with pytest.raises(UnreadableFileError, match=message):
        read_points(data, ".ply" if data.startswith(b"ply") else ".pcd")


def test_polygons_of_a_binary_ply_are_cut_into_triangles():
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4").tobytes()
    faces = struct.pack("<B4i", 4, 0, 1, 2, 3) + struct.pack("<B3i", 3, 0, 1, 2)
    data = ply_of("binary_little_endian", 4, corners + faces, "element face 2|property list uchar int vertex_index")
    xyz = read_points(data, ".ply", num_surface_points=2000).xyz
    assert (np.histogram2d(xyz[:, 0], xyz[:, 1], bins=2, range=[[0, 1], [0, 1]])[0] > 200).all()


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "line 4 names number 4 of 3 vertices"),
        (".obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "line 4 names number 0"),
        (".obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2\n", "line 4 is no face"),
        (".obj", "v 0 0 0\nv 1 0 0\nv 0 1 x\nf 1 2 3\n", "'v' lines, line 3 is not a row"),
        (".obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1//x 2 3\n", "line 4 is no face"),
        (".obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "it holds no surface"),
        (".obj", "v 0 0 0\nv 1 0 3e38\nv 2 0 0\nf 1 2 3\n", "lies 3e\\+38 from the origin"),
        (".off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "line 6 is no face"),
        (".off", "OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "declares 3 vertices and 2 faces and holds 4 lines"),
        (".off", "OFF\n3 1 0\n0 0 0\n1 0\n0 1 0\n3 0 1 2\n", "line 4 has 2 values"),
        (".stl", "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 x 0\nendloop\n"
         "endfacet\nendsolid a\n", "line 3 is not a row"),
        (".stl", "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nendloop\nendfacet\nendsolid\n",
         "1 facets and 2 vertices"),
    ],
)  # fmt: skip
def test_meshes_with_a_broken_line_are_refused(suffix, text, message):
    with pytest.raises(UnreadableFileError, match=message):
        read_points(text.encode(), suffix)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".obj", "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n"),
        (".obj", "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf -4 -3 -2 -1\n"),
        (".obj", "v\t0 0 0 1.0\nv 1 0 0 1.0\nv 1 1 0 1.0\nv 0 1 0 1.0\nvn 0 0 1\nf 1//1 2//1 3//1\nf 1//1 3//1 4//1\n"),
        (".obj", "v 0 0 0\r\nv 1 0 0\r\nv 1 1 0\r\nv 0 1 0\r\nvt 0 0\r\nf 1/1 2/1 \\\r\n3/1 4/1\r\n"),
        (".off", "OFF 4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3 255 0 0\n"),
        (".off", "# comment\nOFF\n4 2 5 # counts\n\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n"),
    ],
)
def test_the_forms_of_text_meshes_cover_the_whole_square(suffix, text):
    xyz = read_points(text.encode(), suffix, num_surface_points=2000).xyz
    assert (np.histogram2d(xyz[:, 0], xyz[:, 1], bins=2, range=[[0, 1], [0, 1]])[0] > 400).all()


def textured_square(folder: Path, picture: bytes | None, diffuse: str = "") -> Path:
    (folder / "a.mtl").write_text(f"newmtl paint\n{diffuse}\nmap_Kd a.png\n")
    if picture is not None:
        (folder / "a.png").write_bytes(picture)
    lines = ["mtllib a.mtl", "v 0 0 0", "v 1 0 0", "v 1 1 0", "v 0 1 0", "vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1",
             "usemtl paint", "f 1/1 2/2 3/3 4/4", ""]  # fmt: skip
    (folder / "a.obj").write_text("\n".join(lines))
    return folder / "a.obj"


def test_the_texture_of_an_obj_lies_where_its_coordinates_say(tmp_path):
    image = Image.new("RGB", (2, 2), "blue")
    image.putpixel((0, 1), (255, 0, 0))  # lower left
    file = io.BytesIO()
    image.save(file, "PNG")
    cloud = read_points(textured_square(tmp_path, file.getvalue(), "Kd 0.2 0.2 0.2"), num_surface_points=400)
    is_red = (cloud.xyz[:, :2] < 0.45).all(axis=1)
    np.testing.assert_array_equal(cloud.rgb[is_red], [[1, 0, 0]] * is_red.sum())
    is_blue = (cloud.xyz[:, :2] > 0.55).any(axis=1)
    np.testing.assert_array_equal(cloud.rgb[is_blue], [[0, 0, 1]] * is_blue.sum())


@pytest.mark.parametrize("picture", [None, b"no picture"])
def test_a_texture_of_an_obj_that_cannot_be_read_is_no_colour(tmp_path, picture):
    cloud = read_points(textured_square(tmp_path, picture, "Kd 0.2 0.2 0.2"), num_surface_points=10)
    assert cloud.rgb is None
    assert "texture cannot be read" in cloud.remarks[0]


def test_the_name_of_a_text_stl_may_hold_any_word():
    facet = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
    text = f"solid my_vertex facet 3\n{facet}endsolid my_vertex facet 3\nSOLID b\n{facet.upper()}ENDSOLID\n"
    assert len(read_points(text.encode(), ".stl", num_surface_points=20).xyz) == 20


# Points that are left out or out of range.


def test_dropped_points_are_counted_and_bounded(tmp_path):
    xyz = np.arange(30, dtype=np.float64).reshape(10, 3)
    xyz[:4, 1] = np.nan
    np.save(tmp_path / "a.npy", xyz)
    cloud = read_points(tmp_path / "a.npy")
    np.testing.assert_array_equal(cloud.xyz, xyz[4:])
    assert cloud.remarks == ("4 of 10 points are not finite and were dropped",)
    with pytest.raises(UnreadableFileError, match="max_dropped_share"):
        read_points(tmp_path / "a.npy", max_dropped_share=0.3)


def test_a_point_beyond_all_measure_is_one_problem_and_named():
    with pytest.raises(UnreadableFileError, match=r"point 2 lies 3e\+38 from the origin"):
        read_points(b"1 2 3\n4 3e38 6\n7 8 9\n", ".xyz")


def test_what_is_odd_about_a_cloud_is_said():
    processor = PointsProcessor()
    xyz = np.arange(6.0).reshape(2, 3)
    white, black = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    assert processor.remarks(PointCloud(xyz)) == ["no point has a colour"]
    assert processor.remarks(PointCloud(xyz, white)) == ["all points are white"]
    assert processor.remarks(PointCloud(xyz, black, ("said",))) == ["said", "all points are black"]
    assert processor.remarks(PointCloud(np.ones((2, 3)), white / 2)) == ["all points are equal"]


def test_a_zip_that_grows_beyond_measure_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        file = io.BytesIO()
        np.save(file, np.zeros((3_000_000, 3)))
        archive.writestr("xyz.npy", file.getvalue())
    with pytest.raises(UnreadableFileError, match="times the file"):
        read_points(tmp_path / "bomb.npz")


def test_arrays_that_are_no_positions_are_not_touched(tmp_path):
    np.savez(tmp_path / "a.npz", xyz=np.eye(3), other=np.array([{}], dtype=object))
    np.testing.assert_array_equal(read_points(tmp_path / "a.npz").xyz, np.eye(3))


def test_a_fortran_array_and_rows_with_names(tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(XYZ))
    np.testing.assert_array_equal(read_points(tmp_path / "f.npy").xyz, XYZ)
    rows = np.zeros(
        400, np.dtype([("X", "f8"), ("Y", "f8"), ("Z", "f8"), ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    )
    rows["X"], rows["red"] = XYZ[:, 0], 255
    np.save(tmp_path / "n.npy", rows)
    np.testing.assert_array_equal(read_points(tmp_path / "n.npy").xyz[:, 0], XYZ[:, 0])
    np.testing.assert_array_equal(read_points(tmp_path / "n.npy").rgb, [[1, 0, 0]] * 400)
