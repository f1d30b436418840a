"""Files of settings that somebody gives: small, plain, and read without running anything that they say."""

import re
import stat
from pathlib import Path
from typing import Any

MOST = 16 * 1024 * 1024  # bytes; a file of settings has some thousands


class TooLargeError(OSError):
    """A file larger than any file of settings."""


def read_bytes(path: Path, most: int = MOST) -> bytes:
    """The content of a file of settings, of at most so many bytes.

    Raises:
        OSError: there is none, or it is a pipe, a device or a folder (reading these may never end), or too large.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} must be a plain file, and is none: give a file, no folder, pipe or device")
    if found.st_size > most:
        raise TooLargeError(f"{path} has {found.st_size:,} bytes, and may have {most:,}: is it the right file?")
    return path.read_bytes()


def read_yaml(path: Path) -> Any:
    """Plain values of a YAML or JSON file; ``1e-3`` is a number, as in JSON and Python.

    Raises:
        OSError: it cannot be read.
        ValueError: it is neither, or it holds what plain settings do not: references to other places of the file
            (which may be nested without end), or one name twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values only."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise yaml.YAMLError(f"line {event.start_mark.line + 1}: references (*{event.anchor}) are not taken")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if isinstance(key.value, str) and key.value in seen:
                    raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value[:80]} is there twice")
                seen.add(key.value if isinstance(key.value, str) else None)
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    raw = read_bytes(path)
    try:
        return yaml.load(raw.decode("utf-8-sig"), Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        # numbers of thousands of digits, keys that are lists, values that nest too deep
        raise ValueError(f"{' '.join(str(error).split())[:300] or type(error).__name__}") from None
