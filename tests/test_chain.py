"""The errors behind an error."""

from optuna_s2e._chain import chain


def test_the_cause_is_followed_before_the_context() -> None:
    error, cause, context, first = (ValueError(name) for name in "abcd")
    error.__cause__, error.__context__, cause.__context__ = cause, context, first
    assert list(chain(error)) == [error, cause, first]
    assert list(chain(context)) == [context]
    assert list(chain(None)) == []


def test_a_ring_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert list(chain(one)) == [one, other]
    one.__cause__ = one
    assert list(chain(one)) == [one]
