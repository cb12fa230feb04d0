"""Reading a file that another process may be writing."""

from pathlib import Path

from tests.growing import whole_lines


def test_a_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert whole_lines(file) == []
    file.write_bytes(b'{"event": "sta')
    assert whole_lines(file) == []
    file.write_bytes('{"event": "start"}\n"caf\xe9'.encode()[:-1])
    assert whole_lines(file) == ['{"event": "start"}']
