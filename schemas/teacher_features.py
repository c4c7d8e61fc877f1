"""A dump of a teacher's image features: one row a picture, in half precision.

    FEATURES.lance    image_id int64, unit int64, features fixed-size list of float16

SAM-H's features are 2 MiB a picture; a dump of the 112,000 pictures of 1 % of SA-1B is 0.23 TB.
Metadata says which teacher made it and of which input: a dump of another one is refused.
"""

import pyarrow as pa

from tap_engine.schemas.provenance import METADATA_KEY as METADATA_KEY

FEATURES = "features"


def teacher_features_schema(shape: tuple[int, int, int]) -> pa.Schema:
    """The schema for features of one shape [C, h, w]."""
    channels, height, width = shape
    return pa.schema(
        [
            pa.field("image_id", pa.int64(), nullable=False),
            pa.field("unit", pa.int64(), nullable=False),
            pa.field(FEATURES, pa.list_(pa.float16(), channels * height * width), nullable=False),
        ]
    )
