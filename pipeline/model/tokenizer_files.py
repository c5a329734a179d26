"""A tokenizer's files in, a refusal out where they can't become a tokenizer: found while planning, without torch.

transformers itself reads them in the workers, and loads torch with it. Here the Rust library, or sentencepiece, reads the
same file for itself.
"""

import importlib.util
from pathlib import Path

from pipeline.errors import InputError
from pipeline.extras import install, install_packages
from pipeline.model.files import at, read_object
from pipeline.model.folder import EncoderSpec

_SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
_PROTOBUF_START = b"\n"
"""A SentencePiece model begins so, a tiktoken vocabulary with base64."""
_SETTINGS = ("special_tokens_map.json", "added_tokens.json")
_UNKNOWN = "\U0001f642 \uffff"
"""No vocabulary knows it: what stands for unknown words must be there."""


def check_tokenizer(spec: EncoderSpec) -> None:
    """Raises InputError where no tokenizer can be made of the model's files; it names the file, or the package to install.

    This is for before any work: who loads the tokenizer in its own process meets the same errors there.
    """
    spec.load(lambda: _check(spec.transformer_folder))


def _check(folder: Path) -> None:
    for name in _SETTINGS:
        read_object(folder / name, missing={})
    if (folder / "tokenizer.json").is_file():
        _check_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.txt").is_file():
        _check_words(folder / "vocab.txt")
    elif (folder / "vocab.json").is_file():
        read_object(folder / "vocab.json")
    else:
        _check_pieces(next(folder / name for name in _SENTENCEPIECE if (folder / name).is_file()))


def is_library_error(error: BaseException) -> bool:
    """Whether the library can have raised it: a panic of Rust is no Exception, as an interrupt by the user isn't."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _check_tokenizer_json(path: Path) -> None:
    import tokenizers

    try:
        tokenizers.Tokenizer.from_file(str(path)).encode(_UNKNOWN)
    except BaseException as error:
        if not is_library_error(error):
            raise
        raise _damaged(path, error) from None


def _check_words(path: Path) -> None:
    import tokenizers

    try:
        if not path.read_text(encoding="utf-8").strip():
            raise ValueError("it is empty")
        words = tokenizers.models.WordPiece.from_file(str(path), unk_token=_unknown_token(path.parent))
        tokenizers.Tokenizer(words).encode(_UNKNOWN)
    except Exception as error:  # the library has no types of its own
        raise _damaged(path, error) from None


def _unknown_token(folder: Path) -> str:
    """The word that stands for unknown ones, which each of two files may name."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_object(folder / name, missing={}).get("unk_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return "[UNK]"


def _check_pieces(path: Path) -> None:
    try:
        with path.open("rb") as file:
            is_sentencepiece = file.read(1) == _PROTOBUF_START
    except OSError as error:
        raise _damaged(path, error) from None
    package = "sentencepiece" if is_sentencepiece else "tiktoken"
    if importlib.util.find_spec(package) is None:
        command = install("sentencepiece") if is_sentencepiece else install_packages("tiktoken")
        raise InputError(
            f"{at(path)} is all that the model has of a tokenizer, and the package {package} that reads it is not installed: "
            f"{command} on every node, or save the model with a tokenizer.json"
        )
    if is_sentencepiece:
        import sentencepiece

        try:
            sentencepiece.SentencePieceProcessor(model_file=str(path))
        except Exception as error:
            raise _damaged(path, error) from None


def _damaged(path: Path, error: BaseException) -> InputError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(
        f"{at(path)} is no tokenizer that can be read ({reason}): it is damaged, or was not copied whole; copy it again"
    )
