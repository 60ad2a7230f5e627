"""Ways to damage label files, archives and folders of images.

Each returns what it made and what must come of it: ``same``, ``error`` or ``any`` of loading as the
files now read and an error.
"""

import functools
import io
import os
import re
import struct
import warnings
import zipfile
import zlib

import numpy as np
from PIL import Image

from facemix_jax.data import decode

COUNT = 7
"""Images of every data set."""


def encoded(rng, kind="JPEG", mode="RGB", size=None):
    height, width = size or rng.integers(8, 21, 2)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        picture = picture.convert(mode)
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def png(width, height, depth=8, colour=2, size=100):
    """A PNG of any declared size, with ``size`` zeros in it."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(size)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A name that is there already is meant.
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


# --- Of bytes.


def truncate(data, rng):
    return data[: rng.integers(0, max(1, len(data)))], "any"


def flip(data, rng):
    out = bytearray(data)
    for i in rng.integers(0, len(out), rng.integers(1, 4)):
        out[i] ^= 1 << rng.integers(8)
    return bytes(out), "any"


def insert(data, rng):
    at = rng.integers(0, len(data) + 1)
    return data[:at] + rng.bytes(rng.integers(1, 5)) + data[at:], "any"


def delete(data, rng):
    at = rng.integers(0, len(data))
    return data[:at] + data[at + rng.integers(1, 9) :], "any"


def append(data, rng):
    return data + rng.bytes(rng.integers(1, 40)), "any"


def empty(data, rng):
    return b"", "error"


def noise(data, rng):
    return rng.bytes(rng.integers(1, 400)), "error"


def zeros(data, rng):
    return bytes(len(data)), "error"


BYTES = [truncate, flip, insert, delete, append, empty, noise, zeros]


def crlf(data, rng):
    return data.replace(b"\n", b"\r\n"), "same"


def cr(data, rng):
    return data.replace(b"\n", b"\r"), "same"


def bom(data, rng):
    return b"\xef\xbb\xbf" + data, "same"


def blank_lines(data, rng):
    return data.replace(b"\n", b"\n\n"), "same"


def utf16(data, rng):
    return data.decode().encode("utf-16"), "error"


def at_row(change):
    def mutate(data, rng):
        lines = data.decode().split("\n")[:-1]
        i = rng.integers(2 if lines[0].isdigit() else 1 if "," in lines[0] else 0, len(lines))
        lines, expected = change(lines, int(i), rng)
        return ("\n".join(lines) + "\n").encode(), expected

    mutate.__name__ = change.__name__
    return mutate


@at_row
def drop_row(lines, i, rng):
    # Images without a row of a CSV are unlabelled; elsewhere each must have one.
    return lines[:i] + lines[i + 1 :], "any" if "," in lines[i] else "error"


@at_row
def double_row(lines, i, rng):
    return lines[: i + 1] + lines[i:], "any" if lines[i].endswith(",,,") else "error"


@at_row
def cut_row(lines, i, rng):
    separator = "," if "," in lines[i] else " "
    row = lines[i].rsplit(separator, 1)[0]
    return [*lines[:i], row, *lines[i + 1 :]], "error"


@at_row
def longer_row(lines, i, rng):
    separator = "," if "," in lines[i] else " "
    return [*lines[:i], lines[i] + separator + "1", *lines[i + 1 :]], "error"


@at_row
def swap_rows(lines, i, rng):
    lines[i], lines[-1] = lines[-1], lines[i]
    return lines, "any"


@at_row
def double_name(lines, i, rng):
    j = i + 1 if i + 1 < len(lines) else i - 1
    separator = "," if "," in lines[i] else " "
    lines[i] = separator.join([lines[j].split(separator)[0], *lines[i].split(separator)[1:]])
    return lines, "any" if lines[i].endswith(",,,") or lines[j].endswith(",,,") else "error"


@at_row
def foreign_name(lines, i, rng):
    name = rng.choice(["../000001.jpg", "/etc/passwd", "C:\\x.jpg", "x.jpg", ".", "../../a.png"])
    separator = "," if "," in lines[i] else " "
    lines[i] = separator.join([str(name), *lines[i].split(separator)[1:]])
    return lines, "any" if lines[i].endswith(",,,") else "error"


@at_row
def odd_value(lines, i, rng):
    odd = [
        "-0",
        "2",
        "nan",
        "\uff11",
        "1e3",
        '"',
        "99999999999",
        "TRUE",
        "0x1",
        "\0",
        "-1",
        "1.0",
        "",
    ]
    separator = "," if "," in lines[i] else " "
    row = lines[i].split(separator)
    row[rng.integers(1, len(row))] = str(rng.choice(odd))
    return [*lines[:i], separator.join(row), *lines[i + 1 :]], "any"


def wrong_count(data, rng):
    if not data[:1].isdigit() or b"\n" not in data[:3]:
        return flip(data, rng)
    return str(rng.choice([0, COUNT - 1, COUNT + 1, 10**12, -7])).encode() + data[1:], "error"


def header(data, rng):
    """Renames, doubles or removes a word of the header."""
    lines = data.decode().split("\n")
    i = 1 if lines[0].isdigit() else 0
    words = re.findall(r"[^, ]+", lines[i])
    new = rng.choice(["", "Bald", "x", "Male Male", "file", "é"])
    lines[i] = lines[i].replace(str(rng.choice(words)), str(new), 1)
    return "\n".join(lines).encode(), "any"


TEXT = [crlf, cr, bom, blank_lines, utf16, drop_row, double_row, cut_row, longer_row, swap_rows]
TEXT += [double_name, foreign_name, odd_value, odd_value, wrong_count, header, *BYTES]


# --- Mutations of the members of an archive.


def member(change):
    """A mutation of one image in an intact archive."""

    def mutate(members, rng):
        i = rng.integers(len(members))
        name, data = members[i]
        data, expected = change(data, rng)
        members[i] = (name, data)
        return members, expected

    mutate.__name__ = f"image_{change.__name__}"
    return mutate


def sixteen_bit(data, rng):
    # Grey or coloured; a row of pixels begins with the kind of its filter.
    grey, coloured = encoded(rng, "PNG", "I;16"), png(16, 10, 16, size=10 * 97)
    return (grey if rng.integers(2) else coloured), "error"


def other_mode(data, rng):
    kind, modes = [("JPEG", ["L", "CMYK"]), ("PNG", ["L", "1", "P", "RGBA", "LA"])][rng.integers(2)]
    return encoded(rng, kind, str(rng.choice(modes))), "any"


def other_format(data, rng):
    return encoded(rng, str(rng.choice(["GIF", "BMP", "TIFF", "EPS", "PPM"]))), "error"


def bomb(data, rng):
    # Between the library's limit and that of Pillow, above it, and beyond any memory.
    side = int(rng.choice([7100, 12000, 60000, 2**31 - 1]))
    return png(side, side, depth=int(rng.choice([8, 16]))), "error"


def odd_png(data, rng):
    width, depth, colour = (int(rng.choice(x)) for x in ([0, 1, 16], [1, 3, 16], [0, 2, 9]))
    return png(width, 16, depth, colour), "any"


def add_traversal(members, rng):
    """Nothing is extracted, so an odd path is only an odd name."""
    start = rng.choice(["../", "/tmp/", "../../../", "C:\\", "//host/", "a/../../"])
    name = str(start) + str(rng.choice(["zz.jpg", "passwd", members[0][0]]))
    return [*members, (name, members[1][1])], "any"


def rename_traversal(members, rng):
    i = rng.integers(len(members))
    members[i] = ("../../" + members[i][0], members[i][1])
    return members, "any"


def double_member(members, rng):
    i = rng.integers(len(members))
    return [*members, (members[i][0], members[0][1])], "error"


def same_base_name(members, rng):
    name = members[rng.integers(len(members))][0]
    return [*members, (f"other/{name.rsplit('/', 1)[1]}", members[0][1])], "any"


def drop_member(members, rng):
    del members[rng.integers(len(members))]
    return members, "any"


def extra_member(members, rng):
    return [*members, (str(rng.choice(["read.me", "__MACOSX/._1.jpg", "lfw/x.png"])), b"?")], "any"


def symlink_member(members, rng):
    i = rng.integers(len(members))
    link = zipfile.ZipInfo(members[i][0])
    link.external_attr = 0o120777 << 16
    members[i] = (link, b"../../../../etc/passwd")
    return members, "any"


def reorder(members, rng):
    return [members[i] for i in rng.permutation(len(members))], "same"


@functools.cache
def huge():
    return bytes(decode.MAX_BYTES + 1)


def huge_member(members, rng):
    return [(members[0][0], huge()), *members[1:]], "error"


MEMBERS = [member(f) for f in (*BYTES, sixteen_bit, other_mode, other_mode, other_format, bomb)]
MEMBERS += [member(odd_png), add_traversal, rename_traversal, double_member, same_base_name]
MEMBERS += [drop_member, extra_member, symlink_member, reorder]


# --- Mutations of an unpacked folder.


def unpacked(folder, rng):
    return "same"


def link_outside(path, rng):
    outside = path.parents[1] / "outside.png"
    path.rename(outside)
    path.symlink_to(outside)
    return "same"


def dangling_link(path, rng):
    path.unlink()
    path.symlink_to(rng.choice(["/nowhere.jpg", path.name, "/dev/zero", "/", "x" * 300]))
    return "any"


def folder_instead(path, rng):
    path.unlink()
    path.mkdir()
    return "any"


def pipe_instead(path, rng):
    path.unlink()
    os.mkfifo(path)
    return "any"


def damaged_file(path, rng):
    path.write_bytes(truncate(path.read_bytes(), rng)[0])
    return "any"


FOLDERS = [unpacked, link_outside, dangling_link, folder_instead, pipe_instead, damaged_file]
