"""The contestants that are made for CPUs: sentence-transformers on OpenVINO and on ONNX Runtime, and fastembed.

They start from the given model folder and nothing is downloaded: each exports, and for int8 quantises, a model of its own,
as its documentation shows it. Models that were made before are taken from `Settings.models`. fastembed's own models lie
on a hub, so it gets the ONNX export that sentence-transformers makes, as a custom model. Each runs on the packages that
`make bench` installs into a folder for it; see peers-openvino.txt and peers-onnx.txt. They find their own batch size.
"""

import json
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import corpora, results
from benchmarks.turns import Contestant, Settings, in_memory

CALIBRATION = 300
"""Static int8 is calibrated on so many texts of the corpus; what sentence-transformers takes of a data set of its own."""
ONNX_MODEL = "onnx/model.onnx"


def openvino(settings: Settings) -> Contestant:
    """`SentenceTransformer(backend="openvino")`. OpenVINO computes in bfloat16 by itself where the processor can, so
    float32 has to be asked for; int8 is left as it comes."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(settings.threads)
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": settings.threads}
    if settings.precision == "float32":
        config["INFERENCE_PRECISION_HINT"] = "f32"
    name = "openvino_model.xml"
    if settings.precision == "int8":
        folder, name = _made(settings, "openvino-int8", _quantise_openvino), "openvino_model_qint8_quantized.xml"
    else:
        folder = _made(settings, "openvino", _export_openvino)
    encoder = SentenceTransformer(
        str(folder), device="cpu", backend="openvino", model_kwargs={"file_name": name, "ov_config": config}
    )
    return in_memory(lambda texts, size: encoder.encode(texts, batch_size=size), settings)


def onnx(settings: Settings) -> Contestant:
    """`SentenceTransformer(backend="onnx")`, in float32 or dynamically quantised."""
    import onnxruntime
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(settings.threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    folder = _made(settings, "onnx", _export_onnx)
    name = f"onnx/model_qint8_{_instructions()}.onnx" if settings.precision == "int8" else ONNX_MODEL
    encoder = SentenceTransformer(
        str(folder), device="cpu", backend="onnx", model_kwargs={"file_name": name, "session_options": options}
    )
    return in_memory(lambda texts, size: encoder.encode(texts, batch_size=size), settings)


def fastembed(settings: Settings) -> Contestant:
    """`TextEmbedding.embed`, in float32, of a custom model. It takes the texts in the order in which they come."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    folder = _made(settings, "onnx", _export_onnx)
    name = "given/model"
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf=name),
        dim=json.loads((folder / "config.json").read_text())["hidden_size"],
        model_file=ONNX_MODEL,
    )
    encoder = TextEmbedding(name, specific_model_path=str(folder), threads=settings.threads)
    return in_memory(lambda texts, size: list(encoder.embed(texts, batch_size=size)), settings)


def _made(settings: Settings, name: str, make: Callable[[Settings, Path], None]) -> Path:
    """The folder of a model that was made before, or is now."""
    folder = Path(settings.models or tempfile.mkdtemp()) / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
            make(settings, Path(partial) / name)
            (Path(partial) / name).rename(folder)
    return folder


def _export_openvino(settings: Settings, folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(settings.model, device="cpu", backend="openvino")
    encoder.save_pretrained(str(folder))
    return encoder


def _quantise_openvino(settings: Settings, folder: Path) -> None:
    from optimum.intel.openvino import OVQuantizationConfig
    from sentence_transformers import export_static_quantized_openvino_model

    encoder = _export_openvino(settings, folder)
    texts = corpora.corpus_texts(Path(settings.corpus))
    with tempfile.TemporaryDirectory() as calibration:
        some = texts[:: -(-len(texts) // CALIBRATION)]
        pq.write_table(pa.table({"text": some}), f"{calibration}/texts.parquet")
        export_static_quantized_openvino_model(
            encoder,
            OVQuantizationConfig(),
            str(folder),
            dataset_name=calibration,
            dataset_config_name="default",
            dataset_split="train",
            column_name="text",
        )


def _export_onnx(settings: Settings, folder: Path) -> None:
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    encoder = SentenceTransformer(settings.model, device="cpu", backend="onnx")
    encoder.save_pretrained(str(folder))
    export_dynamic_quantized_onnx_model(encoder, _instructions(), str(folder))
    # fastembed cuts texts where this file says, which knows the tokenizer's own limit and not the model's.
    file = folder / "tokenizer_config.json"
    known = json.loads(file.read_text()) | {"model_max_length": encoder.max_seq_length}
    file.write_text(json.dumps({name: value for name, value in known.items() if name != "max_length"}))


def _instructions() -> str:
    """The name that sentence-transformers has for this processor's best int8."""
    if platform.machine() in ("arm64", "aarch64"):
        return "arm64"
    return "avx512_vnni" if "avx512_vnni" in results.machine()["flags"] else "avx2"
