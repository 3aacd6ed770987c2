"""A drawn digit becomes MNIST's: cut out, inverted where the paper is bright, centred; and image files are read right."""

import copy
import io
import struct
import sys
import zlib

import numpy as np
import pytest

import clnn
from clnn.data import as_digit, read_digit
from clnn.data.digit import _decode_png, _gray


def seven(height=200, width=150, dark=0, bright=255, dtype=np.uint8):
    """A 7 drawn dark on bright paper, away from the middle."""
    image = np.full((height, width), bright, dtype)
    image[40:52, 30:100] = dark
    for i in range(100):
        image[50 + i, 88 - i // 2 : 100 - i // 2] = dark
    return image


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(rows, width, height, bits=8, kind=0, more=b"", interlaced=0):
    """The bytes of a PNG of these rows, each with its filter's number at the beginning."""
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    packed = zlib.compress(b"".join(rows))
    parts = chunk(b"IHDR", head) + more + chunk(b"IDAT", packed[:7]) + chunk(b"IDAT", packed[7:]) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_a_drawing_takes_mnist_s_form():
    digit = as_digit(seven())
    assert digit.shape == (28, 28) and digit.dtype == np.float32 and digit.min() == 0 and digit.max() == 1
    rows, columns = (np.flatnonzero(digit.any(axis=axis)) for axis in (1, 0))
    assert rows[-1] - rows[0] + 1 == 20 and columns[-1] - columns[0] + 1 == round(20 * 70 / 110)
    for axis in (0, 1):
        mass = digit.sum(axis=axis)
        assert abs((mass * np.arange(28)).sum() / mass.sum() - 14) <= 0.5  # MNIST's are in pixel 14


@pytest.mark.parametrize("change", [
    lambda x: 255 - x,  # chalk on a board
    lambda x: x / 255.0,
    lambda x: x.astype(np.int16) * 100 - 20000,
    lambda x: np.pad(x, ((300, 10), (5, 90)), constant_values=255),  # elsewhere on a larger sheet
    lambda x: x.repeat(2, 0).repeat(2, 1),  # drawn larger
    lambda x: x > 128,
    lambda x: (0.4 * x + 90).astype(np.uint8),  # pencil on grey paper
    lambda x: x[40:150, 30:100],  # it touches the border
], ids=["inverted", "fractions", "scaled", "moved", "larger", "bool", "faint", "cut"])  # fmt: skip
def test_what_does_not_matter_changes_nothing(change):
    assert np.abs(as_digit(change(seven())) - as_digit(seven())).max() < 0.08


def test_mnist_s_own_digits_stay_what_they_are():
    """Digits of the data set in its own form, and in that of digits(), hardly move."""
    (x, y), (x_test, y_test) = clnn.data.digits(raw=True)
    same = np.stack([as_digit(image, size=8, box=8) for image in x_test])
    near = [y[np.argmin(((x / 16.0 - image) ** 2).sum(axis=(1, 2)))] for image in same]
    assert np.mean(near == y_test) > 0.9


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.full((9, 9), 7), "9 x 9 pixels, is empty"),
        (np.zeros((2, 3, 4, 5)), r"\(height, width\), \(2, 3, 4, 5\) was"),
        (np.zeros((0, 3)), r"\(0, 3\) was provided"),
        (np.array([[0.0, np.nan], [1, 0]]), r"the image\[0, 1\] is nan"),
        (np.array([["a", "b"]]), "holds no real numbers"),
    ],
)
def test_what_is_no_digit_is_an_error(given, said):
    with pytest.raises(clnn.DataError, match=said):
        as_digit(given)


def test_a_box_larger_than_the_image_is_an_error():
    with pytest.raises(clnn.ConfigurationError, match="box should be at most size, 9 and 8 were"):
        as_digit(seven(), size=8, box=9)


