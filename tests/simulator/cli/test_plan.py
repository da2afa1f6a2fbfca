"""dsv3sim plan."""

from command_line import dsv3sim


def test_plan_says_what_it_plans():
    done = dsv3sim("plan", "--help")
    assert done.returncode == 0
    assert "serving" in done.stdout
    assert "training" in done.stdout
