"""Questions whose answers are known without judgements are made of a sample of documents.

Documents come in. Retrieval sets go out, in each of which a query has one relevant document: its title belongs to its body,
its first sentence to the rest of it, and a chunk from its middle to the document around it. A set is made only where enough
documents allow it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline.runs.evaluate import RetrievalSet

FEWEST = 20
"""A set has so many queries at least."""
MOST = 1_000
"""A set has so many queries at most. The documents of all of them, and of all others, are searched."""
CHUNK_WORDS = 40
CHUNKED_WORDS = 4 * CHUNK_WORDS
"""A chunk is taken out of documents of so many words at least."""
SENTENCE = (20, 400)
"""The first sentence has so many characters, at least and at most."""
_END = re.compile(r"[.!?…]+[\"'»”’)]*\s+|[。！？]+|\n\s*\n")
_WORD = re.compile(r"\S+")


def without_judgements(texts: Mapping[str, str], titles: Mapping[str, str], seed: int) -> Iterator[RetrievalSet]:
    """Yield the sets that these documents allow. `texts` and `titles` are by id, and not all documents have a title."""
    names = [
        *(("title to body", _titled(texts, titles)) for _ in [0] if titles),
        ("first sentence to the rest", _first_sentences(texts)),
        ("chunk to its document", _chunks(texts, seed)),
    ]
    for name, pairs in names:
        found = _set(name, texts, pairs, seed)
        if found is not None:
            yield found


def _set(name: str, texts: Mapping[str, str], pairs: Mapping[str, tuple[str, str]], seed: int) -> RetrievalSet | None:
    """Make a set of pairs of a query and what is left of its document. Other documents are searched as they are.

    Queries that several documents have are left out, because nobody knows which of them is meant.
    """
    counts: dict[str, int] = {}
    for query, _ in pairs.values():
        counts[query] = counts.get(query, 0) + 1
    names = [name for name, (query, _) in pairs.items() if counts[query] == 1]
    if len(names) < FEWEST:
        return None
    chosen = np.random.default_rng(seed).permutation(len(names))[:MOST]
    asked = [names[place] for place in sorted(chosen.tolist())]
    documents = {key: pairs[key][1] if key in pairs else text for key, text in texts.items()}
    return RetrievalSet(
        name=name,
        documents=documents,
        queries={key: pairs[key][0] for key in asked},
        relevant={key: {key: 1} for key in asked},
    )


def _titled(texts: Mapping[str, str], titles: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Pair titles with bodies. A body that begins with its title loses it there, or every model would find it by that."""
    pairs = {}
    for name, title in titles.items():
        body, head = texts[name].strip(), title.strip()
        while head and body.casefold().startswith(head.casefold()):
            body = body[len(head) :].lstrip(" \t\n.:;-–—|")
        if head and body:
            pairs[name] = (head, body)
    return pairs


def _first_sentences(texts: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    pairs = {}
    for name, text in texts.items():
        text = text.strip()
        end = _END.search(text, SENTENCE[0])
        if end is not None and end.start() <= SENTENCE[1] and len(text) - end.end() >= SENTENCE[0]:
            pairs[name] = (text[: end.end()].strip(), text[end.end() :].strip())
    return pairs


def _chunks(texts: Mapping[str, str], seed: int) -> dict[str, tuple[str, str]]:
    """Pair a chunk from anywhere behind the first quarter of a long text with the text without it."""
    random = np.random.default_rng(seed)
    pairs = {}
    for name, text in texts.items():
        words: Sequence[re.Match[str]] = list(_WORD.finditer(text))
        if len(words) < CHUNKED_WORDS:
            continue
        first = int(random.integers(len(words) // 4, len(words) - CHUNK_WORDS + 1))
        start, stop = words[first].start(), words[first + CHUNK_WORDS - 1].end()
        pairs[name] = (text[start:stop], f"{text[:start]}{text[stop:]}".strip())
    return pairs
