"""The kinds of transformers by their model_type: how each is laid out, and why some are refused.

This is a table of facts about the classes of transformers; nothing is read or loaded here.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How transformers lays out one model_type."""

    hidden: str = "hidden_size"
    """The key of config.json for the width of a token's vector."""
    layers: str = "num_hidden_layers"
    positions: str | None = "max_position_embeddings"
    """The key for the longest input it was made for; None: there is none."""
    limited: bool = True
    """Whether a longer input fails, as with a table of positions. False: positions are relative or rotary, and the
    number only caps the length where the model gives none."""
    limited_by: str | None = None
    """A key that says so, true where it is missing."""
    positions_after_pad: bool = False
    """Positions count from behind the padding's id."""
    position_types: tuple[str, ...] = ("absolute",)
    """The values of position_embedding_type, where there is such a key, under which all this is true."""
    adds_token_types: bool = False
    """Adds the vector of token 0 where a tokenizer gives the token types, all 0, that others take for granted."""
    gives_layers: bool = True
    """Whether its output can hold the vectors of all layers; where not, config.output_hidden_states changes nothing."""
    encoder: str | None = None
    """The class of transformers that is loaded in the place of AutoModel's: the encoder half of an encoder-decoder."""


_AFTER_PAD = Architecture(positions_after_pad=True)
_UNLIMITED = Architecture(limited=False)
_GPT2 = Architecture(hidden="n_embd", layers="n_layer", positions="n_positions", adds_token_types=True)


def _t5(encoder: str) -> Architecture:
    return Architecture(hidden="d_model", layers="num_layers", positions=None, encoder=encoder)


ARCHITECTURES: Mapping[str, Architecture] = {
    # encoders with a table of positions
    "albert": Architecture(),
    "bert": Architecture(),
    "bert-generation": Architecture(),
    "camembert": _AFTER_PAD,
    "data2vec-text": _AFTER_PAD,
    "distilbert": Architecture(hidden="dim", layers="n_layers"),
    "electra": Architecture(),
    "ernie": Architecture(),
    "ibert": _AFTER_PAD,
    "longformer": _AFTER_PAD,
    "luke": _AFTER_PAD,
    "megatron-bert": Architecture(),
    "mpnet": _AFTER_PAD,
    "rembert": Architecture(),
    "roberta": _AFTER_PAD,
    "roberta-prelayernorm": _AFTER_PAD,
    "roformer": Architecture(),
    "splinter": Architecture(),
    "squeezebert": Architecture(),
    "xlm-roberta": _AFTER_PAD,
    "xlm-roberta-xl": _AFTER_PAD,
    # encoders with relative or rotary positions
    "deberta": Architecture(limited_by="position_biased_input"),
    "deberta-v2": Architecture(limited_by="position_biased_input"),
    "esm": Architecture(limited=False, position_types=("rotary",)),
    "eurobert": _UNLIMITED,
    "gte": Architecture(limited=False, position_types=("rope",)),
    "jina_embeddings_v3": _UNLIMITED,
    "modernbert": _UNLIMITED,
    "nomic_bert": _UNLIMITED,
    # encoder-decoders
    "bart": Architecture(hidden="d_model", layers="encoder_layers", gives_layers=False),
    "longt5": _t5("LongT5EncoderModel"),
    "mt5": _t5("MT5EncoderModel"),
    "t5": _t5("T5EncoderModel"),
    "umt5": _t5("UMT5EncoderModel"),
    # decoders
    "apertus": _UNLIMITED,
    "arcee": _UNLIMITED,
    "bitnet": _UNLIMITED,
    "bloom": Architecture(layers="n_layer", positions=None),
    "cohere": _UNLIMITED,
    "cohere2": _UNLIMITED,
    "diffllama": _UNLIMITED,
    "ernie4_5": _UNLIMITED,
    "exaone4": _UNLIMITED,
    "falcon": _UNLIMITED,
    "gemma": _UNLIMITED,
    "gemma2": _UNLIMITED,
    "gemma3_text": _UNLIMITED,
    "glm": _UNLIMITED,
    "glm4": _UNLIMITED,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": Architecture(layers="num_layers", adds_token_types=True),
    "gpt_neox": _UNLIMITED,
    "gptj": _GPT2,
    "granite": _UNLIMITED,
    "granitemoe": _UNLIMITED,
    "helium": _UNLIMITED,
    "hunyuan_v1_dense": _UNLIMITED,
    "lfm2": _UNLIMITED,
    "llama": _UNLIMITED,
    "ministral": _UNLIMITED,
    "ministral3": _UNLIMITED,
    "mistral": _UNLIMITED,
    "mixtral": _UNLIMITED,
    "modernbert-decoder": _UNLIMITED,
    "nemotron": _UNLIMITED,
    "olmo": _UNLIMITED,
    "olmo2": _UNLIMITED,
    "olmo3": _UNLIMITED,
    "opt": Architecture(hidden="word_embed_proj_dim"),
    "phi": _UNLIMITED,
    "phi3": _UNLIMITED,
    "qwen2": _UNLIMITED,
    "qwen2_moe": _UNLIMITED,
    "qwen3": _UNLIMITED,
    "qwen3_moe": _UNLIMITED,
    "seed_oss": _UNLIMITED,
    "smollm3": _UNLIMITED,
    "stablelm": _UNLIMITED,
    "starcoder2": _UNLIMITED,
    "xglm": Architecture(hidden="d_model", layers="num_layers", limited=False),
}
"""The keys are the `model_type` of config.json. Each is proven against sentence-transformers by
tests/model/test_transformer.py."""

REFUSED: Mapping[str, str] = {
    "big_bird": "its attention takes blocks by the length of the longest text of a batch, so that a vector depends on its "
    "batch",
    "convbert": "its convolutions read the padding, so that a vector depends on its batch",
    "fnet": "it mixes all positions, padding included, so that a vector depends on its batch",
    "flaubert": "its tokenizer has no fast form",
    "funnel": "its tokenizer gives token types other than 0, and it shortens the text",
    "mobilebert": "each token is joined with its neighbours, padding included, so that a vector depends on its batch",
    "mra": "its attention needs CUDA code of its own",
    "nystromformer": "its attention only takes texts that are padded to a fixed length",
    "reformer": "its attention is random",
    "xlm": "its tokenizer has no fast form",
    "xlnet": "its tokenizer gives token types other than 0",
    "yoso": "its attention hashes the padding too, so that a vector depends on its batch",
}
"""The keys are a `model_type`, the values the reason why it gives no vector, or none that its text alone decides."""
