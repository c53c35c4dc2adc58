import pytest

from transfer_influence.files import atomic


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_file_appears_under_its_name(tmp_path):
    path = tmp_path / "deep" / "er" / "table.parquet"
    with atomic(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".parquet"
        assert temporary.name.startswith(".")
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert names(path.parent) == ["table.parquet"]


def fail_half_way(path, error: type[BaseException]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        fail_half_way(tmp_path / "table.parquet", error)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_the_earlier_file_as_it_was(tmp_path, error):
    path = tmp_path / "table.parquet"
    path.write_text("earlier")
    with pytest.raises(error):
        fail_half_way(path, error)
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["table.parquet"]


def test_a_finished_file_replaces_the_earlier_one(tmp_path):
    path = tmp_path / "table.parquet"
    path.write_text("earlier")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "earlier"
    assert path.read_text() == "new"


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
    path = tmp_path / "table.parquet"
    with atomic(path) as one, atomic(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"  # the outer block ends last
    assert names(tmp_path) == ["table.parquet"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "table.parquet"):
        pass
    assert names(tmp_path) == []
