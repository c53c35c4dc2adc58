"""README.md says what the demo found."""

import runpy

from tests.conftest import CHECKOUT


def test_the_section_on_the_demo_is_that_of_its_numbers():
    demo = runpy.run_path(str(CHECKOUT / "docs" / "demo_section.py"))
    text = (CHECKOUT / "README.md").read_text()
    assert demo["rewritten"](text, demo["read_written"]()) == text, "run `make readme`"
    assert set(demo["read_written"]()["target"]) == {target for target, _ in demo["TRANSFERS"]}


def test_another_number_would_be_seen():
    demo = runpy.run_path(str(CHECKOUT / "docs" / "demo_section.py"))
    numbers = demo["read_written"]()
    changed = numbers.assign(accuracy=numbers["accuracy"] + 0.001)
    assert demo["section"](changed) != demo["section"](numbers)
