"""examples/text.py: what it scores, what it gives the critic, and that text is learned where the penalty is."""

import math
from collections import Counter

import pytest
import torch

import gpfast

for package in ("scipy", "matplotlib", "tqdm", "tensorboard"):
    pytest.importorskip(package)

import corpus  # noqa: E402
import ngrams  # noqa: E402
import text  # noqa: E402

SENTENCE = "the cat sat on the mat and the dog ate the bone "


# -- the score


def test_ngrams_stay_within_their_window():
    assert ngrams.ngrams(["abab", "ba"], 2) == Counter({"ab": 2, "ba": 2})


def test_equal_frequencies_do_not_diverge():
    """Twice the text has the same frequencies."""
    once, twice = (ngrams.ngrams(["abc", "cab"] * times, 2) for times in (1, 2))
    assert ngrams.divergence(once, twice) == 0


@pytest.mark.parametrize("n", text.ORDERS)
def test_disjoint_texts_diverge_by_log_2(n):
    found = ngrams.divergence(ngrams.ngrams(["abcdeabcde"], n), ngrams.ngrams(["vwxyz"], n))
    assert found == pytest.approx(math.log(2), abs=1e-12)


def test_divergence_of_a_mixed_case():
    """(1/2, 1/2) and (1, 0): their mean is (3/4, 1/4)."""
    by_hand = ((0.5 * math.log(2 / 3) + 0.5 * math.log(2)) + math.log(4 / 3)) / 2
    first, second = ngrams.ngrams(["abab"], 1), ngrams.ngrams(["aaaa"], 1)
    assert ngrams.divergence(first, second) == pytest.approx(by_hand, abs=1e-12)
    assert ngrams.divergence(second, first) == pytest.approx(by_hand, abs=1e-12)


def test_divergence_of_nothing_is_refused():
    with pytest.raises(ValueError, match="second holds no n-grams"):
        ngrams.divergence(ngrams.ngrams(["abc"], 3), ngrams.ngrams(["abc"], 4))


def test_a_score_tells_training_text_from_random_characters():
    scores = text.Scores(corpus.Corpus(*corpus.documentation(), length=16, characters=40))
    floor, ceiling = scores.floor(), scores.ceiling()
    for name in floor:
        assert 0 < floor[name] < ceiling[name] / 2 < math.log(2) / 2, name


# -- texts as windows


@pytest.fixture(scope="module")
def small():
    return corpus.Corpus(SENTENCE * 100, SENTENCE * 60 + "é", length=12, characters=10)


def test_rare_characters_share_one_place(small):
    """The nine most frequent ones stay; what is left, and what only the held-out text has, is one more."""
    assert len(small.alphabet) == 10 and small.alphabet[-1] == corpus.RARE
    kept = Counter(SENTENCE).most_common(9)
    assert set(small.alphabet[:-1]) == {character for character, _ in kept}
    assert small.rare == pytest.approx(1 - sum(count for _, count in kept) / len(SENTENCE))
    assert small.strings(small.encode("the é")[None]) == ["the " + corpus.RARE]


def test_another_text_has_another_fingerprint(small):
    """By which a checkpoint knows its own, though the file keeps its name and the text its characters."""
    other = corpus.Corpus(SENTENCE.replace("cat", "act") * 100, SENTENCE * 60 + "é", length=12, characters=10)
    assert other.alphabet == small.alphabet and other.fingerprint != small.fingerprint


def test_an_alphabet_that_suffices_has_no_placeholder():
    whole = corpus.Corpus(SENTENCE * 100, SENTENCE * 60, length=12, characters=40)
    assert whole.alphabet == "".join(sorted(set(SENTENCE))) and whole.rare == 0


def test_one_hot_round_trip(small):
    """Codes, corners of the simplex, and the same text again."""
    codes = small.encode("the cat sat on the mat and t").reshape(2, 14)
    corners = corpus.one_hot(codes, len(small.alphabet))
    assert corners.shape == (2, 10, 14) and corners.dtype == torch.float32
    assert torch.equal(corners.sum(1), torch.ones(2, 14)) and torch.equal(corners.amax(1), torch.ones(2, 14))
    assert small.read(corners) == small.strings(codes)
    assert small.read(0.4 * corners + 0.05) == small.strings(codes), "the likeliest character is read"


def test_drawn_windows_are_of_the_training_text_and_begin_with_a_word(small):
    whole = small.strings(small.train[None])[0]
    for window in small.read(small.draw(50)):
        assert f" {window}" in f" {whole}" and window[0] != " "


def test_the_parts_share_no_paragraph():
    """The split is by topic, and does not depend on a seed."""
    train, held_out = corpus.documentation()
    assert (train, held_out) == corpus.documentation()
    assert len(train) > 2 * len(held_out) > 50_000
    assert not any(f" {held_out[start : start + 200]} " in train for start in range(0, len(held_out) - 200, 200))


# -- the networks


def tiny(small):
    torch.manual_seed(0)
    sizes = len(small.alphabet), small.length, 8, 2
    return text.make_generator(*sizes), text.make_critic(*sizes)


def test_generated_windows_are_on_the_simplex(small):
    generator, critic = tiny(small)
    windows = generator(torch.randn(5, text.NOISE))
    assert windows.shape == (5, 10, 12) and (windows > 0).all()
    torch.testing.assert_close(windows.sum(1), torch.ones(5, 12))
    assert critic(windows).shape == (5, 1)


