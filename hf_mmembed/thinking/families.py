"""What the queries of a known data set are, so that training and evaluation ask a reasoner the same about them.

In: the name of a data set, or of the meta-task it belongs to. Out: one of `FAMILIES`, or None, and then the form of each
query tells.
"""

from __future__ import annotations

__all__ = ["family_of"]

# The data sets of MMEB-train by name, since there is no more to tell them by; others of MMEB mostly by their meta-task.
_NAMES = {
    # MMEB-train has an underscore where the leaderboard has a hyphen.
    "classification": "ImageNet_1K ImageNet-1K N24News HatefulMemes VOC2007 SUN397",
    "qa": "OK-VQA A-OKVQA DocVQA InfographicsVQA ChartQA Visual7W WebQA OVEN Wiki-SS-NQ",
    "grounding": "MSCOCO",
    "composed": "CIRR FashionIQ",
    # Their instruction may stand beside a picture and would be taken for a change to it.
    "content": "VisualNews_i2t MSCOCO_i2t NIGHTS",
}
_FAMILY_OF = {name: family for family, names in _NAMES.items() for name in names.split()} | {
    "Classification": "classification",
    "Video classification": "classification",
    "VQA": "qa",
    "Video QA": "qa",
    "Grounding": "grounding",
    "Moment retrieval": "grounding",
    "Image to text": "content",
}


def family_of(*names: str) -> str | None:
    """Task family of the queries of a data set.

    Args:
        *names: Its own and, where there is one, its meta-task's; the first that is known counts.

    Example:
        >>> family_of("ImageNet_1K"), family_of("GQA", "VQA"), family_of("EDIS", "Retrieval")
        ('classification', 'qa', None)
    """
    return next((_FAMILY_OF[name] for name in names if name in _FAMILY_OF), None)
