"""The whole model: names and shapes, sizes, the two ways to call it, and errors at its edge."""

from __future__ import annotations

import pytest
import torch

from packmamba import HybridLM, ModelConfig, Packing
from packmamba.config import PRESETS
from packmamba.model import check_token_ids
from tests.model.guarantee import VOCAB, labels_of, small_config
from tests.support import assert_close, assert_identical

PACKING = Packing.from_lengths([5, 1, 9])


def small_model(layer_pattern: str = "1*-", **overrides) -> HybridLM:
    torch.manual_seed(0)
    return HybridLM(small_config(layer_pattern, **overrides))


def ids_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(VOCAB, (PACKING.num_tokens,), generator=torch.Generator().manual_seed(0))
    return ids, labels_of(ids, PACKING)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = HybridLM(ModelConfig.from_preset(name))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_mamba_130m_has_the_names_and_shapes_of_the_published_checkpoint():
    expected: dict[str, tuple[int, ...]] = {"backbone.embedding.weight": (50280, 768)}
    for i in range(24):
        expected |= {
            f"backbone.layers.{i}.mixer.A_log": (1536, 16),
            f"backbone.layers.{i}.mixer.D": (1536,),
            f"backbone.layers.{i}.mixer.in_proj.weight": (3072, 768),
            f"backbone.layers.{i}.mixer.conv1d.weight": (1536, 1, 4),
            f"backbone.layers.{i}.mixer.conv1d.bias": (1536,),
            f"backbone.layers.{i}.mixer.x_proj.weight": (80, 1536),
            f"backbone.layers.{i}.mixer.dt_proj.weight": (1536, 48),
            f"backbone.layers.{i}.mixer.dt_proj.bias": (1536,),
            f"backbone.layers.{i}.mixer.out_proj.weight": (768, 1536),
            f"backbone.layers.{i}.norm.weight": (768,),
        }
    expected |= {"backbone.norm_f.weight": (768,), "lm_head.weight": (50280, 768)}
    assert shapes("mamba-130m") == expected


def test_attention_and_mlp_layers_have_the_names_of_the_published_hybrids():
    config = ModelConfig(layer_pattern="*-", d_model=64, vocab_size=8)
    model = HybridLM(config)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items() if "layers" in k} == {
        "backbone.layers.0.norm.weight": (64,),
        "backbone.layers.0.mixer.in_proj.weight": (192, 64),
        "backbone.layers.0.mixer.out_proj.weight": (64, 64),
        "backbone.layers.1.norm.weight": (64,),
        "backbone.layers.1.mixer.fc1.weight": (384, 64),
        "backbone.layers.1.mixer.fc2.weight": (64, 192),
    }


NUM_PARAMETERS = {
    "mamba-tiny": 966_016,
    "mamba-130m": 129_135_360,
    "mamba-370m": 371_516_416,
    "mamba-790m": 793_204_224,
    "mamba-1.4b": 1_372_178_432,
    "mamba-2.8b": 2_768_345_600,
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_on_the_meta_device_with_its_number_of_parameters(name):
    with torch.device("meta"):
        model = HybridLM(PRESETS[name])
    if name in NUM_PARAMETERS:
        assert model.num_parameters() == NUM_PARAMETERS[name]
    else:
        mamba = NUM_PARAMETERS[name.replace("hybrid", "mamba")]
        assert 0.93 * mamba < model.num_parameters() < mamba
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_the_loss_equals_cross_entropy_of_the_logits(reduction):
    model = small_model()
    ids, labels = ids_and_labels()
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model(ids, PACKING), labels, reduction=reduction)
        assert_close("loss", expected, model.loss(ids, PACKING, labels, reduction=reduction), 1e-5)


def test_parameter_gradients_through_the_loss_equal_those_through_the_logits():
    model = small_model("1*-1")
    ids, labels = ids_and_labels()
    parameters = dict(model.named_parameters())
    by_loss = torch.autograd.grad(model.loss(ids, PACKING, labels), list(parameters.values()))
    logits_loss = torch.nn.functional.cross_entropy(model(ids, PACKING), labels, reduction="sum")
    by_logits = torch.autograd.grad(logits_loss, list(parameters.values()))
    for name, expected, actual in zip(parameters, by_logits, by_loss, strict=True):
        assert_close(name, expected, actual, 1e-5)


