import base64
import io
import shutil
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image, ImageCms

from mm_assets.synthetic.tiff import write_pyramid
from mm_assets.wsi.aperio import is_plain, parse_description
from mm_assets.wsi.byte_search import ByteSearch, identifiers
from mm_assets.wsi.codestream import foreign_content, plain_tables
from mm_assets.wsi.deidentify import copy_extension, deidentify_slide
from mm_assets.wsi.errors import SlideError
from mm_assets.wsi.findings import identifying_findings
from mm_assets.wsi.icc import plain_profile
from mm_assets.wsi.rescan import Unclean, rescan
from mm_assets_tests.wsi import painted, planted
from mm_assets_tests.wsi.planted import Kind, Person

ANNA = Person("DOE^Anna", "MRN48213377", "1950-12-24", "S21-30412")


@pytest.fixture
def aperio(tmp_path: Path) -> Path:
    """An SVS of JPEG tiles with everything planted."""
    return planted.plant(tmp_path, ANNA, Kind())


def levels(path: Path, count: int) -> list[list[bytes]]:
    """Compressed tiles of the tiled pages, read by offset and count."""
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        pages = [page.aspage() for page in file.pages if page.aspage().is_tiled]
        assert len(pages) == count
        return [
            [data[o : o + n] for o, n in zip(p.dataoffsets, p.databytecounts, strict=True)]
            for p in pages
        ]


def shown(path: Path, finest: int = 0) -> tuple:
    """What OpenSlide shows of a slide: format, levels, scale, and all pixels from a level on."""
    with openslide.OpenSlide(path) as slide:
        keys = ("vendor", "mpp-x", "mpp-y", "objective-power")
        facts = [slide.properties.get(f"openslide.{key}") for key in keys]
        pixels = [
            np.asarray(slide.read_region((0, 0), level, size)).tobytes()
            for level, size in enumerate(slide.level_dimensions)
            if level >= finest
        ]
        return facts, slide.level_dimensions, slide.level_downsamples, pixels


def written(text: str) -> list[bytes]:
    """The text in UTF-8, UTF-16 and base64, in lower case."""
    forms = [text.encode(how) for how in ("utf-8", "utf-16-le", "utf-16-be")]
    for data in list(forms):
        for before in range(3):
            packed = base64.b64encode(b"xyz"[:before] + data + b"xyz")
            forms.append(packed[4 if before else 0 : len(packed) - 8])
    return [form.lower() for form in forms if len(form) > 4]


def assert_clean(copy: Path, source: Path, texts: tuple[str, ...]) -> None:
    data = copy.read_bytes().lower()
    assert not [text for text in texts for form in written(text) if form in data]
    assert identifying_findings(copy) == []
    assert levels(copy, 2) == levels(source, 2)
    assert shown(copy) == shown(source)
    with openslide.OpenSlide(copy) as slide:
        assert not slide.associated_images


# ---- whole slides -------------------------------------------------------------------------------


def test_cmu_1_goes_from_ten_findings_to_none(shared_data, tmp_path):
    source, copy = shared_data / "slides" / "CMU-1-Small-Region.svs", tmp_path / "s1.svs"
    found = deidentify_slide(source, copy, ["CMU-1-Small-Region"])
    assert sorted(finding.what for finding in found) == [
        "header field Date",
        "header field Filename",
        "header field ImageID",
        "header field Parmset",
        "header field ScanScope ID",
        "header field Time",
        "header field User",
        "label image",
        "macro image",
        "thumbnail image",
    ]
    assert identifying_findings(copy) == []
    assert levels(copy, 1) == levels(source, 1)
    assert shown(copy) == shown(source)
    with openslide.OpenSlide(copy) as slide:
        assert slide.properties["aperio.LineCameraSkew"] == "-0.000424"
        assert slide.properties["aperio.OriginalWidth"] == "46000"
        assert not slide.associated_images
    data = copy.read_bytes()
    for text in (b"CPAPERIOCS", b"CMU-1", b"12/29/09", b"09:59:15", b"b414003d", b"1004486"):
        assert text in source.read_bytes()
        assert text not in data
    with tifffile.TiffFile(source) as file:
        for page in (entry.aspage() for entry in file.pages[1:]):
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                assert source.read_bytes()[offset : offset + count] not in data


