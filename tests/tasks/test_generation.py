"""E2E, WebNLG and DART: every format that people have gives the pairs that microsoft/LoRA makes."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lora_exp.errors import UserError
from lora_exp.runs.config import TaskConfig
from lora_exp.tasks import groups, load_generation, pairs
from lora_exp.tasks.data import GenerationData, Pair, Source
from lora_exp.tasks.meanings import linearise_attributes

NLG = Path(__file__).resolve().parents[3] / "shared" / "data" / "nlg"


def config(corpus: str, folder: Path, **changes: Any) -> TaskConfig:
    values: dict[str, Any] = {
        "name": corpus,
        "kind": "generation",
        "corpus": corpus,
        "data_dir": str(folder),
        "test": "test",
    }
    return TaskConfig(**(values | changes))


def load(corpus: str, folder: Path, **changes: Any) -> GenerationData:
    return load_generation(config(corpus, folder, **changes))


def refused(corpus: str, folder: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(corpus, folder, **changes)
    return str(caught.value)


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def fill(folder: Path, ending: str, content: str) -> Path:
    """The same content as each split."""
    for stem in ("train", "dev", "test"):
        write(folder / f"{stem}{ending}", content)
    return folder


def write_parquet(folder: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    for split in ("train", "dev", "test"):
        parquet.write_table(pyarrow.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


# E2E

E2E_CSV = """mr,ref
"name[Blue Spice], eatType[coffee shop], area[city centre]","A coffee shop
  in the  city centre, Blue Spice."
"name[The Mill], priceRange[less than £20], familyFriendly[yes], customer rating[5 out of 5]",Go!
"name[Blue Spice], eatType[coffee shop], area[city centre]",Blue Spice is a coffee shop.
"""
BLUE = "name : Blue Spice | Type : coffee shop | area : city centre"
MILL = (
    "name : The Mill | price : less than £20 | family friendly : yes | customer rating : 5 out of 5"
)
E2E_PAIRS = [
    Pair(BLUE, "A coffee shop in the city centre, Blue Spice."),
    Pair(MILL, "Go!"),
    Pair(BLUE, "Blue Spice is a coffee shop."),
]


def test_the_csv_of_the_challenge(tmp_path):
    write(tmp_path / "trainset.csv", E2E_CSV)
    write(tmp_path / "devset.csv", E2E_CSV)
    write(tmp_path / "testset_w_refs.csv.gz", E2E_CSV)
    write(tmp_path / "testset.csv", "MR\n")  # the challenge's, without references
    data = load("e2e", tmp_path)
    assert data.train == E2E_PAIRS
    merged = [Source(BLUE, (E2E_PAIRS[0].target, E2E_PAIRS[2].target)), Source(MILL, ("Go!",))]
    assert data.validation == {"validation": merged}
    assert data.test == merged
    assert Counter(pairs(data.test)) == Counter(data.train)
    assert groups(data.test) == {"all": [0, 1]}


def test_the_text_of_microsoft_lora_stays_tokenised(tmp_path):
    line = f"{BLUE}||Blue Spice is a family - friendly pub . \n"
    for name in ("train.txt", "valid.txt", "test.txt.gz"):
        write(tmp_path / name, line + "\n")
    data = load("e2e", tmp_path)
    assert data.train == [Pair(BLUE, "Blue Spice is a family - friendly pub .")]
    write(tmp_path / "valid.txt", line + "no bars\n")
    expected = f"{tmp_path / 'valid.txt'}:2: has no `||`; expected `source||reference`."
    assert refused("e2e", tmp_path) == expected


def test_the_format_says_which_files_of_a_folder(tmp_path):
    fill(tmp_path, ".csv", E2E_CSV)
    fill(tmp_path, ".txt", f"{BLUE}||a pub .\n")
    message = refused("e2e", tmp_path)
    assert "each of train.csv, train.txt could be the split 'train'. Keep one" in message
    assert load("e2e", tmp_path, format="csv").train == E2E_PAIRS
    assert load("e2e", tmp_path, format="txt").train == [Pair(BLUE, "a pub .")]
    assert "task.format=xml: no format of this task." in refused("e2e", tmp_path, format="xml")
    assert "Looked for train.jsonl, trainset.jsonl" in refused("e2e", tmp_path, format="jsonl")


def test_the_parquet_of_the_hub(tmp_path):
    columns = {
        "meaning_representation": ["name[Blue Spice], eatType[coffee shop], area[city centre]"],
        "human_reference": ["A pub."],
    }
    data = load("e2e", write_parquet(tmp_path, columns))
    assert data.train == [Pair(BLUE, "A pub.")]


@pytest.mark.parametrize("meaning", ["", "name", "name[x]; area[y]", "name[x], area", "name[[x]]"])
def test_what_is_no_meaning_representation_is_named_with_its_line(tmp_path, meaning):
    fill(tmp_path, ".csv", f'mr,ref\n"name[A]",A.\n"{meaning}",B.\n')
    message = refused("e2e", tmp_path)
    assert message.startswith(f"{tmp_path / 'train.csv'}:3: the meaning representation is")


# Triples

WEBNLG_XML = """<benchmark>
  <entries>
    <entry category="Airport" eid="Id1" size="2">
      <originaltripleset><otriple>x | y | z</otriple></originaltripleset>
      <modifiedtripleset>
        <mtriple>Aarhus_Airport | cityServed | "Aarhus, Denmark"</mtriple>
        <mtriple>Aarhus | Leader | A|B &amp; C | D</mtriple>
      </modifiedtripleset>
      <lex comment="good" lid="Id1">Aarhus  Airport serves
