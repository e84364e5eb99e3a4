"""The service: what it answers, what it refuses, and that nobody disturbs the others."""

import asyncio
import base64
import io
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from served import CLASSES, WAY, artifact, ask, multipart, png, running, sampled

from thinned.cli.main import main
from thinned.deploy.batching import Batcher
from thinned.deploy.server import Bounds, Model

JSON = {"Content-Type": "application/json"}


def as_json(*files):
    return json.dumps({"images": [base64.b64encode(file).decode() for file in files]}), JSON


@pytest.fixture(scope="module")
def model():
    return Model(artifact(), WAY)


@pytest.fixture(scope="module")
def port(model):
    with running(model, Bounds(images=4, body_bytes=20_000, pixels=10_000)) as (port, *_):
        yield port


def test_images_are_answered_as_the_artifact_predicts_them(model, port):
    files = [png(0), png(255), png(60)]
    status, _, found = ask(port, "POST", "/predict", *multipart(files))
    assert status == 200
    assert found["model"] == "d1"
    images = np.stack([np.full((8, 8, 1), value, np.uint8) for value in (0, 255, 60)])
    wanted = model.answers.rows(images, model.artifact.predictions(images, WAY))
    for row, own in zip(found["results"], wanted, strict=True):
        assert row.keys() == own.keys() | {"doubts"}
        for name, value in own.items():
            assert row[name] == (pytest.approx(value) if isinstance(value, float) else value)
    assert [row["class"] for row in found["results"]] == ["dark", "bright", "dark"]
    assert ask(port, "POST", "/predict", *as_json(*files))[2] == found


def test_doubts_say_why_an_answer_is_not_to_be_relied_on(model, port):
    sure, between = ask(port, "POST", "/predict", *multipart([png(0), png(64)]))[2]["results"]
    assert sure["doubts"] == []
    assert "several classes fit" in between["doubts"]
    assert sorted(between["set"]) == ["dark", "middle"]
    strange = {"probability": 0.9, "known": False, "set": [], "unsure": True}
    assert len(model.doubts(strange)) == 3
    bare = Model(artifact(), WAY._replace(sets=None, selection=None, known=None))
    assert len(bare.doubts({"probability": 0.7})) == 1
    assert not bare.doubts({"probability": 0.9})
    # A threshold above all answers says nothing of one of them.
    selection = WAY.selection._replace(threshold=np.inf)
    mute = Model(artifact(), WAY._replace(selection=selection))
    assert not mute.doubts({"probability": 0.9, "unsure": True, "set": ["dark"]})


def test_detail_gives_what_each_thinned_network_says(port):
    _, _, found = ask(port, "POST", "/predict?detail=1", *multipart([png(64)]))
    (row,) = found["results"]
    assert {each["class"] for each in row["top"]} == set(CLASSES)
    samples = np.array([each["samples"] for each in row["top"]])
    assert samples.shape == (3, 5)
    np.testing.assert_allclose(samples.sum(0), 1, atol=1e-3)
    mean = [each["probability"] for each in row["top"]]
    np.testing.assert_allclose(samples.mean(1), mean, atol=1e-3)


def test_an_unreadable_image_costs_the_others_nothing(port):
    large = png(0, (200, 100))
    status, _, found = ask(port, "POST", "/predict", *multipart([b"no", png(255), large]))
    assert status == 200
    errors = [row.get("error", "") for row in found["results"]]
    assert "no image" in errors[0]
    assert errors[1] == ""
    assert "more than 10,000 pixels" in errors[2]
    status, _, found = ask(port, "POST", "/predict", *as_json(b"no"))
    assert (status, list(found)) == (422, ["error"])


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, as_json()),
        (400, as_json(*[png(0)] * 5)),
        (400, ('{"images": ["/etc/passwd"]}', JSON)),
        (400, ('{"images": ["http://127.0.0.1/a.png"]}', JSON)),
        (400, ('{"images": "AAAA"}', JSON)),
        (400, ("[" * 5000, JSON)),
        (400, (b"\xff\xfe", JSON)),
        (400, multipart([b"file:///etc/passwd"], named=False)),
        (400, (b"--x", {"Content-Type": "multipart/form-data"})),
        (400, (b"rubbish", {"Content-Type": "multipart/form-data; boundary=b"})),
        (413, (b"x" * 20_001, JSON)),
        (415, (png(0), {"Content-Type": "image/png"})),
        (415, (png(0), {})),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(port, status, request_):
    found, _, content = ask(port, "POST", "/predict", *request_)
    assert found == status
    assert list(content) == ["error"]
    assert "\n" not in content["error"]


@hypothesis.settings(max_examples=12)
@hypothesis.given(
    st.binary(max_size=300),
    st.sampled_from(("application/json", "multipart/form-data; boundary=b", "text/plain", "")),
)
def test_no_request_is_an_error_of_the_server(port, body, kind):
    for content in (body, b'{"images": [' + body, b"--b\r\n" + body + b"\r\n--b--\r\n"):
        status, _, answer = ask(port, "POST", "/predict", content, {"Content-Type": kind})
        assert status in (400, 415, 422), answer


def test_a_body_of_unknown_length_is_bounded_too(port):
    def parts():
        for _ in range(50):
            yield b"x" * 1000

    try:
        status, headers, _ = ask(port, "POST", "/predict", parts(), JSON)
    except OSError:
        # It closed before all was sent.
        return
    assert status == 413
    assert headers["connection"] == "close"