def test_tcga_jpeg_2000(shared_data, tmp_path):
    source, copy = shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs", tmp_path / "s2.svs"
    found = deidentify_slide(source, copy, ["TCGA-CR-7395"])
    assert {finding.what for finding in found} == {
        "thumbnail image",
        "header field ICC Profile",
        "words or dates in the colour profile",
    }
    assert identifying_findings(copy) == []
    assert levels(copy, 2) == levels(source, 2)
    assert shown(copy, finest=1) == shown(source, finest=1)


@pytest.mark.parametrize(
    "seeds",
    [range(6), pytest.param(range(6, 206), marks=pytest.mark.stress)],
    ids=["sample", "all"],
)
def test_generated_slides_come_out_clean(tmp_path, seeds):
    for seed in seeds:
        person, kind = Person.drawn(seed), Kind.drawn(seed)
        source = planted.plant(tmp_path, person, kind)
        data = source.read_bytes().lower()
        for text in person.texts():
            assert any(form in data for form in written(text)), (seed, text)
        assert len(identifying_findings(source)) > 10
        copy = tmp_path / f"{seed}.tiff"
        deidentify_slide(source, copy, [source.stem])
        assert_clean(copy, source, person.texts())


def test_harmless_numbers_stay_and_others_go(aperio, tmp_path):
    deidentify_slide(aperio, tmp_path / "copy.svs")
    with openslide.OpenSlide(tmp_path / "copy.svs") as slide:
        assert {k for k in slide.properties if k.startswith("aperio.")} == {
            "aperio.AppMag",
            "aperio.MPP",
            "aperio.LineCameraSkew",
        }
        assert slide.properties["openslide.mpp-x"] == "0.499"


def test_sizes_in_an_unknown_header_are_no_identifiers(tmp_path):
    source, copy = tmp_path / "a.svs", tmp_path / "copy.svs"
    tifffile.imwrite(
        source,
        painted.glass(512, 768),
        tile=(256, 256),
        photometric="rgb",
        compression="jpeg",
        description="Aperio Wonder Scanner of Dr. DOE\r\n768x512 (256x256)|MPP = 0.25|Rack = 0.25",
        metadata=None,
    )
    found = deidentify_slide(source, copy)
    assert [finding.what for finding in found] == [
        "text before the header's first field",
        "header field Rack",
        "TIFF tag Software",
    ]
    assert shown(copy) == shown(source)


def test_tiles_that_are_left_out_stay_out(tmp_path):
    source, copy = tmp_path / "sparse.tiff", tmp_path / "copy.tiff"
    tiles = [planted.encoded(np.full((128, 128, 3), n, np.uint8), planted.JPEG) for n in (9, 99)]
    tifffile.imwrite(
        source,
        iter([tiles[0], b"", b"", tiles[1]]),
        shape=(256, 256, 3),
        dtype=np.uint8,
        tile=(128, 128),
        photometric="ycbcr",
        compression="jpeg",
        metadata=None,
        software=False,
    )
    deidentify_slide(source, copy)
    with tifffile.TiffFile(copy) as file:
        counts = file.pages.first.databytecounts
        assert [bool(count) for count in counts] == [True, False, False, True]
        assert file.pages.first.dataoffsets[1] == 0
    assert shown(copy) == shown(source)


