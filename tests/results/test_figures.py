"""Figures: what is drawn, and titles that say what the data say. results/watch.py."""
import csv
import json
import random
from types import SimpleNamespace

import pytest
from conftest import ROOT, error_of

from plumbing import figures
from results import figures as drawn
from results import watch


@pytest.fixture
def kept(monkeypatch):
    """Lists of what was drawn (not closed) and of the titles."""
    import matplotlib.pyplot as plt
    close, found = plt.close, SimpleNamespace(figures=[], titles=[], said=[])
    monkeypatch.setattr(plt, "close", found.figures.append)
    for module in (figures, drawn):
        save = module.save_figure

        def saved(figure, path, title, caption="", save=save):
            found.titles.append(title)
            found.said.append(caption)
            return save(figure, path, title, caption) if path else found.figures.append(figure)
        monkeypatch.setattr(module, "save_figure", saved)
    yield found
    close("all")


def texts(axes):
    return {t.get_text() for t in axes.texts}


def points(method, *values, run="GRM"):
    return [{"run": run, "method": method, "k": 2 ** i, "accuracy": v, "low": v - 0.01,
             "high": v + 0.01} for i, v in enumerate(values)]


# ----- accuracy against k -----

def test_the_figure_names_its_lines_and_only_tells_what_lies_far_away(tmp_path, kept):
    table = [*points("vote", 0.80, 0.85, 0.90), *points("oracle", 0.8, 0.999, 1.0)]
    flat = {"weak": 0.3, "RFT": 0.82, "chance": 0.4}
    figures.draw_curves(table, flat, tmp_path / "a" / "curve.png", "caption")
    [axes] = kept.figures[0].axes
    assert (tmp_path / "a" / "curve.png").stat().st_size > 1000
    assert texts(axes) >= {"votes 90.0", "RFT 82.0", "any is right 100.0"}
    assert kept.said[0] == "Not drawn: weak 30.0, chance 40.0. caption"
    low, high = axes.get_ylim()
    assert 75 < low < 80 and 90 < high <= 103
    far = [*points("vote", 0.500, 0.505, 0.510), *points("oracle", 0.5, 0.8, 1.0)]
    figures.draw_curves(far, {}, tmp_path / "b.png", "", "title", ("ceiling", 0.52))
    [axes] = kept.figures[1].axes
    assert "Not drawn: any is right 100.0" in kept.said[1] and "ceiling 52.0" in texts(axes)
    assert len(axes.get_lines()) == 2  # votes and the ceiling
    figures.draw_curves([], flat, tmp_path / "c.png", "")  # greedy judges only
    assert kept.titles[1:] == ["title", "Accuracy, %: weak 30.0, RFT 82.0, chance 40.0"]
    # no legend, and letters that can be read at half the size
    for figure in kept.figures:
        assert not figure.axes[0].get_legend()
        assert min(t.get_fontsize() for t in [*figure.texts, *figure.axes[0].texts]) >= 10


RISES, FALLS, STAYS = (0.8, 0.85, 0.9), (0.9, 0.85, 0.8), (0.8, 0.82, 0.81)


@pytest.mark.parametrize("values, said", [
    (RISES, "4 votes raise accuracy, 80.0 to 90.0 %"),
    (FALLS, "4 votes lower accuracy, 90.0 to 80.0 %"),
    (STAYS, "4 votes do not clearly change accuracy, 80.0 to 81.0 %")])
def test_titles_of_curves_say_what_the_data_say(values, said):
    assert figures.found_in(points("vote", *values), {}) == said
    guided = points("vote", *values) + points("guided", 0.8, 0.8, 0.95)
    assert figures.found_in(guided, {"chance": 0.5}) == f"{said}; guided: 95.0 %"
    two = points("vote", *values) + points("vote", 0.1, 0.2, run="other")
    assert figures.found_in(two, {}) == (
        f"Accuracy, %: GRM {100 * values[-1]:.1f} (4 votes), other 20.0 (2 votes)")


