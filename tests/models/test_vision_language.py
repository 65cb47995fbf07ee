"""Image-text-to-text models of transformers, against the library itself, autograd by hand and finite differences."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import konkyo
from helpers import cuts
from helpers.image_text import FAMILIES, IMAGE, QUESTION, asked, network_of, picture_of, processor_of
from konkyo.engine.replay import Replay
from konkyo.engine.trace import share_around
from konkyo.errors import KonkyoError
from konkyo.models.preprocess import preprocess_of
from konkyo.models.vision_language.adapter import described
from konkyo.models.vision_language.families import difference, form_of
from konkyo.models.vision_language.forms import resampled
from konkyo.utils.tensors import on_finest

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # that an answer comes from the text
every_family = pytest.mark.parametrize("family", FAMILIES)
TILED = ("llava_next", "llava_onevision", "idefics3", "smolvlm", "internvl", "aya_vision")


def _prepared(model: Any, picture: Any = None) -> Tensor:
    return model.preprocess(picture or picture_of())[None]


def _prompt(model: Any, images: Tensor, question: str = QUESTION) -> Tensor:
    return model.task.speaker.ids(question, images)


def _types(model: Any, ids: Tensor, prompt: int) -> dict[str, Tensor]:
    """Returns the kinds of tokens that the library's processors give with the ids (N, L)."""
    name = model.module.config.model_type
    if name == "paligemma":
        return {"token_type_ids": (torch.arange(ids.shape[1]) >= prompt).long().expand_as(ids)}
    if name == "gemma3":
        return {"token_type_ids": (ids == IMAGE).long()}
    return {"mm_token_type_ids": (ids == IMAGE).long()} if name.startswith("qwen") else {}


def _text_model(network: Any) -> Any:
    return network.model.language_model if hasattr(network.model, "language_model") else network.model.text_model


@contextmanager
def _reading(network: Any) -> Any:
    """Within the context the text model's inputs are kept, with gradients: embeddings, then deepstack features."""
    kept: list[Tensor] = []

    def look(_module: Any, _args: Any, kwargs: Any) -> None:
        kept[:] = [kwargs["inputs_embeds"], *(kwargs.get("deepstack_visual_embeds") or ())]
        for tensor in kept:
            tensor.retain_grad()

    handle = _text_model(network).register_forward_pre_hook(look, with_kwargs=True)
    yield kept
    handle.remove()


def _score_of_library(
    model: Any, images: Tensor, answer: tuple[int, ...], question: str = QUESTION
) -> tuple[Tensor, Tensor]:
    """Returns (the sum of an answer's log-probabilities by the library's own forward, all ids)."""
    prompt = _prompt(model, images, question)
    ids = torch.cat([prompt, torch.tensor(answer)])[None]
    logits = model.module.network(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **model.module.form.inputs(images),
        **_types(model, ids, len(prompt)),
    ).logits
    places = torch.arange(len(prompt) - 1, len(prompt) - 1 + len(answer))
    return logits[0, places].log_softmax(-1)[torch.arange(len(answer)), list(answer)].sum(), ids


@every_family
def test_pictures_come_out_as_from_the_library_s_processor(family: str) -> None:
    processor = processor_of(family)
    form, preprocess = form_of(network_of(family).config, processor.image_processor)
    for size in ((200, 120), (97, 301), (640, 400), (64, 64)):
        assert difference(form, preprocess, processor.image_processor, picture_of(size)) < 0.5


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's own processor
@every_family
def test_logits_are_those_of_the_library_with_its_processor(family: str) -> None:
    model, picture = asked(family), picture_of()
    images, speaker = _prepared(model, picture), model.task.speaker
    values = speaker.processor(text=[speaker.prompt(QUESTION)], images=[picture], return_tensors="pt")
    values.pop("labels", None)
    with torch.no_grad():
        expected = model.module.network(**values).logits[:, -1]
        got = model.module.read(model.module.look(images), _prompt(model, images), ())[:, -1]
    assert torch.equal(values["input_ids"][0], _prompt(model, images))
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


@every_family
def test_the_score_is_that_of_the_library_s_own_forward(family: str) -> None:
    model = asked(family)
    images = _prepared(model)
    with torch.no_grad():
        model = model.settled(images, None)
        answer = model.task.responses[0].ids
        expected, _ = _score_of_library(model, images, answer)
        assert float(model(images)[0, :, 0].sum()) == pytest.approx(float(expected), rel=1e-4)


