"""Reports taken apart by a language model behind an OpenAI-compatible endpoint, as the paper does with DeepSeek-V3.

    export MY_KEY=...                                # the key is read from the environment and kept nowhere
    model = LLMDecomposer("https://host/v1", "deepseek-chat", key_variable="MY_KEY", response_format="json_object")
    topics = model.decompose_all(texts)              # list[list[TopicSentence]], what `decompose` gives by rule

LLaVA-TA's prompt is not published; `instructions` is ours, made from the ontology. An answer is checked before it
counts: every topic known and used once, every field there, and nothing told that the rules do not find in the report.
What fails is asked again. Each report's answer is kept in the cache as soon as it is there, so an interrupted run goes
on where it stopped.

Reports of MIMIC-CXR may go to a server of your own only: its data-use agreement forbids outside services that keep what
they are sent.
"""

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import httpx

from rrg_utils.artifacts import artifact
from rrg_utils.errors import RRGError
from rrg_utils.labels.mentions import check_text
from rrg_utils.labels.ontology import TOPICS
from rrg_utils.labels.topics import POLARITIES, TopicSentence, told_topics

log = logging.getLogger("rrg")

_FIELDS = ("topic", "sentence", "polarity")
_LONGEST_WAIT = 60.0  # seconds; a server may ask for more, nobody waits longer
SCHEMA = {
    "type": "object",
    "properties": {
        "topics": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "topic": {"type": "string", "enum": list(TOPICS)},
                    "sentence": {"type": "string"},
                    "polarity": {"type": "string", "enum": list(POLARITIES)},
                },
                "required": list(_FIELDS),
                "additionalProperties": False,
            },
        }
    },
    "required": ["topics"],
    "additionalProperties": False,
}


def instructions() -> str:
    """What the model is told before every report."""
    lines = "\n".join(
        f"- {topic.name}" + (f" ({', '.join(topic.findings)})" if topic.findings else "") + f': "{topic.negative}"'
        for topic in TOPICS.values()
    )
    return (
        "You take the findings section of a chest radiograph report apart into one sentence per topic.\n"
        "1. Remove every comparison with earlier examinations, every recommendation and every remark on technique.\n"
        "2. Remove speculation (may represent, cannot be excluded, versus); keep what is seen.\n"
        "3. Give each remaining statement exactly one topic, the first in the list below that fits.\n"
        "4. Write at most one sentence per topic, in the report's own words where they speak of that topic alone.\n"
        "5. Write what is denied in the fixed form, as quoted in the list.\n"
        "6. polarity is present if the sentence tells something abnormal or a device, absent if it denies it or the "
        "part is normal.\n"
        "7. Add nothing that the report does not say. An empty list is right for a report without findings.\n"
        'Answer with JSON alone: {"topics": [{"topic": ..., "sentence": ..., "polarity": ...}, ...]} in the report\'s '
        f"order.\nTopics:\n{lines}"
    )


