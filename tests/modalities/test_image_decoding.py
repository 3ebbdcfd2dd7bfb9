"""Every kind of image file that Pillow can write decodes to the picture it shows, or says why not."""

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from multicoca_image import ImageProcessor
from multicoca_image.decoding import decode_image
from PIL import Image, PngImagePlugin

from multicoca.modality import UnreadableFileError

MAX_PIXELS = 10**8
PROCESSOR = ImageProcessor(size_px=32)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(height: int = 24, width: int = 40) -> Image.Image:
    """Four corners that cannot be confused: red, green / blue, black."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = 255
    return Image.fromarray(pixels)


def assert_shows(decoded: Image.Image, expected: Image.Image, tolerance: float = 1.0) -> None:
    assert decoded.mode == "RGB"
    assert decoded.size == expected.size
    assert np.abs(np.asarray(decoded, float) - np.asarray(expected, float)).mean() <= tolerance


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("GIF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 90}, 6),
        ("JPEG", {"quality": 95, "subsampling": 0}, 3),
        ("JPEG", {"quality": 95, "progressive": True, "subsampling": 0}, 3),
    ],
)
@pytest.mark.parametrize("from_path", [False, True])
def test_formats_decode_to_the_picture(kind, options, tolerance, from_path, tmp_path: Path):
    data = encode(picture(), kind, **options)
    path = tmp_path / "picture"
    path.write_bytes(data)
    assert_shows(PROCESSOR.decode(path if from_path else data), picture(), tolerance)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation, kind):
    stored_as = {  # how a camera held this way stores the upright picture: the inverse of what EXIF tells to do
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = picture() if stored_as is None else picture().transpose(stored_as)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}[kind]
    assert_shows(PROCESSOR.decode(encode(stored, kind, exif=exif, **options)), picture(), 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_does_not_spoil_the_picture():
    data = encode(picture(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage", quality=95, subsampling=0)
    assert_shows(PROCESSOR.decode(data), picture(), 3)


def test_alpha_is_laid_over_white():
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.array([[0, 128, 255, 255]], np.uint8), 24, 0).repeat(10, 1)))
    expected = np.asarray(picture(), float)
    alpha = np.asarray(image.getchannel("A"), float)[..., None] / 255
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert_shows(
            PROCESSOR.decode(encode(image, kind, **options)),
            Image.fromarray((expected * alpha + 255 * (1 - alpha)).round().astype(np.uint8)),
        )


def test_grey_with_alpha_is_laid_over_white():
    decoded = PROCESSOR.decode(encode(Image.new("LA", (4, 4), (0, 51)), "PNG"))
    assert decoded.getpixel((0, 0)) == (204, 204, 204)


def test_palette_and_its_transparency():
    image = picture().quantize(4)
    assert_shows(PROCESSOR.decode(encode(image, "PNG")), picture())
    red = image.getpixel((0, 0))
    decoded = PROCESSOR.decode(encode(image, "PNG", transparency=red))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((39, 0)) == (0, 255, 0)
    partly = bytes(128 if index == red else 255 for index in range(4))
    assert PROCESSOR.decode(encode(image, "PNG", transparency=partly)).getpixel((0, 0)) == (255, 127, 127)


def test_transparent_colour_of_an_rgb_png_is_white():
    decoded = PROCESSOR.decode(encode(picture(), "PNG", transparency=(255, 0, 0)))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((39, 0)) == (0, 255, 0)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_bilevel(mode):
    image = Image.new(mode, (4, 4), 0)
    image.putpixel((1, 2), 255)
    decoded = PROCESSOR.decode(encode(image, "PNG"))
    assert (decoded.getpixel((0, 0)), decoded.getpixel((1, 2))) == ((0, 0, 0), (255, 255, 255))


def test_16_bit_grey_is_scaled_not_clipped():
    levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    decoded = PROCESSOR.decode(encode(Image.fromarray(levels), "PNG"))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 1, 1, 128, 255]


def test_cmyk_jpeg():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    red, green, blue = PROCESSOR.decode(encode(image, "JPEG", quality=95)).getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 15


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert PROCESSOR.decode(data).getpixel((4, 4)) == (255, 0, 0)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a huge size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")  # Pillow's own limit must not speak up first
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_huge_size_in_the_header_is_refused_before_decoding(side):
    with pytest.raises(UnreadableFileError, match=rf"{side} x {side} .* at most 89478485 .*max_pixels"):
        PROCESSOR.decode(bomb(side, side))


def test_max_pixels_is_the_last_size_accepted_and_may_exceed_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's limit, far below
    data = encode(picture(), "PNG")
    assert ImageProcessor(max_pixels=24 * 40).decode(data).size == (40, 24)
    with pytest.raises(UnreadableFileError, match="at most 959"):
        ImageProcessor(max_pixels=24 * 40 - 1).decode(data)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.03, 0.3, 0.8])
def test_truncated_files_say_so(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    with pytest.raises(UnreadableFileError, match="is a broken|is none of"):
        PROCESSOR.decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_random_damage_never_raises_anything_else(kind):
    data = encode(picture(), kind)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), size=4):
            damaged[position] = rng.integers(256)
        try:
            assert PROCESSOR.decode(bytes(damaged)).mode == "RGB"
        except UnreadableFileError as error:
            assert str(error)  # noqa: PT017


def test_empty_foreign_and_missing_files_say_so(tmp_path: Path):
    with pytest.raises(UnreadableFileError, match="empty"):
        PROCESSOR.decode(b"")
    with pytest.raises(UnreadableFileError, match=r"none of JPEG, PNG.*html"):
        PROCESSOR.decode(b"<!doctype html><title>404</title>")
    with pytest.raises(UnreadableFileError, match=r"gone\.jpg.*No such file"):
        PROCESSOR.decode(tmp_path / "gone.jpg")
    with pytest.raises(UnreadableFileError, match="directory"):
        PROCESSOR.decode(tmp_path)


def test_a_processor_survives_pickling():
    assert pickle.loads(pickle.dumps(PROCESSOR)) == PROCESSOR


CASES = Path(__file__).parent.parent / "cases"


def squares() -> Image.Image:
    """A picture of 64 px like those of the cases: 8 x 8 squares."""
    rng = np.random.default_rng(0)
    return Image.fromarray(np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8))


def test_a_bmp_whose_alpha_is_zero_everywhere_is_opaque():
    picture = np.asarray(decode_image((CASES / "bmp32_alpha0_v5.bmp").read_bytes(), MAX_PIXELS))
    with Image.open(CASES / "bmp32_alpha0_v5.bmp") as image:
        stored = np.asarray(image.convert("RGBA"))
    assert not stored[..., 3].any()
    np.testing.assert_array_equal(picture, stored[..., :3])
    assert picture.std() > 50


def test_a_png_with_large_text_is_the_same_picture_without_it():
    data = (CASES / "png_ztxt_big.png").read_bytes()
    with pytest.raises(ValueError, match=r"[Dd]ecompress"):
        PngImagePlugin.PngImageFile(io.BytesIO(data)).load()
    same = np.asarray(decode_image((CASES / "bmp32_alpha0_v5.bmp").read_bytes(), MAX_PIXELS))
    np.testing.assert_array_equal(np.asarray(decode_image(data, MAX_PIXELS)), same)


def chunk(name: bytes, content: bytes, is_sound: bool = True) -> bytes:
    crc = zlib.crc32(name + content) ^ (not is_sound)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


@pytest.mark.parametrize(
    "odd",
    [
        chunk(b"tEXt", b"Comment\0text", is_sound=False),
        chunk(b"iCCP", b"name\0\0no profile"),
        chunk(b"zTXt", b"key\0\0no zlib"),
        chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(80 * 2**20))),
        chunk(b"gAMA", b""),
        chunk(b"pHYs", b"1"),
    ],
)
def test_damaged_chunks_beside_the_pixels_of_a_png_do_not_matter(odd):
    whole = encode(squares(), "PNG")
    data = whole[:33] + odd + whole[33:]  # behind the header
    np.testing.assert_array_equal(np.asarray(decode_image(data, MAX_PIXELS)), np.asarray(squares()))


def test_the_transparency_of_a_png_with_a_damaged_chunk_stays():
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    whole = encode(picture, "PNG", transparency=1)
    data = whole[:33] + chunk(b"tEXt", b"a\0b", is_sound=False) + whole[33:]
    np.testing.assert_array_equal(np.asarray(decode_image(data, MAX_PIXELS)), 255)  # over white


def test_a_png_is_read_without_its_end_only_where_all_of_it_is_there():
    whole = encode(squares(), "PNG")
    accepted = 0
    for cut in range(1, len(whole) - 40, 3):
        try:
            picture = np.asarray(decode_image(whole[:-cut], MAX_PIXELS))
        except UnreadableFileError:
            continue
        accepted += 1
        np.testing.assert_array_equal(picture, np.asarray(squares()))
    assert 4 <= accepted <= 8  # the end, and the checksums before it


def test_a_jpeg_without_its_end_marker_is_read():
    data = (CASES / "jpg_no_eoi.jpg").read_bytes()
    whole = np.asarray(Image.open(io.BytesIO(data + b"\xff\xd9")))
    np.testing.assert_array_equal(np.asarray(decode_image(data, MAX_PIXELS)), whole)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}, {"restart_marker_rows": 1}]
)
def test_a_jpeg_is_read_without_its_end_only_where_all_of_it_is_there(options):
    whole = encode(squares(), "JPEG", **options)
    expected = np.asarray(decode_image(whole, MAX_PIXELS))
    accepted = []
    for cut in (*range(1, 60), *range(60, len(whole) - 300, 37)):
        try:
            picture = np.asarray(decode_image(whole[:-cut], MAX_PIXELS))
        except UnreadableFileError:
            continue
        accepted.append(cut)
        np.testing.assert_array_equal(picture, expected)
    assert {1, 2} <= set(accepted) <= {1, 2, 3}  # the marker, and at most the padding before it


@pytest.mark.filterwarnings("error")
def test_a_frame_larger_than_its_gif_says_is_refused():
    with pytest.raises(UnreadableFileError, match="broken GIF file"):
        decode_image((CASES / "hostile" / "bomb_inner_frame.gif").read_bytes(), MAX_PIXELS)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}])
def test_a_cut_jpeg_of_noise_is_never_read(options):
    """The last block of noise decodes with many endings, of which some happen to look alike."""
    for seed in range(4):
        noise = np.random.default_rng(seed).integers(0, 256, (50, 70, 3), np.uint8)
        whole = encode(Image.fromarray(noise), "JPEG", **options)
        expected = np.asarray(decode_image(whole, MAX_PIXELS))
        for cut in range(3, 60):
            try:
                picture = np.asarray(decode_image(whole[:-cut], MAX_PIXELS))
            except UnreadableFileError:
                continue
            np.testing.assert_array_equal(picture, expected)


def test_the_transparent_grey_of_a_16_bit_png_is_white():
    rows = np.array([[1000, 40000], [1001, 65535]], ">u2")
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 0, 0, 0, 0)), (b"tRNS", struct.pack(">H", 1000))]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    picture = np.asarray(decode_image(data, MAX_PIXELS))[..., 0]
    np.testing.assert_array_equal(picture, [[255, round(40000 / 257)], [round(1001 / 257), 255]])


# pictures in memory


def _with_transparency() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _with_one_clear_color() -> Image.Image:
    image = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    image.info["transparency"] = image.getpixel((0, 0))
    return image


_DEEP = Image.fromarray(np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16))


@pytest.mark.parametrize(
    "image",
    [
        picture(), picture().convert("L"), picture().convert("1"), picture().convert("LA"), picture().convert("P"),
        _with_transparency(), _with_one_clear_color(), _DEEP,
    ],
    ids=lambda image: f"{image.mode}{'+' if 'transparency' in image.info else ''}",
)  # fmt: skip
def test_a_picture_in_memory_is_the_picture_of_its_file(image):
    data = encode(image, "PNG", **({"transparency": image.info["transparency"]} if image.info else {}))
    expected = np.asarray(PROCESSOR.decode(data))
    before = image.copy()
    for value in (image, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(np.asarray(PROCESSOR.decode(value)), expected)
    assert image == before
    if image.mode in ("RGB", "RGBA", "L", "I;16"):
        array = np.asarray(image)
        np.testing.assert_array_equal(np.asarray(PROCESSOR.decode(array)), expected)
        first = array.transpose(2, 0, 1) if array.ndim == 3 else array[None]
        for tensor in (torch.from_numpy(first.copy()), torch.from_numpy(np.ascontiguousarray(array))):
            np.testing.assert_array_equal(np.asarray(PROCESSOR.decode(tensor)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_in_memory_is_turned_as_its_file_is(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), "PNG", exif=exif)
    expected = np.asarray(PROCESSOR.decode(data))
    np.testing.assert_array_equal(np.asarray(PROCESSOR.decode(Image.open(io.BytesIO(data)))), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_floats_are_shares_of_white(dtype):
    array = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    values = (torch.from_numpy(array) / 255).to(dtype).requires_grad_()
    np.testing.assert_array_equal(np.asarray(PROCESSOR.decode(values)), array)
    assert np.abs(np.asarray(PROCESSOR.decode(values.bfloat16()), int) - array).max() <= 1


def test_deep_colours_are_scaled_and_not_cut():
    array = np.full((20, 20, 3), (65535, 257, 0), np.uint16)
    assert PROCESSOR.decode(array).getpixel((0, 0)) == (255, 1, 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((20, 20, 2), np.uint8), r"got uint8 of shape \[20, 20, 2\]; expected a PIL picture"),
        (np.zeros((0, 20, 3), np.uint8), r"shape \[0, 20, 3\]; expected"),
        (np.zeros((4, 20, 4), np.uint8), "its first or its last dimension"),
        (np.zeros((20, 20), bool), "got bool .*; expected uint8, uint16 or floats"),
        (np.full((20, 20), np.inf), "values from inf to inf; expected floats in"),
        (torch.full((20, 20), 1.001), "values from 1.001 to 1.001; expected floats in"),
        (Image.new("F", (9, 9)), "its mode is F"),
        ("text", "got str; expected a PIL picture"),
        (Image.new("RGB", (100, 100)), "10000 pixels; at most 5000"),
        (np.zeros((100, 100, 3), np.uint8), "10000 pixels; at most 5000"),
    ],
)
def test_what_is_no_picture_in_memory_is_refused(value, message):
    with pytest.raises(UnreadableFileError, match=message):
        ImageProcessor(max_pixels=5000).decode(value)


def test_narrow_tables_are_not_taken_for_pictures():
    taken = [(16, 16), (480, 640), (3, 9, 9), (9, 9, 1), (9, 9, 4)]
    others = [(500, 3), (500, 6), (6, 500), (9,), (9, 9, 2), (4, 9, 9, 3), ()]
    assert [PROCESSOR.takes(np.zeros(shape)) for shape in taken + others] == [True] * 5 + [False] * 7
    assert PROCESSOR.takes(torch.zeros(3, 9, 9))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_the_first_bytes_show_the_format(kind):
    assert PROCESSOR.suffix_of(encode(picture(), kind)[:16]) == {"JPEG": ".jpg"}.get(kind, f".{kind.lower()}")


@pytest.mark.parametrize("head", [b"", b"BZh9", b"RIFF\0\0\0\0AVI ", b"\0\0\0\x18ftypmp42", b"ply\n"])
def test_the_first_bytes_of_other_files_show_nothing(head):
    assert PROCESSOR.suffix_of(head) == ""
