"""What `mrrn doctor` found, as text for the terminal, as CSV, and as a page with frames."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cache.common.files import discard_leftovers, write_bytes_durably
from cache.common.text import shortened, visible
from fuse.doctor import DARK, FEW_FRAMES, FROZEN, KINDS, LIKELY, Diagnosis, Kind, Suspicion
from fuse.duplicates import NEAR, ONE_RECORDING
from fuse.labels import TOLD_APART, AlikeClasses
from fuse.portions import Portion
from fuse.report.page import render
from fuse.report.samples import Frames, pictures_of
from fuse.report.story import percent
from fuse.report.tables import Column, Table, to_csv
from fuse.summary import Made

PAGE, LIST = "doctor.html", "doctor.csv"

SHOWN: Final = 8
"""Findings of each kind that the page shows with frames; the others are in the list."""

EXAMPLES: Final = 2
"""Findings of each kind that the terminal shows."""

ROW: Final = "  {:>6}  {}"


WORDS: Final[Mapping[Kind, tuple[str, str]]] = {
    "leak": (
        "test {} that are copies of training {}",
        f"The heads have seen them, so they raise the accuracy. Their means are as like as {NEAR:g} or more (1: the "
        "same) and their frames follow one another in the same order, also if encoded anew, cropped, mirrored or cut.",
    ),
    "recording": (
        "test {} of one recording with training {}",
        "Place and people are known from training, so they raise the accuracy. They have one group, or their means are "
        f"as like as {ONE_RECORDING:g} or more.",
    ),
    "conflict": ("copies with different labels", "One of the labels is wrong."),
    "label": (
        "likely wrong labels",
        "By predictions of a regression that did not learn from the sample itself, and by the share of all labels that "
        f"seem to be drawn at random. The score is the probability that the label is wrong, {LIKELY:g} or more.",
    ),
    "copy": ("copies within one half", "They count twice."),
    "black": ("black {}", f"They do not move, and their frames are darker than {DARK} of 255."),
    "frozen": ("frozen {}", f"They do not move: {FROZEN:g} or less, where {{}} differ by 1."),
    "short": ("{} of a few frames", f"They have fewer than {FEW_FRAMES} frames."),
}
"""What a kind of finding is, and why it matters and how it is told; `{}` stands for what samples are called."""


def title(kind: Kind, noun: str) -> str:
    """What findings of a kind are, `noun` being what samples are called."""
    return WORDS[kind][0].replace("{}", noun)


def shown(diagnosis: Diagnosis) -> list[str]:
    """The samples whose frames the page shows, the gravest first."""
    found = [each for kind in KINDS for each in diagnosis.of_kind(kind)[:SHOWN]]
    return [*dict.fromkeys(name for each in found for name in (each.sample, each.other) if name)]


def publish(
    folder: Path, diagnosis: Diagnosis, parts: Sequence[Portion], notes: Sequence[str], frames: Frames, made: Made
) -> None:
    """Write the page and the list into `folder`, where the split's report is."""
    if folder.exists():
        discard_leftovers(folder)
    write_bytes_durably(folder / LIST, to_csv(table(diagnosis)).encode())
    write_bytes_durably(folder / PAGE, doctor_page(diagnosis, parts, notes, frames, made).encode())


def table(diagnosis: Diagnosis) -> Table:
    """All findings, a row each."""
    return Table(
        title=f"What may be wrong with {diagnosis.dataset.name}, split {diagnosis.split}",
        notes=(),
        columns=(
            Column(title="Video", name="video"),
            Column(title="Finding", name="finding"),
            Column(title="Other video", name="other_video"),
            Column(title="Score", name="score", decimals=4),
            Column(title="Suggestion", name="suggestion"),
        ),
        rows=tuple((each.sample, each.kind, each.other, each.score, each.advice) for each in diagnosis.findings),
    )


def doctor_page(
    diagnosis: Diagnosis, parts: Sequence[Portion], notes: Sequence[str], frames: Frames, made: Made
) -> str:
    """The page. It runs no script."""
    noun = diagnosis.dataset.noun
    return render(
        "doctor.html",
        heading=f"{diagnosis.dataset.name}, split {diagnosis.split}: what may be wrong",
        made=made,
        diagnosis=diagnosis,
        noun=noun,
        kinds=[
            {
                "kind": kind,
                "title": title(kind, noun),
                "meaning": WORDS[kind][1].replace("{}", noun),
                "findings": found,
                "shown": found[:SHOWN],
            }
            for kind in KINDS
            if (found := diagnosis.of_kind(kind))
        ],
        labels={each.id: diagnosis.dataset.class_of(each) or "no label" for each in diagnosis.dataset.samples},
        pictures={video: pictures_of(each) for video, each in frames.items()},
        told_apart=TOLD_APART,
        parts=parts,
        notes=notes,
        list=LIST,
    )


def to_text(diagnosis: Diagnosis, parts: Sequence[Portion], notes: Sequence[str]) -> str:
    """A summary of at most 80 columns, but for the notes."""
    noun = diagnosis.dataset.noun
    lines = [
        f"{diagnosis.dataset.name}, split {diagnosis.split}: {diagnosis.samples:,} {noun} of {diagnosis.groups:,} "
        f"groups; findings: {len(diagnosis.findings):,}"
    ]
    for kind in KINDS:
        if found := diagnosis.of_kind(kind):
            lines.append(ROW.format(f"{len(found):,}", title(kind, noun)))
            lines += [f"          {_example(each)}" for each in found[:EXAMPLES]]
    if diagnosis.alike:
        lines.append(ROW.format(f"{len(diagnosis.alike):,}", "pairs of classes that cannot be told apart"))
        lines += [f"          {_pair(diagnosis, each)}" for each in diagnosis.alike[:EXAMPLES]]
    if not diagnosis.judged:
        lines.append(f"labels are not judged: that takes several labelled {noun} of each class")
    if parts:
        lines.append("accuracy of the fused model")
    for part in parts:
        interval = f"{percent(part.interval.low)} to {percent(part.interval.high)}"
        lines.append(f"  {percent(part.accuracy):>5} % of {part.videos:,} {part.name} ({interval})")
    return "\n".join([*lines, *(f"! {visible(note)}" for note in notes)])


def _example(finding: Suspicion) -> str:
    """At most 70 columns."""
    if finding.other is not None:
        return " = ".join(shortened(visible(name), 33) for name in (finding.sample, finding.other))
    if finding.kind == "label":
        return f"{shortened(visible(finding.sample), 25)}: {shortened(visible(finding.advice), 43)}"
    return shortened(visible(finding.sample), 70)


def _pair(diagnosis: Diagnosis, pair: AlikeClasses) -> str:
    names = [shortened(visible(diagnosis.dataset.classes[label]), 24) for label in (pair.first, pair.second)]
    return f"{names[0]} and {names[1]}: {percent(pair.share, 0)} % right"