def test_labels_are_kept_apart_and_in_order():
    rng = random.Random(0)
    for _ in range(50):
        places = [rng.uniform(0, 5) for _ in range(6)]
        moved = figures.apart(places, 0.7)
        order = sorted(range(6), key=lambda i: places[i])
        assert [sorted(moved)[r] for r in range(6)] == [moved[i] for i in order]
        gaps = [b - a for a, b in zip(sorted(moved), sorted(moved)[1:])]
        assert min(gaps) > 0.7 - 1e-6


def test_no_two_looks_are_alike_in_colour_or_in_grey():
    looks = figures.LOOKS.values()
    assert len({look.colour for look in looks}) == len({look.name for look in looks}) == len(looks)
    other = [look.colour for look in watch.OTHERS]
    assert len({*other, *(look.colour for look in looks)}) == len(looks) + len(other) > 11
    assert len({look.marker for look in looks}) == len(looks)


# ----- results/: scaling, compute, Fig. 4 -----

def table(name):
    """{row: its cells} of a committed table; numbers as numbers, but for the paper's."""
    rows = list(csv.DictReader((ROOT / "results" / f"{name}.csv").open(encoding="utf-8")))
    return {r["row"]: {c: v if c in ("row", "paper", "seeds") or not v or v[-1].isalpha()
                       else float(v) if v.replace(".", "").replace("-", "").isdigit() else v
                       for c, v in r.items()} for r in rows}


@pytest.mark.parametrize("vote, guided, words", [
    ((0.01, 0.02), (-0.01, 0.01), ("raise", "does not clearly change that")),
    ((-0.02, -0.01), (0.01, 0.02), ("lower", "adds to that")),
    ((-0.01, 0.01), (-0.02, -0.01), ("do not clearly change", "takes from that"))])
def test_the_title_of_scaling_follows_the_paired_intervals(vote, guided, words, monkeypatch):
    rows, told = table("scaling"), []
    for name, ends in (("vote @32", vote), ("guided @32", guided)):
        rows[name] |= {"difference_low": ends[0], "difference_high": ends[1], "items": 9}
    monkeypatch.setattr(drawn, "draw_curves", lambda *given: told.append(given[4]))
    drawn.draw_scaling(rows, None)
    assert told[0].startswith(f"32 votes {words[0]} the GRM's accuracy, ")
    assert told[0].endswith(f"guidance by the meta RM {words[1]}")


def test_fig_4_stands_beside_the_papers_and_both_titles_follow_the_numbers(kept):
    compute, scaling = table("compute"), table("scaling")
    for name, row in compute.items():
        if row["accuracy"] == "not run":  # a size that is not on record looks like medium here
            like = compute[name.replace("small", "medium").replace("large", "medium")]
            row |= {k: like[k] for k in ("accuracy", "low", "high", "items")}
            row["mflops"] = like["mflops"] * (0.3 if name.startswith("small") else 3)
    compute["large, greedy"]["accuracy"] = compute["medium, Voting@32"]["accuracy"] + 0.02
    drawn.draw_fig4(compute, scaling, None)
    drawn.draw_compute(compute, None)
    paper, ours = kept.figures[0].axes
    curves = [line.get_xydata().round(1).tolist() for line in paper.get_lines()[:3]]
    assert curves == [[[4, 89.7], [8, 89.8], [32, 90.4]], [[1, 82.4], [8, 84.9]],
                      [[1, 85.2], [8, 87.7], [32, 88.5]]]  # Fig. 4 and Table 3
    assert {"27B 86.0", "16B 82.9", "671B, greedy 88.4"} <= texts(paper)
    votes = ours.get_lines()[2].get_xydata()
    assert votes[-1].tolist() == [32, 100 * compute["medium, Voting@32"]["accuracy"]]
    titles = [axes.get_title(loc="left") for axes in (paper, ours)]
    assert "32 votes of 27B are 0.1 points above 671B, greedy" in titles[0]
    assert "32 votes of medium are 2.0 points below large, greedy" in titles[1]
    assert "medium does not reach that with 32 votes" in kept.titles[1]
    compute["large, greedy"]["accuracy"] = 0.1
    drawn.draw_compute(compute, None)
    assert kept.titles[2].startswith("Greedy, the large judge has 10.0 %: small reaches that with "
                                     "1 vote, 0.") and "not" not in kept.titles[2]
    assert not any(axes.get_legend() for figure in kept.figures for axes in figure.axes)
    for row in [row for row in compute if not row.startswith("medium")]:  # other sizes not run
        del compute[row]
    drawn.draw_compute(compute, None)
    drawn.draw_fig4(compute, scaling, None)
    assert kept.titles[3].startswith("32 votes of medium cost 32 times as much")
    assert "of medium are" in kept.figures[-1].axes[1].get_title(loc="left")


