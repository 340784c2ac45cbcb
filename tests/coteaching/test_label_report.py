"""The list of label errors as files: CSV, JSON and a page that stands alone."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from optuna_s2e.coteaching import NoisyData, save_label_errors

pd = pytest.importorskip("pandas")

ANGRY = "<script>alert('&')</script>"


class _Page(HTMLParser):
    """Collects elements and texts; every element must be closed."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def _errors(n=5):
    return pd.DataFrame({
        "index": [4, 2, 0, 1, 3][:n],
        "given_label": ["cat", "cat", ANGRY, "cat", "owl"][:n],
        "suggested_label": [ANGRY, "owl", "cat", "owl", "cat"][:n],
        "quality": [0.0, 0.1, 0.2, 0.3, 0.4][:n],
        "evidence": [f"both networks say {ANGRY!r} from epoch 2 on"] * n,
    })  # fmt: skip


def _save(folder, errors=None, **options):
    save_label_errors(_errors() if errors is None else errors, folder / "new" / "list", **options)
    return _Page((folder / "new" / "list" / "label-errors.html").read_text(encoding="utf-8"))


def _pictures(page):
    """Return the pictures of a page by their samples, in [0, 1]."""
    return {
        int(img["alt"].removeprefix("sample ")): imread(
            io.BytesIO(base64.b64decode(img["src"].removeprefix("data:image/png;base64,"))), "png"
        )[..., :3]
        for img in page.all("img")
    }


def test_csv_and_json_hold_the_list(tmp_path):
    _save(tmp_path)
    folder = tmp_path / "new" / "list"
    pd.testing.assert_frame_equal(pd.read_csv(folder / "label-errors.csv"), _errors())
    assert json.loads((folder / "label-errors.json").read_text()) == _errors().to_dict("records")


def test_samples_are_called_by_their_names(tmp_path):
    names = [f"{ANGRY}/{i}.png" for i in range(5)]
    page = _save(tmp_path, names=names)
    folder = tmp_path / "new" / "list"
    found = pd.read_csv(folder / "label-errors.csv")["index"].tolist()
    assert found == [names[i] for i in _errors()["index"]]
    assert json.loads((folder / "label-errors.json").read_text())[0]["index"] == names[4]
    assert {*names} <= {*page.texts}
    assert "Sample 4" not in page.texts
    assert not any("counted from 0" in text for text in page.texts)
    with pytest.raises(ValueError, match=r"names must hold all samples .* but holds 4"):
        _save(tmp_path, names=names[:4])


def test_labels_of_bytes_become_text(tmp_path):
    errors = _errors(1).assign(given_label=[b"caf\xc3\xa9"], suggested_label=[7])
    page = _save(tmp_path, errors)
    (row,) = json.loads((tmp_path / "new" / "list" / "label-errors.json").read_text("utf-8"))
    assert (row["given_label"], row["suggested_label"]) == ("café", 7)
    assert {"café", "7"} <= {*page.texts}


def test_the_page_shows_the_worst_of_each_class(tmp_path):
    page = _save(tmp_path, n_per_class=2)
    samples = [text for text in page.texts if re.fullmatch(r"Sample \d", text)]
    assert samples == ["Sample 4", "Sample 2", "Sample 0", "Sample 3"]
    assert "3 labels are listed, the worst 2 are shown." in page.texts
    assert page.texts.count("1 label is listed.") == 2
    assert any("Samples are counted from 0." in text for text in page.texts)


def test_columns_that_are_not_shown_are_counted(tmp_path):
    for n, told in ((8, 0), (10, 5)):
        page = _save(tmp_path, inputs=pd.DataFrame(np.ones((5, n))))
        assert len(page.all("dt")) == 5 * 8
        assert page.texts.count("and 2 more") == told


