"""The bytes of a sequence's cache: what is foretold from two tokens is what a longer sequence really keeps."""

import pytest
import torch
import zoo
from tiny import make_model

from trim_trainer import drop_layers
from trim_trainer.records.measurement import CacheSize, Measurement, memory_beside
from trim_trainer.scoring.cache import measure_cache

NUM_TOKENS = 12


def kept(model):
    """Bytes of all that the cache of so many tokens holds, counted by hand."""
    ids = torch.ones(1, NUM_TOKENS, dtype=torch.long)
    with torch.no_grad():
        layers = model(input_ids=ids, use_cache=True).past_key_values.layers
    states = [
        each
        for layer in layers
        for value in vars(layer).values()
        for each in (value.values() if isinstance(value, dict) else [value])
        if isinstance(each, torch.Tensor) and each.ndim > 0
    ]
    return sum(each.numel() * each.element_size() for each in states)


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gemma3_text", "qwen3_next", "lfm2", "jamba", "deepseek_v3", "bloom"]
)
def test_a_longer_sequence_keeps_what_was_foretold(name):
    model = zoo.make(name).eval()
    assert measure_cache(model).num_bytes(NUM_TOKENS) == kept(model) > 0


def test_fewer_layers_keep_less_by_their_share():
    model = make_model()
    before = measure_cache(model)
    assert before == CacheSize(((6 * 2 * 2 * 8 * 4, None),), 0)  # layers, keys and values, heads, size of one, bytes
    after = measure_cache(drop_layers(model, [1, 3, 4]))
    assert 2 * after.num_bytes(100) == before.num_bytes(100)
    assert measure_cache(model, torch.bfloat16).num_bytes(100) * 2 == after.num_bytes(100)


def test_a_window_is_full_at_some_time():
    model = make_model("qwen3", layer_types=["sliding_attention"] * 6, sliding_window=4)
    cache = measure_cache(model)
    assert cache.num_bytes(3) == cache.num_bytes(1000) == 3 * cache.num_bytes(1) == kept(model)


def test_what_keeps_something_else_says_nothing():
    assert measure_cache(zoo.make("mamba").eval()) is None


def test_sequences_fit_beside_the_weights():
    measured = Measurement(2, 10, num_bytes=1000, cache=CacheSize(((10, None), (5, 8)), 20))
    assert measured.num_sequences(100, 2000 + 59) == 0 + (2059 - 1000) // (1000 + 40 + 20)
    assert measured.num_sequences(100, 1000 + 2 * 1060) == 2
    assert measured.num_sequences(100, 900) == 0
    assert Measurement(2, 10).num_sequences(100, 900) is None
    assert Measurement.from_plain(measured.to_plain()) == measured
    assert memory_beside([measured]) == 24
    assert memory_beside([Measurement(2, 10, num_bytes=int(20e9))]) == 48
