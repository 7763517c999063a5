import pytest

from pipeline.evaluation.arms import parse_arm


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("margn", "did you mean 'margin'"),
        ("powr:bald", "unknown strategy 'powr', did you mean 'power'"),
        ("power:", "unknown acquisition function ''"),
    ],
)
def test_unknown_arm_is_refused_with_a_near_name(name, message):
    with pytest.raises(ValueError, match=message):
        parse_arm(name)