class Held:
    """A network that answers only when it may, and says how many it was asked at once."""

    def __init__(self):
        self.go, self.began = threading.Event(), threading.Event()
        self.sizes = []

    def __call__(self, weights, images, keys):
        self.sizes.append(len(images))
        self.began.set()
        assert self.go.wait(60)
        return sampled(weights, images, keys)


@pytest.fixture
def held():
    network = Held()
    yield network
    network.go.set()


def test_what_arrives_together_is_computed_together_and_no_more_waits_than_may(held):
    model = Model(artifact(held), WAY)
    one = ("POST", "/predict", *multipart([png(0)]))
    with running(model, Bounds(waiting=3)) as (port, *_), ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, port, *one)]
        assert held.began.wait(60)
        answers.append(pool.submit(ask, port, "POST", "/predict", *multipart([png(255)] * 3)))
        while b"thinned_waiting_images 3.0" not in ask(port, "GET", "/metrics")[2]:
            pass
        status, headers, _ = ask(port, *one)
        assert status == 503
        assert headers["retry-after"] == "1"
        held.go.set()
        assert [answer.result()[0] for answer in answers] == [200, 200]
        assert held.sizes == [1, 4]
        _, _, metrics = ask(port, "GET", "/metrics")
    text = metrics.decode()
    assert 'thinned_requests_total{status="503"} 1.0' in text
    assert "thinned_images_total 4.0" in text
    assert "thinned_batch_images_count 2.0" in text


def test_a_lone_question_is_computed_at_once_and_alone():
    sizes = []

    def compute(items):
        sizes.append(len(items))
        return [2 * item for item in items]

    async def asked():
        # Nothing could be waited for: there is no clock.
        loop = asyncio.get_running_loop()
        loop.call_later = loop.call_at = None
        batcher = Batcher(compute, 16, 64)
        return [await batcher.ask([item]) for item in range(3)]

    assert asyncio.run(asked()) == [[0], [2], [4]]
    assert sizes == [1, 1, 1]


def test_a_small_image_is_handed_to_no_other_thread_to_be_decoded(model, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    of_many_bytes = buffer.getvalue()
    assert len(of_many_bytes) > 8192
    with running(model) as (port, service, _):
        handed = []
        submit = service._decoders.submit
        monkeypatch.setattr(
            service._decoders,
            "submit",
            lambda *given: (handed.append(given[-1]), submit(*given))[1],
        )
        # Others are: of many bytes, of many pixels in few bytes, unreadable, several.
        for files, expected in (
            ([png(255)], 0),
            ([of_many_bytes], 1),
            ([png(255, (100, 100))], 1),
            ([b"no"], 1),
            ([png(255), png(0)], 2),
        ):
            handed.clear()
            status = ask(port, "POST", "/predict", *multipart(files))[0]
            assert (status, len(handed)) == (422 if files == [b"no"] else 200, expected)


def test_stopping_answers_what_has_begun(held):
    model = Model(artifact(held), WAY)
    with running(model) as (port, _, server), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, port, "POST", "/predict", *multipart([png(0)]))
        assert held.began.wait(60)
        server.should_exit = True
        held.go.set()
        assert answer.result()[0] == 200


def test_who_hangs_up_or_is_slow_disturbs_nobody(held, model):
    with running(model, Bounds(read_s=0.2)) as (port, service, _):
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(head + b"Content-Length: 1000\r\n\r\nabc")
        with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
            slow.sendall(head + b"Content-Length: 1000\r\n\r\nabc")
            assert ask(port, "POST", "/predict", *multipart([png(0)]))[0] == 200
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        assert ask(port, "GET", "/health")[0] == 200
        assert service.held == 0


def test_the_page_and_the_description_name_no_foreign_address(port):
    for path in ("/", "/docs"):
        status, headers, content = ask(port, "GET", path)
        assert status == 200
        text = content.decode()
        addresses = set(re.findall(r"https?://[^\s\"'<&]+", text))
        assert {each for each in addresses if "127.0.0.1" not in each} <= {
            "http://www.w3.org/2000/svg"
        }
        assert not re.search(r"(?:src|href)=[\"']?//", text)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    _, _, described = ask(port, "GET", "/openapi.json")
    assert set(described["paths"]) == {"/predict", "/health", "/model", "/metrics"}
    schema = described["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    known = schema["application/json"]["schema"]["properties"]["results"]["items"]["properties"]
    (row,) = ask(port, "POST", "/predict?detail=1", *multipart([png(9)]))[2]["results"]
    assert row.keys() <= known.keys()
    assert ask(port, "GET", "/model")[2]["classes"] == list(CLASSES)
    assert ask(port, "GET", "/health")[2] == {"status": "ready", "model": "d1"}
    assert ask(port, "GET", "/nowhere")[0] == 404
    assert ask(port, "GET", "/predict")[0] == 405


def test_serving_refuses_in_one_line_what_it_cannot(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken_port = str(taken.getsockname()[1])
        for words, reason in {
            ("serve",): "no run is given",
            ("serve", str(tmp_path), "--port", "0"): "no run folder",
            ("serve", str(tmp_path), "--port", taken_port): "cannot listen",
            ("serve", str(tmp_path), "--host", "203.0.113.1"): "cannot listen",
        }.items():
            assert main(list(words)) == 2
            error = capsys.readouterr().err
            assert reason in error
            assert error.count("\n") == 1
