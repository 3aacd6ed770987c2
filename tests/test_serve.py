"""`clnn serve`: what its address answers and refuses, and its page in a real browser."""

import contextlib
import http.client
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from browser import Browser

import clnn
from clnn.tools.serve import Server
from clnn.tools.serve import server as module
from clnn.tools.serve.answers import from_npy

THREE = [
    (0.33, 0.24), (0.42, 0.17), (0.55, 0.16), (0.66, 0.23), (0.66, 0.34), (0.58, 0.43), (0.46, 0.48),
    (0.60, 0.51), (0.69, 0.60), (0.69, 0.72), (0.60, 0.81), (0.45, 0.84), (0.32, 0.77),
]  # fmt: skip
JSON, NPY, BYTES = "application/json", "application/x-npy", "application/octet-stream"


def ask(server, path="/predict", body=None, kind=JSON, method=None, **headers):
    """(status, body, headers) of one request, as any program makes it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        headers.setdefault("Content-Type", kind)
    with contextlib.closing(connection):
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers


def told(server, *args, **options):
    """(status, the error's words)."""
    status, body, _ = ask(server, *args, **options)
    return status, json.loads(body)["error"]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def net():
    model = clnn.Sequential([clnn.Dense(5, "relu"), clnn.Dense(3)], input_shape=4, seed=1)
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    model.fit(x, x[:, :3].argmax(1), loss="cross_entropy", optimizer="adam", epochs=2, progress=False)
    return model


@pytest.fixture(scope="module")
def server(net):
    with Server(net, name="<b>net</b>") as running:
        yield running


@pytest.fixture
def x(rng):
    return rng.normal(size=(7, 4)).astype(np.float32)


def test_json_and_npy_are_answered_as_predict_does(server, net, x):
    status, body, headers = ask(server, body=json.dumps({"x": x.tolist()}))
    found = json.loads(body)
    assert status == 200 and headers["Content-Type"] == JSON
    assert np.array_equal(np.float32(found["outputs"]), net.predict(x))
    assert np.array_equal(np.float32(found["probabilities"]), net.predict_proba(x))
    assert found["classes"] == net.predict_classes(x).tolist()
    for each in (x, np.asfortranarray(x), x.astype(np.float64), (10 * x).astype(np.int16)):
        status, body, headers = ask(server, body=npy(each), kind=NPY)
        assert status == 200 and headers["Content-Type"] == NPY
        assert np.array_equal(np.load(io.BytesIO(body), allow_pickle=False), net.predict(np.float32(each)))
    status, body, _ = ask(server, body=npy(x), kind=NPY, Accept=JSON)
    assert json.loads(body) == found
    status, body, _ = ask(server, body=json.dumps(x[0].tolist()))  # one sample, without its axis
    assert np.allclose(json.loads(body)["outputs"], net.predict(x[:1]), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "no JSON"),
        (b"[1, 2", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"3", 400, "x should be a list of numbers"),
        (b'{"y": [1]}', 400, "its keys are 'y'"),
        (b'{"x": {"other": [[1, 2, 3, 4]]}}', 400, "the model's input is 'x'"),
        (b'[["a", 1, 2, 3]]', 400, "array of numbers"),
        (b"[[1, 2], [3]]", 400, "array of numbers"),
        (b"[[1, 2, 3]]", 400, "3"),
        (b"[[NaN, 2, 3, 4]]", 400, "NaN is no number"),
        (b"[[1e999, 2, 3, 4]]", 400, "inf"),
        (b"[[1e60, 2, 3, 4]]", 400, "inf"),
        (b"[[" + b"9" * 5000 + b", 2, 3, 4]]", 400, "no JSON"),
        (b"[]", 400, ""),
        (b"[[null, 1, 2, 3]]", 400, "numbers"),
    ],
    ids=range(16),
)
def test_a_body_of_json_that_is_wrong_is_400_in_words(server, body, status, words):
    found = told(server, body=body)
    assert found[0] == status and words in found[1], found
    assert ask(server, body="[[1, 2, 3, 4]]")[0] == 200


