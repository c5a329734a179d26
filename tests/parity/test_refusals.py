"""What the format has and this program doesn't do: each is triggered in a real folder, and its message stands in the docs.

`UPDATE_DOCS=1 pytest tests/parity/test_refusals.py` writes that table of docs/model-format.md anew.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import InputError
from pipeline.model.architectures import REFUSED
from pipeline.model.folder import encoder_spec
from tests.parity.document import Block
from tests.parity.saved import change
from tests.tiny import build_tiny_model

MODULES, MODEL, SETTINGS = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
POOLING, DENSE, NORMALIZE = "1_Pooling/config.json", "2_Dense/config.json", "3_Normalize/config.json"
Damage = Callable[[Path], Any]


def keys(name: str, **values: Any) -> Damage:
    return lambda folder: change(folder / name, **values)


def module(number: int, **values: Any) -> Damage:
    def edit(folder: Path) -> None:
        modules = json.loads((folder / MODULES).read_text())
        modules[number] |= values
        (folder / MODULES).write_text(json.dumps(modules))

    return edit


def of_class(number: int, name: str) -> Damage:
    return module(number, type=f"sentence_transformers.{name}")


def written(name: str, content: str) -> Damage:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return write


def without(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def without_module(number: int) -> Damage:
    def drop(folder: Path) -> None:
        modules = json.loads((folder / MODULES).read_text())
        del modules[number]
        (folder / MODULES).write_text(json.dumps(modules))

    return drop


def with_module(name: str, home: str, **config: Any) -> Damage:
    """One more module, behind the transformer or at the end, as its class wants to stand."""

    def add(folder: Path) -> None:
        modules = json.loads((folder / MODULES).read_text())
        entry = {"idx": 9, "name": "9", "path": f"9_{name}", "type": f"sentence_transformers.models.{name}"}
        modules.insert(1 if home == "tokens" else len(modules), entry)
        (folder / MODULES).write_text(json.dumps(modules))
        change(folder / f"9_{name}" / "config.json", **config)
        save_file({"any": torch.zeros(1)}, folder / f"9_{name}" / "model.safetensors")

    return add


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code of the model ran",)


def pickled_code(folder: Path) -> None:
    (folder / "2_Dense" / "model.safetensors").unlink()
    torch.save({"linear.weight": _RunsCode()}, folder / "2_Dense" / "pytorch_model.bin")


def lost_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.0.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def slow_tokenizer(folder: Path) -> None:
    """A class of transformers that has no fast form."""
    (folder / "tokenizer.json").unlink()
    change(
        folder / TOKENIZER, tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="basic", do_lower_case=False
    )


def two_segments(folder: Path) -> None:
    """As XLNet's: the text is of another segment than 0. (BertTokenizer would put its own template in this one's place.)"""
    change(folder / TOKENIZER, tokenizer_class="PreTrainedTokenizerFast")
    rules = json.loads((folder / "tokenizer.json").read_text())
    for piece in rules["post_processor"]["single"]:
        for kind in piece.values():
            kind["type_id"] = 1
    (folder / "tokenizer.json").write_text(json.dumps(rules))


ROUTER = "base.modules.router.Router"
SPARSE = "sparse_encoder.modules.splade_pooling.SpladePooling"
MULTI_VECTOR = "multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"

MODULE_REFUSALS: Mapping[str, Damage] = {
    "Router": of_class(0, ROUTER),
    "Asym": of_class(0, "models.Asym"),
    "CLIPModel": of_class(0, "models.CLIPModel"),
    "CNN": of_class(1, "models.CNN"),
    "LSTM": of_class(1, "models.LSTM"),
    "BoW": of_class(0, "models.BoW"),
    "WordEmbeddings": of_class(0, "models.WordEmbeddings"),
    "a sparse encoder's module": of_class(1, SPARSE),
    "a multi-vector encoder's module": of_class(1, MULTI_VECTOR),
    "another class of the library": of_class(1, "models.Whatever"),
    "custom code": module(2, type="modeling_custom.Pooler"),
    "kwargs of a module": module(0, kwargs=["task"]),
    "an unknown key of an entry": module(1, extra=1),
    "path: upwards": module(1, path="../1_Pooling"),
    "path: absolute": module(1, path="/etc"),
    "path: of Windows": module(1, path="C:\\1_Pooling"),
    "no Pooling": without_module(1),
    "Normalize before the transformer": lambda folder: [without_module(0)(folder), without_module(0)(folder)],
    "no module at all": written(MODULES, "[]"),
    "neither modules.json nor config.json": without(MODULES, CONFIG),
}
KEY_REFUSALS: Mapping[str, Damage] = {
    "model_type SparseEncoder": keys(MODEL, model_type="SparseEncoder"),
    "model_type CrossEncoder": keys(MODEL, model_type="CrossEncoder"),
    "model_type MultiVectorEncoder": keys(MODEL, model_type="MultiVectorEncoder"),
    "requirements that are not met": keys(MODEL, requirements={"transformers": {"specifier": "<2", "reason": "a bug"}}),
    "prompts that are no strings": keys(MODEL, prompts={"query": 1}),
    "default_prompt_name that is no prompt": keys(MODEL, default_prompt_name="gone"),
    "truncate_dim beyond the width": keys(MODEL, truncate_dim=99),
    "an unknown key": keys(SETTINGS, new_key=1),
    "another key of model_args": keys(SETTINGS, model_args={"device_map": "auto"}),
    "another key of config_args": keys(SETTINGS, config_args={"num_hidden_layers": 1}),
    "another key of tokenizer_args": keys(SETTINGS, tokenizer_args={"truncation_side": "left"}),
    "transformer_task": keys(SETTINGS, transformer_task="fill-mask"),
    "modality_config with images": keys(
        SETTINGS, modality_config={"image": {"method": "get_image_features", "method_output_name": "pooler_output"}}
    ),
    "modality_config with a chat template": keys(
        SETTINGS,
        modality_config={
            "text": {"method": "forward", "method_output_name": "last_hidden_state"},
            "message": {"method": "forward", "method_output_name": "last_hidden_state", "format": "flat"},
        },
    ),
    "module_output_name": keys(SETTINGS, module_output_name="sentence_embedding"),
    "processing_kwargs": keys(SETTINGS, processing_kwargs={"text": {"padding": "max_length"}}),
    "query_length": keys(SETTINGS, query_length=32),
    "document_length": keys(SETTINGS, document_length=180),
    "query_expansion": keys(SETTINGS, query_expansion={"strategy": "fixed", "length": 32}),
    "max_seq_length beyond the positions": keys(SETTINGS, max_seq_length=1024),
    "max_seq_length without room for text": keys(SETTINGS, max_seq_length=2),
    "Pooling: an unknown key": keys(POOLING, pooling_mode_median_tokens=True),
    "Pooling: an unknown mode": keys(POOLING, pooling_mode=["mean", "median"]),
    "Pooling: another width": keys(POOLING, word_embedding_dimension=33),
    "Dense: an unknown key": keys(DENSE, dropout=0.1),
    "Dense: an activation with weights": keys(DENSE, activation_function="torch.nn.modules.activation.PReLU"),
    "Dense: an activation from elsewhere": keys(DENSE, activation_function="my_code.Activation"),
    "Dense: another input": keys(DENSE, module_input_name="token_embeddings"),
    "Dense: another output": keys(DENSE, module_output_name="other"),
    "Dense: another width": keys(DENSE, in_features=16),
    "Normalize: an unknown key": keys(NORMALIZE, p=1),
    "Normalize: another input": keys(NORMALIZE, module_input_name="token_embeddings"),
    "WeightedLayerPooling: an unknown key": with_module("WeightedLayerPooling", "tokens", layer_end=2),
    "WeightedLayerPooling: other layers": with_module(
        "WeightedLayerPooling", "tokens", word_embedding_dimension=32, num_hidden_layers=12, layer_start=4
    ),
    "WordWeights: an unknown key": with_module("WordWeights", "tokens", idf=True),
    "LayerNorm: an unknown key": with_module("LayerNorm", "sentences", eps=1e-6),
    "LayerNorm: another width": with_module("LayerNorm", "sentences", dimension=48),
    "Dropout: an unknown key": with_module("Dropout", "sentences", p=0.5),
    "a file that is no JSON": written(POOLING, "{"),
    "a file that is missing": without(POOLING),
}
TRANSFORMER_REFUSALS: Mapping[str, Damage] = {
    "an unknown architecture": keys(CONFIG, model_type="my_model"),
    "auto_map: code of the model's own": keys(
        CONFIG, model_type="my_model", auto_map={"AutoModel": "modeling_my.MyModel"}
    ),
    "auto_map beside a known model_type": keys(CONFIG, auto_map={"AutoModel": "modeling_my.MyModel"}),
    "auto_map of the tokenizer": keys(TOKENIZER, auto_map={"AutoTokenizer": ["tokenization_my.MyTokenizer", None]}),
    "position_embedding_type": keys(CONFIG, position_embedding_type="relative_key"),
    "quantization_config": keys(CONFIG, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "an adapter": keys("adapter_config.json", peft_type="LORA", r=8),
    "a tokenizer without a fast form": slow_tokenizer,
    "token types other than 0": two_segments,
    "no tokenizer": without("tokenizer.json", "vocab.txt"),
    "no weights": without("model.safetensors"),
    "weights that lack a tensor": lost_tensor,
    "weights of another shape": keys(CONFIG, intermediate_size=48),
    "pickled weights with code": pickled_code,
    "a chat template without modules.json": lambda folder: [
        without(MODULES)(folder),
        keys(TOKENIZER, chat_template="{{ messages }}")(folder),
    ],
    **{f"model_type {name}": keys(CONFIG, model_type=name) for name in sorted(REFUSED)},
}
OPTION_REFUSALS: Mapping[str, Mapping[str, Any]] = {
    "model.max_seq_length beyond the positions": {"max_seq_length": 513},
    "model.max_seq_length without room for text": {"max_seq_length": 2},
    "model.prompt_name that is no prompt": {"prompt_name": "titel"},
    "model.truncate_dim beyond the width": {"truncate_dim": 25},
}
SECTIONS: Mapping[str, Mapping[str, Damage | Mapping[str, Any]]] = {
    "module": MODULE_REFUSALS,
    "key": KEY_REFUSALS,
    "transformer and tokenizer": TRANSFORMER_REFUSALS,
    "option": OPTION_REFUSALS,
}
CASES = [(section, name) for section, cases in SECTIONS.items() for name in cases]
MESSAGES: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = build_tiny_model(tmp_path_factory.mktemp("whole") / "model", dense=24)
    load(folder)
    return folder


def load(folder: Path, **overrides: Any) -> None:
    """All that a worker does before its first row."""
    spec = encoder_spec(ModelSpec(path=str(folder), **overrides))
    Tokenizer(spec, 1)
    build_encoder(spec, "cpu", 1)


@pytest.mark.parametrize(("section", "name"), CASES)
def test_it_is_refused(whole, tmp_path, capfd, section, name):
    folder = shutil.copytree(whole, tmp_path / "MODEL")
    case = SECTIONS[section][name]
    overrides = {} if callable(case) else case
    if callable(case):
        case(folder)
    with pytest.raises(InputError) as refused:
        load(folder, **overrides)
    assert refused.value.exit_code == 2
    assert "code of the model ran" not in capfd.readouterr().out
    MESSAGES[section, name] = str(refused.value).replace(str(folder), "MODEL")


def test_the_docs_say_what_is_refused():
    missing = [case for case in CASES if case not in MESSAGES]
    if missing:
        pytest.skip(f"run the whole file to compare the table: {len(missing)} refusals did not run")
    Block("refused").check("".join(section_table(section) for section in SECTIONS))


def section_table(section: str) -> str:
    rows = [(name, shortened(MESSAGES[section, name])) for name in SECTIONS[section]]
    lines = [f"| {name} | {message.replace('|', '&#124;')} |\n" for name, message in rows]
    return f"| {section} | message |\n| --- | --- |\n{''.join(lines)}\n"


def shortened(message: str) -> str:
    """Without the long lists of what is known, and without what depends on the release of a library."""
    message = re.sub(r"((?:known are|known of torch\.nn are|use a model made of) )[^;:]*", r"\1..", message)
    message = re.sub(r"but [\d.]+ is installed", "but .. is installed", message)
    message = re.sub(r"can't be read as JSON \(.*\)", "can't be read as JSON (..)", message)
    return re.sub(r"doesn't load: .*", "doesn't load: ..", message)