def test_the_penalty_is_that_of_the_eager_lines(small):
    generator, critic = tiny(small)
    real, fake = small.draw(6), generator(torch.randn(6, text.NOISE)).detach()
    found = gpfast.check(critic, real, fake)
    assert found.ok, found
    points = gpfast.interpolate(real, fake, torch.rand(6))
    torch.testing.assert_close(points.sum(1), torch.ones(6, 12)), "the penalty is taken on the simplex too"


def test_build_varies_the_methods_with_a_penalty():
    """As another program builds it: rate and critic steps are those asked for; a GAN keeps its own."""
    options = text.make_text_parser().parse_args(["--width", "4", "--critic-steps", "2", "--rate", "0.01"])
    penalised, gan = text.build(options), text.build(options, "gan")
    assert penalised.method.name == "wgan-gp" and penalised.method.critic_steps == 2
    (group,) = penalised.method.optimiser([torch.zeros(1, requires_grad=True)]).param_groups
    assert group["lr"] == 0.01 and group["betas"] == (0.5, 0.9)
    assert gan.method == text.METHODS["gan"]
    penalised.step()
    assert penalised.step_count == 1


# -- bad input


def refused(capsys, tmp_path, *words):
    """What is said of the words; the program ends with status 2 and writes nothing."""
    with pytest.raises(SystemExit) as ended:
        text.main([*words, "--quick", "--out", tmp_path / "out"])
    assert ended.value.code == 2
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    return " ".join(capsys.readouterr().err.split())


def test_a_text_that_is_missing(capsys, tmp_path):
    assert "none.txt cannot be read: No such file" in refused(capsys, tmp_path, "--text", tmp_path / "none.txt")


def test_a_text_that_is_a_folder(capsys, tmp_path):
    assert "cannot be read: Is a directory" in refused(capsys, tmp_path, "--text", tmp_path)


def test_a_text_that_is_not_utf8(capsys, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 1000)
    assert "is not UTF-8 (byte 3: " in refused(capsys, tmp_path, "--text", tmp_path / "latin.txt")


def test_a_text_that_is_too_short(capsys, tmp_path):
    (tmp_path / "short.txt").write_text(SENTENCE * 5)
    message = refused(capsys, tmp_path, "--text", tmp_path / "short.txt")
    assert "the training text has 191 characters: " in message and "give a longer text or a shorter --length" in message


def test_an_interpreter_without_its_documentation(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    assert "comes without pydoc_data" in refused(capsys, tmp_path)


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--length", "3", "--length must be at least 4; got 3"),
        ("--width", "0", "--width must be at least 1; got 0"),
        ("--characters", "1", "--characters must be at least 2; got 1"),
        ("--score-every", "0", "--score-every must be at least 1; got 0"),
        ("--rate", "0", "--rate must be a positive number; got 0.0"),
        ("--rate", "nan", "--rate must be a positive number; got nan"),
        ("--method", "vae", "invalid choice: 'vae'"),
    ],
)
def test_options_that_make_no_sense(capsys, tmp_path, option, value, message):
    assert message in refused(capsys, tmp_path, option, value)


# -- the program


@pytest.fixture(scope="module")
def ran(quick_run):
    return quick_run("text")


def test_the_penalised_critic_teaches_text(ran):
    """1-grams: from no better than random characters to well under half of that."""
    steps = text.make_text_parser().quick["steps"]
    start, end = (ran.numbers(f"wgan-gp, step {step} ") for step in (0, steps))
    assert end[0] < start[0] / 2
    assert end[0] < ran.numbers("random characters ")[0] / 2
    assert all(last < first for first, last in zip(start, end, strict=True))
    assert ran.numbers("training text ")[0] < end[0], "there is something left to learn"


def test_the_plain_gan_does_not(ran):
    steps = text.make_text_parser().quick["steps"]
    assert ran.numbers(f"gan, step {steps} ")[0] > 2 * ran.numbers(f"wgan-gp, step {steps} ")[0]


def test_what_it_leaves(ran):
    samples = (ran.folder / "samples.txt").read_text(encoding="utf-8")
    length = text.make_text_parser().quick["length"]
    for title in ("held-out text:", "wgan-gp:", "gan:"):
        block = samples.split(f"{title}\n")[1].split("\n\n")[0].splitlines()
        assert len(block) == text.SHOWN and {len(line) for line in block} == {length}
    assert (ran.folder / "text.png").stat().st_size > 20_000
    assert (ran.folder / "wgan-gp" / "checkpoint.pt").exists()


def test_a_score_is_summed_in_the_same_order_in_every_process(monkeypatch):
    """Not in that of a set of strings, which Python's hashing draws anew."""
    seen = []
    monkeypatch.setattr(ngrams, "jensenshannon", lambda *frequencies: seen.extend(frequencies) or 0.0)
    alphabet = "".join(map(chr, range(ord("a"), ord("z") + 1)))
    counted = Counter({character: count for count, character in enumerate(alphabet, 1)})
    ngrams.divergence(counted, counted)
    assert [list(frequency) for frequency in seen] == [list(range(1, 27))] * 2