def header(shape, kind="<f4", version=1):
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"PK\x03\x04",  # of a .npz file
        npy(np.ones((2, 4)))[:-1],
        npy(np.ones((2, 4))) + b"\0",
        header((10**15, 4)),
        header((-1, 4)) + bytes(64),
        header((2, 4), "|O") + b"cos\nsystem\n(S'false'\ntR.",
        header((1,), "<U4") + bytes(16),
        header((1, 4), "<c8") + bytes(32),
        header((1, 4), version=9) + bytes(16),
        header("__import__('os').getpid()") + bytes(16),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        header("(1, 4"),
        header("'''"),
        header("(1, 4)\n  )\n 1"),
        header((1, 4), ()),
        header((1, 4), ("<f4", 2**70)),
        header((1, 4), "O,O,"),
        header((2**70, 0)),
        header("(1, 4), 1: 2"),
        header((1, 4)).replace(b"<f4", b"\xff\x00\xfe"),
    ],
    ids=range(21),
)
def test_a_body_that_is_no_array_of_numbers_is_400_and_never_unpickled(server, body):
    status, words = told(server, body=body, kind=NPY)
    assert status == 400 and "no .npy file" in words


@pytest.mark.filterwarnings("ignore")  # Python's, of what it parses
def test_damaged_headers_are_data_errors(rng):
    """Whatever byte is another, of a header that NumPy parses as Python's text."""
    whole = npy(np.ones((2, 4), np.float32))
    for at in range(6, 128):
        for byte in (*b"()[]{}'\"#,:\\\n\t 0L", *rng.integers(0, 256, 4)):
            body = whole[:at] + bytes([byte]) + whole[at + 1 :]
            try:
                assert from_npy(body).dtype.kind in "fiub"
            except clnn.DataError as error:
                assert "no .npy file" in str(error)


@pytest.mark.parametrize("order", "CF")
def test_npy_reads_what_numpy_writes(order, rng):
    for shape in ((3, 4), (), (0, 2), (2, 3, 4)):
        for kind in ("<f4", ">f8", "u1", "?", "<f2", ">i4"):
            array = np.asarray(rng.normal(size=shape) * 9, order=order).astype(kind)
            assert np.array_equal(from_npy(npy(array)), array)


def test_what_else_is_refused(server, monkeypatch):
    assert told(server, body="[1]", kind="text/plain")[0] == 415
    assert "application/json or application/x-npy, and text/plain" in told(server, body="[1]", kind="text/plain")[1]
    assert told(server, body=b"x", kind="application/x-www-form-urlencoded")[0] == 415
    assert told(server, "/draw", body=b"x" * 9, kind=JSON)[0] == 415
    status, words = told(server, "/draw", body=b"x" * 9, kind=BYTES)
    assert status == 400 and "no pictures of one digit" in words
    for path in (
        "/predict/",
        "/../pyproject.toml",
        "/page.py",
        "/server.py",
        "/%2e%2e/x",
        "/page.js/..",
        "/favicon.ico",
    ):
        assert told(server, path)[0] == 404, path
    status, words = told(server, "/predict")
    assert status == 405 and "takes POST" in words
    assert ask(server, "/", body="[1]")[2]["Allow"] == "GET, HEAD"
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        assert told(server, "/predict", method=method)[0] == 405
    assert ask(server, method="BREW", path="/")[0] == 501
    status, body, _ = ask(server, "/", method="HEAD")
    assert status == 200 and body == b""
    assert ask(server, body=iter([b"[[1, 2, 3, 4]]"]))[0] == 411  # in chunks, of no length that is told
    monkeypatch.setattr(module, "LIMIT", 1000)
    status, words = told(server, body=b" " * 300_000)  # the whole of it is sent, and the words still arrive
    assert status == 413 and "at most 1,000 bytes" in words
    assert ask(server, body="[[1, 2, 3, 4]]")[0] == 200


def raw(server, text):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(text)
        with contextlib.suppress(OSError):  # the other side may have closed it
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_lengths_that_lie(server):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost:%d\r\nContent-Type: application/json\r\n" % server.port
    for line in (b"-1", b"1e3", b"+5", b"\xb2", b"5\r\nContent-Length: 6", b"5\r\nTransfer-Encoding: chunked"):
        assert b" 411 " in raw(server, head + b"Content-Length: " + line + b"\r\n\r\n[1]xx"), line
    assert b" 413 " in raw(server, head + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n")
    assert b" 413 " in raw(server, head + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n")
    assert b"ended after 3 of 5 bytes" in raw(server, head + b"Content-Length: 5\r\n\r\n[1]")
    assert raw(server, b"\0\xff nonsense\r\n\r\n")[:20]  # an error, not silence
    assert ask(server, body="[[1, 2, 3, 4]]")[0] == 200


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("127.0.0.1:{}", True), ("localhost:{}", True), ("LOCALHOST:{}", True), ("[::1]:{}", True), ("127.0.0.5:{}", True),
        ("evil.example:{}", False), ("evil.example", False), ("localhost", False), ("localhost:1", False), ("", False),
        ("127.0.0.1.evil.example:{}", False), ("192.168.0.7:{}", False), ("localhost:{}@evil.example", False),
        ("a@localhost:{}", False), ("localhost:{}/x", False), ("localhost:x", False), ("[::1:{}", False),
    ],
)  # fmt: skip
def test_another_host_is_no_name_of_this_server(server, host, fits):
    host = host.format(server.port)
    assert ask(server, "/model", Host=host)[0] == (200 if fits else 403)
    assert ask(server, body="[[1, 2, 3, 4]]", Host=host)[0] == (200 if fits else 403)


