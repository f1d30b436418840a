"""A study as one self-contained page: tables, charts and explanations in a file that opens anywhere.

The page holds no script and asks for nothing from outside; its charts are drawn as SVG with the page's own colours,
so they follow light, dark and print. Reads results.json and metrics.jsonl only: no torch. `write` is for a study of
designs, `write_record` for a study made of parts.
"""

from sublayer.report.page import write
from sublayer.report.record_page import write_record

__all__ = ["write", "write_record"]
