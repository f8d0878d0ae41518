"""A report taken apart into one sentence per topic, by rules, and put together again.

    decompose("The heart is enlarged. No pneumothorax or pleural effusion.")
    # disease-cardiomegaly        present  "The heart is enlarged."
    # disease-pneumothorax        absent   "Pneumothorax is absent."
    # disease-pleural effusion    absent   "Pleural effusion is absent."

LLaVA-TA (section 3) asks DeepSeek-V3 for this. Its instructions are followed: comparisons with earlier films and
speculation are removed, every sentence goes to exactly one topic (disease before organ before special), no topic has
more than one sentence, and what is absent is told in one fixed form. Its prompt is unknown to us; the rules are ours.

What is found in a sentence, and whether it is asserted, denied or hedged, is decided by `mentions` alone. The report's
own words are kept wherever they speak of one topic. A compound sentence is cut at a conjunction if both halves still
say what the whole said; if there is no such place, each finding is written anew from its side, severity and place
("Small left pleural effusion is present."). A sentence that would not be read back as its own topic is never written.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from rrg_utils.errors import RRGError
from rrg_utils.labels.labeller import OBSERVATIONS
from rrg_utils.labels.mentions import (
    ABSENT,
    PLACES,
    PRESENT,
    UNCERTAIN,
    Mention,
    assertion,
    check_text,
    hedges,
    mentions,
    sentence_spans,
)
from rrg_utils.labels.ontology import LEVELS, NORMAL, TOPIC_OF, TOPICS

if TYPE_CHECKING:
    from rrg_utils.data.reports import Report

POLARITIES = (PRESENT, ABSENT)  # speculation is removed, so nothing is uncertain


class TopicSentence(NamedTuple):
    """What a report says under one topic. `topic` is a key of `TOPICS`; `polarity` "present" (something is there) or
    "absent" (it is denied, or the part is normal)."""

    topic: str
    sentence: str
    polarity: str


def decompose(text: str) -> list[TopicSentence]:
    """The topics of a report, at most one sentence each, in the order in which the report comes to them.

    An empty text, and one in which nothing is recognised, has none. Raises RRGError if `text` is not a string.
    """
    parts: dict[str, list[_Part]] = {}
    for part in _parts(check_text(text)):
        parts.setdefault(part.topic, []).append(part)
    merged = (_merge(topic, same) for topic, same in parts.items())
    return [sentence for sentence in merged if sentence is not None]


def rejoin(topics: Iterable[TopicSentence]) -> str:
    """One text of the sentences, in the order given."""
    return " ".join(topic.sentence for topic in topics)


def clean_report(text: str) -> str:
    """The cleaned reference of the paper: the report decomposed and joined again. "" where nothing is recognised."""
    return rejoin(decompose(text))


def topics_of(source: "str | Report | Mapping[str, int | None]", polarity: str | None = PRESENT) -> tuple[str, ...]:
    """The disease topics that the truth names, in the order of `TOPICS`: what the paper is told at report level.

    source: a text (its own decomposition), a `Report` (its expert annotation) or the labels of `label_report`.
    polarity: "present", "absent", or None for both; an annotation names only what is present.
    """
    if polarity not in (*POLARITIES, None):
        raise RRGError(f"polarity must be one of {', '.join(POLARITIES)} or None, got {polarity!r}")
    if isinstance(source, str):
        told = {(topic.topic, topic.polarity) for topic in decompose(source)}
    elif isinstance(source, Mapping):
        if unknown := set(source) - set(OBSERVATIONS):
            raise RRGError(f"unknown observation {min(map(str, unknown))!r}: pass the labels of label_report")
        words = {1: PRESENT, 0: ABSENT}
        told = {
            (topic.name, words[value])
            for topic in TOPICS.values()
            for value in (source.get(name) for name in topic.observations)
            if value in words
        }
    elif hasattr(source, "mesh"):
        from rrg_utils.data.abnormalities import present  # data is a layer that imports this package

        told = {(topic.name, PRESENT) for topic in TOPICS.values() if set(topic.classes) & set(present(source.mesh))}
    else:
        raise RRGError(f"topics_of takes a text, a Report or labels, got {type(source).__name__}")
    return tuple(
        name
        for name, topic in TOPICS.items()
        if topic.level == LEVELS[0] and any((name, p) in told for p in POLARITIES if polarity in (p, None))
    )


def told_topics(text: str) -> set[tuple[str, str]]:
    """(topic, polarity) of all that a text tells, cleaned or as it stands, speculation left out.

    A decomposition made by other means may say less than this, and nothing else.
    """
    parts = [part.told for part in _parts(check_text(text))]
    parts += [_told(text[start:end]) for start, end in sentence_spans(text)]
    return {(item.topic, item.polarity) for told in parts for item in told if item.polarity != UNCERTAIN}


# --- cleaning ---------------------------------------------------------------------------------------------------------

_EXAM = r"(?:exam\w*|stud(?:y|ies)|radiographs?|x-?rays?|films?|images?|imaging|cts?|chest|comparisons?|one|___|xxxx)"
_BEFORE = r"(?:prior|previous|preceding|earlier|old|older|last|most recent|recent|comparison|outside)"
# Removed wherever they stand; what is left of "stable cardiomegaly since the prior exam" is the finding.
_COMPARISONS = (
    rf",? ?(?:when |as |in )?(?:compared|comparison|relative|similar|comparable) (?:to|with)(?: [^\s,;]+)*? {_EXAM}",
    r",? ?(?:when |as |in )?(?:compared|comparison|relative|similar|comparable) (?:to|with)(?: [^\s,;]+){1,8}$",
    rf",? ?(?:and )?(?:not |un)?(?:\w+ly )?(?:changed |different )?(?:since|from|than|as|on|in) (?:the |that |a |was )*"
    rf"(?:\w+ )?{_BEFORE}\b(?: (?:\w+ )?{_EXAM})?(?: (?:from|of|dated|on) [^,;]+)?",
    rf",? ?(?:since|from|than) (?:the )?___(?: ___)*(?: {_EXAM})?",
    r"(?:there (?:is|has been|are) )?(?:no|without) (?:significant |interval |definite |appreciable |acute )*change\w*"
    r"(?: in(?: the)?(?: (?:size|appearance|position|configuration|extent) of)?| of| from)?",
    r",? ?(?:there (?:is|has been) )?(?:(?:mild|slight|small|minimal|subtle|significant|some) )?interval (?:"
    r"improvement|worsening|progression|increase|decrease|development|change\w*)(?: (?:of|in)(?: the)?)?",
    r",? ?(?:\w+ly )?(?:increased|decreased|improved|worsened|worse|larger|smaller)(?: in (?:size|extent))?$",
    r"(?:in|over|since) the interval|in the interim|interval(?:ly)?",
    r"(?:and )?(?:grossly |essentially |relatively |overall |appears? |unchanged and )*(?:stable|unchanged)"
    r"(?: in (?:appearance|size|position|configuration|extent))?(?: (?:appearance|size|position) of(?: the)?)?"
    r"(?: and)?",
    r"(?:once )?again(?: (?:seen|noted|identified|demonstrated|visualized))?(?: (?:is|are))?",
    r"(?:redemonstrat\w+|re-?demonstration)(?: of)?",
    r"persistent(?:ly)?|previously(?: (?:seen|noted|described|identified|visualized))?|new(?:ly)?\b",
    r"(?:acute|active)(?= (?:\w+ )?infiltrat)",  # one film does not tell since when
)
# Where one sentence holds two statements, seen before the word that marks it is removed.
_STATEMENTS = re.compile(r"\s*;\s*|\s*,\s*(?:and )?(?=(?:\w+ly )?(?:stable|unchanged|persistent) \w)", re.I | re.A)
# What follows is no finding: speculation that `mentions` cannot see, advice, and how the film was taken.
_REMARKS = (
    # What was removed before such a word was probably a hedge ("___ represent": "may", taken for the month; "___
    # secondary to"). This is our inference: nothing in the collection says so.
    r"(?:,? ?(?:which|that|this) )?(?:___|xxxx) (?:represent|reflect|indicat|suggest)\w*|(?:___|xxxx) (?:related|"
    r"secondary|due) to",
    r"(?:clinical(?:ly)? )?correlat(?:e|ion)\b",
    r"(?:follow\W?up|recommend\w*|consider|advis\w+)\b",
    r"(?:further|additional) (?:evaluation|imaging|workup|assessment)",
    r"[^,;]*(?:could|would|may) be (?:performed|obtained|considered|helpful)",
    r"if (?:clinical\w*|indicated|there|symptoms|further)",
    r"(?:results?|findings?|this|these)(?: \w+){0,3} (?:discussed|called|communicated|reported)",
    r"[^,;]*\bconsists? of\b[^;]* (?:views?|radiographs?|films?|images?)",
    r"[^,;]*(?:views?|radiographs?|films?|images?|examination)\b[^,;]* (?:was|were) (?:obtained|performed|submitted|"
    r"provided)",
)
_FILMING = (
    r"^[^,;]*(?:views?|radiographs?|films?|images?)(?: of)?(?: the)?(?: chest)? (?:show|demonstrate|reveal)s?\b",
    r"^(?:chest|findings|heart|lungs|bones|mediastinum|pleura|abdomen)\s*:",
    r"^\d+[.)]",
)


def _any(patterns: Iterable[str]) -> re.Pattern:
    parts = "|".join(f"(?:{pattern})" for pattern in patterns)
    return re.compile(rf"(?<!\w)(?:{parts})(?!\w)", re.I | re.A)


_COMPARISON, _REMARK, _PREAMBLE = _any(_COMPARISONS), _any(_REMARKS), re.compile("|".join(_FILMING), re.I | re.A)
_REMAINS = re.compile(r"\b(?:continues? to be|(?:has|have) (?:remained|been))\b|\b(remains)\b|\bremain\b", re.I | re.A)
_LOOSE_START = re.compile(
    r"^(?:[\W_]*(?:but|and|or|which|that|as|also|however|although|with|of|is|are|has|have)\b)+", re.I
)
_LOOSE_END = re.compile(
    r"(?:\W+(?:but|and|or|which|that|this|these|as|also|however|although|with|of|in|by|to|the|an?|from|for|on|at|"
    r"due|secondary|appearance|most|more|very))+\W*$",
    re.I | re.A,
)
_BARE_VERB = re.compile(r"\s(is|are|appears?|was|were|has|have)$", re.I)


def _clean_sentence(sentence: str) -> str:
    """The sentence without comparisons, advice and technique, and without the stop at its end."""
    before = None
    while before != sentence:  # what is left may be removed in turn: "stable since the prior exam and unchanged"
        before = sentence
        sentence = _PREAMBLE.sub("", sentence)
        if remark := _REMARK.search(sentence):
            sentence = sentence[: remark.start()]
        sentence = _COMPARISON.sub(" ", sentence)
        sentence = _REMAINS.sub(lambda m: "is" if m[1] else "are" if m[0].lower() == "remain" else m[0], sentence)
        sentence = _tidy(sentence)
    return sentence


def _tidy(text: str) -> str:
    """Single spaces, no loose conjunction, verb or mark at either end."""
    text = re.sub(r"\s+([,;])", r"\1", " ".join(text.split()))
    text = re.sub(r"([,;])(?:\s*[,;])+", r"\1", text)
    text = _LOOSE_END.sub("", _LOOSE_START.sub("", text)).strip(" \t,;:.!?-")
    return " ".join(text.split())


# --- what a sentence tells --------------------------------------------------------------------------------------------


class _Told(NamedTuple):
    topic: str
    finding: str  # "" where only the topic's words were found
    polarity: str
    mention: Mention | None


class _Part(NamedTuple):
    """A piece of a report that speaks of one topic: what it tells, and its text, "" where it only denies findings."""

    topic: str
    polarity: str
    text: str
    told: tuple[_Told, ...]


_WORDS = {
    level: re.compile(
        "|".join(
            rf"(?P<t{number}>(?<!\w)(?:{topic.words.replace(' ', chr(92) + 's+')})(?!\w))"
            for number, topic in enumerate(TOPICS.values())
            if topic.words and (topic.level == "organ") == (level == "organ")
        ),
        re.I | re.A,
    )
    for level in ("named", "organ")
}
_NAMES = tuple(TOPICS)
_ACUTE = "special-acute abnormality"  # a topic only where no part of the body is named
_WELL = re.compile(
    r"normal|unremarkable|not remarkable|intact|midline|clear|maintained|preserved|patent|"
    r"(?:well|adequately|fully)\W(?:\w+ )?\w*(?:aerated|expanded|inflated|ventilated)|(?:left|right)\Wsided",
    re.I | re.A,
)


@lru_cache(maxsize=65536)
def _told(sentence: str) -> tuple[_Told, ...]:
    """What a sentence says of which topic, in order. A part of the body counts only where no finding is told."""
    found: list[tuple[int, _Told]] = []
    taken: list[tuple[int, int]] = []
    for mention in mentions(sentence):
        if topic := TOPIC_OF.get(mention.finding):
            polarity = mention.polarity
            if mention.finding in NORMAL and polarity != UNCERTAIN:
                polarity = ABSENT if polarity == PRESENT else PRESENT
            found.append((mention.start, _Told(topic, mention.finding, polarity, mention)))
        taken += [(mention.start, mention.end), *mention.modifiers]
    for level in ("named", "organ"):
        if level == "organ" and {item.topic for _, item in found} - {_ACUTE}:
            break
        for match in _WORDS[level].finditer(sentence):
            if any(start < match.end() and match.start() < end for start, end in taken):
                continue
            polarity = assertion(sentence, match.start(), match.end())
            if polarity is None:
                continue
            if polarity == PRESENT and level == "organ":
                polarity = ABSENT if _WELL.search(sentence) else UNCERTAIN if hedges(sentence) else PRESENT
            found.append((match.start(), _Told(_NAMES[int(match.lastgroup[1:])], "", polarity, None)))
    told = [item for _, item in sorted(found, key=lambda item: item[0])]
    if told and not any(item.finding for item in told if item.topic != _ACUTE):
        # Parts of the body and no finding: of the topic that stands first ("the bones and soft tissues are normal",
        # "the lungs show no acute abnormality").
        first = min((item.topic for item in told), key=_NAMES.index)
        stated = [item for item in told if item.finding] or [item for item in told if item.topic == first]
        told = [item._replace(topic=first) for item in stated]
    return tuple(told)


def _parts(text: str) -> list[_Part]:
    return [
        part
        for start, end in sentence_spans(text)
        for statement in _STATEMENTS.split(text[start:end])
        for part in _sentence_parts(_clean_sentence(statement))
        if not _empty(part)
    ]


# What remains of "the heart size and mediastinal contours are stable" when the comparison is gone.
_EMPTY = re.compile(
    r"the|an?|and|or|of|in|is|are|has|have|both|left|right|upper|lower|pulmonary|thoracic|cervical|lumbar|lumbosacral|"
    r"visualized|overall|within|limits|size|contours?|silhouettes?|shadows?|structures?|borders?|outlines?|cardiopulmonary|fields?|volumes?|regions?|"
    r"appears?|appearance|body|bodies|chest|neck|_+|\d+",
    re.I | re.A,
)


def _empty(part: _Part) -> bool:
    """Whether a part names something and says nothing of it."""
    if part.polarity == ABSENT or any(item.finding for item in part.told):
        return False
    left = _WORDS["organ"].sub(" ", _BARE_VERB.sub("", part.text))
    return all(_EMPTY.fullmatch(word) for word in re.findall(r"\w+", left))


_JOINTS = re.compile(
    r"\s*;\s*|\s*,\s*(?:(?:and|but|with|as well as)\s+)?|\s+(?:and|but|with|as well as)\s+|\s+(?=without\s)|"
    r"\s+(?:consistent with|compatible with|representing|reflecting|due to|secondary to|related to)\s+",
    re.I | re.A,
)


@lru_cache(maxsize=65536)
def _sentence_parts(sentence: str) -> tuple[_Part, ...]:
    """The pieces of a cleaned sentence, each of one topic."""
    told = _told(sentence)
    certain = tuple(item for item in told if item.polarity != UNCERTAIN)
    if not certain:
        return ()
    for start, _ in hedges(sentence):
        shorter = _tidy(sentence[:start])
        if len(shorter) < len(sentence) and _says(shorter) == _keys(certain):
            return _sentence_parts(shorter)
    topics = {item.topic for item in certain}
    if len(topics) == 1 and len(certain) == len(told):
        return (_whole(sentence, certain),)
    if len(certain) == len(told):
        for joint in _JOINTS.finditer(sentence):
            left, right = _tidy(sentence[: joint.start()]), _tidy(sentence[joint.end() :])
            if left and right and _says(left) and _says(right) and _says(left) + _says(right) == _keys(told):
                return (*_sentence_parts(left), *_sentence_parts(right))
    return tuple(part for item in certain if (part := _anew(item)) is not None)


def _keys(told: Iterable[_Told]) -> list[tuple[str, str, str]]:
    return [item[:3] for item in told]


def _says(sentence: str) -> list[tuple[str, str, str]]:
    return _keys(_told(sentence))


def _whole(sentence: str, told: tuple[_Told, ...]) -> _Part:
    """A sentence of one topic in the report's own words, or as a denial."""
    topic = told[0].topic
    if all(_denied(item) for item in told):
        return _Part(topic, ABSENT, "", told)
    if any(item.mention for item in told) or TOPICS[topic].level != "organ":
        sentence = _BARE_VERB.sub(lambda m: f" {m[1]} present", sentence)
    return _Part(topic, PRESENT if _any_present(told) else ABSENT, sentence, told)


