"""Labels of regions in the cells of a manifest: of any text, a label or an error in words."""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.image_folder.region_cells import WrongCell, checked_regions
from pipeline.masks import mask_to_png
from pipeline.regions import regions_from_json, regions_to_json
from pipeline.types import Region

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=6,
)
REGIONS = {
    "box": Region("box", "cat", (0.0, 0.25, 0.5, 1.0)),
    "polygon": Region("polygon", "cat", (0.0, 0.0, 1.0, 0.0, 0.5, 1.0)),
    "mask": Region("mask", "cat", mask=mask_to_png(np.eye(3, dtype=bool))),
}


@pytest.mark.parametrize("kind", REGIONS)
def test_what_is_written_is_read_as_it_is(kind):
    cell = regions_to_json([REGIONS[kind]] * 2)
    assert checked_regions(cell, kind, str) == cell
    assert checked_regions(" [ ] ", kind, str) == regions_to_json([])


@settings(deadline=None)
@given(st.sampled_from(list(REGIONS)), st.sampled_from(["kind", "label", "geometry", "mask", "x", ""]), VALUES)
def test_any_value_in_a_cell_is_a_region_or_an_error_in_words(kind, key, value):
    region = json.loads(regions_to_json([REGIONS[kind]]))[0]
    cell = json.dumps([region | {key: value}] if key else value)
    with suppress(WrongCell):
        assert all(region.kind == kind for region in regions_from_json(checked_regions(cell, kind, str)))


@given(st.text())
def test_any_text_is_no_region(text):
    with pytest.raises(WrongCell, match=r": "):
        checked_regions(f"x{text}", "box", str)
