"""The five model cards as folders: each one's exact architecture, with seeded random weights, in the files of its time.

Every card is saved twice: by hand, as the release wrote it that saved the card's model, and by sentence-transformers 6.2.
The vocabulary is one WordPiece, trained on the corpora, that covers English, Korean and Chinese.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from pipeline.model.quiet import quiet_transformers
from tests.parity.saved import save_modules

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = 12000


@dataclass(frozen=True, kw_only=True)
class Card:
    name: str
    hidden: int
    layers: int
    heads: int
    intermediate: int
    max_seq_length: int
    dense: int | None = None
    """A Dense of so many numbers, and Tanh."""
    release: str
    """Of sentence-transformers that saved the original."""
    corpora: tuple[str, ...]
    """What the card is for, as files of the corpora: the texts come from these in turn."""
    rows: int
    """Rows that the full suite embeds."""


CARDS = (
    Card(
        name="contrastive 384-d sentence model",
        hidden=384,
        layers=6,
        heads=12,
        intermediate=1536,
        max_seq_length=128,
        release="2.0.0",
        corpora=("ag_news_test", "peps_long"),
        rows=1000,
    ),
    Card(
        name="SBERT-base-nli-v2",
        hidden=768,
        layers=12,
        heads=12,
        intermediate=3072,
        max_seq_length=75,
        release="2.0.0",
        corpora=("ag_news_test",),
        rows=250,
    ),
    Card(
        name="xtremedistil-l6-h256-uncased-mean-cosine-h32",
        hidden=256,
        layers=6,
        heads=8,
        intermediate=1024,
        max_seq_length=16,
        dense=32,
        release="2.2.2",
        corpora=("ag_news_test", "peps_long"),
        rows=2000,
    ),
    Card(
        name="Korean 384-d model",
        hidden=384,
        layers=12,
        heads=12,
        intermediate=1536,
        max_seq_length=128,
        release="3.4.1",
        corpora=("nsmc_ko_120k",),
        rows=1000,
    ),
    Card(
        name="Chinese-documented 768-d model",
        hidden=768,
        layers=12,
        heads=12,
        intermediate=3072,
        max_seq_length=256,
        release="2.2.2",
        corpora=("tang_poems_zh", "peps_long"),
        rows=150,
    ),
)


def train_vocabulary(texts: Sequence[str]) -> list[str]:
    """A WordPiece of these texts, with every character that is in them."""
    tokenizer = _wordpiece({token: number for number, token in enumerate(SPECIALS)})
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIALS, limit_alphabet=10000, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _wordpiece(vocabulary: Mapping[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(dict(vocabulary), unk_token="[UNK]"))
    # Accents stay: taking them off also takes Korean syllables apart.
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def save_card(card: Card, vocabulary: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """-> (the card as its release saved it, the same model as sentence-transformers 6.2 saves it)."""
    older, newer = folder / "older", folder / "newer"
    transformer, dense = _weights(card, len(vocabulary))
    _save_older(card, transformer, dense, vocabulary, older)
    _save_newer(card, transformer, dense, older, newer)
    return older, newer


def _weights(card: Card, vocabulary: int) -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=card.hidden,
        num_hidden_layers=card.layers,
        num_attention_heads=card.heads,
        intermediate_size=card.intermediate,
        initializer_range=1.5 / card.hidden**0.5,  # large enough that different texts get clearly different vectors
        attention_probs_dropout_prob=0.1,
    )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(card.hidden + card.layers + card.max_seq_length)
        transformer = transformers.BertModel(config).eval()
        width = card.dense or 0
        weight, bias = torch.randn(width, card.hidden) / card.hidden**0.5, torch.randn(width) / 10
    return transformer, {"linear.weight": weight, "linear.bias": bias}


# --- as the release of the card wrote it ------------------------------------------------------------------------------


def _save_older(
    card: Card, transformer: Any, dense: Mapping[str, torch.Tensor], vocabulary: Sequence[str], folder: Path
) -> None:
    major = int(card.release.split(".")[0])
    folder.mkdir(parents=True)
    _write(folder / "modules.json", [*_module_entries(card)])
    _write(folder / "config.json", {**transformer.config.to_dict(), "architectures": ["BertModel"], "dtype": None})
    _save_weights(transformer.state_dict(), folder, pickled=major < 3)
    _save_tokenizer(card, vocabulary, folder)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": card.max_seq_length, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", _model_config(card, major))
    (folder / "1_Pooling").mkdir()
    _write(folder / "1_Pooling" / "config.json", _pooling(card, major))
    if card.dense:
        (folder / "2_Dense").mkdir()
        shape = {"in_features": card.hidden, "out_features": card.dense, "bias": True}
        activation = {"activation_function": "torch.nn.modules.activation.Tanh"}
        _write(folder / "2_Dense" / "config.json", shape | activation)
        _save_weights(dense, folder / "2_Dense", pickled=major < 3)
    (folder / "README.md").write_text(f"# {card.name}\n")


def _module_entries(card: Card) -> Iterator[dict[str, Any]]:
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Dense", "2_Dense")] if card.dense else [])]
    for number, (name, path) in enumerate(modules):
        yield {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}


def _save_weights(weights: Mapping[str, torch.Tensor], folder: Path, *, pickled: bool) -> None:
    if pickled:
        torch.save(dict(weights), folder / "pytorch_model.bin")
    else:
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", _FORMAT)


_FORMAT = {"format": "pt"}


def _save_tokenizer(card: Card, vocabulary: Sequence[str], folder: Path) -> None:
    """As BertTokenizerFast was saved: with the truncation and padding of the last call left in tokenizer.json."""
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIALS}
    _write(folder / "special_tokens_map.json", names)
    own = {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": True, "model_max_length": 512}
    _write(folder / "tokenizer_config.json", {**names, **own, "tokenizer_class": "BertTokenizer"})
    with quiet_transformers():
        made = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    made.backend_tokenizer.enable_truncation(card.max_seq_length)
    made.backend_tokenizer.enable_padding(length=card.max_seq_length)
    made.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _pooling(card: Card, major: int) -> dict[str, Any]:
    """Four keys in 2.0; two more modes and include_prompt by 3.4."""
    keys = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]
    keys += ["weightedmean_tokens", "lasttoken"] if major >= 3 else []
    config = {"word_embedding_dimension": card.hidden} | {f"pooling_mode_{key}": key == "mean_tokens" for key in keys}
    return config | ({"include_prompt": True} if major >= 3 else {})


def _model_config(card: Card, major: int) -> dict[str, Any]:
    versions = {"sentence_transformers": card.release, "transformers": "4.48.0", "pytorch": "2.5.1"}
    newer = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    return {"__version__": versions} | (newer if major >= 3 else {})


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


# --- as sentence-transformers 6.2 writes it ---------------------------------------------------------------------------


def _save_newer(card: Card, transformer: Any, dense: Mapping[str, torch.Tensor], older: Path, folder: Path) -> None:
    import tempfile

    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    with tempfile.TemporaryDirectory() as bare, quiet_transformers():
        transformer.save_pretrained(bare)
        transformers.AutoTokenizer.from_pretrained(older, local_files_only=True).save_pretrained(bare)
        modules: list[Any] = [Transformer(bare, max_seq_length=card.max_seq_length), Pooling(card.hidden, "mean")]
    if card.dense:
        after = Dense(card.hidden, card.dense, activation_function=torch.nn.Tanh())
        after.load_state_dict(dict(dense))
        modules.append(after)
    save_modules(folder, modules)
