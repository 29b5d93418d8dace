import pytest
import zoo
from transformers import CONFIG_MAPPING

from trim_trainer.architectures.kept import Kept
from trim_trainer.architectures.runtimes import ASSUMPTIONS, runtime_caveats
from trim_trainer.surgery.drop import trimmed_config

PERIODS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2, "smollm3": 4}


@pytest.mark.parametrize("model_type", PERIODS)
def test_the_published_layer_pattern_is_what_runtimes_assume(model_type):
    config = CONFIG_MAPPING[model_type]()
    assert runtime_caveats(config) == []
    depth = config.num_hidden_layers
    whole_period = trimmed_config(config, Kept(tuple(range(PERIODS[model_type], depth)), depth))
    assert runtime_caveats(whole_period) == []
    one_layer = trimmed_config(config, Kept((0, *range(2, depth)), depth))
    assert all(
        f"'{model_type}'" in caveat and "compute something else" in caveat for caveat in runtime_caveats(one_layer)
    )
    assert len(runtime_caveats(one_layer)) == sum("every" in one.what for one in ASSUMPTIONS[model_type])


def test_a_27b_gemma_is_known_by_its_depth():
    config = CONFIG_MAPPING["gemma3_text"](num_hidden_layers=62, query_pre_attn_scalar=168, head_dim=128)
    assert runtime_caveats(config) == []
    (caveat,) = runtime_caveats(trimmed_config(config, Kept(tuple(range(6, 62)), 62)))
    assert "46 or 62 layers deep" in caveat


def test_types_whose_lists_are_read_have_no_caveats():
    for name in ("llama", "qwen3", "olmo3", "qwen3_next"):
        assert runtime_caveats(trimmed_config(zoo.make_config(name), Kept((0, 2, 3, 5), 6))) == []
