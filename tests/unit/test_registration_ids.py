"""A repeat of a request has the same id; two clients never share one; the form is recognisable."""

import itertools

import pytest

from app.messages import Registration
from app.registration_ids import increment_id, is_of, is_registration_id, registration_id


def registration(stock_id: str = "s1", user_id: str = "u1", nickname: str = "Ann") -> Registration:
    return Registration.model_validate(
        {"stockId": stock_id, "userId": user_id, "userInfo": {"nickname": nickname}}
    )


def test_a_repeat_has_the_same_id_in_every_spelling_and_release() -> None:
    snake = Registration(stock_id="s1", user_id="u1", user_info={"nickname": "Ann"})
    assert registration_id("a", None, registration()) == registration_id("a", None, snake)
    # Written down: another release must make the same ids.
    assert registration_id("shop", "k-1", registration()) == (
        "bfbf969efcbf507d6cfd461861f223e0a6093d5f"
    )


def test_whatever_identifies_a_registration_changes_its_id() -> None:
    ids = [
        registration_id(name, key, registration(stock, user))
        for name, key, stock, user in itertools.product(
            ("a", "b"), (None, "1", "2"), ("s1", "s2"), ("u1", "u2")
        )
    ]
    ids.append(registration_id("a", None, registration(nickname="Bob")))
    ids.append(increment_id("a", "1"))
    assert len(set(ids)) == len(ids)


def test_parts_that_only_look_alike_together_make_different_ids() -> None:
    one = registration_id("a", "k", registration("s", "1u"))
    other = registration_id("a", "k", registration("s1", "u"))
    assert one != other


def test_with_a_key_another_payload_has_the_same_id_and_without_one_another() -> None:
    ann, bob = registration(), registration(nickname="Bob")
    assert registration_id("a", "k", ann) == registration_id("a", "k", bob)
    assert registration_id("a", None, ann) != registration_id("a", None, bob)


def test_every_id_is_recognised_and_belongs_to_its_key_only() -> None:
    for id_ in (
        registration_id("a", None, registration()),
        registration_id("a", "k", registration("s\U0001f600")),
        increment_id("a", "k"),
        increment_id("a", None),
    ):
        assert is_registration_id(id_)
        assert is_of(id_, "a")
        assert not is_of(id_, "b")


def test_an_increment_without_a_key_never_has_the_id_of_another() -> None:
    assert increment_id("a", None) != increment_id("a", None)
    assert increment_id("a", "k") == increment_id("a", "k")


@pytest.mark.parametrize(
    "id_",
    [
        "",
        "7f0c",
        "5f2b1f1e-7a3c-4a51-9d4e-0f2f3a1b4c5d",
        "0" * 39,
        "0" * 41,
        "0" * 39 + "G",
        "0" * 40 + "\n",
        "A" * 40,
        "\u0660" * 40,
    ],
)
def test_ids_of_other_programs_are_not_recognised(id_: str) -> None:
    assert not is_registration_id(id_)