@every_family
def test_teacher_forcing_gives_the_tokens_that_the_library_generates(family: str) -> None:
    model = asked(family)
    images = _prepared(model)
    prompt = _prompt(model, images)
    with torch.no_grad():
        answer = model.settled(images, None).task.responses[0].ids
        logits = model.module.read(model.module.look(images), prompt, answer)
    logits[..., IMAGE] = -torch.inf
    assert tuple(logits[0].argmax(-1).tolist()[: len(answer)]) == answer
    assert len(answer) == 4


@every_family
@pytest.mark.parametrize("question", ["cat", " ".join(["what colour is the dog ?"] * 7)])
def test_the_map_is_gradient_times_feature_by_hand_at_the_image_positions(family: str, question: str) -> None:
    """... of the text model's inputs, whatever the prompt's length; of several grids on the finest."""
    model = asked(family, question)
    images = _prepared(model)
    explained = konkyo.explain(model, images, method="hires_cam")
    answer = model.settled(images, None).task.responses[0].ids
    with _reading(model.module.network) as inputs:
        score, ids = _score_of_library(model, images, answer, question)
    score.backward()
    places = ids[0] == IMAGE
    evidence = (inputs[0].grad * inputs[0])[0, places].sum(-1)
    evidence = evidence + sum((deep.grad * deep).sum(-1) for deep in inputs[1:])
    layout = model.module.form.layout(tuple(images.shape[2:]))
    assert int(places.sum()) == layout.count
    expected = on_finest([evidence[place][None].detach() for place in layout.places]).sum(0)
    assert explained.layer == "image_grid"
    assert len(layout.places) == (2 if family in TILED else 1)
    torch.testing.assert_close(explained.signed, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.endswith("_moe")])
def test_gradients_at_the_picture_are_slopes(family: str) -> None:
    """The text model's norms and softmax run in float32, so a step is a whole direction of some length.

    Experts run in single precision and jump where another one is chosen; they are left out.
    """
    network = network_of(family).double()
    model = asked(family, network=network)
    images = model.prepared(_prepared(model))
    model = model.settled(images, None)

    def score(pixels: Tensor) -> Tensor:
        return model(pixels)[:, :, 0].sum()

    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(leaf), leaf)
    assert gradient.shape == images.shape
    direction = gradient / gradient.norm() * images.norm() * 0.0003
    with torch.no_grad():
        ahead, back, far, behind = (float(score(images + step * direction)) for step in (0.5, -0.5, 1.0, -1.0))
    slope = (8 * (ahead - back) - (far - behind)) / 6
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-2)


@every_family
def test_nothing_of_the_image_goes_around_the_grids(family: str) -> None:
    model = asked(family)
    images = _prepared(model)
    model = model.settled(images, None)
    layers = model.automatic_layers(tuple(images.shape[1:]))
    around = share_around(model, lambda output: output[:, :, 0].sum(1), images, layers)
    assert [layer.name for layer in layers] == ["image_grid"]
    assert float(around) == 0.0


@every_family
def test_the_cells_of_the_grids_depend_most_on_their_own_places(family: str) -> None:
    """... of all grids, by an independent judge; 1.0: all cells that were asked."""
    model = asked(family)
    images = _prepared(model)
    (layer,) = model.automatic_layers(tuple(images.shape[1:]))
    model = model.settled(images, None)
    assert cuts.placed(model, images, layer) == 1.0


def test_qwen3_vl_has_features_that_go_around_its_merger() -> None:
    """... which is why the grid holds those of its deepstack, too."""
    network = network_of("qwen3_vl")
    model = asked("qwen3_vl", network=network)
    grids: list[Tensor] = []
    model.module.image_grid.register_forward_hook(lambda _m, _a, grid: grids.append(grid))
    images = _prepared(model)
    with torch.no_grad():
        model.module.look(images)
    assert grids[0].shape[1] == 3 * network.config.text_config.hidden_size