Aarhus.</lex>
      <lex comment="toFix" lid="Id2">bad</lex>
      <lex comment="good" lid="Id3">It serves &lt;Aarhus&gt;.</lex>
    </entry>
    <entry category="Artist" eid="Id2" size="1">
      <modifiedtripleset><mtriple>Å | genre | Rock</mtriple></modifiedtripleset>
      <lex comment="good" lid="Id1">Å plays rock.</lex>
    </entry>
    <entry category="Artist" eid="Id3" size="1">
      <modifiedtripleset><mtriple>B | genre | Rock</mtriple></modifiedtripleset>
      <lex comment="toFix" lid="Id1">B.</lex>
    </entry>
  </entries>
</benchmark>
"""
AARHUS = 'Aarhus_Airport : cityServed : "Aarhus, Denmark" | Aarhus : Leader : A|B & C | D'
WEBNLG = [
    Source(AARHUS, ("Aarhus Airport serves Aarhus.", "It serves <Aarhus>."), "seen"),
    Source("Å : genre : Rock", ("Å plays rock.",), "unseen"),
]
TRIPLES = [
    [
        ("Aarhus_Airport", "cityServed", '"Aarhus, Denmark"'),
        ("Aarhus", "Leader", "A|B & C | D"),
    ],
    [("Å", "genre", "Rock")],
    [("B", "genre", "Rock")],
]
LEX = [
    [
        ("good", "Aarhus  Airport serves\nAarhus."),
        ("toFix", "bad"),
        ("good", "It serves <Aarhus>."),
    ],
    [("good", "Å plays rock.")],
    [("toFix", "B.")],
]
CATEGORIES = ["Airport", "Artist", "Artist"]


def webnlg_json() -> str:
    entries = [
        {
            str(number): {
                "category": category,
                "modifiedtripleset": [
                    {"subject": s, "property": p, "object": o} for s, p, o in triples
                ],
                "lexicalisations": [{"comment": comment, "lex": lex} for comment, lex in texts],
            }
        }
        for number, (category, triples, texts) in enumerate(
            zip(CATEGORIES, TRIPLES, LEX, strict=True), 1
        )
    ]
    return json.dumps({"entries": entries})


@pytest.mark.parametrize("ending", [".xml", ".xml.gz", ".json", ".json.gz", ".parquet"])
def test_webnlg_in_each_format(tmp_path, ending):
    if ending == ".parquet":
        sets = [[" | ".join(triple) for triple in triples] for triples in TRIPLES]
        write_parquet(
            tmp_path,
            {
                "category": [*CATEGORIES, "Artist"],
                "modified_triple_sets": [{"mtriple_set": [each]} for each in [*sets, sets[1]]],
                "lex": [
                    {"comment": [c for c, _ in texts], "text": [text for _, text in texts]}
                    for texts in [*LEX, LEX[1]]
                ],
                "test_category": ["testdata_with_lex"] * 3 + ["testdata_unseen_with_lex"],
            },
        )
    else:
        fill(tmp_path, ending, WEBNLG_XML if ending.startswith(".xml") else webnlg_json())
    data = load("webnlg", tmp_path)
    assert data.test == WEBNLG
    assert data.train == pairs(WEBNLG)
    assert groups(data.test) == {"all": [0, 1], "seen": [0], "unseen": [1]}


def test_webnlg_in_the_folders_of_the_challenge(tmp_path):
    """All XML below train and dev, in the order of the paths; of test the whole one only."""
    other = WEBNLG_XML.replace("Å", "C")
    write(tmp_path / "train" / "1triples" / "a.xml", WEBNLG_XML)
    write(tmp_path / "train" / "2triples" / "b.xml", other)
    write(tmp_path / "train" / "README.txt", "not read")
    write(tmp_path / "dev" / "1triples" / "a.xml", WEBNLG_XML)
    write(tmp_path / "test" / "testdata_no_lex.xml", "not read")
    write(tmp_path / "test" / "testdata_unseen_with_lex.xml", "not read")
    write(tmp_path / "test" / "testdata_with_lex.xml", WEBNLG_XML)
    data = load("webnlg", tmp_path)
    assert [pair.source for pair in data.train] == [AARHUS] * 2 + ["Å : genre : Rock"] + (
        [AARHUS] * 2 + ["C : genre : Rock"]
    )
    assert data.test == WEBNLG


def test_a_folder_of_several_formats_is_read_in_the_one_named(tmp_path):
    for split in ("train", "dev", "test"):
        write(tmp_path / split / "a.xml", WEBNLG_XML)
        write(tmp_path / split / "a.json", webnlg_json())
    message = refused("webnlg", tmp_path)
    assert message.startswith(f"{tmp_path / 'train'}: holds files of several formats (json, xml).")
    assert load("webnlg", tmp_path, format="json").test == WEBNLG


def test_sources_that_are_equal_are_one_with_the_group_of_the_first(tmp_path):
    again = WEBNLG_XML.replace("Artist", "City").replace("Å plays rock.", "Å rocks.")
    fill(
        tmp_path,
        ".xml",
        WEBNLG_XML.replace("</entries>", "").replace("</benchmark>", "")
        + (again.split("<entries>")[1]),
    )
    data = load("webnlg", tmp_path)
    assert data.test[1] == Source("Å : genre : Rock", ("Å plays rock.", "Å rocks."), "unseen")
    assert len(data.test) == 2
    assert len(data.train) == 6


DART_JSON = [
    {
        "tripleset": [["Mars Hill College", "JOINED", "1973"], ["[TABLECONTEXT]", "[TITLE]", "X"]],
        "subtree_was_extended": False,
        "annotations": [
            {"source": "WikiSQL_decl_sents", "text": "A school\tjoined in 1973."},
            {"source": "WikiSQL_lily", "text": " "},
        ],
    }
]
DART_XML = """<?xml version='1.0' encoding='utf-8'?>
<benchmark><entries><entry category="MISC" eid="Id1" size="2"><modifiedtripleset>
<mtriple>Mars Hill College | JOINED | 1973</mtriple>
<mtriple>[TABLECONTEXT] | [TITLE] | X</mtriple></modifiedtripleset>
<lex comment="WikiSQL_decl_sents" lid="Id1">A school&#9;joined in 1973.</lex>
<lex comment="WikiSQL_lily" lid="Id2"></lex></entry></entries></benchmark>
"""


@pytest.mark.parametrize("ending", [".json", ".xml", ".parquet"])
def test_dart_in_each_format(tmp_path, ending):
    if ending == ".parquet":
        columns = {name: [DART_JSON[0][name]] for name in ("tripleset", "annotations")}
        write_parquet(tmp_path, columns)
    else:
        content = DART_XML if ending == ".xml" else json.dumps(DART_JSON)
        for split in ("train", "dev", "test"):
            write(tmp_path / f"dart-v1.1.1-full-{split}{ending}", content)
    source = "Mars Hill College : joined : 1973 | [TABLECONTEXT] : [title] : X"
    data = load("dart", tmp_path)
    assert data.train == [Pair(source, "A school joined in 1973.")]
    assert data.test == [Source(source, ("A school joined in 1973.",))]


def test_json_lines_that_are_linearised_already(tmp_path):
    row = {"source": "A : b : C", "references": ["x", "y  z"], "category": "City"}
    fill(tmp_path, ".jsonl.gz", json.dumps(row) + "\n")
    assert load("webnlg", tmp_path).test == [Source("A : b : C", ("x", "y z"), "seen")]
    assert load("dart", tmp_path).test == [Source("A : b : C", ("x", "y z"))]
    fill(tmp_path, ".jsonl.gz", '{"source": "a", "references": "b"}\n')
    message = refused("e2e", tmp_path)
    assert "train.jsonl.gz:1: the column 'references' is 'b'; expected a list of" in message


# What is refused

ENTITIES = """<!DOCTYPE lolz [<!ENTITY a "boom"><!ENTITY b "&a;&a;&a;&a;">]>
<benchmark><entries><entry category="City"><modifiedtripleset><mtriple>&b; | b | c</mtriple>
</modifiedtripleset><lex comment="good">x</lex></entry></entries></benchmark>
"""
EXTERNAL = ENTITIES.replace('<!ENTITY b "&a;&a;&a;&a;">', '<!ENTITY b SYSTEM "file:///etc/passwd">')


@pytest.mark.parametrize("content", [ENTITIES, EXTERNAL, "\n<!DOCTYPE b>\n<b/>"])
def test_xml_with_a_document_type_is_refused_where_it_begins(tmp_path, content):
    line = content[: content.index("<!DOCTYPE")].count("\n") + 1
    message = refused("webnlg", fill(tmp_path, ".xml", content))
    assert message.startswith(f"{tmp_path / 'train.xml'}:{line}: has a document type")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("</lex>\n    </entry>", "\n    </entry>", ":13: not well-formed XML (mismatched tag)."),
        ("Å | genre | Rock", "Å | genre", ":15: the triple is 'Å | genre'; expected `subject"),
        ('category="Artist" ', "", ":14: the category is empty; expected its name."),
        ("<mtriple>Å | genre | Rock</mtriple>", "", ":14: the entry has no triples."),
        ("<entries>", "<lex>x</lex>", ":2: <lex> stands outside an <entry>."),
    ],
)
def test_malformed_xml_is_named_with_its_line(tmp_path, old, new, expected):
    assert old in WEBNLG_XML
    message = refused("webnlg", fill(tmp_path, ".xml", WEBNLG_XML.replace(old, new, 1)))
    assert message.startswith(f"{tmp_path / 'train.xml'}{expected}")


@pytest.mark.parametrize(
    ("corpus", "content", "expected"),
    [
        ("webnlg", '{\n"entries": [}', ":2: not JSON ("),
        ("webnlg", "[]", ': expected an object with a list of "entries".'),
        ("webnlg", '{"entries": [3]}', ', entry 1: expected {"1": {...}}.'),
        ("webnlg", '{"entries": [{"1": {}}]}', ", entry 1: not an entry as the benchmark has"),
        ("dart", "{}", ": expected a list of entries."),
        ("dart", '[{"tripleset": []}]', ", entry 1: not an entry as the benchmark has them"),
        (
            "dart",
            '[{"tripleset": [["a", "b"]], "annotations": []}]',
            ", entry 1: not an entry as the benchmark has them; expected a tripleset",
        ),
        (
            "dart",
            '[{"tripleset": [["a", "b", 3]], "annotations": []}]',
            ", entry 1: the column 'triple' is 3; expected text.",
        ),
        (
            "dart",
            '[{"tripleset": [["a", "b", "c"]], "annotations": [{"source": "", "text": null}]}]',
            ", entry 1: the column 'reference' is empty; expected text.",
        ),
    ],
)
def test_malformed_json_is_named_with_its_entry(tmp_path, corpus, content, expected):
    message = refused(corpus, fill(tmp_path, ".json", content))
    assert message.startswith(f"{tmp_path / 'train.json'}{expected}")


def test_damaged_gzip_is_refused(tmp_path):
    for ending in (".xml.gz", ".json.gz"):
        fill(tmp_path, ending, WEBNLG_XML)
        whole = (tmp_path / f"train{ending}").read_bytes()
        (tmp_path / f"train{ending}").write_bytes(whole[: len(whole) // 2])
        message = refused("webnlg", tmp_path, format=ending.split(".")[1])
        assert message.startswith(f"{tmp_path / f'train{ending}'}: not a readable gzip file (")


def test_a_corpus_whose_entries_have_no_reference_has_no_rows(tmp_path):
    fill(tmp_path, ".xml", WEBNLG_XML.replace('"good"', '"toFix"'))
    assert refused("webnlg", tmp_path) == (
        f"task webnlg: the split 'train' in {tmp_path} has no rows."
    )


# The real data

needs_nlg = pytest.mark.skipif(not NLG.is_dir(), reason="../shared/data/nlg is not here")


@needs_nlg
@pytest.mark.parametrize(
    ("corpus", "train", "validation", "test"),
    [("e2e", 42061, (547, 4672), (630, 4693)), ("webnlg", 18025, (870, 2258), (1862, 4928))],
)
def test_the_counts_of_the_shared_copies(corpus, train, validation, test):
    data = load(corpus, NLG)
    assert len(data.train) == train
    counted = [(len(split), len(pairs(split))) for split in (*data.validation.values(), data.test)]
    assert counted == [validation, test]
    if corpus == "webnlg":
        sizes = {name: len(positions) for name, positions in groups(data.test).items()}
        assert sizes == {"all": 1862, "seen": 971, "unseen": 891}


@needs_nlg
def test_dart_without_its_training_data_says_what_was_looked_for(tmp_path):
    message = refused("dart", NLG)
    assert "no file for the split 'train'" in message
    assert "dart-v1.1.1-full-train.json" in message
    for split in ("valid", "test"):
        name = f"{split}.jsonl.gz"
        (tmp_path / name).write_bytes((NLG / "dart" / name).read_bytes())
    (tmp_path / "train.jsonl.gz").write_bytes((NLG / "dart" / "valid.jsonl.gz").read_bytes())
    data = load("dart", tmp_path)
    assert (len(data.test), len(pairs(data.test))) == (4159, 12551)


@needs_nlg
def test_the_original_csv_gives_the_linearised_copy(tmp_path):
    for path in (NLG / "e2e" / "original").glob("*.csv.gz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    original, copy = load("e2e", tmp_path), load("e2e", NLG)
    assert Counter(original.train) == Counter(copy.train)
    for ours, theirs in (
        (original.test, copy.test),
        (original.validation["validation"], copy.validation["validation"]),
    ):
        assert {each.text: each.references for each in ours} == {
            each.text: each.references for each in theirs
        }


@needs_nlg
def test_the_lines_of_microsoft_lora_differ_from_the_csv_in_blanks_only(tmp_path):
    """Line by line: the same sources and references, but for how they are tokenised."""
    original = NLG / "e2e" / "original"
    for split, name in (("valid", "devset"), ("test", "testset_w_refs")):
        for copied in ("csv", "txt"):
            source = f"{name}.csv.gz" if copied == "csv" else f"lora_{split}.txt.gz"
            for stem in ("train", "valid", "test"):
                path = tmp_path / copied / f"{stem}.{copied}.gz"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes((original / source).read_bytes())
        ours, theirs = load("e2e", tmp_path / "csv").train, load("e2e", tmp_path / "txt").train
        assert [squeezed(pair) for pair in ours] == [squeezed(pair) for pair in theirs]
        assert ours != theirs


def squeezed(pair: Pair) -> tuple[str, ...]:
    return tuple("".join(text.split()) for text in (pair.source, pair.target))


def test_attributes_without_another_name_keep_their_own():
    meaning = "name[A], food[Fast food], near[Café, B]"
    assert linearise_attributes("x", meaning) == "name : A | food : Fast food | near : Café, B"
