"""Files as programs write them: strips, named columns, face colours, odd material files, posed scenes, far clouds."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from multicoca_points.cloud import PointCloud
from multicoca_points.colors import unit_colors
from multicoca_points.processor import PointsProcessor
from multicoca_points.reader import read_points
from PIL import Image

from multicoca.reading import UnreadableFileError

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4")
FACES = np.array([0, 1, 2, 0, 2, 3], "<u2")


def bounds(cloud: PointCloud) -> list[list[float]]:
    return [cloud.xyz.min(axis=0).tolist(), cloud.xyz.max(axis=0).tolist()]


def check_square(cloud: PointCloud, low=(0, 0, 0), high=(1, 1, 0)) -> None:
    size = max(np.subtract(high, low))
    np.testing.assert_allclose(bounds(cloud), [low, high], atol=0.02 * size)


# PLY and PCD


def ply(*header: str, body: bytes, form: str = "binary_little_endian", vertices: int = 4) -> bytes:
    lines = ["ply", f"format {form} 1.0", f"element vertex {vertices}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    return "\n".join([*lines, *header, "end_header", ""]).encode() + body


def test_strips_of_stanfords_scans_are_triangles():
    strip = np.array([8, 0, 1, 3, 2, -1, 0, 1, 2], "<i4")  # a length, and a strip that ends within the row
    data = ply("element tristrips 1", "property list int int vertex_indices", body=SQUARE.tobytes() + strip.tobytes())
    cloud = read_points(data, ".ply", num_surface_points=2000)
    assert len(cloud.xyz) == 2000
    check_square(cloud)


def test_comments_of_a_ply_may_hold_any_character():
    data = ply("comment Å element", body=b"1 2 3\n1 2 x\n", form="ascii", vertices=2)  # Å in UTF-8 has the byte 0x85
    with pytest.raises(UnreadableFileError, match="line 10 is not a row"):
        read_points(data, ".ply")


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        (("element vertex 1", "property float x"), b"\0\0\0\0", "an element twice: vertex, vertex"),
        (
            ("element face 1", "property list uchar float vertex_indices"),
            struct.pack("<B3f", 3, 0, 1.5, 2),
            "not whole",
        ),
    ],
)
def test_a_ply_that_says_two_things_is_refused(header, body, message):
    with pytest.raises(UnreadableFileError, match=message):
        read_points(ply(*header, body=SQUARE.tobytes() + body), ".ply")


def test_the_colours_of_gaussian_splats_are_named():
    header = [f"property float f_dc_{i}" for i in range(3)]
    cloud = read_points(ply(*header, body=np.zeros((4, 6), "<f4").tobytes()), ".ply")
    assert cloud.rgb is None
    assert cloud.remarks == ("its colours are not read: no known names in f_dc_0, f_dc_1, f_dc_2",)


def test_colours_may_fall_below_zero_by_rounding():
    rgb, _ = unit_colors(np.array([[-1e-7, 0.5, 1]], np.float32))
    np.testing.assert_array_equal(rgb, np.array([[0, 0.5, 1]], np.float32))


def pcd(fields: str, counts: str, types: str, sizes: str, encoding: str, body: bytes) -> bytes:
    lines = [f"FIELDS {fields}", f"SIZE {sizes}", f"TYPE {types}", f"COUNT {counts}", "WIDTH 2", "HEIGHT 1"]
    return "\n".join([*lines, f"DATA {encoding}", ""]).encode() + body


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
def test_an_rgb_of_three_values_is_a_colour(encoding):
    xyz, rgb = np.array([[1, 2, 3], [4, 5, 6]], "<f4"), np.array([[255, 0, 51], [0, 255, 0]], "u1")
    body = b"1 2 3 255 0 51 9 9\n4 5 6 0 255 0 9 9\n"
    if encoding == "binary":
        body = b"".join(xyz[i].tobytes() + rgb[i].tobytes() + bytes(8) for i in range(2))
    elif encoding == "binary_compressed":
        raw = b"".join(xyz[:, i].tobytes() for i in range(3)) + rgb.tobytes() + bytes(16)
        packed = pytest.importorskip("lzf").compress(raw)
        body = struct.pack("<II", len(packed), len(raw)) + packed
    data = pcd("x y z rgb vfh", "1 1 1 3 2", "F F F U F", "4 4 4 1 4", encoding, body)
    cloud = read_points(data, ".pcd")
    np.testing.assert_array_equal(cloud.xyz, xyz)
    np.testing.assert_allclose(cloud.rgb, rgb / 255, atol=1e-6)


def test_a_packed_colour_that_is_nan_in_text_is_missing():
    data = pcd("x y z rgb", "1 1 1 1", "F F F F", "4 4 4 4", "ascii", b"1 2 3 nan\n4 5 6 16711731\n")
    np.testing.assert_allclose(read_points(data, ".pcd").rgb, [[np.nan] * 3, [1, 0, 0.2]], atol=1e-6)


def test_a_pcd_with_a_field_twice_or_something_behind_its_data_is_refused():
    with pytest.raises(UnreadableFileError, match="names a field twice"):
        read_points(pcd("x y z x", "1 1 1 1", "F F F F", "4 4 4 4", "binary", bytes(32)), ".pcd")
    packed = pytest.importorskip("lzf").compress(bytes(24))
    body = struct.pack("<II", len(packed), 24) + packed + b"more"
    with pytest.raises(UnreadableFileError, match="4 bytes follow its 2 points"):
        read_points(pcd("x y z", "1 1 1", "F F F", "4 4 4", "binary_compressed", body), ".pcd")


def test_packed_colours_of_a_big_endian_array():
    rows = np.zeros(1, [("x", ">f4"), ("y", ">f4"), ("z", ">f4"), ("rgb", ">f4")])
    rows["rgb"] = np.array([0xFF0033], np.uint32).view(np.float32)
    file = io.BytesIO()
    np.save(file, rows)
    np.testing.assert_allclose(read_points(file.getvalue(), ".npy").rgb, [[1, 0, 0.2]], atol=1e-6)


# Rows of text


@pytest.mark.parametrize(
    ("suffix", "text", "colored"),
    [
        (".xyz", "1;2;3\n4;5;6\n", False),
        (".pts", "2\n1 ; 2 ; 3 ; 255 ; 0 ; 0\n4 ; 5 ; 6 ; 0 ; 0 ; 0\n", True),
        (".xyz", "X;Y;Z;R;G;B\n1;2;3;255;0;0\n4;5;6;0;0;0\n", True),
        (".xyz", '"X","Y","Z"\n1,2,3\n4,5,6\n', False),
        (".xyz", "//X Y Z Rf Gf Bf Scalar\n1 2 3 1.0 0.0 0.0 -7\n4 5 6 0.0 0.5 0.0 -7\n", True),  # CloudCompare
        (".xyz", "//X Y Z\n2\n1 2 3\n4 5 6\n", False),  # CloudCompare, with a count
        (".xyz", "# the x y z of points in metres\n1 2 3\n4 5 6\n", False),
    ],
)
def test_rows_of_text_as_programs_write_them(suffix, text, colored):
    for data in (text.encode(), text.encode("utf-16")):
        cloud = read_points(data, suffix)
        np.testing.assert_array_equal(cloud.xyz, [[1, 2, 3], [4, 5, 6]])
        assert (cloud.rgb is not None) == colored
        if colored:
            np.testing.assert_array_equal(cloud.rgb[0], [1, 0, 0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X Y Z R G B\n1 2 3 255 0 0 7\n", "6 columns are named .x y z r g b., 7 are there"),
        ("//X Y Z R G B Scalar field\n1 2 3 255 0 0 7\n", "8 columns are named"),
        ("Y X Z A B\n1 2 3\n", "5 columns are named"),
        ("X Y Z X\n1 2 3 4\n", "named twice"),
        ("3\n1 2 3\n4 5 6\n", "declares 3 points and holds 2"),
    ],
)
def test_names_and_counts_that_are_not_those_of_the_columns_are_refused(text, message):
    with pytest.raises(UnreadableFileError, match=message):
        read_points(text.encode(), ".xyz")


def test_colours_that_may_be_normals_are_said():
    assert "all have length 1 as normals do" in read_points(b"1 2 3 0 0 1\n4 5 6 0 0 1\n", ".xyz").remarks[0]


# Meshes

OFF = "0 0 0{0}\n1 0 0{0}\n1 1 0{0}\n0 1 0{0}\n4 0 1 2 3{1}\n"


@pytest.mark.parametrize(
    ("begin", "vertex", "face", "colored"),
    [
        ("OFF", "", " 255 0 51", True),
        ("OFF", "", " 1.0 0.0 0.2 0.5", True),
        ("OFF", "", " 3", False),
        ("NOFF", " 0 0 1", "", False),
        ("CNOFF", " 0 0 1 255 0 51 255", "", True),
        ("COFF", " 1.0 0.0 0.2 1.0", " 0 0 255", True),
    ],
)
def test_colours_and_normals_of_an_off(begin, vertex, face, colored):
    cloud = read_points(f"{begin}\n4 1 0\n{OFF.format(vertex, face)}".encode(), ".off")
    check_square(cloud)
    if colored:
        np.testing.assert_allclose(cloud.rgb, np.tile([1, 0, 0.2], (len(cloud.xyz), 1)), atol=1e-6)
    else:
        assert cloud.rgb is None
    assert bool(cloud.remarks) == (face == " 3")


OBJ = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"


@pytest.mark.parametrize(
    ("library", "material", "rgb"),
    [
        ("a b.mtl", "newmtl\tm\n\tKd\t1 0 0.2\n", [1, 0, 0.2]),
        ("a.mtl other.mtl", "newmtl m\nKd 1 0 0.2\n", [1, 0, 0.2]),
        ("a.mtl", "newmtl m\nKd 0.5\n", [0.5, 0.5, 0.5]),
        ("a.mtl", "newmtl m\nmap_Kd textures\\w.png\n", [0.8, 0.4, 0.2]),
        ("a.mtl", "newmtl m\nmap_Kd -clamp on textures/w.png\n", [0.8, 0.4, 0.2]),
        ("a.mtl", "newmtl m\nmap_Kd -s 2 2 2 textures/w.png\n", None),
    ],
)
def test_material_files_as_programs_write_them(tmp_path: Path, library, material, rgb):
    (tmp_path / "textures").mkdir()
    Image.new("RGB", (4, 4), (204, 102, 51)).save(tmp_path / "textures" / "w.png")
    (tmp_path / library.removesuffix(" other.mtl")).write_text(material)
    (tmp_path / "a.obj").write_text(f"\ufeffmtllib {library}\n{OBJ}usemtl m\nf 1/1 2/2 3/3 4/4\n", encoding="utf-8")
    cloud = read_points(tmp_path / "a.obj")
    check_square(cloud)
    if rgb is None:
        assert cloud.rgb is None
        assert "its options -s 2 2 2 are not read" in cloud.remarks[0]
    else:
        np.testing.assert_allclose(cloud.rgb[0], rgb, atol=1e-6)


def test_a_curved_surface_of_an_obj_is_refused():
    with pytest.raises(UnreadableFileError, match="line 9 is 'surf'"):
        read_points(f"{OBJ}surf 0 1 0 1 1 2 3 4\n".encode(), ".obj")


class Glb:
    """A GLB file of float and integer arrays."""

    def __init__(self) -> None:
        self.binary, self.views, self.accessors = b"", [], []

    def add(self, values: np.ndarray, shape: str, kind: int) -> int:
        self.views.append({"buffer": 0, "byteOffset": len(self.binary), "byteLength": values.nbytes})
        view = len(self.views) - 1
        self.accessors.append({"bufferView": view, "componentType": kind, "count": len(values), "type": shape})
        self.binary += values.tobytes() + bytes(-values.nbytes % 4)
        return len(self.accessors) - 1

    def square(self, **primitive) -> dict:
        attributes = {"POSITION": self.add(SQUARE, "VEC3", 5126), **primitive.pop("attributes", {})}
        return {"attributes": attributes, "indices": self.add(FACES, "SCALAR", 5123), **primitive}

    def read(self, nodes: list, primitives: list, roots: list[int], **header) -> PointCloud:
        content = json.dumps({
            "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": roots}], "nodes": nodes,
            "meshes": [{"primitives": primitives, **header.pop("mesh", {})}], "accessors": self.accessors,
            "bufferViews": self.views, "buffers": [{"byteLength": len(self.binary)}], **header,
        }).encode()  # fmt: skip
        content += b" " * (-len(content) % 4)
        parts = struct.pack("<I4s", len(content), b"JSON") + content
        parts += struct.pack("<I4s", len(self.binary), b"BIN\0") + self.binary
        data = struct.pack("<4sII", b"glTF", 2, 12 + len(parts)) + parts
        return read_points(data, ".glb", num_surface_points=3000)


def test_a_skin_places_a_mesh_by_its_joints_alone():
    glb = Glb()
    joints = np.zeros((4, 4), "u1")
    joints[2:, 0] = 1  # the upper two vertices hang on the second joint
    weights = np.tile(np.array([1, 0, 0, 0], "<f4"), (4, 1))
    attributes = {"JOINTS_0": glb.add(joints, "VEC4", 5121), "WEIGHTS_0": glb.add(weights, "VEC4", 5126)}
    bind = np.tile(np.eye(4, dtype="<f4"), (2, 1, 1))
    bind[1, 3, :3] = [0, -1, 0]  # stored by columns: the second joint was at y = 1
    skin = {"joints": [1, 2], "inverseBindMatrices": glb.add(bind.reshape(2, 16), "MAT4", 5126)}
    nodes = [
        {"mesh": 0, "skin": 0, "translation": [9, 9, 9]},  # which must be ignored
        {"scale": [100, 100, 100], "children": [2]},
        {"translation": [0, 3, 0]},
    ]
    cloud = glb.read(nodes, [glb.square(attributes=attributes)], [0, 1], skins=[skin])
    check_square(cloud, high=(100, 300, 0))


@pytest.mark.parametrize("at", ["node", "mesh", "nowhere"])
def test_targets_move_a_mesh_by_their_weights(at):
    glb = Glb()
    target = {"POSITION": glb.add(np.tile(np.array([0, 0, 5], "<f4"), (4, 1)), "VEC3", 5126)}
    weights = {"weights": [0.5]}
    node = {"mesh": 0, **(weights if at == "node" else {})}
    cloud = glb.read([node], [glb.square(targets=[target])], [0], mesh=weights if at == "mesh" else {})
    height = 0 if at == "nowhere" else 2.5
    check_square(cloud, low=(0, 0, height), high=(1, 1, height))


def test_instances_are_all_there():
    glb = Glb()
    places = glb.add(np.array([[0, 0, 0], [4, 0, 0]], "<f4"), "VEC3", 5126)
    extension = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": places}}}
    nodes = [{"mesh": 0, "scale": [2, 2, 2], "extensions": extension}]
    names = ["EXT_mesh_gpu_instancing"]
    cloud = glb.read(nodes, [glb.square()], [0], extensionsUsed=names, extensionsRequired=names)
    check_square(cloud, high=(10, 2, 0))
    assert abs((cloud.xyz[:, 0] > 5).mean() - 0.5) < 0.05


def test_points_that_indices_choose():
    glb = Glb()
    primitive = {**glb.square(), "mode": 0, "indices": glb.add(np.array([1, 3], "<u2"), "SCALAR", 5123)}
    np.testing.assert_array_equal(glb.read([{"mesh": 0}], [primitive], [0]).xyz, SQUARE[[1, 3]])


# Clouds far from the origin


class Writer:
    """Keeps what is shown."""

    def add_mesh(self, tag, vertices, colors, **_):
        self.vertices = vertices[0].numpy()


def test_a_far_cloud_keeps_its_shape_where_it_is_shown_and_a_loss_is_said():
    xyz = np.random.default_rng(0).random((500, 3)) + [5e5, 5.4e6, 100]
    processor, writer = PointsProcessor(normalize="none"), Writer()
    processor.show(writer, "cloud", PointCloud(xyz), 0)
    shown, centered = writer.vertices[:, [0, 2, 1]] * [1, -1, 1], xyz - xyz.mean(axis=0)
    np.testing.assert_allclose(shown - shown.mean(axis=0), centered, atol=1e-5)
    assert any("float32 loses its shape" in remark for remark in processor.remarks(PointCloud(xyz)))
    assert not any("float32" in remark for remark in processor.remarks(PointCloud(centered)))
    assert not any("float32" in remark for remark in PointsProcessor(normalize="center").remarks(PointCloud(xyz)))