def test_state_dicts_load_with_weights_only(tmp_path):
    model = small_model()
    ids, _ = ids_and_labels()
    torch.save({"config": model.config.to_dict(), "model": model.state_dict()}, tmp_path / "model.pt")
    stored = torch.load(tmp_path / "model.pt", weights_only=True)
    twin = HybridLM(ModelConfig.from_dict(stored["config"]))
    twin.load_state_dict(stored["model"])
    assert_identical("logits", model(ids, PACKING), twin(ids, PACKING))


@pytest.mark.parametrize("wide", [True, False], ids=["fp32-stream", "bf16-stream"])
def test_the_residual_stream_of_a_bf16_model_has_the_chosen_dtype(wide):
    model = small_model(residual_in_fp32=wide).bfloat16()
    dtypes = []
    for layer in model.backbone.layers:
        layer.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    logits = model(ids_and_labels()[0], PACKING)
    assert set(dtypes) == {torch.float32 if wide else torch.bfloat16}
    assert logits.dtype == torch.bfloat16


def test_untied_embeddings_have_a_head_of_their_own():
    tied, untied = small_model(), small_model(tie_embeddings=False)
    assert untied.num_parameters() - tied.num_parameters() == VOCAB * 32


@pytest.mark.parametrize("layer_pattern", ["1-", "11"])
def test_the_model_compiles_in_one_graph(layer_pattern):
    torch.compiler.reset()
    model = small_model(layer_pattern)
    ids, labels = ids_and_labels()
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    eager = model.loss(ids, PACKING, labels)
    loss = compiled(ids, PACKING, labels)
    assert_close(
        "logits", model(ids, PACKING), torch.compile(model, fullgraph=True, backend="aot_eager")(ids, PACKING), 1e-6
    )
    assert_close("loss", eager, loss, 1e-6)
    parameters = list(model.parameters())
    for expected, actual in zip(
        torch.autograd.grad(eager, parameters), torch.autograd.grad(loss, parameters), strict=True
    ):
        assert_close("gradient", expected, actual, 1e-5)


def with_id(position: int, value: int) -> torch.Tensor:
    ids = ids_and_labels()[0]
    ids[position] = value
    return ids


IDS, LABELS = ids_and_labels()
BAD_INPUTS = {
    "id-too-large": (with_id(3, VOCAB), PACKING, None, ValueError, "token id 61 at position 3 .* of 61 .*0 to 60"),
    "id-negative": (with_id(0, -1), PACKING, None, ValueError, "token id -1 at position 0"),
    "too-few-ids": (IDS[1:], PACKING, None, ValueError, r"input_ids has shape \(14,\).* T = 15"),
    "batch-dimension": (IDS[None], PACKING, None, ValueError, r"input_ids has shape \(1, 15\).* T = 15"),
    "int32-ids": (IDS.int(), PACKING, None, TypeError, "input_ids must be int64, got torch.int32"),
    "float-ids": (IDS.float(), PACKING, None, TypeError, "input_ids must be int64, got torch.float32"),
    "too-few-labels": (IDS, PACKING, LABELS[1:], ValueError, r"labels has shape \(14,\)"),
    "int32-labels": (IDS, PACKING, LABELS.int(), TypeError, "labels must be int64"),
    "label-too-large": (IDS, PACKING, LABELS + VOCAB + 100, ValueError, "label .* is neither -100 nor in 0..60"),
    "packing-elsewhere": (IDS, PACKING.to("meta"), None, ValueError, r"cpu, but the packing is on meta.*packing\.to"),
}


@pytest.mark.parametrize(("ids", "packing", "labels", "error", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_raises_naming_it(ids, packing, labels, error, message):
    with pytest.raises(error, match=message):
        small_model("-")(ids, packing) if labels is None else small_model("-").loss(ids, packing, labels)


def test_check_token_ids_accepts_the_whole_vocabulary():
    check_token_ids(torch.arange(VOCAB), VOCAB)
    with pytest.raises(ValueError, match="token id 60 at position 60"):
        check_token_ids(torch.arange(VOCAB), VOCAB - 1)
