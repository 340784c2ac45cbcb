"""The data of a user: what is read, what is refused, and new data in the form of the old."""

from pathlib import Path

import numpy as np
import pytest
from commands import write_classes, write_image, write_table

from optuna_s2e.cli._samples import NAMES, Source, check_labels, read_new, to_classes
from optuna_s2e.coteaching import DATA_SETS


def test_a_table_becomes_columns_and_labels() -> None:
    write_table("a.csv", 6)
    samples = Source("a.csv", "kind").read()
    assert list(samples.x.columns) == ["size", "colour"]
    assert samples.y is not None
    assert samples.y.tolist() == ["dog", "cat"] * 3
    assert samples.form["columns"] == {"size": "number", "colour": "category"}
    assert samples.about == "6 rows, 2 columns (1 of numbers, 1 of categories)"
    assert samples.digest == Source("a.csv", "3").read().digest


def test_new_rows_are_matched_by_the_names_of_columns() -> None:
    write_table("a.csv", 6)
    form = Source("a.csv", "kind", drop=("colour",)).read().form
    Path("b.csv").write_text("more;colour;size\n1;red;2,5\n2;green;1\n")
    new = read_new("b.csv", form)
    assert list(new.x.columns) == ["size"]
    assert new.x["size"].tolist() == [2.5, 1.0]
    assert new.y is None
    assert new.remarks == ["Columns that the model does not know are not used: 'more'."]
    own = read_new("a.csv", form)
    assert own.y is not None
    assert own.y.tolist() == ["dog", "cat"] * 3
    assert own.remarks == []
    Path("c.csv").write_text("colour,more\nred,2\n")
    with pytest.raises(ValueError, match=r"'c.csv' lacks the column 'size', .* 'colour', 'm"):
        read_new("c.csv", form)


def test_codes_stay_categories_where_all_of_them_look_like_numbers() -> None:
    Path("a.csv").write_text("code,x,kind\n01,1,a\nA2,2,b\n03,3,a\n04,4,b\n")
    Path("b.csv").write_text("code,x\n01,1\n03,\n")
    form = Source("a.csv", "kind").read().form
    assert read_new("b.csv", form).x["code"].tolist() == ["01", "03"]


@pytest.mark.parametrize("label", ["1", "3"])
def test_new_rows_without_names_may_lack_the_label(label: str) -> None:
    cells = np.array([["1.5", "2", "3"], ["4", "5", "6"], ["1", "2", "3"], ["4", "5", "6"]])
    Path("a.csv").write_text("\n".join(map(",".join, cells)))
    kept = [i for i in range(3) if i != int(label) - 1]
    Path("b.csv").write_text("\n".join(map(",".join, cells[:, kept])))
    samples = Source("a.csv", label, header=False).read()
    new = read_new("b.csv", samples.form)
    assert new.y is None
    np.testing.assert_array_equal(new.x, samples.x)


def test_a_folder_of_images_has_the_labels_of_its_folders() -> None:
    write_classes("p", 4)
    Path("p/empty").mkdir()
    Path("p/light/Thumbs.db").write_text("")
    samples = Source("p").read()
    assert samples.files == ["dark/01.png", "dark/03.png", "light/00.png", "light/02.png"]
    assert samples.y is not None
    assert samples.y.tolist() == ["dark", "dark", "light", "light"]
    assert samples.x.shape == (4, 1, 6, 5)
    assert samples.remarks == [
        "Files that are no images are passed over: 'Thumbs.db'.",
        "Folders without images are passed over: 'empty'.",
    ]
    for path, files, labels in [
        ("p", samples.files, samples.y.tolist()),
        ("p/dark", ["01.png", "03.png"], None),
        ("p/dark/03.png", ["03.png"], None),
    ]:
        new = read_new(path, samples.form)
        assert new.files == files
        assert (new.y if new.y is None else new.y.tolist()) == labels
        assert (new.x[-1] == samples.x[1 if labels is None else -1]).all()


def test_folders_that_hold_no_classes() -> None:
    write_classes("p", 2)
    for name, message in {
        "none": "must hold a folder of images per class, but holds no images",
        "p/dark": "but 1 images, such as '01.png', lie in no such folder",
        "one": "must hold folders of at least 2 classes, but holds images of 'dark' alone",
    }.items():
        Path(name).mkdir(exist_ok=True)
        if name == "one":
            write_image("one/dark/a.png")
        with pytest.raises(ValueError, match=message):
            Source(name).read()
    for part in ("train", "test"):
        write_classes(f"parts/{part}", 4)
    with pytest.raises(ValueError, match=r"the parts of a data set: 'test', 'train'. Name one"):
        Source("parts").read()
    with pytest.raises(ValueError, match="'none' must hold images, but holds none"):
        read_new("none", Source("p").read().form)


