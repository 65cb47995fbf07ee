"""Targets of tokens, words and answers read an output (N, T, 2) of log-probabilities and logits."""

from __future__ import annotations

import pickle

import pytest
import torch

import konkyo
from konkyo.targets.answers import Answer, EachToken, EachWord, Token, in_text
from konkyo.targets.specs import parse_target

OUTPUT = torch.tensor([[[-1.0, 10.0], [-2.0, 20.0], [-4.0, 40.0]], [[-0.5, 1.0], [-0.5, 2.0], [-0.5, 3.0]]])


def test_an_answer_is_the_sum_of_its_tokens() -> None:
    whole = Answer(columns=(0, 1, 2))
    assert whole(OUTPUT).tolist() == [-7.0, -1.5]
    assert Answer(columns=(1, 2))(OUTPUT).tolist() == [-6.0, -1.0]
    assert Answer(mean=True, columns=(0, 2))(OUTPUT).tolist() == [-2.5, -0.5]
    assert Answer(score="logit", columns=(0, 1, 2))(OUTPUT).tolist() == [70.0, 6.0]
    torch.testing.assert_close(
        Answer(score="probability", columns=(0, 1))(OUTPUT), torch.tensor([-3.0, -1.0]).exp(), rtol=0, atol=0
    )
    torch.testing.assert_close(
        Answer(score="probability", mean=True, columns=(0, 1))(OUTPUT), torch.tensor([-1.5, -0.5]).exp()
    )


def test_a_token_is_its_column_and_a_word_the_sum_of_its_columns() -> None:
    assert Token(1, columns=(1,))(OUTPUT).tolist() == [-2.0, -0.5]
    assert Token("umbrella", columns=(1, 2))(OUTPUT).tolist() == [-6.0, -1.0]


def test_what_no_task_has_found_is_refused_in_words() -> None:
    with pytest.raises(konkyo.KonkyoError, match="known once a network was asked"):
        Answer("yes")(OUTPUT)
    with pytest.raises(konkyo.KonkyoError, match=r"an output \(N, 4 tokens or more, 2\)"):
        Token(3, columns=(3,))(OUTPUT)
    with pytest.raises(konkyo.KonkyoError, match=r"got \(2, 3\)"):
        Token(1, columns=(1,))(OUTPUT[..., 0])
    with pytest.raises(konkyo.KonkyoError, match="log_probability"):
        Answer(score="odds")  # type: ignore[arg-type]
    with pytest.raises(konkyo.KonkyoError, match="by its number"):
        Token(True)


def test_targets_are_frozen_hashable_and_picklable() -> None:
    for target in (Answer("yes"), Token("cat", "a cat", columns=(1,)), EachToken(), EachWord("a cat")):
        assert pickle.loads(pickle.dumps(target)) == target
        assert hash(target) == hash(pickle.loads(pickle.dumps(target)))


def test_targets_are_written_in_words() -> None:
    assert parse_target("answer") == Answer()
    assert parse_target("answer:a cat: red") == Answer("a cat: red")
    assert parse_target("token:3") == Token(3)
    assert parse_target("token:-1") == Token(-1)
    assert parse_target("word:umbrella") == Token("umbrella")
    assert parse_target("tokens") == EachToken()
    assert parse_target("words:a cat") == EachWord("a cat")
    with pytest.raises(konkyo.KonkyoError, match="word:umbrella"):
        parse_target("token:umbrella")


def test_a_request_is_put_into_a_given_text() -> None:
    assert in_text(None, "a cat") == Answer("a cat")
    assert in_text(Token(1), "a cat") == Token(1, "a cat")
    assert in_text(EachWord(score="logit"), "a cat") == EachWord("a cat", "logit")
    with pytest.raises(konkyo.KonkyoError, match="targets such as answer"):
        in_text("cat", "a cat")
