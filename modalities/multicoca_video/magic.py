"""Which video format a file has, by its first bytes."""

from __future__ import annotations

_BOX_TYPES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # with which QuickTime files without ftyp begin
_OTHER_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis", b"M4A ", b"M4B ")
_TRANSPORT_PACKET_BYTES = 188
_MAGIC = (
    (b"GIF87a", ".gif"),
    (b"GIF89a", ".gif"),
    (b"FLV\x01", ".flv"),
    (b"OggS", ".ogv"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", ".wmv"),
    (b"\x00\x00\x01\xba", ".mpg"),
    (b"\x00\x00\x01\xb3", ".mpg"),
)


def suffix_of(head: bytes) -> str:
    """Returns the suffix of a video file by its first bytes, "" for other files.

    Pictures and sound in MP4's format (HEIC, AVIF, M4A) are not videos.
    """
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "" if brand in _OTHER_BRANDS else ".mov" if brand == b"qt  " else ".mp4"
    if head[4:8] in _BOX_TYPES:
        return ".mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return ".webm" if b"webm" in head[:64] else ".mkv"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return ".avi"
    if len(head) > 2 * _TRANSPORT_PACKET_BYTES and set(head[::_TRANSPORT_PACKET_BYTES]) == {0x47}:
        return ".ts"
    return next((suffix for start, suffix in _MAGIC if head.startswith(start)), "")