# ----- the course of training, and results/watch.py -----

def rows_of(*rewards):
    return [{"step": i, "reward/mean": r, "time/sample_s": 9.0}
            for i, r in enumerate(rewards, 1)]


def test_a_course_is_the_mean_and_the_spread_of_runs_and_of_steps_around(kept):
    few = figures.course([rows_of(0, 1), rows_of(2, 1, 5)], "reward/mean")
    assert few == ([1, 2, 3], [1, 1, 5], [1, 0, 0], 1)
    steps, means, stds, window = figures.course([rows_of(*range(60))], "reward/mean")
    assert (window, means[0], means[30], means[-1]) == (7, 1.5, 30, 57.5) and stds[30] == 2
    assert figures.course([rows_of(None, 1)], "reward/mean")[:2] == ([2], [1])
    looks = {"a": (None, [rows_of(*range(20)), rows_of(*[1] * 20)]), "b": (None, [rows_of(3)])}
    shares = [{"step": i, "reward/parse_rate": r} for i, r in enumerate((1, 1, 0.8, 1))]
    figures.draw_courses({"a": (figures.LOOKS["GRM"], [shares, shares[::-1]])}, None, "title")
    [band] = kept.figures[0].axes[0].collections
    assert band.get_paths()[0].vertices[:, 1].max() == 1  # no share is above 1
    assert figures.risen(looks, "reward/mean") == (
        "Reward, first to last tenth of the steps: a 0.75 to 9.75, b 3.00 to 3.00")


def judgments(step, item, *rule_rewards, **more):
    return [{"step": step, "id": item, "prompt": f"Judge {item}.", "text": f"At {step}: {r}",
             "scores": [2, 8] if r > 0 else None, "reason": "no_box", "rewards": [0, 1],
             "rule_reward": r, "advantage": r / 2, "permutation": [1, 0]} | more
            for r in rule_rewards]


def test_early_judgments_stand_beside_late_ones_of_the_same_item_if_there_are(cli, tmp_path):
    for seed, shift in ((0, 0.0), (1, 0.5)):
        folder = tmp_path / f"s{seed}" / "rl"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(
            json.dumps(r) + "\n" for r in rows_of(shift, 1.0, 1.0, 1.0)))
    kept = [r for step, item in enumerate("abca", 1) for r in judgments(step, item, -1, 1)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    first = tmp_path / "s0" / "rl"
    code, out, err = cli("results.watch", f"GRM={first}", f"GRM={folder}", "--output",
                         tmp_path / "w.png", "--show_prompt")
    assert code == 0, err
    assert f"{first} keeps no judgments" in out and (tmp_path / "w.png").exists()
    assert "item a at step 1, labels [0, 1], and item a at step 4, labels [0, 1]" in out
    lines = [[cell.strip() for cell in line.split(" | ")] for line in out.splitlines()]
    assert ["Judge a."] * 2 in lines and ["At 1: 1", "At 4: 1"] in lines
    assert ["reward -1, advantage -0.50; scores no_box; shown in the"] * 2 in lines
    assert ["order 2, 1"] * 2 in lines
    rows = list(csv.DictReader((tmp_path / "w.csv").open()))
    assert [(r["run"], r["number"], r["step"]) for r in rows][::4] == [
        ("GRM", "0", "1"), ("GRM", "1", "1")]
    ends = [[g[0]["step"] for g in watch.early_and_late(rows)] for rows in (
        kept[:6], kept[:2], [{"step": 1, "id": "x", "samples": []}],
        judgments(1, "s", 1, rewards=[1]) + kept[2:6] + judgments(4, "t", 1, rewards=[0]))]
    assert ends == [[1, 3], [1], [], [2, 3]]
    said = error_of(cli("results.watch", tmp_path, "--output", tmp_path / "w.png"))
    assert "has no metrics.jsonl with steps" in said and "runs/toy/rl" in said
