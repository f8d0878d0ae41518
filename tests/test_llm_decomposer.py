"""The client against a real HTTP server on this machine that answers well, slowly, wrongly, or not at first."""

import json
import logging
import socket
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rrg_utils.artifacts import cache_dir
from rrg_utils.errors import RRGError
from rrg_utils.labels import TopicSentence, decompose
from rrg_utils.labels.llm_decomposer import SCHEMA, LLMDecomposer, instructions
from rrg_utils.labels.ontology import TOPICS

KEY = "sk-test-0123456789-never-to-be-seen"
TEXT = "The heart is enlarged. No pneumothorax. Possible pneumonia."
GOOD = [
    TopicSentence("disease-cardiomegaly", "The heart is enlarged.", "present"),
    TopicSentence("disease-pneumothorax", "Pneumothorax is absent.", "absent"),
]


def answer(topics) -> bytes:
    content = topics if isinstance(topics, str) else json.dumps({"topics": topics})
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


def items(*topics: TopicSentence) -> list[dict]:
    return [topic._asdict() for topic in topics]


class Server(ThreadingHTTPServer):
    """Answers with what is in `script`, (status, body, headers, seconds to wait), the last one for ever."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = deque([(200, answer(items(*GOOD)), {}, 0.0)])
        self.requests: list[tuple[str, dict, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def play(self, *script) -> None:
        self.script = deque((*step, *(b"", {}, 0.0)[len(step) - 1 :]) for step in script)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body, self.headers.get("Authorization")))
        script = self.server.script
        status, content, headers, wait = script.popleft() if len(script) > 1 else script[0]
        time.sleep(wait)
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            pass  # the client has gone

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("RRG_CACHE", str(tmp_path))
    monkeypatch.setenv("TEST_KEY", KEY)
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def decomposer(server, **options) -> LLMDecomposer:
    return LLMDecomposer(server.url, "m", **{"backoff_s": 0.01, "timeout_s": 5.0, **options})


def kept() -> list[str]:
    """Whole entries of the cache."""
    return [path.parent.name for path in (cache_dir() / "llm-topics").glob("*/manifest.json")]


def test_a_good_answer_is_kept(server):
    model = decomposer(server, key_variable="TEST_KEY")
    assert model(TEXT) == GOOD
    assert model(TEXT) == GOOD
    assert len(server.requests) == 1
    path, body, authorization = server.requests[0]
    assert path == "/v1/chat/completions"
    assert authorization == f"Bearer {KEY}"
    assert body["messages"] == [
        {"role": "system", "content": instructions()},
        {"role": "user", "content": TEXT},
    ]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert len(kept()) == 1
    for file in cache_dir().rglob("*"):
        if file.is_file():
            assert KEY not in file.read_text()
            assert TEXT not in file.read_text()  # a report is never copied


def test_another_model_is_asked_anew(server):
    decomposer(server)(TEXT)
    LLMDecomposer(server.url, "other", backoff_s=0.01, response_format="json_object")(TEXT)
    assert len(server.requests) == 2
    assert server.requests[0][2] is None
    assert server.requests[1][1]["response_format"] == {"type": "json_object"}


def test_the_rules_own_answer_passes(server):
    texts = [
        "Stable cardiomegaly. No pneumothorax or pleural effusion. The lungs are clear.",
        "No significant interval change in left basilar atelectasis. There is no acute infiltrate.",
        "Heart size and mediastinal contours are within normal limits. No acute bony abnormality.",
    ]
    for text in texts:
        server.play((200, answer(items(*decompose(text)))))
        assert decomposer(server, attempts=1)(text) == decompose(text)


BAD = {
    "not JSON": "I am sorry, I cannot do that.",
    "no list": "[1, 2]",
    "fields": [{"topic": "disease-pneumothorax", "sentence": "Pneumothorax is absent."}],
    "no string": [{"topic": "disease-pneumothorax", "sentence": None, "polarity": "absent"}],
    "empty field": [{"topic": "disease-pneumothorax", "sentence": " ", "polarity": "absent"}],
    "unknown topic": [{"topic": "disease-flu", "sentence": "Influenza.", "polarity": "present"}],
    "unknown polarity": [{"topic": "disease-pneumothorax", "sentence": "Pneumothorax is absent.", "polarity": "no"}],
    "another has": items(GOOD[1], GOOD[1]),
    "report does not": items(*GOOD, TopicSentence("disease-fracture", "There is a rib fracture.", "present")),
    "report does": items(TopicSentence("disease-pneumonia", "Pneumonia in the right lung.", "present")),  # speculation
    "other polarity": items(GOOD[1]._replace(polarity="present")),
    "list is empty": [],
}


@pytest.mark.parametrize("topics", BAD.values(), ids=BAD)
def test_an_unusable_answer_is_asked_for_again(server, topics):
    server.play((200, answer(topics)), (200, answer(items(*GOOD))))
    assert decomposer(server)(TEXT) == GOOD
    assert len(server.requests) == 2


@pytest.mark.parametrize("topics", [BAD["not JSON"], BAD["unknown topic"]])
def test_nonsense_for_ever(server, topics):
    server.play((200, answer(topics)))
    with pytest.raises(RRGError, match="no usable decomposition from m in 3 attempts") as error:
        decomposer(server, attempts=3)(TEXT)
    assert "\n" not in str(error.value)
    assert len(server.requests) == 3
    assert kept() == []
    assert not list((cache_dir() / "llm-topics").glob("*.tmp"))


def test_429_and_500_then_an_answer(server):
    server.play((429, b"", {"Retry-After": "0"}), (500,), (200, b"{}"), (200, answer(items(*GOOD))))
    assert decomposer(server)(TEXT) == GOOD
    assert len(server.requests) == 4


def test_retry_after_is_kept(server):
    server.play((429, b"", {"Retry-After": "1"}), (200, answer(items(*GOOD))))
    start = time.monotonic()
    decomposer(server)(TEXT)
    assert time.monotonic() - start >= 1


@pytest.mark.parametrize(("status", "word"), [(401, "key_variable"), (404, "check url"), (400, "response_format")])
def test_a_refusal_is_not_repeated(server, status, word):
    server.play((status, f"Incorrect API key provided: {KEY}".encode()))
    with pytest.raises(RRGError, match=word) as error:
        decomposer(server, key_variable="TEST_KEY")(TEXT)
    assert KEY not in str(error.value)
    assert len(server.requests) == 1


def test_redirects_do_not_carry_the_key_away(server):
    server.play((307, b"", {"Location": "http://127.0.0.1:9/v1"}))
    with pytest.raises(RRGError, match="HTTP 307"):
        decomposer(server, key_variable="TEST_KEY")(TEXT)


def test_slow(server):
    server.play((200, answer(items(*GOOD)), {}, 1.5))
    with pytest.raises(RRGError, match="no answer in time"):
        decomposer(server, timeout_s=0.3, attempts=2)(TEXT)
    assert kept() == []


def test_down():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(RRGError, match="no connection") as error:
        LLMDecomposer(url, "m", attempts=2, backoff_s=0.01)(TEXT)
    assert url in str(error.value)


def test_the_key_is_in_no_log_and_no_error(server, caplog):
    caplog.set_level(logging.DEBUG)
    server.play((500, KEY.encode()), (200, answer(KEY)), (200, answer([{KEY: KEY}])))
    model = decomposer(server, key_variable="TEST_KEY", attempts=3)
    with pytest.raises(RRGError) as error:
        model(TEXT)
    chain, text = error.value, ""
    while chain is not None:
        text += repr(chain)
        chain = chain.__cause__ or chain.__context__
    assert KEY not in text + caplog.text + repr(model) + repr(vars(model))
    assert "attempt 2 of 3" in caplog.text


def test_what_was_done_is_kept(server):
    texts = [f"No pneumothorax. Heart size is normal, {number}." for number in range(4)]
    good = (200, answer(items(GOOD[1])))
    server.play(good, good, (400,))
    with pytest.raises(RRGError, match="HTTP 400"):
        decomposer(server).decompose_all(texts, workers=1)
    assert len(kept()) == 2
    server.play(good)
    before = len(server.requests)
    assert decomposer(server).decompose_all(texts, workers=2) == [[GOOD[1]]] * 4
    assert len(server.requests) - before == 2


def test_many_equal_and_empty_texts(server):
    model = decomposer(server)
    assert model.decompose_all([TEXT, "", TEXT, " "]) == [GOOD, [], GOOD, []]
    assert len(server.requests) == 1
    assert model.decompose_all([]) == []


def test_bad_input(server, monkeypatch):
    with pytest.raises(RRGError, match="must be a string"):
        decomposer(server)(None)
    for url in ("localhost:8000", "ftp://host", "", None, 3):
        with pytest.raises(RRGError, match="url must be the base"):
            LLMDecomposer(url, "m")
    for url in (f"http://user:{KEY}@host/v1", f"http://host/v1?key={KEY}"):
        with pytest.raises(RRGError, match="must not carry") as error:
            LLMDecomposer(url, "m")
        assert KEY not in str(error.value)
    with pytest.raises(RRGError, match="NO_SUCH_KEY holds no key"):
        decomposer(server, key_variable="NO_SUCH_KEY")
    monkeypatch.setenv("TEST_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(RRGError, match="TEST_KEY has characters") as error:
        decomposer(server, key_variable="TEST_KEY")
    assert KEY not in str(error.value)
    for options in ({"attempts": 0}, {"timeout_s": 0}, {"backoff_s": -1}, {"response_format": "xml"}):
        with pytest.raises(RRGError):
            decomposer(server, **options)
    with pytest.raises(RRGError, match="workers"):
        decomposer(server).decompose_all([TEXT], workers=0)


def test_instructions_name_every_topic():
    text = instructions()
    for topic in TOPICS.values():
        assert f"- {topic.name}" in text
        assert topic.negative in text
