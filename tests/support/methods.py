"""Options of methods that tests share."""

from typing import Any


def few_steps(name: str) -> dict[str, Any]:
    """Returns options by which a method trains a second model for a moment only.

    They are for tests of what lies around such training, whose result any number of steps could show.
    """
    if name in ("feddf", "feddf_logits", "dsfl", "fedet"):
        return {"steps": 5}
    return {"generator_steps": 5} if name == "fedgen" else {}
