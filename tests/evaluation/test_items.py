"""Pictures in archives: what cannot be unpacked is named, whatever the reason."""

from __future__ import annotations

import zipfile

import pytest

from hf_mmembed.evaluation.items import ImageFile


@pytest.mark.parametrize("damage", ["content", "method"])
def test_a_damaged_member_of_an_archive_is_named(tmp_path, damage):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("GQA/5.png", bytes(range(256)) * 50)
    data = bytearray(archive.read_bytes())
    if damage == "content":
        start = 30 + len("GQA/5.png")  # behind the header of the member
        data[start : start + 4] = b"\xff" * 4
    else:
        place = data.index(b"PK\x01\x02") + 10  # of the compression method in the directory: Deflate64
        data[place : place + 2] = (9).to_bytes(2, "little")
    archive.write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot read the picture .*images\.zip/GQA/5\.png: "):
        ImageFile(archive, "GQA/5.png").read()
