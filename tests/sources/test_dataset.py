"""A data set's files are those that `datasets` itself would read, or the run is refused in words."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import CsvSpec, DatasetSpec, SourceSpec
from pipeline.errors import InputError
from pipeline.sources.dataset import DataFiles, data_files, is_dataset
from tests.hub import TOKEN, Hub, hub_server


@pytest.fixture(scope="module")
def hub():
    with hub_server() as server:
        yield server


def spec_of(path, *, config=None, split="train", revision=None, **keys):
    dataset = DatasetSpec(config=config, split=split, revision=revision)
    return SourceSpec(path=f"dataset:{path}", text="text", dataset=dataset, **keys)


def found(path, **keys) -> DataFiles:
    return data_files(spec_of(path, **keys))


def names(files: DataFiles, folder: Path) -> list[str]:
    return [Path(path).relative_to(folder).as_posix() for path in files.paths]


def write(folder: Path, content: dict[str, str | bytes]) -> Path:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def parquet(*texts: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": list(texts)}), sink)
    return bytes(sink.getvalue())


def card(yaml: str) -> str:
    return f"---\n{yaml}\n---\n# A data set\n"


LINES = '{"text": "one"}\n{"text": "two"}\n'
CSV = "text,n\none,1\n"

# --- which files -----------------------------------------------------------------------------------------------------


def test_a_source_is_a_data_set_by_its_prefix_and_stands_alone():
    assert is_dataset(spec_of("org/name"))
    assert not is_dataset(SourceSpec(path="data/*.parquet", text="text"))
    with pytest.raises(InputError, match="one data set alone"):
        is_dataset(SourceSpec(path=("a.jsonl", "dataset:org/name"), text="text"))


@pytest.mark.parametrize(
    ("content", "format"),
    [
        ({"a.parquet": parquet("x")}, "parquet"),
        ({"a.jsonl": LINES}, "jsonl"),
        ({"a.jsonl.gz": gzip.compress(LINES.encode())}, "jsonl"),
        ({"a.json": LINES}, "jsonl"),
        ({"a.json": "\ufeff\n  " + LINES}, "jsonl"),
        ({"a.json.gz": gzip.compress(LINES.encode())}, "jsonl"),
        ({"a.json": '{"text": "' + "x" * 2**20 + '"}\n'}, "jsonl"),
        ({"a.csv": CSV}, "csv"),
        ({"a.txt": "one\ntwo\n"}, "lines"),
    ],
)
def test_the_format_is_that_of_the_files(tmp_path, content, format):
    files = found(write(tmp_path, content))
    assert (names(files, tmp_path), files.format) == (list(content), format)


def test_splits_are_told_apart_by_files_and_by_folders(tmp_path):
    flat = write(tmp_path / "flat", {"train.jsonl": LINES, "test.jsonl": LINES})
    deep = write(tmp_path / "deep", {"train/1.csv": CSV, "train/2.csv": CSV, "validation/1.csv": CSV})
    assert names(found(flat), flat) == ["train.jsonl"]
    assert names(found(flat, split="test"), flat) == ["test.jsonl"]
    assert names(found(deep), deep) == ["train/1.csv", "train/2.csv"]
    assert names(found(deep, split="validation"), deep) == ["validation/1.csv"]
    with pytest.raises(InputError, match=r"no split 'dev'.*'train', 'test'"):
        found(flat, split="dev")


def test_configurations_come_from_the_card(tmp_path):
    yaml = (
        "configs:\n"
        "- config_name: small\n  data_files: s/*.jsonl\n"
        "- config_name: large\n  data_files:\n  - {split: train, path: l/a.jsonl}\n  - {split: rest, path: l/b.jsonl}"
    )
    files = {"README.md": card(yaml), "s/1.jsonl": LINES, "l/a.jsonl": LINES, "l/b.jsonl": LINES}
    folder = write(tmp_path, files)
    assert names(found(folder, config="small"), folder) == ["s/1.jsonl"]
    assert names(found(folder, config="large", split="rest"), folder) == ["l/b.jsonl"]
    with pytest.raises(InputError, match=r"several configs.*'small', 'large'"):
        found(folder)
    with pytest.raises(InputError, match=r"no config 'huge'.*'small', 'large'"):
        found(folder, config="huge")
    write(tmp_path, {"README.md": card(yaml.replace("large\n", "large\n  default: true\n"))})
    assert names(found(folder), folder) == ["l/a.jsonl"]


def test_the_files_are_those_that_load_dataset_reads(tmp_path):
    content = {"README.md": "# text", "data/train-1.parquet": parquet("b", "a"), "data/train-0.parquet": parquet("c")}
    write(tmp_path, content | {"data/test-0.parquet": parquet("d")})
    files = found(tmp_path)
    texts = [text for path in files.paths for text in pq.read_table(path).column("text").to_pylist()]
    code = (
        "import json, sys, datasets\n"
        "rows = datasets.load_dataset(sys.argv[1], split='train', cache_dir=sys.argv[2])\n"
        "print(json.dumps(list(rows['text'])))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), str(tmp_path.parent / "cache")]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert texts == json.loads(loaded.splitlines()[-1])


def test_a_relative_folder_and_a_link_are_found(tmp_path, monkeypatch):
    write(tmp_path / "real", {"a.jsonl": LINES})
    (tmp_path / "csv").symlink_to(tmp_path / "real")  # `csv` alone would be a builder of the library
    monkeypatch.chdir(tmp_path)
    assert found("csv").format == "jsonl"
    assert found("./real").paths == (str(tmp_path / "real/a.jsonl"),)


# --- written by save_to_disk -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`one`: a Dataset in three files; `split`: one that says it is a test split; `several`: a DatasetDict."""
    folder = tmp_path_factory.mktemp("saved")
    code = (
        "import sys\n"
        "from datasets import Dataset, DatasetDict, NamedSplit\n"
        "rows = Dataset.from_dict({'text': [f't{i}' for i in range(9)]})\n"
        "rows.save_to_disk(sys.argv[1] + '/one', num_shards=3)\n"
        "Dataset.from_dict({'text': ['x']}, split=NamedSplit('test')).save_to_disk(sys.argv[1] + '/split')\n"
        "DatasetDict({'train': rows.select([8, 1]), 'test': rows.select([2])}).save_to_disk(sys.argv[1] + '/several')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder], check=True, capture_output=True, timeout=120)
    return folder


def arrow_texts(files: DataFiles) -> list[str]:
    assert files.format == "arrow"
    return [text for path in files.paths for text in pa.ipc.open_stream(path).read_all().column("text").to_pylist()]


def test_what_save_to_disk_wrote_is_found_in_its_order(saved):
    assert arrow_texts(found(saved / "one")) == [f"t{i}" for i in range(9)]
    assert arrow_texts(found(saved / "several")) == ["t8", "t1"]
    assert arrow_texts(found(saved / "several", split="test")) == ["t2"]
    assert arrow_texts(found(saved / "split", split="test")) == ["x"]


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("several", {"split": "dev"}, "no split 'dev'.*'train', 'test'"),
        ("split", {}, "no split 'train'.*'test'"),
        ("one", {"split": "test"}, "no split 'test'.*'train'"),
        ("one", {"config": "small"}, "leave it out"),
        ("one", {"revision": "main"}, "leave it out"),
    ],
)
def test_what_save_to_disk_did_not_write_is_refused(saved, name, keys, message):
    with pytest.raises(InputError, match=message):
        found(saved / name, **keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_data_files": [{"filename": "../one/data-00000-of-00003.arrow"}]}, "is not there"),
        ({"_data_files": [{"filename": "absent.arrow"}]}, "is not there"),
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "selection of its rows"),
    ],
)
def test_a_damaged_or_indirect_save_is_refused(saved, tmp_path, change, message):
    state = json.loads((saved / "split/state.json").read_text()) | change
    file = (saved / "split").glob("*.arrow")
    write(tmp_path, {"state.json": json.dumps(state)} | {path.name: path.read_bytes() for path in file})
    with pytest.raises(InputError, match=message):
        found(tmp_path, split="test")


