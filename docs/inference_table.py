"""The tables of docs/pages/faster.md, from docs/inference.csv, which benchmarks/inference.py writes."""

from csv_rows import read

from trim_trainer.records.measurement import WIDE

WORK = {
    "decode, 1 stream": "decoding, one stream",
    "decode, 8 streams": "eight streams",
    "prefill, 8 x 128": "prefill",
}
NAMES = {
    "transformers:float32": "Transformers, float32", "transformers:bfloat16": "Transformers, bfloat16",
    "openvino:fp32": "OpenVINO, float32", "openvino:int8": "OpenVINO, int8", "openvino:int4": "OpenVINO, int4",
    "onnx:fp32": "ONNX Runtime GenAI, float32", "onnx:int8": "ONNX Runtime GenAI, int8",
    "onnx:int4": "ONNX Runtime GenAI, int4", "gptq:int4": "Transformers, GPTQ int4",
    "llama.cpp:f32": "llama.cpp, float32", "llama.cpp:q8_0": "llama.cpp, Q8_0", "llama.cpp:q4_k_m": "llama.cpp, Q4_K_M",
    "vllm:float32": "vLLM, float32", "vllm:bfloat16": "vLLM, bfloat16",
}  # fmt: skip


def rows_of(geometry: str) -> dict[tuple[str, int, str], dict]:
    """By format, depth and work."""
    return {
        (row["format"], int(row["depth"]), row["work"]): row
        for row in read("inference.csv")
        if row["geometry"] == geometry
    }


def is_stated(row: dict, name: str) -> bool:
    """Whether the interval of a ratio is narrow enough to say something."""
    return float(row[f"{name}_high"]) <= float(row[f"{name}_low"]) * WIDE


def ratio(row: dict, name: str) -> str:
    """A ratio with its interval; none where that is too wide."""
    value, low, high = (float(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.2f} ({low:.2f}–{high:.2f})" if is_stated(row, name) else "too noisy to tell"


def depths_of(rows: dict) -> list[int]:
    """From full depth down."""
    return sorted({depth for _, depth, _ in rows}, reverse=True)


def speeds(geometry: str) -> list[list[str]]:
    """Lines: times as fast as the first format at full depth, at full and at half depth."""
    rows = rows_of(geometry)
    full, half, _ = depths_of(rows)
    first = next(iter(rows))[0]
    lines = [["", "layers", "weights", *WORK.values()]]
    for each in dict.fromkeys(format for format, _, _ in rows):
        for depth in (full, half):
            size = int(rows[each, depth, next(iter(WORK))]["num_bytes"])
            is_one = (each, depth) == (first, full)
            cells = ["1" if is_one else ratio(rows[each, depth, work], "to_baseline") for work in WORK]
            lines.append([NAMES[each], str(depth), f"{size / 1e6:,.0f} MB", *cells])
    return lines


def halves(geometry: str) -> list[list[str]]:
    """Lines: half depth to full depth in the same format, and to what that allows."""
    rows = rows_of(geometry)
    _, half, _ = depths_of(rows)
    lines = [["", *WORK.values(), "of what half the layers allow, one stream"]]
    for each in dict.fromkeys(format for format, _, _ in rows):
        cells = [ratio(rows[each, half, work], "to_full") for work in WORK]
        lines.append([NAMES[each], *cells, ratio(rows[each, half, next(iter(WORK))], "to_allowed")])
    return lines


def fewer_tokens(geometry: str) -> list[list[str]]:
    """Lines: times as fast as the whole model in the same format, with fewer tokens, at full and at half depth."""
    rows = rows_of(geometry)
    full, half, _ = depths_of(rows)
    lines = [["", "layers", "weights", *WORK.values()]]
    for each in dict.fromkeys(format for format, _, _ in rows):
        for depth in (full, half):
            size = int(rows[each, depth, next(iter(WORK))]["num_bytes"])
            cells = [ratio(rows[each, depth, work], "to_baseline") for work in WORK]
            lines.append([NAMES[each], str(depth), f"{size / 1e6:,.0f} MB", *cells])
    return lines
