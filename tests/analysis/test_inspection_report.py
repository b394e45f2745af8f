"""The page of an inspection shows what was found, with pictures inside it, and nothing runs that a file's name says."""

import base64
import io
import re

from PIL import Image

from conceptcam.analysis.inspection_report import inspection_page
from conceptcam.data.inspection import Fault, inspect_dataset
from tests.worlds import CONCEPTS, Squares


def test_the_page_holds_counts_faults_and_pictures_with_boxes():
    data = Squares(10, preprocess=False)
    found = inspect_dataset(data, image_size=(48, 64))
    page = inspection_page(found, data, samples=4)
    assert found.remarks and all(f"<li>{remark.replace(chr(39), '&#39;')}.</li>" in page for remark in found.remarks)
    for name in CONCEPTS:
        assert f"<td>{name}</td><td>concept</td>" in page
    pictures = re.findall(r"base64,([\w+/=]+)", page)
    assert len(pictures) == 4 and "square-0" in page and "square-7" in page
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as picture:
        assert max(picture.size) == 200


def test_names_are_shown_and_not_run():
    data = Squares(2, preprocess=False)
    found = inspect_dataset(data, read_images=False)
    found = found.__class__(2, 0, found.labels, (), (Fault("x", "<script>alert(1)</script>"),))
    page = inspection_page(found, data, samples=0)
    assert "<script>" not in page and "&lt;script&gt;" in page