def test_arrays_hold_inputs_labels_and_clean_ones() -> None:
    x, y = np.ones((4, 3)), np.array([1, 2, 1, 2])
    np.savez("a.npz", x=x, y=y, x_val=x[:2], y_val=y[:2])
    samples = Source("a.npz").read()
    assert samples.y is not None
    assert samples.y.tolist() == ["1", "2", "1", "2"]
    assert samples.validation is not None
    assert samples.validation[1].tolist() == ["1", "2"]
    np.savez("b.npz", x=x)
    assert read_new("b.npz", samples.form).y is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.ones(3)}, "'a.npz' must hold x, but holds 'z'"),
        ({"x": np.ones((3, 2)), "y": np.ones(2)}, r"must have shapes \(N, ...\) and \(N,\)"),
        ({"x": np.ones((3, 2)), "y": np.ones((3, 2))}, r"but got \(3, 2\) and \(3, 2\)"),
        ({"x": np.ones(3), "y": np.ones(3)}, r"x in 'a.npz' must hold samples, but got \(3,\)"),
        ({"x": np.array([{}]), "y": np.ones(1)}, "is not a .npz file of plain arrays"),
    ],
)
def test_arrays_that_cannot_be_used(arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez("a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        Source("a.npz").read()


def test_all_data_sets_with_names_are_known() -> None:
    assert NAMES == DATA_SETS


def test_digits_by_name_keep_their_own_test_data() -> None:
    samples = Source("digits", noise="pair", noise_rate=0.3, seed=3).read()
    assert samples.remarks == ["digits; 30 % pair noise is added to the training labels."]
    assert samples.test is not None
    new = read_new("digits", samples.form)
    np.testing.assert_array_equal(new.x, samples.test[0])  # the split follows from the seed
    assert new.y is not None
    assert new.y.tolist() == samples.test[1].tolist()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source("nothing"), "There is no file or folder 'nothing'. Data sets with names are digi"),
        (Source("a.csv"), "--label is needed: .* 'size', 'colour', 'kind'"),
        (Source("a.csv", "kind", image_size=8), "--image-size must be left out for a table"),
        (Source("a.csv", "kind", noise="pair"), "--noise must be left out for a table"),
        (Source("a.csv", "kind", drop=("kind",)), "--drop must name other columns than --label"),
        (Source("a.csv", "kind", drop=("size", "colour")), "must hold a column beside 'kind'"),
        (Source("digits", "kind"), "--label must be left out for other data than tables"),
    ],
)
def test_options_that_do_not_fit_the_data(source: Source, message: str) -> None:
    write_table("a.csv", 6)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        source.read()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "", "b", ""], "2 of 4 are empty, the first of sample 1 .counted from 0"),
        (["a"] * 4, "at least 2 classes, but holds 'a' alone"),
        (["0.1", "0.2", "0.3", "0.1"], "holds 3 different labels of 4 samples, such as '0.1'"),
    ],
)
def test_labels_that_nobody_can_learn_from(labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"Column 'kind' must hold .*{message}"):
        check_labels(np.array(labels), "Column 'kind'")


def test_rare_classes_are_told() -> None:
    remarks = check_labels(np.array(["a"] * 3 + ["b"] * 2), "it")
    assert remarks == ["Classes of fewer than 3 samples are hardly learned: 'b'."]


def test_classes_that_are_written_in_two_ways_are_told() -> None:
    labels = np.array(["Yes", "no", "yes", "new  York", "New York"] * 3)
    assert check_labels(labels, "it") == [
        "'New York', 'new  York' count as 2 classes. If they are one, write them alike.",
        "'Yes', 'yes' count as 2 classes. If they are one, write them alike.",
    ]
    assert check_labels(np.array(["a", "A", "b", "B"] * 3), "it") == []  # letters


def test_a_column_that_holds_a_word_among_numbers_is_told() -> None:
    Path("a.csv").write_text("age,kind\n31,a\n28,b\nn/k,a\n40,b\n")
    (remark,) = Source("a.csv", "kind").read().remarks
    assert "'age' is taken for categories, since 1 of its 4 cells" in remark


def test_whole_numbers_are_classes_in_their_order() -> None:
    for texts, classes in [
        (["10", "9", "-1"], [-1, 9, 10]),
        (["10", "x"], ["10", "x"]),
        (["07", "1"], ["07", "1"]),
    ]:
        assert np.unique(to_classes(np.array(texts))).tolist() == classes
    np.savez("a.npz", x=np.ones((2, 2)), y=np.array([1.0, 2.0]))
    y = Source("a.npz").read().y
    assert y is not None
    assert y.tolist() == ["1", "2"]