@every_family
def test_where_one_image_token_alone_reaches_the_answer_the_map_is_its_cell(family: str) -> None:
    """... and nothing else: all others are held constant where the text model reads them."""
    model = asked(family)
    images = _prepared(model)
    layout, prompt = model.module.form.layout(tuple(images.shape[2:])), _prompt(model, images)
    positions = (prompt == IMAGE).nonzero()[:, 0]
    h, w = layout.places[0].shape
    text = _text_model(model.module.network)
    for row, column in ((0, w - 1), (h - 1, 0), (h // 2, w // 2)):
        token = int(layout.places[0][row, column])
        handle = text.register_forward_pre_hook(_only(int(positions[token]), token), with_kwargs=True)
        signed = konkyo.explain(model, images, method="hires_cam").signed[0]
        handle.remove()
        assert signed.shape == (h, w)
        assert float(signed[row, column]) != 0
        assert int((signed != 0).sum()) == 1


def _only(position: int, token: int) -> Any:
    """Returns a hook that holds constant what a text model reads, except at one position."""

    def hold(_module: Any, args: Any, kwargs: Any) -> Any:
        embeds = kwargs["inputs_embeds"]
        kwargs["inputs_embeds"] = _held(embeds, 1, position)
        if deep := kwargs.get("deepstack_visual_embeds"):
            kwargs["deepstack_visual_embeds"] = [_held(features, 0, token) for features in deep]
        return args, kwargs

    return hold


def _held(tensor: Tensor, axis: int, index: int) -> Tensor:
    here = torch.arange(tensor.shape[axis]) == index
    return torch.where(here[:, None], tensor, tensor.detach())


@every_family
@pytest.mark.parametrize("corner", [(0.08, 0.1), (0.7, 0.15), (0.1, 0.7), (0.65, 0.65)])
def test_a_bright_square_in_the_picture_moves_the_cells_at_its_place(family: str, corner: tuple[float, float]) -> None:
    """The picture goes through the preprocessing, so crops, borders and stretches are in it; every grid is right."""
    model = asked(family)
    width, height = 240, 120
    dark = Image.new("RGB", (width, height), (40, 40, 40))
    bright = dark.copy()
    across = 0.25 + corner[0] / 2 if family in ("llava", "vipllava") else corner[0]  # else their crop cuts it off
    x, y = int(across * width), int(corner[1] * height)
    box = (x, y, x + width // 8, y + height // 5)
    ImageDraw.Draw(bright).rectangle(box, fill=(255, 255, 255))
    grids: list[Any] = []
    model.module.image_grid.register_forward_hook(lambda _m, _a, grid: grids.append(grid))
    with torch.no_grad():
        for picture in (dark, bright):
            model.module.look(_prepared(model, picture))
    frame = model.preprocess.frame(bright)
    size = model.preprocess.size(bright)
    before, after = (grid if isinstance(grid, tuple) else (grid,) for grid in grids)
    for a, b in zip(before, after, strict=True):
        change = (b - a).square().sum(1)[0]
        row, column = divmod(int(change.argmax()), change.shape[1])
        tall, wide = size[0] / change.shape[0], size[1] / change.shape[1]
        cell = frame.shown(torch.tensor([column * wide, row * tall, (column + 1) * wide, (row + 1) * tall]))
        cell = cell + torch.tensor(model.preprocess.corner(bright) * 2)  # of the part that the model sees
        slack = 0.5 * max(float(cell[2] - cell[0]), float(cell[3] - cell[1])) if family.startswith("llava_") else 1.0
        assert cell[0] < box[2] + slack
        assert box[0] - slack < cell[2]
        assert cell[1] < box[3] + slack
        assert box[1] - slack < cell[3]


@every_family
def test_variants_in_a_batch_are_variants_one_by_one(family: str) -> None:
    model = asked(family)
    images = _prepared(model)
    model = model.settled(images, None)
    variants = torch.cat([images, images * 0.5, torch.zeros_like(images), images.flip(3)])
    with torch.no_grad():
        whole, alone = model(variants), torch.cat([model(variant[None]) for variant in variants])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-4)


@every_family
def test_a_replay_from_the_grid_is_a_run_with_other_cells(family: str) -> None:
    """... and the vision tower does not run again."""
    model = asked(family)
    images = _prepared(model)
    model = model.settled(images, None)
    (layer,) = model.automatic_layers(tuple(images.shape[1:]))
    if layer.level is None:
        layer = konkyo.engine.layer.replace(layer, level=0)
    layer = konkyo.engine.layer.replace(layer, call=0)
    replay = Replay(model, layer, model.module, images)
    grid = layer.fold(replay.raw)
    variants = torch.cat([grid, grid * torch.linspace(0, 1, grid.shape[-1])])

    def exchange(_module: Any, _args: Any, grids: Any) -> Any:
        return (variants[1:], *grids[1:]) if isinstance(grids, tuple) else variants[1:]

    with torch.no_grad():
        got = replay(variants)
        first = model(images)
        handle = model.module.image_grid.register_forward_hook(exchange)
        second = model(images)
        handle.remove()
    torch.testing.assert_close(got, torch.cat([first, second]), rtol=1e-4, atol=1e-4)
    towers = [
        module
        for name, module in model.module.named_modules()
        if name.split(".")[-1] in ("vision_tower", "visual", "vision_model")
    ]
    assert replay.stubbed & set(towers)


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("chosen", [-1, -2, [-2, -1]])
def test_llava_s_features_may_be_of_any_block_with_the_class_token_or_without(strategy: str, chosen: Any) -> None:
    from helpers.image_text import NETWORKS

    torch.manual_seed(0)
    network = NETWORKS["llava"](vision_feature_layer=chosen, vision_feature_select_strategy=strategy).eval()
    processor = processor_of("llava")
    processor.vision_feature_select_strategy = strategy
    arguments = described(network, processor)
    model = konkyo.Model(**arguments)
    images = _prepared(model)
    layout = model.module.form.layout((64, 64))
    assert layout.count == 16 + (strategy == "full")
    assert model.module.read(model.module.look(images), _prompt(model, images), ()).shape == (1, 1, 160)


@every_family
def test_networks_of_half_precision_are_explained(family: str) -> None:
    model = asked(family, network=network_of(family).bfloat16())
    explained = konkyo.explain(model, picture_of(), method="hires_cam", target="yes")
    assert explained.signed.isfinite().all()
    assert explained.signed.any()
    with torch.no_grad():  # a grey picture is one of zeros, which Idefics3 takes for padding
        assert model.module.look(torch.zeros_like(model.prepared(_prepared(model)))).count


def test_blocks_of_a_tower_are_layers_where_they_are_grids_of_one_picture() -> None:
    llava, qwen = asked("llava"), asked("qwen2_5_vl")
    block = "network.model.vision_tower.encoder.layers.0"
    explained = konkyo.explain(llava, picture_of(), method="hires_cam", layer=block, target="yes")
    images = _prepared(llava)
    ids = llava.task.speaker.vocabulary.ids("yes")
    kept: list[Tensor] = []
    handle = llava.module.get_submodule(block).register_forward_hook(lambda _m, _a, out: kept.append(out))
    score, _ = _score_of_library(llava, images, ids)
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    evidence = (gradient * kept[0])[0, 1:].sum(-1).reshape(1, 4, 4).detach()  # after the class token
    assert explained.layer == block
    torch.testing.assert_close(explained.signed, evidence, rtol=1e-3, atol=1e-5)
    with pytest.raises(KonkyoError, match="no feature grid"):
        konkyo.explain(qwen, picture_of(), layer="network.model.visual.blocks.0", target="yes")


@every_family
def test_a_preprocessing_is_read_again_from_settings(family: str) -> None:
    _, preprocess = form_of(network_of(family).config, processor_of(family).image_processor)
    assert preprocess_of(repr(preprocess)) == preprocess


def test_qwen_vl_forgets_where_the_last_prompt_ended() -> None:
    model = asked("qwen2_5_vl")
    wide, tall = _prepared(model, picture_of((240, 90))), _prepared(model, picture_of((90, 240)))
    first = konkyo.explain(model, wide, method="hires_cam")
    konkyo.explain(model, tall, method="hires_cam")
    again = konkyo.explain(model, wide, method="hires_cam")
    assert torch.equal(first.signed, again.signed)
    assert model.module.network.model.rope_deltas is None


def test_what_the_network_notes_on_itself_is_as_it_was_also_after_an_error() -> None:
    model = asked("qwen2_vl")
    core, images = model.module.network.model, _prepared(model)
    core.rope_deltas = torch.tensor([[7]])
    konkyo.explain(model, images, method="occlusion", window=28, stride=28)
    assert core.rope_deltas.tolist() == [[7]]
    with pytest.raises(KonkyoError):
        model.module.read(model.module.look(images), _prompt(model, images)[:-1].flip(0)[:2], ())
    assert core.rope_deltas.tolist() == [[7]]


def test_answers_are_greedy_whatever_the_checkpoint_asks_for() -> None:
    model = asked("llava")
    images = _prepared(model)
    plain = model.settled(images, None).task
    model.module.network.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=2, min_length=30)
    assert model.settled(images, None).task == plain


def test_a_network_in_training_mode_stays_so() -> None:
    network = network_of("llava").train()
    model = konkyo.Model(network, processor=processor_of("llava"))
    assert network.training
    assert all(part.training for part in network.modules())
    assert len(konkyo.explain(model, _prepared(model), question=QUESTION)) == 1
    assert network.training
    assert all(part.training for part in network.modules())


def test_white_and_black_areas_have_the_gradient_of_the_resize() -> None:
    images = torch.full((1, 3, 90, 120), 1.0, requires_grad=True)
    resampled(images, (60, 80), "bicubic", (0.0,) * 3, (1.0,) * 3).sum().backward()
    other = torch.full((1, 3, 90, 120), 0.5, requires_grad=True)
    resampled(other, (60, 80), "bicubic", (0.0,) * 3, (1.0,) * 3).sum().backward()
    torch.testing.assert_close(images.grad, other.grad)


def test_what_cannot_be_right_is_refused() -> None:
    model = asked("llava")
    images = _prepared(model)
    picture, prompt = model.module.look(images), _prompt(model, images)
    with pytest.raises(KonkyoError, match=r"16 image tokens .* expected .* got 15"):
        model.module.read(picture, prompt[prompt.cumsum(0) != prompt.cumsum(0)[prompt == IMAGE][0]], ())
    with pytest.raises(KonkyoError, match="without image tokens"):
        model.module.read(picture, prompt, (5, IMAGE))
    with pytest.raises(KonkyoError, match="64 x 64 pixels were expected; got 96 x 64"):
        model.module.look(torch.rand(1, 3, 64, 96))
    with pytest.raises(KonkyoError, match="multiples of 28"):
        asked("qwen2_vl").module.look(torch.rand(1, 3, 64, 96))


def test_a_processor_that_is_not_followed_is_refused() -> None:
    processor = processor_of("gemma3")
    processor.image_processor.do_pan_and_scan = True
    with pytest.raises(KonkyoError, match="pan and scan"):
        described(network_of("gemma3"), processor)
    processor = processor_of("llava")
    processor.image_processor.do_pad = True
    with pytest.raises(KonkyoError, match="without padding"):
        described(network_of("llava"), processor)
    processor = processor_of("llava")
    processor.image_processor.resample = 0  # not what torchvision's backend makes of it
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert described(network_of("llava"), processor) is not None
    processor = processor_of("internvl")
    processor.image_processor.size = {"height": 32, "width": 32}
    with pytest.raises(KonkyoError, match="prepared as by GotOcr2ImageProcessor"):
        described(network_of("internvl"), processor)


def test_networks_of_other_kinds_are_not_taken() -> None:
    assert described(torch.nn.Linear(2, 2), processor_of("llava")) is None
    assert described(network_of("llava").model, processor_of("llava")) is None
    with pytest.raises(KonkyoError, match="processor=transformers"):
        konkyo.Model(network_of("llava"))


def test_a_module_and_its_processor_are_asked_by_question() -> None:
    model = konkyo.Model(network_of("qwen2_vl"), processor=processor_of("qwen2_vl"))
    explained = konkyo.explain(model, picture_of(), question=QUESTION, target="yes .", method="grad_cam")
    assert explained.model == "Qwen2VLForConditionalGeneration"
    assert explained.labels == ("yes .",)
    with pytest.raises(KonkyoError, match="reads text beside the image; give question="):
        konkyo.explain(model, picture_of())


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl", "smolvlm", "gemma3"])
def test_a_folder_is_loaded_with_its_processor(family: str, tmp_path: Any) -> None:
    network, processor = network_of(family), processor_of(family)
    network.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = konkyo.load(f"hf/{tmp_path}")
    here = konkyo.Model(network, processor=processor)
    picture = picture_of()
    first, second = (
        konkyo.explain(m, picture, question=QUESTION, method="hires_cam", target="a cat") for m in (loaded, here)
    )
    torch.testing.assert_close(first.signed, second.signed)
