"""Generated bad requests, a hundred or five hundred: each is answered by a sentence, none by a fault, and nothing is left behind."""

import pytest

from tests.serve.bad_requests import bad_requests
from tests.serve.server import serving

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.thorough)])
def test_each_is_a_4xx_with_a_sentence_and_leaves_nothing(count, tmp_path):
    with serving(tmp_path) as server:
        before = sorted(file.name for file in tmp_path.rglob("*"))
        for number, bad in enumerate(bad_requests(count, seed=19)):
            answer = server.http.request(bad.method, bad.path, **bad.how)
            told = f"{number} {bad}: {answer.status_code} {answer.text[:300]}"
            assert 400 <= answer.status_code < 500, told
            sentence = answer.json()["error"]["message"]
            assert sentence.endswith(".") and len(sentence) < 400, told
        assert not server.http.get("/v1/videos").json()["data"]
        assert sorted(file.name for file in tmp_path.rglob("*")) == before
        server.make("the server still works")
