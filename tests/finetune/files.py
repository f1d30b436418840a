"""GLUE in small: every column, oddity and line end of the official files, made-up texts."""

import random
from pathlib import Path

WORDS = "good bad the stream norm adds reads writes layer token and of is to it was no very model".split()


def text(draw: random.Random, good: bool) -> str:
    """A text in which one word tells the label."""
    words = draw.choices(WORDS[2:], k=draw.randint(2, 9))
    words.insert(draw.randrange(len(words)), "good" if good else "bad")
    return " ".join(words)


def rows(seed: int, count: int) -> list[tuple[str, str, bool]]:
    draw = random.Random(seed)
    labels = [i % 3 != 0 for i in range(count)]  # two in three are good
    draw.shuffle(labels)
    return [(text(draw, label), text(draw, True), label) for label in labels]


def write(path: Path, lines: list[str], end: str = "\n", mark: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = end.join(lines) + end
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + data.encode())


def write_glue(folder: Path, train: int = 48, dev: int = 24) -> None:
    """All nine tasks in folders named as they are distributed."""
    for name, seed, count in (("train", 1, train), ("dev", 2, dev)):
        found = rows(seed, count)
        cola = [f"src\t{int(good)}\t{'' if good else '*'}\t{a}" for a, _, good in found]
        cola[0] = f'src\t{int(found[0][2])}\t\t"{found[0][0]}'  # a quote that nothing closes
        cola[1] = f"src\t{int(found[1][2])}\t\t{found[1][0]}\x85\u2028 is"  # line ends to Python, text here
        write(folder / "CoLA" / f"{name}.tsv", cola, "\r\n")
        sst = [f"{a} \t{int(good)}" for a, _, good in found]
        write(folder / "SST-2" / f"{name}.tsv", ["sentence\tlabel", *sst])
        pairs = [f"{int(good)}\t{i}\t{i + 100}\t{a}\t{b}" for i, (a, b, good) in enumerate(found)]
        pairs[2] = pairs[2].replace("\t", '\t"', 3).replace('\t"2\t"102\t"', '\t2\t102\t"')
        header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        write(folder / "MRPC" / f"{name}.tsv", [header, *pairs], "\r\n", mark=True)
        qqp = [f"{i}\t{i}\t{i + 9}\t{a}?\t{b}?\t{int(good)}" for i, (a, b, good) in enumerate(found)]
        if name == "train":
            qqp.insert(5, '17	3	4	"was it')  # cut short by a line end inside a question
        write(folder / "QQP" / f"{name}.tsv", ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", *qqp])
        entails = [
            f"{i}\t{a}\t{b}\t{'entailment' if good else 'not_entailment'}" for i, (a, b, good) in enumerate(found)
        ]
        write(folder / "QNLI" / f"{name}.tsv", ["index\tquestion\tsentence\tlabel", *entails])
        write(folder / "RTE" / f"{name}.tsv", ["index\tsentence1\tsentence2\tlabel", *entails])
        wnli = [f"{i}\t{a}\t{b}\t{int(good)}" for i, (a, b, good) in enumerate(found)]
        write(folder / "WNLI" / f"{name}.tsv", ["index\tsentence1\tsentence2\tlabel", *wnli])
        sts = [f"{i}\tnews\tf\t2015\t{i}\tnone\tnone\t{a}\t{b}\t{4.25 if good else 0.5}" for i, (a, b, good) in
               enumerate(found)]  # fmt: skip
        columns = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
        write(folder / "STS-B" / f"{name}.tsv", [columns, *sts])
    before = "index\tpromptID\tpairID\tgenre"
    before += "".join(f"\tsentence{i}_{kind}" for kind in ("binary_parse", "parse") for i in (1, 2))
    kinds = ("neutral", "entailment", "contradiction")
    for name, seed, count, labels in (
        ("train", 1, train, 1),
        ("dev_matched", 2, dev, 5),
        ("dev_mismatched", 3, dev, 5),
    ):
        more = "\t".join(f"label{i + 1}" for i in range(labels))
        lines = [f"{before}\tsentence1\tsentence2\t{more}\tgold_label"]
        for i, (a, b, good) in enumerate(rows(seed, count)):
            label = kinds[1] if good else kinds[2 * (i % 2)]
            parse = "\t".join(["( x )"] * 4)
            lines.append(
                f"{i}\t{i}\t{i}e\tfiction\t{parse}\t{a}\t{b}\t" + "\t".join(["neutral"] * labels) + f"\t{label}"
            )
        write(folder / "MNLI" / f"{name}.tsv", lines)
