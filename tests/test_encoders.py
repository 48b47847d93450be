"""The layers on packed tokens give what transformers and peft give on padded batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

import lyric_utils as lu
from lyric_utils._packed import FastDropout, Packing, attend_padded, attend_within_chunks, packed_copy
from lyric_utils.encoders import (
    as_encoder,
    distinct_token_weights,
    embed_tokens,
    pool_tokens,
    run_layer,
    run_layer_for_first_token,
)
from lyric_utils.profiles import LORA_PAPER, LORA_TUNED

LENGTHS = [37, 3, 120, 64, 5]
PACKING = Packing(LENGTHS)


def random_chunks(lengths=LENGTHS, vocabulary=8_000):
    rng = np.random.default_rng(0)
    return [rng.integers(5, vocabulary, length).astype(np.int32) for length in lengths]


def padded(chunks, padding: int) -> dict[str, torch.Tensor]:
    """The chunks as transformers reads them."""
    ids = nn.utils.rnn.pad_sequence([torch.from_numpy(ids).long() for ids in chunks], True, padding)
    return {"input_ids": ids, "attention_mask": (ids != padding).long()}


@pytest.fixture(scope="module")
def roberta():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=100, **size)
    return as_encoder("roberta", None, RobertaModel(config, add_pooling_layer=False))


@pytest.mark.parametrize("family", ["encoder", "tiny_encoder", "roberta", "tiny_mpnet"])
@pytest.mark.parametrize("first_token_only", [False, True])
def test_packed_layers_equal_padded_transformers(request, family, first_token_only):
    """Of BERT, of RoBERTa, which counts positions from the padding index, and of MPNet, which weighs distances, too.

    A chunk never sees its neighbours.
    """
    network = request.getfixturevalue(family).network
    chunks = random_chunks(vocabulary=network.config.vocab_size)
    with torch.no_grad():
        expected = network(**padded(chunks, network.config.pad_token_id)).last_hidden_state
        hidden, packing = embed_tokens(network, chunks)
        *lower, top = network.encoder.layer
        for layer in lower:
            hidden = run_layer(layer, hidden, packing)
        if first_token_only:
            first = run_layer_for_first_token(top, hidden, packing)
            torch.testing.assert_close(first, expected[:, 0], atol=1e-5, rtol=0)
        else:
            hidden = run_layer(top, hidden, packing)
            for chunk, other in zip(hidden.split(LENGTHS), expected, strict=True):
                torch.testing.assert_close(chunk, other[: len(chunk)], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "names"), [("tiny_encoder", ["query", "value"]), ("tiny_mpnet", ["q", "v"])])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_adapters_get_the_gradients_of_stock_peft(request, family, names, pooling):
    """Same loss and same gradients as get_peft_model(BertModel) on a padded batch, dropout off."""
    encoder = request.getfixturevalue(family)
    recipe = LORA_PAPER if pooling == "cls" else replace(LORA_TUNED, pooling="mean", pooled_layers=1)
    model = lu.build_model(encoder, recipe).eval()
    adapted_layers = range(2, 6)
    stock = type(encoder.network)(encoder.network.config, add_pooling_layer=False)
    stock.load_state_dict(encoder.network.state_dict())
    targets = {"layers_to_transform": [*adapted_layers], "layers_pattern": "layer"}
    adapters = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=names, **targets)
    stock = get_peft_model(stock, adapters).eval()
    ours, theirs = dict(model.adapted.named_parameters()), dict(stock.named_parameters())
    assert ours.keys() == theirs.keys()
    with torch.no_grad():  # adapters start at zero, where half of the gradients vanish
        for name, values in theirs.items():
            if "lora_" in name:
                values.normal_(std=0.1)
                ours[name].copy_(values)

    chunks = random_chunks()
    inputs = padded(chunks, encoder.network.config.pad_token_id)
    hidden, mask = stock(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    vectors = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    expected = model.head(vectors)
    expected.square().sum().backward()

    rows, packing = embed_tokens(encoder.network, chunks)
    for layer in encoder.layers[:2]:
        rows = run_layer(layer, rows, packing)
    scores = model(rows.detach(), Packing(LENGTHS))  # as cached features give it
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    model.head.zero_grad()
    scores.square().sum().backward()
    learned = [name for name, values in theirs.items() if values.requires_grad]
    assert len(learned) == 4 * len(adapted_layers)  # A and B, of query and of value
    for name in learned:
        assert theirs[name].grad.abs().max() > 0, name
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def with_position_bias(dtype=torch.float32) -> Packing:
    packing = Packing(LENGTHS)
    packing.position_bias = torch.randn(1, 4, 120, 120, generator=torch.manual_seed(1)).to(dtype)
    return packing


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_in_steps_equals_the_fused_kernel(dtype, biased):
    """What training and bf16 run (in steps) is what prediction runs (fused), values and gradients."""
    packing, exact_packing = (with_position_bias(each) if biased else PACKING for each in (dtype, torch.float32))
    torch.manual_seed(0)
    query, key, value = (torch.randn(sum(LENGTHS), 4, 32, dtype=dtype).requires_grad_() for _ in range(3))
    no_dropout = nn.Dropout(0.0)
    attended = attend_within_chunks(query, key, value, packing, packing, no_dropout)
    exact = attend_within_chunks(*(x.detach().float() for x in (query, key, value)), *[exact_packing] * 2, no_dropout)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(attended.float(), exact, atol=tolerance, rtol=0)
    chunk = slice(0, LENGTHS[0])
    attended[chunk].sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad[chunk].abs().max() > 0
        assert tensor.grad[LENGTHS[0] :].abs().max() == 0


def test_dropped_attention_keeps_the_mean_and_is_none_in_evaluation():
    """Of values that are all one, attention gives one; with half of its weights dropped, one on the average."""
    torch.manual_seed(0)
    query, key, value = torch.randn(600, 4, 8), torch.randn(600, 4, 8), torch.ones(600, 4, 8)
    dropout, packing = FastDropout(0.5), Packing([600])
    attended = attend_within_chunks(query, key, value, packing, packing, dropout)
    assert attended.std() > 0.01
    assert attended.mean() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(attend_within_chunks(query, key, value, packing, packing, dropout.eval()), value)


def test_dropout_keeps_the_mean_drops_its_share_and_obeys_the_seed():
    dropout, ones = FastDropout(0.1), torch.ones(1001, 333)
    torch.manual_seed(0)
    first = dropout(ones)
    torch.manual_seed(0)
    assert torch.equal(first, dropout(ones))
    assert not torch.equal(first, dropout(ones))
    assert (first == 0).float().mean() == pytest.approx(26 / 256, abs=2e-3)
    assert first.mean() == pytest.approx(1, abs=3e-3)
    assert torch.equal(dropout.eval()(ones), ones)
    assert torch.equal(FastDropout(0.0)(ones), ones)


def test_dropout_passes_gradients_where_it_kept():
    states = torch.ones(64, 32, requires_grad=True)
    dropped = FastDropout(0.5)(states)
    dropped.sum().backward()
    assert torch.equal(states.grad, dropped.detach())


def test_no_plain_dropout_is_left_in_the_adapted_layers(tiny_encoder):
    model = lu.build_model(tiny_encoder, LORA_TUNED)
    kinds = {type(module) for module in model.adapted_layers.modules() if isinstance(module, nn.Dropout)}
    assert kinds == {FastDropout}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_stays_within_a_chunk(pooling):
    hidden = torch.arange(10.0)[:, None].expand(10, 3)
    expected = [0.0, 4.0] if pooling == "cls" else [1.5, 6.5]
    assert pool_tokens(hidden, Packing([4, 6]), pooling)[:, 0].tolist() == expected


def test_a_model_of_another_family_is_refused():
    with pytest.raises(lu.LyricsError, match="BERT family"):
        as_encoder("mlp", None, nn.Linear(2, 2))


def test_a_name_without_an_encoder_is_refused():
    with pytest.raises(lu.LyricsError, match="cannot be loaded"):
        lu.load_encoder("no/such-encoder")


def test_distinct_pooling_counts_every_token_once():
    """Of 7, 7, 7, 9 the mean is that of two tokens; identical tokens with different states share one vote."""
    hidden = torch.tensor([[1.0], [2.0], [3.0], [8.0], [5.0]])
    ids = [np.array([7, 7, 7, 9]), np.array([4])]
    weights = torch.from_numpy(np.concatenate([distinct_token_weights(chunk) for chunk in ids]))
    torch.testing.assert_close(pool_tokens(hidden, Packing([4, 1]), "distinct", weights), torch.tensor([[5.0], [5.0]]))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200))
def test_distinct_tokens_have_one_vote_each(ids):
    assert distinct_token_weights(np.array(ids)).sum() == pytest.approx(len(set(ids)), rel=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_a_packed_copy_gives_the_same_and_leaves_the_network_as_it_was(activation):
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    config = BertConfig(hidden_act=activation, initializer_range=0.5, **size)
    network = BertModel(config, add_pooling_layer=False).eval()
    hidden, packing = torch.randn(16, 32), Packing([5, 2, 9])
    with torch.inference_mode():
        plain = run_layer(network.encoder.layer[0], hidden, packing)
        packed = run_layer(packed_copy(network).encoder.layer[0], hidden, packing)
    torch.testing.assert_close(packed, plain, atol=1e-6, rtol=1e-5)
    assert not any("forward" in vars(module) for module in network.modules())


def test_without_the_packed_product_nothing_changes(tiny_encoder, monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not any("forward" in vars(module) for module in packed_copy(tiny_encoder.network).modules())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("queries", [LENGTHS, [1] * len(LENGTHS)])
def test_padded_attention_equals_attention_chunk_by_chunk(queries, biased):
    """What a GPU without a kernel for packed chunks runs, or with MPNet, values and gradients."""
    packing = Packing(queries), with_position_bias() if biased else PACKING
    torch.manual_seed(0)
    shapes = (sum(queries), 4, 32), (sum(LENGTHS), 4, 32), (sum(LENGTHS), 4, 32)
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    results = []
    for attend in (lambda *given: attend_within_chunks(*given, nn.Dropout(0.0)), attend_padded):
        attended = attend(*tensors, *packing)
        results.append([attended, *torch.autograd.grad(attended.square().sum(), tensors)])
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
