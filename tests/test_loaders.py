"""CSV files by pandas and folders of images by Pillow: what comes of them, fit on them, and what is said where they are wrong."""

import io
import os
import sys
import threading

import numpy as np
import pytest

import clnn
from clnn.data import Batches, ImageFolder, read_csv

IRIS = "length,width,species,petals\n5.1,3.5,setosa,3\n6.2,2.9,virginica,4\n5.9,3.0,versicolor,5\n4.9,3.1,setosa,6\n"


@pytest.fixture
def csv(tmp_path):
    """Writes a CSV file, and says where."""
    pytest.importorskip("pandas")

    def write(text, name="some.csv"):
        (tmp_path / name).write_bytes(text.encode("utf-8"))
        return tmp_path / name

    return write


def test_a_table_and_one_of_the_same_form(csv):
    x, y, features, classes = table = read_csv(csv(IRIS), target="species")
    assert features == ["length", "width", "petals"] and classes == ["setosa", "versicolor", "virginica"]
    assert x.dtype == np.float32 and x.flags.c_contiguous and y.dtype == np.int32
    assert np.array_equal(x[:2], np.float32([[5.1, 3.5, 3], [6.2, 2.9, 4]])) and y.tolist() == [0, 2, 1, 0]
    other = csv("species;petals;length;width\nvirginica;1;2,5;3\n", "other.csv")
    test = read_csv(other, "species", features=table.features, classes=table.classes, sep=";", decimal=",")
    assert test.x.tolist() == [[2.5, 3, 1]] and test.y.tolist() == [2]
    assert read_csv(csv(IRIS), features=["width"]).y is None


@pytest.mark.parametrize(
    ("values", "classes", "y", "kind", "names"),
    [
        (["1", "0", "7"], None, [1, 0, 7], np.int32, []),
        (["1", "0", "7"], [7, 0, 1], [2, 1, 0], np.int32, [7, 0, 1]),
        (["1", "0", "7"], ["0", "1", "7"], [1, 0, 2], np.int32, ["0", "1", "7"]),
        (["1.5", "0", "-7"], None, [1.5, 0, -7], np.float32, []),
        (["True", "False", "True"], None, [1, 0, 1], np.int32, [False, True]),
        (["b", "7", "a b"], None, [2, 0, 1], np.int32, ["7", "a b", "b"]),
        (["Ä", "ß", "a"], None, [1, 2, 0], np.int32, ["a", "Ä", "ß"]),
    ],
    ids=["whole", "whole by classes", "texts by classes", "floats", "bools", "texts", "letters"],
)
def test_targets(csv, values, classes, y, kind, names):
    table = read_csv(csv("a,t\n" + "".join(f"0,{value}\n" for value in values)), target="t", classes=classes)
    assert table.y.tolist() == y and table.y.dtype == kind and table.classes == names