def test_pages_of_other_sites_may_not_ask(server):
    own = f"http://127.0.0.1:{server.port}"
    assert ask(server, body="[[1, 2, 3, 4]]", Origin=own)[0] == 200
    for other in ("http://evil.example", "null", f"{own}0", "http://127.0.0.1"):
        assert ask(server, body="[[1, 2, 3, 4]]", Origin=other)[0] == 403
    headers = ask(server, "/")[2]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"] and "unsafe" not in str(headers)
    assert "Access-Control-Allow-Origin" not in headers and headers["X-Content-Type-Options"] == "nosniff"


def test_other_hosts_only_when_told(net):
    with Server(net) as server:
        assert server.local and server.server_address[0] == "127.0.0.1"
    with Server(net, host="0.0.0.0") as server:  # noqa: S104
        assert not server.local
        for host, fits in (
            ("192.168.0.7", True),
            (socket.gethostname(), True),
            ("localhost", True),
            ("evil.example", False),
        ):
            assert ask(server, "/model", Host=f"{host}:{server.port}")[0] == (200 if fits else 403)
        with pytest.raises(clnn.ConfigurationError, match=f"port {server.port}: .*port 0 takes a free one"):
            Server(net, host="0.0.0.0", port=server.port)
    for host, port in (("no such host", 0), ("203.0.113.1", 0), ("127.0.0.1", 70000), ("127.0.0.1", "80")):
        with pytest.raises(clnn.ConfigurationError, match="nothing can listen on|port should be"):
            Server(net, host, port)


def test_many_at_a_time_are_right_while_another_thread_trains(rng):
    """Between two steps all weights are of one moment, so answers are those of some moment; of a frozen copy they are exact."""
    model = clnn.Sequential([clnn.Dense(16, "tanh"), clnn.Dense(3, "softmax")], input_shape=4, seed=2)
    other = clnn.Sequential([clnn.Dense(16, "tanh"), clnn.Dense(3)], input_shape=4, seed=3)
    x = rng.normal(size=(400, 4)).astype(np.float32)
    end, wrong, done = threading.Event(), [], []

    def train():
        try:
            while not end.is_set():
                model.fit(
                    x,
                    x[:, :3].argmax(1),
                    loss="cross_entropy",
                    optimizer="adam",
                    epochs=3,
                    batch_size=8,
                    progress=False,
                )
        except Exception as error:
            wrong.append(error)

    def keep_asking(server, i):
        mine = x[i : i + 1 + i % 5]
        expected = expectations[i]
        try:
            for _ in range(6):
                found = json.loads(ask(server, body=json.dumps({"x": mine.tolist()}))[1])
                outputs = np.float32(found["outputs"])
                if expected is not None and not np.allclose(outputs, expected, rtol=1e-5, atol=1e-6):
                    wrong.append((i, outputs, expected))
                if expected is None and not np.allclose(outputs, found["probabilities"], atol=0):
                    wrong.append((i, found))  # a step in between
                done.append(i)
        except Exception as error:
            wrong.append(error)

    expectations = {i: None if i % 2 else other.predict(x[i : i + 1 + i % 5]) for i in range(10)}
    trainer = threading.Thread(target=train)
    with Server(model) as first, Server(other) as second:
        trainer.start()
        try:
            askers = [threading.Thread(target=keep_asking, args=((second, first)[i % 2], i)) for i in range(10)]
            [one.start() for one in askers], [one.join(120) for one in askers]
        finally:
            end.set(), trainer.join(120)
    assert not wrong and len(done) == 60