def _any_present(items: Iterable[_Told | _Part]) -> bool:
    return any(item.polarity == PRESENT for item in items)


def _denied(item: _Told) -> bool:
    return item.polarity == ABSENT and item.finding not in NORMAL and TOPIC_OF.get(item.finding) == item.topic


# How findings are written: `mentions` names them for itself, and not every name is among the words it reads.
_WRITTEN = {
    "vertebral deformity": "compression deformity",
    "bone lesion": "bony lesion",
    "scoliosis": "spinal curvature",
}
_PLURAL = ("low lung volumes", "surgical clips")
_PLACE_NAMES = {name for name, _ in PLACES}


def _anew(item: _Told) -> _Part | None:
    """One finding in a sentence of its own."""
    if _denied(item):
        return _Part(item.topic, ABSENT, "", (item,))
    if item.mention is None or (item.finding in NORMAL and item.polarity == PRESENT):
        return None
    if item.finding in NORMAL:
        return _Part(item.topic, ABSENT, NORMAL[item.finding].rstrip("."), (item,))
    mention = item.mention
    place = mention.anatomy if mention.anatomy in _PLACE_NAMES else None
    words = [mention.severity, mention.side, place, _WRITTEN.get(item.finding, item.finding)]
    verb = "are" if item.finding in _PLURAL else "is"
    return _Part(item.topic, PRESENT, " ".join(word for word in words if word) + f" {verb} present", (item,))