@pytest.mark.parametrize("kind", [0, 2, 4, 6])
@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_every_filter(kind, bits, rng):
    """Rows that are filtered as the specification says, by a writer that stands here in another form."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    step = channels * bits // 8
    raw = rng.integers(0, 256, (10, 7 * step)).astype(np.uint8)
    rows, above = [], np.zeros(7 * step, np.int64)
    for i, now in enumerate(raw.astype(np.int64)):
        left, corner = (np.concatenate([np.zeros(step, np.int64), line[:-step]]) for line in (now, above))
        p = left + above - corner
        pa, pb, pc = abs(p - left), abs(p - above), abs(p - corner)
        paeth = np.where((pa <= pb) & (pa <= pc), left, np.where(pb <= pc, above, corner))
        rows.append(
            bytes([i % 5])
            + ((now - (0, left, above, (left + above) // 2, paeth)[i % 5]) % 256).astype(np.uint8).tobytes()
        )
        above = now
    want = raw.reshape(10, 7, channels) / 255 if bits == 8 else raw.view(">u2").reshape(10, 7, channels) / 65535
    assert np.array_equal(_decode_png(png(rows, 7, 10, bits, kind)), want)


@pytest.mark.parametrize("most", [1, 15, 255, 256, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_a_portable_graymap_of_any_depth(most, plain, tmp_path):
    """Those of more than 8 bits were refused, with the advice to save them with 16."""
    pytest.importorskip("PIL")
    gray = np.zeros((20, 20))
    gray[4:16, 8:12] = 1
    values = (gray * most).astype(">u2" if most > 255 else "u1")
    data = " ".join(map(str, values.flat)).encode() if plain else values.tobytes()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.pgm").write_bytes(b"P%d\n20 20\n%d\n" % (2 if plain else 5, most) + data)
    np.testing.assert_allclose(read_digit(tmp_path / "a" / "x.pgm"), as_digit(gray).reshape(1, -1), atol=0.01)
    np.testing.assert_allclose(clnn.data.ImageFolder(tmp_path, channels=1)[0][0], gray, atol=0.01)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_as_pillow_reads_it(mode, rng, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = rng.integers(0, 256, (11, 13, 4)).astype(np.uint8)
    picture = (
        image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        if mode == "I;16"
        else image.fromarray(pixels).convert(mode)
    )
    file = io.BytesIO()
    picture.save(file, "PNG")
    want = pixels[..., :1] / 255 if mode == "I;16" else np.asarray(picture.convert("RGBA")) / 255
    found = _decode_png(file.getvalue())
    if found.shape[2] < 3:
        found = np.concatenate(
            [found[..., :1]] * 3 + [found[..., 1:] if found.shape[2] == 2 else np.ones_like(found)], 2
        )
    assert np.allclose(found[..., : want.shape[2]], want[..., : found.shape[2]], atol=1e-9)


def test_a_file_is_read_as_the_array(tmp_path):
    image = seven()
    rows = [b"\0" + line.tobytes() for line in image]
    (tmp_path / "mine.png").write_bytes(png(rows, 150, 200))
    found = read_digit(tmp_path / "mine.png")
    assert found.shape == (1, 784) and np.array_equal(found[0].reshape(28, 28), as_digit(image / 255))
    clear = [b"\0" + np.stack([0 * line, 255 - line], 1).tobytes() for line in image]  # black ink on nothing
    (tmp_path / "clear.png").write_bytes(png(clear, 150, 200, kind=4))
    assert np.allclose(read_digit(tmp_path / "clear.png"), found)


def test_one_colour_can_be_transparent():
    rows = [b"\0" + bytes([10, 20, 30, 40, 50, 60])]
    found = _gray(png(rows, 2, 1, kind=2, more=chunk(b"tRNS", struct.pack(">HHH", 10, 20, 30))))
    assert found[0, 0] == 1 and found[0, 1] < 0.25


def test_a_jpeg_by_pillow(tmp_path, monkeypatch):
    pytest.importorskip("PIL.Image").fromarray(seven()).save(tmp_path / "mine.jpg", quality=95)
    assert np.abs(read_digit(tmp_path / "mine.jpg")[0].reshape(28, 28) - as_digit(seven())).max() < 0.1
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(clnn.DataError, match="it is no PNG, and to read other images pillow is needed"):
        read_digit(tmp_path / "mine.jpg")


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4", "<f4"])
def test_a_tiff_of_more_than_8_bits(tmp_path, dtype):
    gray = (seven() // 2 + 64).astype(dtype) * 257
    pytest.importorskip("PIL.Image").fromarray(gray).save(tmp_path / "mine.tif")
    if dtype.endswith("u2"):
        assert np.abs(read_digit(tmp_path / "mine.tif")[0].reshape(28, 28) - as_digit(gray)).max() < 0.02
        return
    with pytest.raises(clnn.DataError, match="of any range: save it with 8 or 16 bits each"):
        read_digit(tmp_path / "mine.tif")


GOOD = png([b"\0" + bytes(range(0, 250, 50))] * 5, 5, 5)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (GOOD[:40], "damaged PNG"),
        (GOOD.replace(b"IHDR\0\0\0\5", b"IHDR\0\0\0\6"), "a checksum is wrong"),
        (png([b"\0" + bytes(5)] * 3, 5, 5), "damaged PNG"),
        (png([b"\7" + bytes(5)] * 5, 5, 5), "there is no filter 7"),
        (png([b"\0" + bytes(5)] * 5, 5, 5, interlaced=1), "interlaced PNG"),
        (png([b"\0" + bytes(5)] * 5, 5, 5, bits=3), "3 bits, which is not read"),
        (png([b"\0"], 1 << 15, 1 << 15), "32768 x 32768 pixels"),
        (png([b"\0" + bytes([9])], 1, 1, kind=3, more=chunk(b"PLTE", bytes(9))), "colour 9 of a palette of 3"),
    ],
    ids=["cut", "checksum", "short", "filter", "interlaced", "bits", "large", "palette"],
)
def test_a_damaged_png_is_an_error(data, said, tmp_path):
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(clnn.DataError, match=f"bad.png: .*{said}"):
        read_digit(tmp_path / "bad.png")


def test_no_file_and_no_image_are_errors(tmp_path):
    with pytest.raises(clnn.DataError, match="nowhere.png cannot be read: No such file"):
        read_digit(tmp_path / "nowhere.png")
    pytest.importorskip("PIL")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(clnn.DataError, match=r"text.png: it is no image of a format that Pillow knows$"):
        read_digit(tmp_path / "text.png")


def test_noise_on_the_paper_is_not_cut_out_with_the_digit(rng):
    noisy = seven(bright=200, dtype=float) + rng.normal(0, 8, (200, 150))
    assert np.abs(as_digit(noisy) - as_digit(seven())).mean() < 0.02


# -- clnn predict -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "layers"),
    [(64, []), ((1, 8, 8), [clnn.Conv2D(8, 3, "relu"), clnn.Flatten()])], ids=["flat", "image"],
)  # fmt: skip
def test_predict_reads_a_digit_of_one_s_own(shape, layers, tmp_path, capsys, device):
    (x, y), _ = clnn.data.digits()
    x = x.reshape(len(x), *(shape if isinstance(shape, tuple) else (shape,)))
    net = clnn.Sequential([*copy.deepcopy(layers), clnn.Dense(10)], input_shape=shape, seed=1)  # on this device alone
    net.fit(x, y, loss="cross_entropy", optimizer="adam", epochs=10, progress=False, seed=1)
    net.save(tmp_path / "net.safetensors", optimizer=None)
    picture = tmp_path / "mine.png"
    drawn = 255 - np.kron(np.pad(x[y == 6][0].reshape(8, 8), 3), np.ones((9, 9))) * 255  # dark on bright, and larger
    rows = [b"\0" + line.astype(np.uint8).tobytes() for line in drawn]
    picture.write_bytes(png(rows, len(drawn), len(drawn)))
    from clnn.tools import cli

    assert cli.main(["predict", str(tmp_path / "net.safetensors"), str(picture), str(picture)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and first.startswith(f"{picture}: 6  (6 ") and first.count("%") == 3


def test_predict_says_what_it_cannot_read(tmp_path, capsys, device):
    from clnn.tools import cli

    clnn.Sequential([clnn.Dense(10)], input_shape=5).save(tmp_path / "small.safetensors")
    for arguments, said in (
        (["small.safetensors", "x.png"], "takes inputs of shape (5,), and digits have 28 x 28 pixels"),
        (["net.onnx", "x.png"], "net.onnx --input x.npy"),
        (["nowhere.safetensors", "x.png"], "nowhere.safetensors"),
    ):
        assert cli.main(["predict", *(str(tmp_path / one) for one in arguments)]) == 1
        assert said in capsys.readouterr().err