def test_connections_are_limited_and_slow_ones_end(net, monkeypatch):
    monkeypatch.setattr(module, "MOST", 2)
    monkeypatch.setattr(module.Handler, "timeout", 1)
    with Server(net) as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(2)]
        [one.sendall(b"GET / HT") for one in held]
        time.sleep(0.2)
        assert raw(server, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503")
        held[0].settimeout(20)
        assert held[0].recv(10) == b""  # silent for too long
        time.sleep(0.2)
        assert ask(server, "/model")[0] == 200


class Two(clnn.Model):
    def __init__(self):
        self.a, self.b = clnn.Dense(2), clnn.Dense(1)

    def forward(self, left, right):
        y = self.a(left) + right
        return {"sum": y, "one": self.b(y)}


def test_other_models_are_described_and_answered(rng, tmp_path):
    model = Two()
    a, b = (rng.normal(size=(3, n)).astype(np.float32) for n in (5, 2))
    with pytest.raises(clnn.ConfigurationError, match="not built"):
        Server(model)
    with pytest.raises(clnn.ConfigurationError, match="int was given"):
        Server(3)
    model(a, b)
    with Server(model) as server:
        about = json.loads(ask(server, "/model")[1])
        assert [(one["name"], one["shape"]) for one in about["inputs"]] == [("left", [5]), ("right", [2])]
        assert about["draws"] is False
        found = json.loads(ask(server, body=json.dumps({"x": {"left": a.tolist(), "right": b.tolist()}}))[1])
        for name, y in model.predict((a, b)).items():
            assert np.array_equal(np.float32(found["outputs"][name]), y)
        status, words = told(server, body=json.dumps({"x": {"left": a.tolist()}}))
        assert status == 400 and "right" in words
        assert told(server, body=json.dumps({"x": {"left": a.tolist(), "right": b.tolist()}}), Accept=NPY)[0] == 400

    pytest.importorskip("onnx")
    net = clnn.Sequential(
        [clnn.Conv2D(2, 3, "relu"), clnn.Flatten(), clnn.Dense(10, "softmax")], input_shape=(1, 28, 28)
    )
    clnn.onnx.save(net, tmp_path / "net.onnx")
    x = rng.random((2, 1, 28, 28)).astype(np.float32)
    with Server(clnn.onnx.load(tmp_path / "net.onnx")) as server:
        found = json.loads(ask(server, body=json.dumps({"x": x.tolist()}))[1])
        assert np.allclose(found["probabilities"], net.predict(x), atol=1e-5)
        paper = np.zeros((56, 56), np.uint8)
        paper[5:50, 20:30] = 255
        drawn = json.loads(ask(server, "/draw", paper.tobytes(), BYTES)[1])
        assert drawn["what"] == "probability" and drawn["answer"] == np.argmax(drawn["scores"]) and drawn["layers"]
        assert [2, 26, 26] in [one["shape"] for one in drawn["layers"]]


@pytest.mark.parametrize(
    ("last", "loss", "keys"),
    [
        (clnn.Dense(1, "sigmoid"), "binary_cross_entropy", {"outputs", "probabilities", "classes"}),
        (clnn.Dense(3), "hinge", {"outputs", "classes"}),
        (clnn.Dense(3), "mse", {"outputs"}),
        (clnn.Dense(1), "mse", {"outputs"}),
    ],
    ids=["yes or no", "hinge", "three numbers", "a number"],
)
def test_classes_and_probabilities_are_told_where_the_model_has_them(last, loss, keys, x):
    model = clnn.Sequential([last], input_shape=4, seed=1)
    y = np.arange(7) % max(2, last.size) if loss != "mse" else np.zeros((7, last.size), np.float32)
    model.fit(x, y, loss=loss, optimizer="adam", epochs=1, progress=False)
    with Server(model) as server:
        found = json.loads(ask(server, body=json.dumps({"x": x.tolist()}))[1])
    assert set(found) == keys
    if "classes" in keys:
        assert found["classes"] == model.predict_classes(x).tolist()


def test_a_model_that_fails_is_500_and_the_next_request_is_answered(net, monkeypatch):
    with Server(net) as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.answers, "predict", lambda x: 1 / 0)
            assert told(server, body="[[1, 2, 3, 4]]") == (500, "the model failed: ZeroDivisionError: division by zero")
        assert ask(server, body="[[1, 2, 3, 4]]")[0] == 200


# -- the page ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["mnist", "digits"])
def digits(request):
    try:
        (x, y), _ = getattr(clnn.data, request.param)()
    except clnn.DataError as error:
        pytest.skip(f"{error}"[:80])
    model = clnn.Sequential([clnn.Dense(64, "relu"), clnn.Dense(10)], input_shape=x.shape[1], seed=1)
    epochs = 2 if request.param == "mnist" else 20
    model.fit(
        x[:20000],
        y[:20000],
        loss="cross_entropy",
        optimizer="adam",
        epochs=epochs,
        batch_size=32,
        seed=1,
        progress=False,
    )
    return model


