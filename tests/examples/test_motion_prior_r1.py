"""examples/motion_prior_r1.py: the policy learns the gait."""


def test_the_policy_learns_the_gait(quick_run):
    ran = quick_run("motion_prior_r1")
    untrained, trained, steps = ran.numbers("a free cycle is off the gait by")
    assert steps == 700 and trained < 0.7 * untrained
    assert (ran.folder / "motion.png").read_bytes().startswith(b"\x89PNG")