def test_the_page_runs_nothing_loads_nothing_and_escapes_all_text(tmp_path):
    frame = pd.DataFrame({ANGRY: [ANGRY] * 5})
    page = _save(tmp_path, title=ANGRY, inputs=frame)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object"}
    assert not {key for _, attributes in page.elements for key in attributes if key[:2] == "on"}
    assert {a["href"][0] for a in page.all("a")} == {"#"}
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    style = page.texts[page.texts.index(next(t for t in page.texts if "color-scheme" in t))]
    assert "url(" not in style
    assert "@import" not in style
    assert page.texts.count(ANGRY) > 10  # as text: title, class, suggestion, column and value
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {a["href"][1:] for a in page.all("a")} <= ids


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NHW", "data", "tensor"])
def test_images_are_shown_as_they_are(tmp_path, layout):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 1 if layout == "NHW" else 3, 6, 4), dtype=np.uint8)
    y = np.arange(5) % 2
    inputs = {
        "NCHW": images, "NHWC": np.moveaxis(images, 1, 3), "NHW": images[:, 0],
        "data": NoisyData.from_arrays(images, y, images, y) if layout == "data" else None,
        "tensor": torch.from_numpy(images),
    }[layout]  # fmt: skip
    shown = _pictures(_save(tmp_path, inputs=inputs))
    assert sorted(shown) == [0, 1, 2, 3, 4]
    for index, picture in shown.items():
        expected = np.broadcast_to(np.moveaxis(images[index], 0, 2), (6, 4, 3))
        np.testing.assert_allclose(255 * picture, expected, atol=1e-3)


def test_images_of_floats_span_black_to_white(tmp_path):
    images = np.linspace(-3.0, 7.0, 80).reshape(5, 1, 4, 4)
    shown = _pictures(_save(tmp_path, inputs=images))
    assert (shown[0].min(), shown[4].max()) == (0.0, 1.0)
    expected = (images[2, 0] + 3) / 10
    np.testing.assert_allclose(shown[2][..., 1], expected, atol=0.5 / 255 + 1e-6)


def test_rows_of_a_data_frame_are_shown(tmp_path):
    frame = pd.DataFrame({f"column {i}": range(i, i + 5) for i in range(10)})
    page = _save(tmp_path, _errors(1), inputs=frame)
    columns = [text for text in page.texts if text.startswith("column")]
    assert columns == [f"column {i}" for i in range(8)]
    at = page.texts.index("column 3")
    assert page.texts[at + 1] == "7"  # of sample 4


def test_values_of_a_table_are_short(tmp_path):
    values = [0.123456, np.nan, 12345678.0, None, pd.NA, "red"]
    frame = pd.DataFrame({f"column {i}": [value] * 5 for i, value in enumerate(values)})
    page = _save(tmp_path, _errors(1), inputs=frame)
    shown = [page.texts[page.texts.index(f"column {i}") + 1] for i in range(6)]
    assert shown == ["0.1235", "missing", "12345678", "missing", "missing", "red"]


def test_vectors_show_no_pictures(tmp_path):
    assert not _save(tmp_path, inputs=np.ones((5, 7))).all("img")


def test_an_empty_list_is_a_page_without_classes(tmp_path):
    page = _save(tmp_path, _errors(0), inputs=np.ones((5, 1, 4, 4)))
    assert not page.all("section")
    assert any(text.startswith("0 labels are listed") for text in page.texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"errors": _errors().drop(columns="quality")}, "errors must have the columns index, "),
        ({"inputs": np.ones((4, 3))}, "inputs must hold all samples that errors names, but holds"),
        ({"n_per_class": 0}, "n_per_class must be an int of at least 1, but got 0"),
    ],
)
def test_errors_name_the_argument_and_write_nothing(tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _save(tmp_path, **change)
    assert not [*tmp_path.iterdir()]


def test_the_worst_qualities_are_below_the_digits_that_are_shown(tmp_path):
    texts = _save(tmp_path).texts
    assert "quality below 0.001" in texts
    assert "quality 0.100" in texts


def test_a_number_and_its_percent_sign_stay_in_one_line(tmp_path):
    page = _save(tmp_path, _errors(1).assign(evidence="trained on in 4 % of the epochs"))
    assert "trained on in 4\N{NO-BREAK SPACE}% of the epochs" in page.texts
    assert "4 %" in (tmp_path / "new" / "list" / "label-errors.csv").read_text()


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(
        NotADirectoryError, match=r"folder must be a folder, but .*file' is a file"
    ):
        save_label_errors(_errors(), file)
    assert file.read_text() == "mine"
