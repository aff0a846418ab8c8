"""What a program can do to the Space, without a browser."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

gradio_client = pytest.importorskip("gradio_client")

from hf_mmembed.model.images_mmembed import MAX_ASPECT_RATIO  # noqa: E402
from tests.hub.hub_server import running_hub  # noqa: E402

QUERIES = ["a red star", "a blue circle", "two small hearts", "a large green moon", "an orange cross"]


@pytest.fixture
def client(space, tmp_path):
    connected = gradio_client.Client(space.url, verbose=False, download_files=str(tmp_path))
    yield connected
    connected.close()


def search(client, text, picture=None, k=4):
    return client.predict(text, picture, "", k, api_name="/search")  # a parameter that is left out has its default


def test_fifty_queries_at_once_are_answered_each_with_its_own(space):
    texts = [QUERIES[number % 5] for number in range(50)]
    alone = {text: space.ask(text) for text in QUERIES}
    with ThreadPoolExecutor(50) as pool:
        together = list(pool.map(space.ask, texts))
    assert len(set(alone.values())) == 5
    assert together == [alone[text] for text in texts]


def test_memory_stays_flat_over_many_queries(space):
    """In one tab. What is kept of a query would show, were it only the results that are sent (20 kB)."""
    for number in range(60):
        space.ask(f"{QUERIES[number % 5]} {number}", session="one")
    before = space.memory()
    for number in range(300):
        space.ask(f"{QUERIES[number % 5]} {number}", session="one")
    assert space.memory() - before < 300 * 20_000


def test_a_trace_is_shown_with_the_results_and_changes_them(space):
    without, thought = space.ask("a red star", k=25), space.ask("a red star", k=25, think=True)
    assert "What mmembed-tiny thought first" in thought and "thought" not in without
    assert re.search(r"<pre tabindex=\"0\">[^<]+</pre>", thought), "an empty trace"
    scores = [re.findall(r'class="score"[^>]*>(-?[\d.]+)', results) for results in (without, thought)]
    assert len(scores[0]) == len(scores[1]) == 25 and scores[0] != scores[1]


def test_a_url_in_place_of_a_file_is_refused_and_not_fetched(client):
    with running_hub() as somewhere:
        for url in (somewhere.endpoint + "/secret.png", "http://169.254.169.254/latest/meta-data/"):
            picture = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
            with pytest.raises(Exception, match="not fetched|upload"):
                search(client, "", picture)
        assert somewhere.requests == []


def test_a_file_of_the_server_cannot_be_named(client):
    for path in ("/etc/hostname", str(Path(__file__))):
        with pytest.raises(Exception) as refused:  # noqa: PT011  (gradio's own error, of several classes)
            search(client, "", {"path": path, "meta": {"_type": "gradio.FileData"}})
        assert "root:" not in str(refused.value)


def test_text_that_looks_like_a_path_or_an_address_is_text(client, tmp_path):
    picture = tmp_path / "star.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    with running_hub() as somewhere:
        for text in (str(picture), somewhere.endpoint + "/a.png", "data:image/png;base64,AAAA", "<|image_pad|>"):
            assert "cosine" in search(client, text)
        assert somewhere.requests == []


def test_what_is_wrong_is_said_without_inner_details(client, tmp_path):
    thin = tmp_path / "thin.png"
    Image.new("RGB", (MAX_ASPECT_RATIO + 1, 1)).save(thin)
    for arguments, message in (
        ({"text": ""}, "Type something"),
        ({"text": "x" * 5000}, "limit here is"),
        ({"text": "", "picture": gradio_client.handle_file(thin)}, "200 times"),
    ):
        with pytest.raises(Exception, match=message) as refused:
            search(client, **arguments)
        assert "Traceback" not in str(refused.value) and str(tmp_path) not in str(refused.value)


def test_markup_in_a_text_is_shown_as_text(client):
    chart, prompts = client.predict("<img src=x onerror=alert(1)>", None, "<script>", api_name="/compare")
    assert "<img src=x" not in prompts + chart and "<script>" not in prompts + chart
    heat = client.predict("<script>alert(1)</script>", api_name="/similarity_map")
    assert "<script>" not in heat


def test_the_explorer_takes_the_values_that_it_documents(client):
    [row] = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/explore"]["parameters"]
    last = re.findall(r"'(\d+)'", row["python_type"]["type"])[-1]
    own, steps, cluster = client.predict(last, api_name="/explore")
    assert "the marked answer" in own and "<ol" in steps and "cluster" in cluster


def test_similarity_map_takes_eight_texts_at_most(client):
    assert client.predict("\n".join(["a star"] * 20), api_name="/similarity_map").count("<tr>") == 9
