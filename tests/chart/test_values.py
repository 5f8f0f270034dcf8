"""The generator of the chart's schema and table."""

import pytest
from hack import values

TEXT = """\
# About the file.

# -- How many.
# @schema {"minimum": 1}
replicas: 2
image:
  # -- Where from.
  # It goes on.
  repository: here
# -- As Kubernetes has them.
# @schema {"additionalProperties": true}
resources:
  limits:
    memory: 1Gi
"""


def test_keys_have_their_default_and_the_comment_above_them() -> None:
    found = {".".join(value.path): value for value in values.parse(TEXT)}
    assert list(found) == ["replicas", "image", "image.repository", "resources"]
    assert found["image.repository"].description == "Where from. It goes on."
    assert found["resources"].default == {"limits": {"memory": "1Gi"}}


def test_the_schema_closes_every_group() -> None:
    schema = values.schema(values.parse(TEXT))
    assert schema["additionalProperties"] is False
    assert schema["properties"]["image"]["additionalProperties"] is False
    assert schema["properties"]["replicas"] == {"description": "How many.", "type": "integer", "minimum": 1}
    assert schema["properties"]["resources"]["additionalProperties"] is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("replicas: 2\n", "replicas has no `# -- ` comment"),
        ("# -- Some.\nnames: []\n", "names needs `# @schema` with the items"),
        ("# -- Some.\nlabels: {}\n", "labels needs `# @schema` with additionalProperties"),
    ],
)
def test_what_would_leave_a_hole_in_the_schema_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        values.schema(values.parse(text))


def test_the_table_has_a_row_for_each_value_but_the_groups() -> None:
    rows = values.table(values.parse(TEXT)).splitlines()[2:]
    assert rows[0] == "| `replicas` | `2` | How many. |"
    assert len(rows) == 3
