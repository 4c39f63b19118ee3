"""examples/digits_wgan_gp.py: its samples come nearer to real digits."""


def test_samples_come_nearer(quick_run):
    ran = quick_run("digits_wgan_gp")
    untrained, trained, steps = ran.numbers("distance from a sample to the nearest real digit:")
    assert steps == 50 and trained < 0.75 * untrained
    assert (ran.folder / "digits.png").read_bytes().startswith(b"\x89PNG")