def test_memory_does_not_grow_with_the_slide(tmp_path):
    import tracemalloc

    peaks = []
    for side in (1024, 4096):
        source = tmp_path / f"{side}.tiff"
        noise = np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8)
        write_pyramid(source, noise, quality=95)
        tracemalloc.start()
        deidentify_slide(source, tmp_path / "copy.tiff", ["Somebody 1234"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert source.stat().st_size > 20 << 20
    # The search reads pieces of 16 MiB, and a second one in lower case.
    assert peaks[1] < 40 << 20, peaks


# ---- refusals -----------------------------------------------------------------------------------


def test_other_formats_are_refused_with_a_reason(tmp_path):
    for vendor in ("mirax", "hamamatsu", "philips-tiff", "dicom"):
        with pytest.raises(SlideError, match=rf"format {vendor} are not rewritten.*convert it"):
            copy_extension(vendor)
    philips = tmp_path / "p.tiff"
    xml = '<?xml version="1.0" ?><DataObject ObjectType="DPUfsImport"></DataObject>'
    tifffile.imwrite(
        philips,
        painted.glass(512, 512),
        tile=(256, 256),
        photometric="rgb",
        compression="jpeg",
        description=xml,
        software="Philips DP v1.0",
        metadata=None,
    )
    with pytest.raises(SlideError, match="are not rewritten"):
        deidentify_slide(philips, tmp_path / "copy.tiff")
    ome = tmp_path / "a.ome.tif"
    tifffile.imwrite(ome, painted.glass(512, 512), tile=(256, 256), photometric="rgb", ome=True)
    with pytest.raises(SlideError, match="OME-TIFF"):
        deidentify_slide(ome, tmp_path / "copy.tiff")
    assert not (tmp_path / "copy.tiff").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t[:2] + planted.segment(planted.COMMENT, "DOE") + t[2:], "a JPEG comment"),
        (lambda t: t[:2] + planted.segment(b"\xff\xe1", "Exif") + t[2:], "segment of type E1"),
        (lambda t: t[:-2] + planted.segment(planted.COMMENT, "DOE") + t[-2:], "a JPEG comment"),
        (lambda t: t + b"DOE^JANE", "bytes after its end"),
        (lambda t: t[: len(t) // 2], "cannot be followed"),
    ],
)
def test_jpeg_tiles_with_more_than_pixels_are_refused(tmp_path, change, reason):
    tiles = [planted.encoded(painted.glass(128, 128, n), planted.JPEG) for n in range(4)]
    tiles[2] = change(tiles[2])
    source, copy = tmp_path / "a.tiff", tmp_path / "copy.tiff"
    tifffile.imwrite(
        source,
        iter(tiles),
        shape=(256, 256, 3),
        dtype=np.uint8,
        tile=(128, 128),
        photometric="ycbcr",
        compression="jpeg",
        metadata=None,
    )
    with pytest.raises(SlideError, match=rf"tile 2 of level 0 holds .*{reason}"):
        deidentify_slide(source, copy)
    assert not copy.exists()


def test_jpeg_2000_comments_of_encoders_pass_others_do_not():
    tile = planted.encoded(painted.glass(128, 128), planted.JPEG_2000)
    code = 33005
    assert b"Created by OpenJPEG" in tile
    assert foreign_content(tile, code, 0) is None
    place = tile.index(b"Created by OpenJPEG")
    assert foreign_content(tile.replace(b"Created", b"DOEJane"), code, 0) == "a JPEG 2000 comment"
    other = planted.segment(b"\xff\x64", "\0\1Kakadu-v6.0 DOE^JANE")
    inserted = tile[: place - 6] + other + tile[place - 6 :]
    assert foreign_content(inserted, code, 0) == "a JPEG 2000 comment"
    assert foreign_content(tile + b"DOE", code, 0) == "bytes after its end"
    for cut in range(0, len(tile), 7):
        assert foreign_content(tile[:cut], code, 0) is not None


def test_bytes_after_plain_and_deflated_pixels_are_seen():
    pixels = painted.glass(16, 16)
    for how, code in ((planted.DEFLATE, 8), (planted.NONE, 1)):
        tile = planted.encoded(pixels, how)
        assert foreign_content(tile, code, pixels.nbytes) is None
        assert foreign_content(tile + b"DOE", code, pixels.nbytes) == "bytes after its end"


def test_a_tiled_photograph_is_not_taken_for_a_level(tmp_path):
    source = tmp_path / "a.tiff"
    with tifffile.TiffWriter(source) as writer:
        for number, size in enumerate(((512, 512), (256, 256), (50, 128))):
            writer.write(
                painted.glass(*size),
                tile=(128, 128),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(number > 0),
                metadata=None,
            )
    with pytest.raises(SlideError, match=r"page 2 \(128 x 50 px\).*may be a photograph"):
        deidentify_slide(source, tmp_path / "copy.tiff")


def test_a_name_in_uncompressed_pixels_keeps_the_copy_out(tmp_path):
    source, copy = tmp_path / "a.tiff", tmp_path / "copy.tiff"
    image = painted.glass(256, 256)
    letters = np.frombuffer("Anna Example".encode("utf-16-le"), np.uint8)
    image[10, 10:18] = letters.reshape(8, 3)
    tifffile.imwrite(source, image, tile=(256, 256), photometric="rgb", metadata=None)
    with pytest.raises(SlideError, match=r"its copy has an identifying text of the source at byte"):
        deidentify_slide(source, copy, ["ANNA EXAMPLE"])
    assert not copy.exists()
    deidentify_slide(source, copy, ["Otto Example"])


def test_tiles_that_share_their_bytes_a_thousand_times_are_refused(tmp_path):
    source, copy = tmp_path / "a.tiff", tmp_path / "copy.tiff"
    tile = planted.encoded(painted.glass(128, 128), planted.JPEG)
    writes = {"dtype": np.uint8, "tile": (128, 128), "photometric": "ycbcr", "metadata": None}
    tiles = ((tile if number == 0 else b"", len(tile)) for number in range(900))
    tifffile.imwrite(source, tiles, shape=(30 * 128, 30 * 128, 3), compression="jpeg", **writes)
    with tifffile.TiffFile(source, mode="r+") as file:
        offsets = file.pages.first.tags[324]
        offsets.overwrite([offsets.value[0]] * 900)
    with pytest.raises(SlideError, match="more bytes than the file has"):
        deidentify_slide(source, copy)
    assert not copy.exists()


def test_an_interrupted_copy_leaves_nothing(aperio, tmp_path, monkeypatch):
    import mm_assets.wsi.deidentify as module

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "rescan", stop)
    with pytest.raises(KeyboardInterrupt):
        deidentify_slide(aperio, tmp_path / "copy.svs")
    assert list(tmp_path.iterdir()) == [aperio]


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.9, 0.99])
def test_damaged_files_are_refused_as_slides(aperio, tmp_path, keep):
    data = aperio.read_bytes()
    aperio.write_bytes(data[: int(len(data) * keep)])
    try:
        deidentify_slide(aperio, tmp_path / "copy.svs")
    except SlideError:
        assert not (tmp_path / "copy.svs").exists()


