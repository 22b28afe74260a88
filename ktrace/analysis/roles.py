"""Role schemes: which rows a heatmap has.

Stores hold the six roles of the scheme `rome`; coarser schemes group them.
"""

SCHEMES: dict[str, dict[str, str]] = {
    "rome": {
        role: role
        for role in (
            "first subject",
            "middle subject",
            "last subject",
            "first subsequent",
            "further",
            "last",
        )
    },
    # Middle subject tokens have no row in the published four-row figure.
    "seed": {
        "first subject": "first subject",
        "last subject": "last subject",
        "first subsequent": "further",
        "further": "further",
        "last": "last",
    },
}


def rows(scheme: str) -> tuple[str, ...]:
    """Rows of a scheme, in the order of the prompt."""
    return tuple(dict.fromkeys(SCHEMES[scheme].values()))