PARQUET = "configs:\n- config_name: default\n  data_files: a.parquet\n"
JSON = "configs:\n- config_name: default\n  data_files: a.json\n"

# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.json": '[{"text": "one"}]'}, "one JSON value"),
        ({"a.json": '{\n "text": "one"\n}'}, "one JSON value"),
        ({"a.json": ""}, "one JSON value"),
        ({"a.json.gz": b"no gzip at all"}, "one JSON value"),
        ({"a.json.gz": gzip.compress(LINES.encode())[:12] + b"damage"}, "one JSON value"),
        ({"a.json": "[" * 10**5}, "one JSON value"),
        ({"README.md": card(PARQUET + "  filters: [[n, '>', 1]]"), "a.parquet": parquet("x")}, "filters = "),
        ({"README.md": card(JSON + "  field: data"), "a.json": '{"data": []}'}, "under the key 'data'"),
        ({"README.md": card(JSON + "  encoding: utf-16"), "a.json": LINES}, "encoding = 'utf-16'"),
        ({"a.png": b"x", "b.png": b"x"}, "made of imagefolder files"),
        ({"a.xml": "<a/>"}, "made of xml files"),
        ({"a.tar": b"x"}, "made of webdataset files"),
        ({"README.md": card("configs:\n- {config_name: default, data_files: a.jsonl}")}, "can't be resolved.*a.jsonl"),
        ({}, "can't be resolved"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        found(write(tmp_path / "folder", {"x/.keep": "", **content}))


def test_a_script_is_never_run(tmp_path):
    folder = write(tmp_path / "made", {"made.py": "raise SystemExit('run')", "a.jsonl": LINES})
    with pytest.raises(InputError, match="a script of its own"):
        found(folder)


def test_a_text_data_set_is_what_its_card_says(tmp_path):
    yaml = "configs:\n- {config_name: default, data_files: a.txt, sample_by: %s}"
    for sample_by, format in (("line", "lines"), ("document", "text")):
        folder = write(tmp_path, {"README.md": card(yaml % sample_by), "a.txt": "one\n"})
        assert found(folder).format == format
    with pytest.raises(InputError, match="per paragraph"):
        found(write(tmp_path, {"README.md": card(yaml % "paragraph")}))


def test_options_that_change_no_row_pass(tmp_path):
    options = "  columns: [text]\n  batch_size: 7"
    folder = write(tmp_path, {"README.md": card(PARQUET + options), "a.parquet": parquet("x")})
    assert found(folder).format == "parquet"


def test_a_card_is_not_needed(hub, tmp_path):
    sha = hub.repository("org/bare", "datasets").commit(write(tmp_path / "lines", {"train.jsonl": LINES}))
    paths, _, _ = on_hub(hub, tmp_path / "home", "org/bare")
    assert paths == [f"hf://datasets/org/bare@{sha}/train.jsonl"]


def test_the_format_that_was_asked_for_counts(tmp_path):
    assert found(write(tmp_path, {"a.txt": "one\n"}), format="text").format == "text"


# --- csv -------------------------------------------------------------------------------------------------------------

CARD = "configs:\n- config_name: default\n  data_files: a.csv\n"


@pytest.mark.parametrize(
    ("yaml", "csv", "message"),
    [
        ("  sep: ';'", {}, "source.csv.delimiter to ';'"),
        ("  delimiter: '|'", {}, "source.csv.delimiter to '|'"),
        ('  quotechar: "\'"', {}, "source.csv.quote to"),
        ("  names: [text, n]", {}, r"source.csv.columns to \['text', 'n'\]"),
        ("  column_names: [text, n]", {}, r"source.csv.columns to \['text', 'n'\]"),
        ("  skiprows: 1", {}, "skiprows = 1"),
        ("  encoding: latin-1", {}, "encoding = 'latin-1'"),
        ("  escapechar: x", {}, "escapechar = 'x'"),
    ],
)
def test_csv_options_of_the_card_are_not_guessed(tmp_path, yaml, csv, message):
    folder = write(tmp_path, {"README.md": card(CARD + yaml), "a.csv": CSV})
    with pytest.raises(InputError, match=message):
        found(folder, csv=CsvSpec(**csv))


@pytest.mark.parametrize(
    ("yaml", "csv"),
    [
        ("  sep: ';'", {"delimiter": ";"}),
        ("  sep: ';'", {"delimiter": ","}),  # the user's word counts
        ('  quotechar: "\'"', {"quote": "'"}),
        ("  names: [text, n]", {"columns": ("text", "n")}),
        ("  encoding: utf-8\n  chunksize: 5", {}),
    ],
)
def test_csv_options_that_agree_or_are_overridden_pass(tmp_path, yaml, csv):
    folder = write(tmp_path, {"README.md": card(CARD + yaml), "a.csv": CSV})
    assert found(folder, csv=CsvSpec(**csv)).format == "csv"


def test_tabs_make_tsv_and_quotes_are_the_users_choice(tmp_path):
    folder = write(tmp_path, {"a.tsv": "text\tn\none\t1\n"})
    with pytest.raises(InputError, match=r"source.csv.quote"):
        found(folder)
    assert found(folder, csv=CsvSpec(quote="")).format == "tsv"
    assert found(folder, csv=CsvSpec(quote='"')).format == "tsv"


# --- on the Hub ------------------------------------------------------------------------------------------------------

CODE = """
import json, sys
from pipeline.config import DatasetSpec, SourceSpec
from pipeline.sources.dataset import data_files
from pipeline.errors import InputError
try:
    files = data_files(SourceSpec(path="dataset:{name}", text="text", dataset=DatasetSpec(**{keys!r})))
    print(json.dumps([files.paths, files.format, sorted({{"torch", "ray"}} & set(sys.modules))]))
except InputError as error:
    print(json.dumps(str(error)))
"""


def on_hub(hub: Hub, home: Path, name: str, keys: dict[str, str] | None = None, **variables: str):
    return hub.run(CODE.format(name=name, keys=keys or {}), home, **variables)


def test_a_data_set_on_the_hub_is_pinned_to_its_commit(hub, tmp_path):
    repository = hub.repository("org/news", "datasets")
    content = {"README.md": "# News", "data/train-0.parquet": parquet("x"), "data/test-0.parquet": parquet("y")}
    first = repository.commit(write(tmp_path / "files", content), "main", "v1")
    second = repository.commit(write(tmp_path / "files", {"data/train-1.parquet": parquet("z")}))
    hub.requests.clear()
    root = "hf://datasets/org/news@"
    new = [[f"{root}{second}/data/train-{i}.parquet" for i in range(2)], "parquet", []]
    assert on_hub(hub, tmp_path / "home", "org/news") == new
    assert not [request for request in hub.downloads if "parquet" in request]  # nothing is prepared
    old = [[f"{root}{first}/data/test-0.parquet"], "parquet", []]
    assert on_hub(hub, tmp_path / "home", "org/news", {"revision": "v1", "split": "test"}) == old
    assert on_hub(hub, tmp_path / "home", "org/news", {"revision": first, "split": "test"}) == old


def test_storage_reads_what_was_found(hub, tmp_path):
    repository = hub.repository("org/read", "datasets")
    files = {"README.md": "# Read", "train/[0].parquet": parquet("x"), "train/1.parquet": parquet("y", "z")}
    repository.commit(write(tmp_path / "files", files))
    code = """
import json
import pyarrow.parquet as pq
from pipeline.config import SourceSpec
from pipeline.sources.dataset import data_files
from pipeline.storage import list_pattern, pinned
found = data_files(SourceSpec(path="dataset:org/read", text="text"))
root = found.paths[0].rpartition("/")[0]
texts = []
for path in found.paths:
    [file] = list_pattern(path, {})
    with pinned(file, {}) as opened:
        texts += pq.read_table(opened).column("text").to_pylist()
by_pattern = [file.path for file in list_pattern(root + "/*.parquet", {})]
print(json.dumps([texts, sorted(found.paths) == by_pattern, found.format]))
"""
    texts, by_pattern, format = hub.run(code, tmp_path / "home")
    assert (sorted(texts), by_pattern, format) == (["x", "y", "z"], True, "parquet")


def test_json_on_the_hub_is_looked_into(hub, tmp_path):
    lines, value = hub.repository("org/jsonlines", "datasets"), hub.repository("org/jsonvalue", "datasets")
    lines.commit(write(tmp_path / "lines", {"README.md": "#", "a.json": LINES}))
    value.commit(write(tmp_path / "value", {"README.md": "#", "a.json": '[{"text": "one"}]'}))
    assert on_hub(hub, tmp_path / "home", "org/jsonlines")[1] == "jsonl"
    assert "one JSON value" in on_hub(hub, tmp_path / "home", "org/jsonvalue")


@pytest.mark.parametrize(
    ("name", "keys", "variables", "message"),
    [
        ("org/absent", {}, {}, "not on the Hub, or is private"),
        ("org/lines", {"revision": "v9"}, {}, "no revision 'v9'"),
        ("org/lines", {"split": "dev"}, {}, "no split 'dev'"),
        ("org/lines", {"config": "x"}, {}, "no config 'x'"),
        ("org/lines", {}, {"HF_HUB_OFFLINE": "1"}, "offline mode is on"),
        ("org/lines", {}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "can't be fetched|check the network"),
        ("org/gated", {}, {}, "gated"),
        ("org/gated", {}, {"HF_TOKEN": "hf_not-a-member"}, "gated"),
        ("org/script", {}, {}, "a script of its own"),
        ("no/such/folder", {}, {}, "neither a folder that exists nor"),
    ],
)
def test_what_the_hub_does_not_give_is_an_input_error(hub, tmp_path, name, keys, variables, message):
    lines = write(tmp_path / "lines", {"README.md": "# Lines", "train.jsonl": LINES})
    hub.repository("org/lines", "datasets").commit(lines)
    gated = hub.repository("org/gated", "datasets")
    gated.gated = True
    gated.commit(lines)
    hub.repository("org/script", "datasets").commit(write(tmp_path / "s", {"script.py": "", "a.jsonl": LINES}))
    said = on_hub(hub, tmp_path / "home", name, keys, **variables)
    assert isinstance(said, str), said
    assert re.search(message, said), said
    assert "hf_" not in said


def test_an_old_name_without_organisation_is_the_repository_of_today(hub, tmp_path):
    hub.legacy_names["oldlines"] = "org/oldlines"
    files = write(tmp_path / "lines", {"README.md": "# Lines", "train.jsonl": LINES})
    sha = hub.repository("org/oldlines", "datasets").commit(files)
    paths, _, _ = on_hub(hub, tmp_path / "home", "oldlines")
    assert paths == [f"hf://datasets/org/oldlines@{sha}/train.jsonl"]


def test_a_token_opens_a_gated_data_set(hub, tmp_path):
    gated = hub.repository("org/members", "datasets")
    gated.gated = True
    sha = gated.commit(write(tmp_path / "lines", {"README.md": "# Lines", "train.jsonl": LINES}))
    paths, format, _ = on_hub(hub, tmp_path / "home", "org/members", HF_TOKEN=TOKEN)
    assert (paths, format) == ([f"hf://datasets/org/members@{sha}/train.jsonl"], "jsonl")