# ---- the second look ----------------------------------------------------------------------------


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _swap_tile_byte(path: Path) -> None:
    with tifffile.TiffFile(path) as file:
        at = file.pages.first.dataoffsets[1] + 400
    _overwrite(path, at, bytes([path.read_bytes()[at] ^ 1]))


def _name_in_description(path: Path) -> None:
    _overwrite(path, path.read_bytes().index(b"MPP = 0.4990"), b"Who = Anna D")


def _date_in_profile(path: Path) -> None:
    _overwrite(path, path.read_bytes().index(b"acsp") - 12, b"\x07\xce\0\2\0\x09")


def _magnification(path: Path) -> None:
    _overwrite(path, path.read_bytes().index(b"AppMag = 20") + 9, b"40")


def _overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (_append, "no page refers to"),
        (_swap_tile_byte, "other bytes in tile 1 of level 0"),
        (_name_in_description, "header field Who"),
        (_date_in_profile, "colour profile"),
        (_magnification, "other magnification"),
    ],
)
def test_the_second_look_sees(aperio, tmp_path, tamper, complaint):
    copy = tmp_path / "copy.svs"
    deidentify_slide(aperio, copy)
    rescan(aperio, [0, 2], copy, [ANNA.name])
    tamper(copy)
    with pytest.raises(Unclean, match=complaint):
        rescan(aperio, [0, 2], copy, [ANNA.name])