def _merge(topic: str, parts: list[_Part]) -> TopicSentence | None:
    """One sentence of all that is said under a topic: what is there, then what is normal, then what is denied."""
    polarity = PRESENT if _any_present(parts) else ABSENT
    texts: list[str] = []
    stated: set[str] = set()
    for part in sorted(parts, key=lambda part: POLARITIES.index(part.polarity)):  # stable: in the report's order
        findings = {item.finding for item in part.told}
        repeats = part.polarity == ABSENT and "" not in findings and findings <= stated
        if part.text and not repeats and part.text.lower() not in (text.lower() for text in texts):
            texts.append(part.text)
            stated |= findings
    denied = [item.finding for part in parts if not part.text for item in part.told]
    denied = [finding for finding in dict.fromkeys(denied) if finding not in stated]
    if denied:
        texts.append(_denial(denied))
    # A text alone may be read otherwise than within the whole: then less is said, never something else.
    for kept in range(len(texts), 0, -1):
        sentence = _sentence("; ".join(texts[:kept]))
        read = _parts(sentence)
        if {part.topic for part in read} == {topic} and polarity == (PRESENT if _any_present(read) else ABSENT):
            return TopicSentence(topic, sentence, polarity)
    return None


def _denial(findings: list[str]) -> str:
    names = [_WRITTEN.get(finding, finding) for finding in findings]
    verb = "are" if len(names) > 1 or findings[0] in _PLURAL else "is"
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{listed} {verb} absent"


def _sentence(text: str) -> str:
    return (text[0].upper() if text[0].isascii() else text[0]) + text[1:] + "."
