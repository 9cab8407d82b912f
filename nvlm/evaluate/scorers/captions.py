"""CIDEr and BLEU-4 of captions, by pycocoevalcap: what papers print for COCO, NoCaps and TextCaps.

CIDEr (Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015), as the
COCO evaluation computes it (its variant CIDEr-D, times 100), weighs words by how few of the
*evaluated* images' captions have them: the number belongs to a set of images, and a part of a
benchmark has another scale than the whole. One image alone scores 0.

Captions are cut into words by Stanford's PTB tokenizer, which pycocoevalcap brings as a Java
program. It is called here and not by `pycocoevalcap.PTBTokenizer`, which

- counts on one line of output for each caption, but takes out `\\n` alone: after a caption with a
  carriage return or another end of a line, each caption is compared with another image's;
- goes on with no captions at all where Java fails;
- writes into its own package's folder, which often cannot be written.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from nvlm.errors import NvlmError
from nvlm.failures import missing_package

_ENDS_OF_LINES = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
_JAVA_NEEDED = (
    "captions are scored by CIDEr, whose tokenizer is a Java program: put `java` on the PATH, such "
    "as by `apt install default-jre-headless`"
)


def check_caption_scoring() -> None:
    """Raise NvlmError unless captions can be scored here."""
    if find_spec("pycocoevalcap") is None:
        raise NvlmError(missing_package("pycocoevalcap"))
    if shutil.which("java") is None:
        raise NvlmError(f"{_JAVA_NEEDED}; no program `java` is on it now")
    done = subprocess.run(["java", "-version"], capture_output=True, text=True)
    if done.returncode:  # as the stand-in of macOS, which only says where to get Java
        raise NvlmError(f"{_JAVA_NEEDED}; `java -version` says: {_end_of(done.stderr)}")


def caption_scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    parts: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, float]:
    """`CIDEr` and `BLEU-4` of one caption for each image, both times 100.

    Args:
        references: the captions that people gave each image, one at least.
        parts: numbers of images by a name; `CIDEr NAME` is of these as if there were no others.

    Raises:
        NvlmError: Java or pycocoevalcap is missing or fails.
    """
    check_caption_scoring()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    texts = [*captions, *(text for people in references for text in people)]
    words = iter(tokenise(texts))
    answers = {image: [next(words)] for image in range(len(captions))}
    truths = {image: [next(words) for _ in people] for image, people in enumerate(references)}
    cider, _ = Cider().compute_score(truths, answers)
    bleu, _ = Bleu(4).compute_score(truths, answers, verbose=0)
    scores = {"CIDEr": 100 * float(cider), "BLEU-4": 100 * float(bleu[3])}
    for name, images in (parts or {}).items():
        cider, _ = Cider().compute_score(
            {image: truths[image] for image in images}, {image: answers[image] for image in images}
        )
        scores[f"CIDEr {name}"] = 100 * float(cider)
    return scores


def tokenise(texts: Sequence[str]) -> list[str]:
    """Each text's words in lower case with a space between, without punctuation."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    lines = [_ENDS_OF_LINES.sub(" ", text) for text in texts]
    with tempfile.TemporaryDirectory(prefix="nvlm-captions-") as folder:
        file = Path(folder) / "captions.txt"
        # A half of a surrogate pair, as byte-level models can write, has no UTF-8.
        file.write_text("".join(f"{line}\n" for line in lines), "utf-8", errors="replace")
        done = subprocess.run(
            ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines",
             "-lowerCase", str(file)],
            capture_output=True,
        )  # fmt: skip
    found = done.stdout.decode("utf-8", errors="replace").split("\n")[:-1]
    if done.returncode or len(found) != len(lines):
        raise NvlmError(
            f"the tokenizer of captions gave {len(found)} of {len(lines)} lines and ended with "
            f"{done.returncode}: {_end_of(done.stderr.decode(errors='replace'))}"
        )
    drop = frozenset(ptbtokenizer.PUNCTUATIONS)
    # At spaces alone: `2 1/2` is one word, with another kind of space in it.
    return [" ".join(word for word in line.split(" ") if word not in drop) for line in found]


def rouge_l(caption: str, references: Sequence[str]) -> float:
    """ROUGE-L (Lin, 2004) of one caption, between 0 and 1: how well it alone was met.

    As pycocoevalcap's `Rouge` counts it, over words without punctuation in lower case.
    """
    from pycocoevalcap.rouge.rouge import Rouge

    return float(Rouge().calc_score([_words(caption)], [_words(text) for text in references]))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+(?:['’]\w+)*", text.lower()))


def _end_of(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing"
