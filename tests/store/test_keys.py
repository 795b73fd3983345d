from __future__ import annotations

import pytest

from pathar.contract import is_job_id
from store import keys


def test_a_queue_belongs_to_one_version_and_one_numerics() -> None:
    names = {keys.queue_name(version * 64, number * 12) for version in "ab" for number in "12"}
    assert len(names) == 4


def test_a_part_id_is_split_into_what_it_was_made_of() -> None:
    for job_id in ("a", "a_1", "x-y_z", "0" * 64):
        job = keys.owned_id("0123abcd", job_id)
        assert keys.split_owned_id(job) == ("0123abcd", job_id)
        assert keys.split_part_id(keys.part_id(job, 63)) == (job, 63)


def test_anything_else_is_no_id() -> None:
    for text in (
        "",
        "a",
        "a_1",
        "0123abcd_1",
        "0123ABCD-a_1",
        "_1",
        "a_x",
        "a:b_1",
        "a_1\n",
        "é_1",
        "a" * 65 + "_1",
    ):
        with pytest.raises(ValueError, match="is not a part id"):
            keys.split_part_id(text)
    for text in ("", "a b", "a:b", "a\n", "é", "a" * 65):
        assert not is_job_id(text)
