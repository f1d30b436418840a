"""Bad input, made from good input: texts, bytes, trees of plain values, and things that are no plain file.

Everything is a function of a `random.Random`, so that a failure is found again by its number.
"""

import copy
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

HUGE = ("9" * 400, "1e999", "-1", "0", "1e-320", "99999999999999999999", "2147483648", "1" + "0" * 5000, "0x7f", "1_0")
ODD = ("\0", "\ufeff", "\r\n", "\r", "\u2028", "\x0b", "\u0660", "\x1b[31m", "é", "🙂", "\ud800", "\u202e", "\t", "\\")
MARKUP = ("<script>", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}", "${x}", "%s", "../../etc/passwd", "{%")
TOKEN = re.compile(r"[A-Za-z_]+|\d+(?:\.\d+)?|\s+|.", re.DOTALL)

# Values that stand in place of another: of the wrong kind, too large, too small, not finite, or of strange make.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 10**6, 10**9, 10**12, 2**31, 2**63, 2**64, 10**30, -(10**12), 0.0, 0.5, -0.0,
    1e-320, 1e308, float("nan"), float("inf"), float("-inf"), "", "x", "0", "1", "nan", "true", "null", [], {}, [[]],
    [None], {"": ""}, {"a": {"b": {}}}, [1, 2, 3], ["a"], "a" * 5000, "../../x", "/etc/passwd", "/dev/zero", "a\0b",
    "\ufeff", "\ud800", "<script>alert(1)</script>", [0] * 2000, {"x": [1, {"y": None}]}, [True], [-1], [1.5], "1e5",
)  # fmt: skip


def nested(depth: int, kind: int = 0) -> Any:
    """A list or mapping in a list or mapping, and so on."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == 0 else {"a": value}
    return value


def spoilt_text(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str] = ()) -> str:
    """A text changed in one to four places."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        text = rng.choice(_TEXT)(rng, text, others, tokens)
        if len(text) > 40_000:
            text = text[:40_000]
    return text


def _at(rng: random.Random, text: str) -> int:
    return rng.randint(0, len(text))


def _insert(rng: random.Random, text: str, more: str) -> str:
    at = _at(rng, text)
    return text[:at] + more + text[at:]