class _Unusable(Exception):
    """An answer, or none, that another attempt may mend. `wait`: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class LLMDecomposer:
    """`decompose` by a model at `url` (up to and with "/v1").

    key_variable: the environment variable that holds the key; None for a server that wants none.
    timeout_s: seconds to wait for a connection, and for the server to go on with its answer. attempts: how often a
    report is asked for in all, with pauses of `backoff_s`, twice that, ... or what the server's Retry-After says.
    response_format: "json_schema" makes the server keep to `SCHEMA` (OpenAI, vLLM, llama.cpp); "json_object" is for
    servers that know only that (DeepSeek). The answer is checked in either case.

    Raises RRGError for a URL, key or number that cannot be used.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str | None = None,
        timeout_s: float = 60.0,
        attempts: int = 4,
        backoff_s: float = 1.0,
        response_format: Literal["json_schema", "json_object"] = "json_schema",
    ):
        self.url, self.model, self.attempts, self.backoff_s = _checked_url(url), model, attempts, backoff_s
        if not isinstance(model, str) or not model.strip():
            raise RRGError("model must be the name of a model that the endpoint serves")
        if attempts < 1 or timeout_s <= 0 or backoff_s < 0:
            raise RRGError("attempts must be at least 1, timeout_s above 0 and backoff_s not negative")
        if response_format not in ("json_schema", "json_object"):
            raise RRGError(f"response_format must be json_schema or json_object, got {response_format!r}")
        self.response_format = response_format
        headers = {} if key_variable is None else {"Authorization": f"Bearer {_key(key_variable)}"}
        self._client = httpx.Client(headers=headers, timeout=timeout_s)  # follows no redirect: the key stays here

    def __call__(self, text: str) -> list[TopicSentence]:
        """The topics of one report, from the cache or asked for now. An empty text has none and is not sent.

        Raises RRGError if `text` is not a string, or no usable answer comes; nothing is then kept.
        """
        if not check_text(text).strip():
            return []
        inputs = {
            "url": self.url,
            "model": self.model,
            "format": self.response_format,
            "instructions": hashlib.sha256(instructions().encode()).hexdigest(),
            "text": hashlib.sha256(text.encode()).hexdigest(),  # a digest: the cache holds no report
        }

        def make(folder: Path) -> None:
            (folder / "topics.json").write_text(json.dumps(self._ask(text)))

        folder = artifact("llm-topics", inputs, make)
        return [TopicSentence(*fields) for fields in json.loads((folder / "topics.json").read_text())]

    def decompose_all(
        self, texts: Iterable[str], workers: int = 8, progress: bool | None = None
    ) -> list[list[TopicSentence]]:
        """The topics of many reports, `workers` asked for at a time. The first failure ends it; what was answered by
        then is in the cache. `progress` draws a bar; by default in a terminal only."""
        from tqdm.auto import tqdm

        texts = [check_text(text) for text in texts]
        if workers < 1:
            raise RRGError(f"workers={workers}: at least 1")
        distinct = list(dict.fromkeys(texts))
        show = sys.stderr.isatty() if progress is None else progress
        pool = ThreadPoolExecutor(workers)
        try:
            answers = list(tqdm(pool.map(self, distinct), total=len(distinct), desc=self.model, disable=not show))
        finally:
            pool.shutdown(cancel_futures=True)
        topics = dict(zip(distinct, answers, strict=True))
        return [list(topics[text]) for text in texts]

    def _ask(self, text: str) -> list[TopicSentence]:
        """A checked answer, within the number of attempts."""
        known = told_topics(text)
        for attempt in range(1, self.attempts + 1):
            try:
                return _checked_answer(self._complete(text), known)
            except _Unusable as error:
                reason, wait = str(error), max(error.wait, self.backoff_s * 2 ** (attempt - 1))
            if attempt < self.attempts:
                log.info("%s: %s; attempt %d of %d follows", self.url, reason, attempt + 1, self.attempts)
                time.sleep(min(wait, _LONGEST_WAIT))
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        raise RRGError(
            f"{self.url}: no usable decomposition from {self.model} in {tries} ({reason}); what was answered before is "
            "kept: run again, or use the rules (rrg_utils.labels.decompose)"
        )

    def _complete(self, text: str) -> str:
        """The text that the model answers with. No message repeats what a server says: some servers quote the key."""
        kind = {"type": self.response_format}
        if self.response_format == "json_schema":
            kind["json_schema"] = {"name": "decomposition", "strict": True, "schema": SCHEMA}
        messages = [{"role": "system", "content": instructions()}, {"role": "user", "content": text}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "response_format": kind}
        try:
            response = self._client.post(f"{self.url}/chat/completions", json=body)
        except httpx.TimeoutException:
            raise _Unusable("no answer in time") from None
        except httpx.HTTPError as error:
            raise _Unusable(f"no connection, {type(error).__name__}") from None
        status = response.status_code
        if status == 429 or status >= 500:
            raise _Unusable(f"HTTP {status}", _seconds(response.headers.get("Retry-After", "")))
        if status in (401, 403):
            raise RRGError(f"{self.url}: HTTP {status}, the key was refused or is missing: check key_variable")
        if status != 200:
            raise RRGError(f"{self.url}: HTTP {status} for model {self.model}: check url, model and response_format")
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            content = None
        if not isinstance(content, str):
            raise _Unusable("the answer is no chat completion")
        return content


def _checked_answer(content: str, known: set[tuple[str, str]]) -> list[TopicSentence]:
    """The topics in an answer; `known` is what the report tells. Raises _Unusable that says what is wrong and where."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise _Unusable("the answer is not JSON") from None
    items = answer.get("topics") if isinstance(answer, dict) else None
    if not isinstance(items, list):
        raise _Unusable('the answer has no list "topics"')
    topics: list[TopicSentence] = []
    for place, item in enumerate(items, 1):
        if not isinstance(item, dict) or set(item) != set(_FIELDS):
            raise _Unusable(f"item {place} has not the fields {', '.join(_FIELDS)}")
        topic = TopicSentence(*(item[field] for field in _FIELDS))
        if not all(isinstance(field, str) for field in topic) or not topic.sentence.strip():
            raise _Unusable(f"item {place} has an empty field or one that is no string")
        topic = topic._replace(sentence=" ".join(topic.sentence.split()))
        if topic.topic not in TOPICS:
            raise _Unusable(f"item {place} has an unknown topic")
        if topic.polarity not in POLARITIES:
            raise _Unusable(f"item {place} has an unknown polarity")
        if topic.topic in {other.topic for other in topics}:
            raise _Unusable(f"item {place} has a topic that another has")
        told = told_topics(topic.sentence)
        if told - known:
            raise _Unusable(f"item {place} tells what the report does not")
        if (topic.topic, topic.polarity) not in told and topic.topic in {name for name, _ in told}:
            raise _Unusable(f"item {place} has another polarity than its sentence")
        topics.append(topic)
    if not topics and known:
        raise _Unusable("the list is empty although the report has findings")
    return topics


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise RRGError("url must be the base of an endpoint, such as http://localhost:8000/v1")
    if parsed.userinfo or parsed.query:  # it is part of messages and of the cache's key
        raise RRGError("url must not carry a key, a password or a query: name the key's variable in key_variable")
    return str(parsed).rstrip("/")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RRGError(f"the environment variable {variable} holds no key: export {variable}=... first")
    if not (key.isascii() and key.isprintable()) or " " in key:  # the HTTP library would quote it in its error
        raise RRGError(f"the key in {variable} has characters that no HTTP header may hold")
    return key


def _seconds(retry_after: str) -> float:
    return float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else 0.0
