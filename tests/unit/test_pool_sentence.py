"""The warm-pool policy as one sentence: what counts is in it, and what does not is said."""

import pytest

from vpccni.pool_sentence import policy_sentence
from vpccni.settings import read_settings


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            {},
            "The pool keeps as many addresses free as a whole ENI holds (WARM_ENI_TARGET), on as many ENIs as the "
            "instance type allows; a released address rests for 30 s.",
        ),
        (
            {"WARM_ENI_TARGET": "3", "MAX_ENI": "2"},
            "The pool keeps as many addresses free as 3 whole ENIs hold (WARM_ENI_TARGET), on at most 2 ENIs "
            "(MAX_ENI); a released address rests for 30 s.",
        ),
        (
            {"WARM_ENI_TARGET": "0", "MAX_ENI": "1", "IP_COOLDOWN_PERIOD": "0"},
            "The pool keeps one address free (WARM_ENI_TARGET is 0), on at most 1 ENI (MAX_ENI); a released address "
            "is used again at once.",
        ),
        (
            {"WARM_IP_TARGET": "1"},
            "The pool keeps 1 address free (WARM_IP_TARGET; WARM_ENI_TARGET does not count beside it), on as many "
            "ENIs as the instance type allows; a released address rests for 30 s.",
        ),
        (
            {"WARM_IP_TARGET": "5", "MINIMUM_IP_TARGET": "10"},
            "The pool keeps 5 addresses free (WARM_IP_TARGET) and owns at least 10 (MINIMUM_IP_TARGET; "
            "WARM_ENI_TARGET does not count beside them), on as many ENIs as the instance type allows; a "
            "released address rests for 30 s.",
        ),
        (
            {"MINIMUM_IP_TARGET": "10"},
            "The pool owns at least 10 addresses (MINIMUM_IP_TARGET; WARM_ENI_TARGET does not count beside it) and "
            "keeps none free beyond that, so that each further pod waits for EC2, on as many ENIs as the instance "
            "type allows; a released address rests for 30 s.",
        ),
    ],
)
def test_the_policy_is_one_plain_sentence(environ, sentence):
    assert policy_sentence(read_settings(environ)) == sentence