WRONG = [
    ("a,b\n1,\n,2\n", {}, "2 values are missing, the first of 'a' in sample 1.*fillna"),
    ("a,b\n1,x\n2,?\n", {}, "the columns 'b' hold other things than numbers, such as 'x' in sample 0.*get_dummies"),
    ("a,b\n1,2\n2,?\n", {}, r"such as '\?' in sample 1.*na_values="),
    ("a,b\n1,2\n2,?\n", {"na_values": "?"}, "1 values are missing, the first of 'b' in sample 1"),
    ("a,b\n1,1e39\n", {}, "sample 0: 'b' is 1e[+]39, which is not finite in float32"),
    ("a,b\n1,inf\n", {}, "sample 0: 'b' is inf"),
    ("a,b\n1,2,3\n4,5,6\n", {}, "cannot be read as CSV: "),
    ("a,b\n1,2\n4,5,6\n", {}, "cannot be read as CSV: "),
    ("", {}, "cannot be read as CSV: No columns"),
    ("a,b\n", {}, "0 lines of 2 features"),
    ("a\n1\n", {"target": "a"}, "1 lines of 0 features"),
    ("a,b\n1,2\n", {"target": "c"}, "has no column 'c'; its columns are 'a', 'b'"),
    ("a,b\n1,2\n", {"features": ["a", 3]}, "has no column 3"),
    ("a,b\n1,2\n", {"features": ["a"], "target": "a"}, "'a' is the target"),
    ("a,b\n1,x\n2,NA\n", {"target": "b"}, "target of sample 1 is missing.*keep_default_na"),
    ("a,b\n1,x\n2,y\n", {"target": "b", "classes": ["y", "z"]}, "'x' in sample 0 is none of classes 'y', 'z'"),
    ("a,b\n1,x\n", {"target": "b", "classes": ["x", "x"]}, "one class twice"),
    ("a,b\n1,2\n", {"features": ["b", "b"]}, "features names one column twice: 'b', 'b'"),
    ("a,b\n1,2\n", {"features": ["a", "a"], "target": "b"}, "features names one column twice: 'a', 'a'"),
    ("a,c,c\n1,2,3\n", {"target": "c"}, "several columns called 'c': give them other names"),
    ("a,c,c\n1,2,3\n", {"target": "a"}, "several columns called 'c'"),
    ("a,c,c\n1,2,3\n", {"features": ["c"]}, "several columns called 'c'"),
    ("a,c,c\n1,2,3\n", {"target": "c", "usecols": ["a", "c"]}, "several columns called 'c'"),
    ("# of old\n\na;'c c';d;'c c';d\n1;2;3;4;5\n", {"sep": ";", "quotechar": "'", "comment": "#"}, "called 'c c', 'd'"),
    ("x,y,z\na,c,c\n1,2,3\n", {"target": "c", "header": 1}, "several columns called 'c'"),
    ("a,b\n1,3000000000\n", {"target": "b"}, "do not fit int32"),
    ("a,b\n1,2\n", {"chunksize": 1}, "leave 'chunksize' out"),
    ("a,b\n1,2\n", {"colour": 1}, "colour.*options are those of pandas.read_csv"),
    ("a,b\n1,\u00e4\n", {"encoding": "ascii"}, "cannot be read as CSV: .*ascii.*encoding="),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_a_table_that_is_wrong(csv, case):
    text, options, said = WRONG[case]
    with pytest.raises((clnn.DataError, clnn.errors.ConfigurationError), match=said):
        read_csv(csv(text), **options)


def test_one_feature_by_its_name(csv):
    """Its letters were taken for columns."""
    table = read_csv(csv("ab,cd,y\n1,2,0\n3,4,1\n"), target="y", features="cd")
    assert table.x.tolist() == [[2], [4]] and table.features == ["cd"]


def test_columns_that_are_named_like_a_second_one(csv):
    """c.1 is what pandas calls a second c, and may be in the file."""
    text = "a,c,c.1\n1,2,3\n"
    assert read_csv(csv(text), target="c").features == ["a", "c.1"]
    assert read_csv(io.StringIO(text), target="c.1").features == ["a", "c"]
    assert read_csv(csv("a,b,c,c\n1,2,3,4\n"), target="b", features=["a"]).x.tolist() == [[1]]  # nobody asks for c
    assert read_csv(csv("a,c,c\n1,2,3\n"), target="c", names=["a", "b", "c"], header=0).features == ["a", "b"]
    for opened in (io.StringIO("a,c,c\n1,2,3\n"), io.BytesIO(b"a,c,c\n1,2,3\n")):
        with pytest.raises(clnn.DataError, match="the file has several columns called 'c'"):
            read_csv(opened, target="c")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no file without an end")
@pytest.mark.parametrize("name", ["/dev/zero", "/dev/full"])
@pytest.mark.parametrize(
    "read",
    [read_csv, clnn.data.read_digit, clnn.data.read_idx, lambda f: clnn.CSVLog(f, append=True).on_train_begin(None)],
    ids=["csv", "digit", "idx", "log"],
)
def test_files_without_an_end_are_refused(read, name):
    """They were read for ever."""
    with pytest.raises(clnn.ClnnError, match=f"{name}.* it is a device, which may never end: give a file"):
        read(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_table_from_a_pipe(tmp_path):
    """Where names of columns have to be looked at once more, it was waited for ever."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("a,a.1,y\n1,2,0\n3,4,1\n"), daemon=True)
    writer.start()
    table = read_csv(tmp_path / "pipe", target="y")
    assert table.x.tolist() == [[1, 2], [3, 4]] and table.features == ["a", "a.1"]


def test_no_file_and_no_package(csv, tmp_path, monkeypatch):
    with pytest.raises(clnn.DataError, match="none.csv cannot be read as CSV: .*No such file[^;]*$"):
        read_csv(tmp_path / "none.csv")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(clnn.errors.ConfigurationError, match="needs pandas: pip install pandas"):
        read_csv(csv(IRIS))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(clnn.errors.ConfigurationError, match="needs Pillow: pip install pillow"):
        ImageFolder(tmp_path)


@pytest.fixture
def photos(tmp_path):
    """A folder of 12 images of two classes, and the images in the order of their names."""
    image, rng, made = pytest.importorskip("PIL.Image"), np.random.default_rng(0), {}
    for name in ("b/9.png", "a/10.png", "a/2.png", "a/sub/x.png", "b/C.bmp", *(f"b/{i:02}.png" for i in range(7))):
        made[name] = rng.integers(0, 256, (5, 4, 3)).astype(np.uint8)
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        image.fromarray(made[name]).save(tmp_path / name)
    (tmp_path / "b" / ".DS_Store").write_bytes(b"?")
    (tmp_path / ".hidden").mkdir()
    return tmp_path, np.stack([made[name] for name in sorted(made)]).transpose(0, 3, 1, 2) / np.float32(255)


def test_a_folder_is_an_array_of_which_rows_are_read(photos):
    path, x = photos
    folder = ImageFolder(path)
    assert [p.relative_to(path).as_posix() for p in folder.paths][:3] == ["a/10.png", "a/2.png", "a/sub/x.png"]
    assert folder.classes == ["a", "b"] and folder.y.tolist() == [0] * 3 + [1] * 9 and folder.y.dtype == np.int32
    assert folder.shape == x.shape and len(folder) == 12 and np.array_equal(np.asarray(folder), x)
    for rows in (3, -1, slice(2, 9, 3), [4, 1], np.arange(12) > 7, slice(0, 0)):
        assert folder[rows].dtype == np.float32 and np.array_equal(folder[rows], x[rows])
    other = ImageFolder(path, size=(3, 6), channels=1, classes=["b", "c", "a"])
    assert other[:2].shape == (2, 1, 3, 6) and other.y.tolist() == [2] * 3 + [0] * 9


def test_one_photo_is_read_as_the_folder_reads_it(device, photos):
    path, x = photos
    read = clnn.data.read_image
    for size, channels in ((None, 3), (7, 3), ((3, 6), 1)):
        folder = ImageFolder(path, size, channels=channels)
        for i in (0, 5):
            found = read(str(folder.paths[i]), size, channels)
            assert found.dtype == np.float32 and np.array_equal(found, folder[i])
    net = clnn.Sequential([clnn.Flatten(), clnn.Dense(2)], input_shape=x.shape[1:], seed=0)
    np.testing.assert_allclose(net.predict(read(folder.paths[2])[None]), net.predict(x)[2:3], rtol=1e-5)
    for wrong, said in (((path / "none.png",), "none.png cannot be read as an image"), ((path,), "cannot be read as an"),
                        ((folder.paths[0], 0), "size should be"), ((folder.paths[0], 3, 4), "channels is 1"),
                        (("/dev/zero",), "/dev/zero cannot be read as an image")):  # fmt: skip
        with pytest.raises((clnn.DataError, clnn.ConfigurationError), match=said):
            read(*wrong)


def test_fit_on_a_folder_that_streams(device, photos, monkeypatch):
    path, x = photos
    folder, results, read = ImageFolder(path), [], []
    whole = ImageFolder.__getitem__
    monkeypatch.setattr(ImageFolder, "__getitem__", lambda self, rows: read.append(len(rows)) or whole(self, rows))
    for batches in (Batches(folder, folder.y, 5, seed=2, workers=2), Batches(x, folder.y, 5, seed=2)):
        net = clnn.Sequential([clnn.Flatten(), clnn.Dense(2)], input_shape=x.shape[1:], seed=0)
        net.fit(batches, loss="cross_entropy", optimizer="sgd", epochs=3, progress=False)
        results.append([p.numpy() for p in net.parameters()] + [net.predict(batches)])
        results[-1].append(np.array([*net.evaluate(batches).values()]))
    assert read and max(read) == 5
    assert all(np.array_equal(a, b) for a, b in zip(*results))
    monkeypatch.undo()
    net.fit(folder, folder.y, loss="cross_entropy", optimizer="sgd", epochs=1, progress=False)
    assert np.array_equal(net.predict(folder), net.predict(x))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I;16B"])
def test_images_of_every_mode(tmp_path, mode):
    image = pytest.importorskip("PIL.Image")
    gray = np.array([[0, 255], [51, 102]], np.uint8)
    made = image.fromarray(gray)
    if mode.startswith("I"):
        made = image.fromarray(gray.astype(">u2" if mode == "I;16B" else "<u2") * 257)
    elif mode in ("LA", "RGBA"):  # what is transparent, is white
        made = made.convert(mode)
        made.putpixel((0, 0), (0,) * len(mode))
        gray[0, 0] = 255
    elif mode == "CMYK":
        made = made.convert("RGB").convert(mode)
    else:
        made = made.convert(mode)
    if mode == "1":
        gray = np.asarray(made).astype(np.uint8) * 255
    (tmp_path / "c").mkdir()
    made.save(tmp_path / "c" / f"x.{'tif' if mode in ('CMYK', 'I;16B') else 'png'}")
    for channels in (1, 3):
        x = ImageFolder(tmp_path, channels=channels)[0]
        assert x.shape == (channels, 2, 2)
        np.testing.assert_allclose(x, np.stack([gray] * channels) / np.float32(255), atol=1.01 / 255)


def broken(path, how):
    image = pytest.importorskip("PIL.Image")
    if how == "another size":
        image.new("RGB", (7, 5)).save(path / "b" / "00.png")
    elif how == "cut off":
        data = (path / "b" / "C.bmp").read_bytes()
        (path / "b" / "C.bmp").write_bytes(data[: len(data) // 2])
    elif how == "text":
        (path / "b" / "00.png").write_text("no image", encoding="utf-8")
    elif how == "floats":
        image.fromarray(np.ones((5, 4), np.float32)).save(path / "b" / "00.tif")
    elif how == "empty":
        (path / "c").mkdir()
    elif how == "notes":
        (path / "b" / "notes.txt").write_text("mine", encoding="utf-8")
    elif how == "loose":
        image.new("RGB", (4, 5)).save(path / "00.png")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("another size", r"00.png: it has 5 x 7 pixels \(height x width\), and the first image 5 x 4: give size="),
        ("cut off", "C.bmp cannot be read as an image: .*replace or remove it"),
        ("text", "00.png cannot be read as an image"),
        ("floats", "00.tif: its pixels are of Pillow's mode F"),
        ("empty", "c has no images"),
        ("notes", "notes.txt is no image that Pillow knows, by its name: move it"),
        ("loose", "00.png lies in no class's folder"),
    ],
)
def test_a_folder_that_is_wrong(photos, how, said):
    path, _ = photos
    broken(path, how)

    def read():
        folder = ImageFolder(path)
        return list(Batches(folder, folder.y))

    with pytest.raises(clnn.DataError, match=said):
        read()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": ["a"]}, "the folders b are none of classes a"),
        ({"classes": ["b", "a", "a"]}, "classes names one class twice: 'b', 'a', 'a'"),
        ({"channels": 2}, "channels is 1"),
        ({"size": (1, 2, 3)}, "size is"),
        ({"size": 0}, "size should be an integer of 1 or more"),
        ({"size": "ab"}, "size should be an integer"),
    ],
    ids=["classes", "a class twice", "channels", "three sizes", "no size", "text"],
)
def test_arguments_of_a_folder(photos, options, said):
    with pytest.raises((clnn.DataError, clnn.errors.ConfigurationError), match=said):
        ImageFolder(photos[0], **options)
    for where, told in ((photos[0] / "none", "is no folder"), (photos[0] / "a" / "sub", "has no folders")):
        with pytest.raises(clnn.DataError, match=told):
            ImageFolder(where)