def answer(page, expected):
    page.until(f"document.getElementById('answer').textContent === '{expected}'")


def test_a_three_that_is_drawn_is_answered_three(digits, tmp_path):
    """By mouse, by finger on a phone, and by keyboard alone."""
    with Server(digits, name="<img src=x onerror=alert(1)>.safetensors") as server, Browser(tmp_path) as page:
        page.go(server.url)
        page.until("!document.getElementById('digit').hidden")
        assert page.run("document.querySelector('#name').textContent") == "<img src=x onerror=alert(1)>.safetensors"

        def at_paper(points=THREE):
            left, top, width, height = page.box("#paper")
            return [(left + u * width, top + v * height) for u, v in points]

        points = at_paper()
        page.mouse("mousePressed", *points[0])
        for x, y in points[1:8]:
            page.mouse("mouseMoved", x, y)
        page.until("document.querySelectorAll('.layer').length >= 3")  # while one still draws
        for x, y in points[8:]:
            page.mouse("mouseMoved", x, y)
        page.mouse("mouseReleased", *points[-1], buttons=0)
        answer(page, 3)
        shares = page.run(
            "[...document.querySelectorAll('#scores .value')].map(e => parseFloat(e.textContent.replace('>', '')))"
        )
        assert len(shares) == 10 and sum(shares) == pytest.approx(100, abs=1) and np.argmax(shares) == 3
        assert page.run("[...document.querySelectorAll('.layer canvas')].every(c => c.width > 5 && c.height > 5)")
        left, top, width, height = page.box("#clear")
        page.drag([(left + width / 2, top + height / 2)])
        answer(page, "?")

        page.size(390, 844, 2, True)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        page.drag(at_paper(), touch=True)
        answer(page, 3)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")

        page.size(1100, 900)
        page.go(server.url)
        page.until("document.activeElement.id === 'paper'")  # a page just opened can be drawn on
        answer(page, "?")
        keys = {"L": ("ArrowLeft", 37), "U": ("ArrowUp", 38), "R": ("ArrowRight", 39), "D": ("ArrowDown", 40)}
        for one in "LLLL RRRRRRRDDDDDDLLLLL RRRRR DDDDDDDLLLLLLLL":
            page.key(*keys[one]) if one in keys else None
            if one == " ":
                page.key(" ", 32, " ")
        answer(page, 3)
        page.key("z", 90, "z")
        page.key("z", 90, "z")
        page.until("document.getElementById('answer').textContent !== '3'")
        for expected in ("undo", "clear"):
            page.key("Tab", 9)
            assert page.run("document.activeElement.id") == expected
        page.key("Enter", 13, "\r")
        answer(page, "?")
        assert not page.faults()


def test_the_page_of_another_model_asks_with_numbers(server, net, tmp_path):
    with Browser(tmp_path, 390, 844) as page:
        page.go(server.url)
        page.until("!document.getElementById('arrays').hidden")
        assert page.run("document.getElementById('digit').hidden")
        assert "x, float32, (batch, 4)" in page.run("document.getElementById('takes').textContent")
        page.run("document.querySelector('#form button').click()")
        page.until("document.getElementById('result').textContent")
        found = json.loads(page.run("document.getElementById('result').textContent"))
        assert np.allclose(found["outputs"], net.predict(np.zeros((1, 4), np.float32)), atol=1e-6)
        page.run("document.getElementById('body').value = '[[1, 2]]', document.querySelector('#form button').click()")
        page.until("!document.getElementById('error').hidden")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")


# -- the command -------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for another process on Windows")
def test_the_command_serves_a_file_until_it_is_interrupted(net, tmp_path):
    net.save(tmp_path / "net.safetensors")
    command = [sys.executable, "-m", "clnn", "serve", str(tmp_path / "net.safetensors"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line and "this machine alone reaches it" in line, process.stderr.read()
        port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/model")
        assert json.loads(connection.getresponse().read())["name"] == "net.safetensors"
        connection.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in err and "ended" in out, err
    finally:
        process.kill()


@pytest.mark.parametrize("name", ["missing.safetensors", "text.safetensors", "text.onnx", "folder.safetensors"])
def test_the_command_with_what_is_no_model(name, tmp_path, capsys):
    from clnn.tools import cli

    if name.endswith("onnx"):
        pytest.importorskip("onnx")
    (tmp_path / "folder.safetensors").mkdir()
    for file in ("text.safetensors", "text.onnx"):
        (tmp_path / file).write_text("no model")
    assert cli.main(["serve", str(tmp_path / name)]) == 1
    assert capsys.readouterr().err.startswith("clnn: ")