def test_the_second_look_sees_photographs(shared_data, tmp_path):
    source = shared_data / "slides" / "CMU-1-Small-Region.svs"
    shutil.copyfile(source, tmp_path / "copy.svs")
    with pytest.raises(Unclean, match="label image, macro image"):
        rescan(source, [0], tmp_path / "copy.svs", [])


# ---- parts --------------------------------------------------------------------------------------


def test_search_finds_every_way_of_writing(tmp_path):
    search = ByteSearch(["Müller^Jane"], 7)
    random = np.random.default_rng(0)
    for text in ("Müller^Jane", "MÜLLER^JANE", "müller^jane"):
        for how in ("utf-8", "utf-16-le", "utf-16-be"):
            data = text.encode(how)
            packed = [base64.b64encode(random.bytes(n) + data + random.bytes(5)) for n in range(3)]
            packed += [base64.urlsafe_b64encode(part) for part in (data, b"?" + data)]
            for form in (data, *packed):
                found = list(search.in_bytes(random.bytes(100) + form + random.bytes(100)))
                assert found, (text, how, form)
    assert not list(search.in_bytes(random.bytes(1 << 20)))
    # Across the border of the pieces in which files are read.
    path = tmp_path / "large"
    start = (16 << 20) - 5
    path.write_bytes(bytes(start) + "Müller^Jane".encode() + bytes(99))
    assert [at for _, at in search.in_file(path)] == [start]


def test_telling_parts_are_identifiers_and_geometry_is_not():
    found = identifiers(["DOE^JANE born 1950-12-24", "0.4990", "46000", "MRN48213377", "abc"])
    assert found == ["1950-12-24", "DOE^JANE born 1950-12-24", "MRN48213377"]


def test_aperio_fields_are_numbers_in_their_range_or_go():
    text = "Aperio Image Library v12\r\n9x9 (1x1) JPEG/RGB Q=70|MPP = 0.25|AppMag = 20x|Top = 4821"
    description = parse_description(text)
    assert description.numbers == {"MPP": "0.25"}
    assert set(description.others) == {"AppMag", "Top"}
    assert description.head == ""
    assert parse_description("Aperio of Dr. Doe\r\n9x9|MPP = 1").head
    assert is_plain("Aperio Image Library\r\n9x9 (1x1)|MPP = 0.25")
    for wrong in (text, "Aperio Image Library\r\n9x9 (1x1)|MPP = 0.25|User = me", "Doe|MPP = 1"):
        assert not is_plain(wrong)


def test_a_profile_without_words_converts_colours_alike():
    before = planted.profile(ANNA)
    after = plain_profile(before)
    assert after is not None
    assert plain_profile(after) == after
    assert ANNA.number.encode("utf-16-be") in before
    assert ANNA.number.encode("utf-16-be") not in after
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype("uint8"))
    lab = ImageCms.createProfile("LAB")
    converted = []
    for data in (before, after):
        opened = ImageCms.getOpenProfile(io.BytesIO(data))
        transform = ImageCms.buildTransform(opened, lab, "RGB", "LAB")
        converted.append(np.asarray(ImageCms.applyTransform(image, transform)))
    assert np.array_equal(*converted)
    assert plain_profile(b"no profile") is None


def test_comments_leave_the_jpeg_tables():
    tile = planted.encoded(painted.glass(64, 64), planted.JPEG)
    tables, left_out = plain_tables(planted.commented_tables(tile, "DOE^JANE"))
    assert b"DOE" not in tables
    assert b"DOE^JANE" in left_out
    assert plain_tables(tables) == (tables, b"")
