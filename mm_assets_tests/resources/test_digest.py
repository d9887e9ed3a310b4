from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_assets.resources.digest import table_digest
from mm_assets.resources.store import ArtefactRef, ArtefactStore
from mm_assets_tests.resources.writers import MADE

ARROW = ArtefactRef("demo", "tile_embeddings", "S1", "arrow")

SCALARS = {
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.float64(): st.floats(allow_nan=True),
    pa.float16(): st.floats(width=16).map(np.float16),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=5),
    pa.binary(): st.binary(max_size=5),
    pa.timestamp("us"): st.integers(0, 2**40),
    pa.list_(pa.string()): st.lists(st.text(max_size=3), max_size=3),
    pa.list_(pa.float16(), 2): st.lists(
        st.floats(width=16).map(np.float16) | st.none(), min_size=2, max_size=2
    ),
    pa.struct({"a": pa.int8(), "b": pa.string()}): st.fixed_dictionaries(
        {"a": st.integers(-128, 127) | st.none(), "b": st.text(max_size=3)}
    ),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 12))
    kinds = draw(st.lists(st.sampled_from(list(SCALARS)), min_size=1, max_size=4))
    columns = {
        f"c{index}": pa.array(
            draw(st.lists(SCALARS[kind] | st.none(), min_size=rows, max_size=rows)), kind
        )
        for index, kind in enumerate(kinds)
    }
    return pa.table(columns)


class TestTableDigest:
    @given(tables(), st.data())
    @settings(max_examples=150, deadline=None)
    def test_chunking_slicing_and_metadata_do_not_matter(
        self, table: pa.Table, data: st.DataObject
    ):
        cuts = data.draw(st.lists(st.integers(0, len(table)), max_size=4).map(sorted))
        bounds = [0, *cuts, len(table)]
        pieces = [table.slice(a, b - a) for a, b in pairwise(bounds)]
        chunked = pa.concat_tables(pieces).replace_schema_metadata({"made": "elsewhere"})
        padded = pa.concat_tables([table, table]).combine_chunks().slice(len(table))
        assert table_digest(chunked) == table_digest(table) == table_digest(padded)

    @given(tables(), st.data())
    @settings(max_examples=150, deadline=None)
    def test_any_other_value_matters(self, table: pa.Table, data: st.DataObject):
        if not len(table):
            return
        column = data.draw(st.integers(0, table.num_columns - 1))
        row = data.draw(st.integers(0, len(table) - 1))
        kind = table.schema.field(column).type
        values = table.column(column).to_pylist()
        old = pa.array([values[row]], kind)
        values[row] = data.draw(SCALARS[kind] | st.none())
        changed = table.set_column(column, table.column_names[column], pa.array(values, kind))
        same = _canonical(old) == _canonical(pa.array([values[row]], kind))
        assert (table_digest(changed) == table_digest(table)) == same

    def test_names_types_and_order_matter(self):
        base = pa.table({"a": pa.array([1, 2], pa.int32()), "b": ["x", "y"]})
        others = [
            base.rename_columns(["a", "c"]),
            base.set_column(0, "a", pa.array([1, 2], pa.int64())),
            base.select(["b", "a"]),
            base.take([1, 0]),
            base.select(["a"]),
        ]
        assert len({table_digest(table) for table in [base, *others]}) == 6

    def test_physical_encoding_does_not_matter(self):
        text = pa.array(["x", None, "y", "x"])
        encodings = [text, text.dictionary_encode(), text.cast(pa.large_string())]
        assert len({table_digest(pa.table({"a": values})) for values in encodings}) == 1

    def test_bytes_under_nulls_do_not_matter(self):
        valid = pa.py_buffer(b"\x05")
        hidden = [
            pa.Array.from_buffers(
                pa.int32(), 3, [valid, pa.array([1, x, 3], pa.int32()).buffers()[1]]
            )
            for x in (7, 8)
        ]
        assert hidden[0].to_pylist() == [1, None, 3]
        assert table_digest(pa.table({"a": hidden[0]})) == table_digest(pa.table({"a": hidden[1]}))

    def test_where_the_null_is_matters(self):
        columns = [pa.array(values, pa.int32()) for values in ([None, 0], [0, None])]
        assert len({table_digest(pa.table({"a": column})) for column in columns}) == 2

    def test_every_nan_is_the_same_but_null_is_not(self):
        nans = np.array([0x7E00, 0xFE01], np.uint16).view(np.float16)
        one, other = (pa.table({"a": pa.array(nans[i : i + 1])}) for i in (0, 1))
        null = pa.table({"a": pa.array([None], pa.float16())})
        assert table_digest(one) == table_digest(other) != table_digest(null)

    @given(tables())
    @settings(max_examples=40, deadline=None)
    def test_survives_both_file_formats(self, tmp_path_factory, table: pa.Table):
        store = ArtefactStore(uri=str(tmp_path_factory.getbasetemp() / "digest"))
        assert store.write_arrow(ARROW, table, MADE) == table_digest(store.read_arrow(ARROW))


def _canonical(array: pa.Array) -> str:
    """Value with NaN equal to itself and signed zeros apart, which `==` does not give."""
    return repr(array.to_pylist())
