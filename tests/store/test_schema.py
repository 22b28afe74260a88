"""Parts of another layout are refused by their version, so a changed layout needs a new one."""

import hashlib
import json

from ktrace.store.schema import ACTIVATIONS, CLEAN, CORRUPTED, RESTORED, VERSION

# SHA-256 of the fields of each version. A line that is there never changes.
_LAYOUTS = {
    1: "536ac7ca19870f824c36156d1a6721da6701749b7a7901ef1a3dec6b853fa120",
    2: "00b8d5bad332c687e25b7ed51bd9b401acfac8b9f637168b7f3e6114d89e3844",
    3: "bede82c83eff382ca6522ef2440362786c6bfc3ebef906c43ce7533407b35fa3",
    4: "822b32193a8d2a7a6bee25c108117d5bd90196b240cff991d594c7daa836d6ee",
    # The same fields; what answers' tokens are has changed.
    5: "822b32193a8d2a7a6bee25c108117d5bd90196b240cff991d594c7daa836d6ee",
    6: "cd0a023bd2c9658183faa5976abca5a4368fcdd9ae1ac735474df8a7552dbfb5",
    # The same fields; where answers stand has changed.
    7: "cd0a023bd2c9658183faa5976abca5a4368fcdd9ae1ac735474df8a7552dbfb5",
    8: "4f8daf5ee5602509a5d7c534b3e424b3660853f5990a78752c2404e909c776b6",
}


def test_a_changed_field_raises_the_version() -> None:
    """If this fails: raise `VERSION`, add its line here, and describe it in docs/store.md."""
    stores = {"clean": CLEAN, "corrupted": CORRUPTED, "restored": RESTORED}
    stores |= {f"activations/{kind}": schema for kind, schema in ACTIVATIONS.items()}
    layout = {
        store: {name: [field.dtype, *field.axes] for name, field in schema.items()}
        for store, schema in stores.items()
    }
    found = hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()
    assert max(_LAYOUTS) == VERSION
    assert found == _LAYOUTS[VERSION], f"the fields are those of no known version: {found}"
