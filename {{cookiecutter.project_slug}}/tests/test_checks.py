from django.core.checks import run_checks


def test_system_checks_find_nothing() -> None:
    assert run_checks() == []