def _flip(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    at = _at(rng, text)
    return text[:at] + chr(rng.randrange(1, 128)) + text[at + 1 :]


def _cut(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    return text[: _at(rng, text)]


def _drop(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    first = _at(rng, text)
    return text[:first] + text[first + rng.randint(1, 8) :]


def _splice(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    other = rng.choice(others) if others else text
    begin = _at(rng, other)
    return text[: _at(rng, text)] + other[begin : begin + rng.randint(1, 60)] + text[_at(rng, text) :]


def _token(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    words = TOKEN.findall(text)
    if not words:
        return rng.choice(tokens or HUGE)
    at = rng.randrange(len(words))
    words[at] = rng.choice(tokens) if tokens and rng.random() < 0.7 else rng.choice(words)
    return "".join(words)


def _swap(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    words = TOKEN.findall(text)
    if len(words) > 1:
        a, b = rng.randrange(len(words)), rng.randrange(len(words))
        words[a], words[b] = words[b], words[a]
    return "".join(words)


def _repeat(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    first = _at(rng, text)
    part = text[first : first + rng.randint(1, 20)]
    return text[:first] + part * rng.choice((2, 3, 10, 100)) + text[first:]


def _odd(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    return _insert(rng, text, rng.choice(ODD))


def _huge(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    numbers = list(re.finditer(r"\d+", text))
    if numbers and rng.random() < 0.7:
        place = rng.choice(numbers)
        return text[: place.start()] + rng.choice(HUGE) + text[place.end() :]
    return _insert(rng, text, rng.choice(HUGE))


def _markup(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    return _insert(rng, text, rng.choice(MARKUP))


def _deep(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    opening, closing = rng.choice(("()", "[]", "{}", "- ", "(-"))
    count = rng.choice((5, 50, 89, 95, 300, 2000))
    at = _at(rng, text)
    return text[:at] + opening * count + text[at : at + 9] + closing * count + text[at + 9 :]


def _lines(rng: random.Random, text: str, others: Sequence[str], tokens: Sequence[str]) -> str:
    """Lines in another order, twice, or joined."""
    lines = text.splitlines(keepends=True)
    if len(lines) < 2:
        return text + text
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        lines[a], lines[b] = lines[b], lines[a]
    elif how == 1:
        lines.insert(a, lines[b])
    elif how == 2:
        lines[a] = lines[a].rstrip("\n")
    else:
        del lines[a]
    return "".join(lines)


_TEXT: tuple[Callable[[random.Random, str, Sequence[str], Sequence[str]], str], ...] = (
    _flip, _cut, _drop, _splice, _token, _token, _token, _swap, _repeat, _odd, _huge, _markup, _deep, _lines,
)  # fmt: skip


def spoilt_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some flipped, cut off, added, repeated or made large."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randint(0, len(data))
        how = rng.randrange(8)
        if how == 0:
            data = data[:at]
        elif how == 1:
            data = data[:at] + rng.randbytes(rng.choice((1, 4, 64))) + data[at:]
        elif how == 2:
            data = data[:at] + data[at + rng.choice((1, 2, 8, 100)) :]
        elif how == 3:
            data = (
                data[:at]
                + rng.choice((b"\xff" * 8, b"\0" * 8, b"\x80" * 9, b"\xff\xfe", b"\xef\xbb\xbf"))
                + data[at + 8 :]
            )
        elif how == 4:
            data = data + data[:at]
        elif how == 5 and data:
            begin = min(at, len(data) - 1)
            data = data[:begin] + bytes([data[begin] ^ (1 << rng.randrange(8))]) + data[begin + 1 :]
        elif how == 6:
            # the heads and tails of binary files hold lengths
            edge = (
                rng.randrange(min(16, len(data) + 1)) if rng.random() < 0.5 else max(0, len(data) - rng.randrange(16))
            )
            data = data[:edge] + rng.randbytes(1) + data[edge + 1 :]
        else:
            data = data[:at] + rng.randbytes(1) + data[at + 1 :]
    return data


def _places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a tree."""
    found = [before]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*before, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value[:40]):
            found += _places(inner, (*before, at))
    return found


def _changed(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> None:
    for key in path[:-1]:
        value = value[key]
    change(value, path[-1])


def spoilt_tree(rng: random.Random, tree: Any) -> Any:
    """A tree of plain values with some replaced, removed, renamed, doubled or nested; the given one stays as it is."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [path for path in _places(tree) if path]
        if not places:
            return copy.deepcopy(rng.choice(VALUES))
        path = rng.choice(places)
        how = rng.randrange(8)

        def change(inside: Any, key: Any, how: int = how) -> None:
            if how <= 3:
                inside[key] = copy.deepcopy(rng.choice(VALUES))  # or a later change would change the list
            elif how == 4:
                del inside[key]
            elif how == 5 and isinstance(inside, dict):
                inside[rng.choice((key + "s", key.upper(), "", "design", "extends", key + "\0", "__class__"))] = inside[
                    key
                ]
            elif how == 6:
                inside[key] = nested(rng.choice((2, 50, 400)), rng.randrange(2))
            elif isinstance(inside[key], str):
                inside[key] = spoilt_text(rng, inside[key], [inside[key]])
            elif isinstance(inside[key], int | float):
                inside[key] = inside[key] * rng.choice((-1, 0, 10**9, 1.5, 1e300))
            else:
                inside[key] = [inside[key]]

        _changed(tree, path, change)
        if rng.random() < 0.03:
            tree = copy.deepcopy(rng.choice(VALUES))
        if not isinstance(tree, dict | list):
            return tree
    return tree


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML_TRICKS = (
    BOMB,
    "&a [*a]\n",
    "a: &a {b: *a}\n",
    "!!python/object/apply:os.system ['touch pwned']\n",
    "!!python/name:os.system\n",
    "<<: [1]\n",
    "? [1, 2]\n: 3\n",
    "? {a: b}\n: 3\n",
    "a: 1\na: 2\n",
    "a: 2026-13-45\n",
    "a: 2026-01-01\n",
    "a: 1:60:60\n",
    "a: 0o777\n",
    "a: .inf\nb: .nan\n",
    "a: !!binary x\n",
    "a: !!set {1, 2}\n",
    "a: !!timestamp x\n",
    "- - - - - - -\n",
    "%YAML 9.9\n---\na: 1\n",
    "--- 1\n--- 2\n",
    "a: |\n" + " x\n" * 4000,
    "[" * 3000,
    "{a: " * 1200 + "1" + "}" * 1200,
    "a: " + "- " * 500 + "1\n",
    "\x00",
    "",
    "#\n",
    "null",
    "true",
    "12",
    '"text"',
)


def as_yaml(tree: Any) -> bytes:
    try:
        return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    except (RecursionError, yaml.YAMLError):
        return as_json(tree)


def as_json(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")


def encoded(rng: random.Random, data: bytes) -> bytes:
    """The same text in another encoding, or with other line ends."""
    text = data.decode("utf-8", "replace")
    how = rng.randrange(6)
    if how == 0:
        return b"\xef\xbb\xbf" + data
    if how == 1:
        return text.encode("utf-16")
    if how == 2:
        return text.replace("\n", "\r\n").encode()
    if how == 3:
        return text.replace("\n", "\r").encode()
    if how == 4:
        return text.encode("latin-1", "replace") + b"\xe9"
    return text.encode("utf-32")


def spoilt_file(rng: random.Random, data: bytes, suffix: str) -> bytes:
    """The content of a file, spoilt in the ways that suit its kind."""
    chance = rng.random()
    if suffix in (".json", ".yaml") and chance < 0.6:
        tree = json.loads(data) if suffix == ".json" else yaml.safe_load(data)
        tree = spoilt_tree(rng, tree)
        data = as_json(tree) if suffix == ".json" or rng.random() < 0.3 else as_yaml(tree)
        return data if rng.random() < 0.95 else encoded(rng, data)
    if suffix == ".yaml" and chance < 0.68:
        trick = rng.choice(YAML_TRICKS).encode()
        return trick if rng.random() < 0.5 else data + trick
    if suffix in (".json", ".yaml", ".jsonl", ".txt", ".tsv") and chance < 0.9:
        text = data.decode("utf-8", "replace")
        spoilt = spoilt_text(rng, text, [text]).encode("utf-8", "surrogatepass")
        return spoilt if rng.random() < 0.9 else encoded(rng, spoilt)
    return spoilt_bytes(rng, data)


def strange_file(rng: random.Random, path: Path) -> str:
    """Put something else in place of a file; says what."""
    held = path.read_bytes() if path.is_file() else b""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    how = rng.choice(("absent", "empty", "folder", "fifo", "loop", "dangling", "device", "link", "big"))
    if how == "empty":
        path.write_bytes(b"")
    elif how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "dangling":
        path.symlink_to("/nonexistent/file")
    elif how == "device":
        path.symlink_to(rng.choice(("/dev/null", "/dev/zero", "/dev/full")))
    elif how == "link":
        away = path.with_name(path.name + ".away")
        away.write_bytes(held)
        path.symlink_to(away.name)
    elif how == "big":
        with open(path, "wb") as stream:
            stream.truncate(1 << 33)  # takes no room on the disk
    return how
