"""Input that cannot be understood gives an error that explains it, and stays unchanged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.cli.select.problem import FEATURES, LABELLED, ROWS, select


class TestErrors:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                "row,label\n1,dog\n",
                "label must be a number from 0 to 2 or a name (ant, bee, cat), skip or nothing",
            ),
            ("row,label\n1,3\n", "line 2: label must be"),
            (f"row,label\n{ROWS},ant\n", f"line 2: row must be a whole number in [0, {ROWS}), got '{ROWS}'"),
            ("row,label\n1,ant\n1,bee\n", "line 3: row 1 occurs twice"),
            ("row,label\nx,ant\n", "line 2: row must be a whole number"),
            ("row,label\n1,ant,more\n", "line 2 has more cells"),
            ("index,label\n1,ant\n", "must have a column called row, got index, label"),
            ("", "must have a column called row"),
            ('row,label,note\n1,ant,"open\n2,bee,\n', "unexpected end of data"),
            ("row,label,label\n1,ant,bee\n", "columns of different names"),
            ("row,label,,\n1,ant,x,y\n", "columns of different names"),
            ("row,label\n1_0,ant\n", "line 2: row must be a whole number"),
            ("row,label,trust\n1,ant,1\n2,bee,1e39\n", "out.csv, line 3: trust must be at most 3.4e+38, got '1e39'"),
            (f"row,label\n1,{'9' * 5000}\n", "line 2: label must be"),
        ],
    )
    def test_a_label_file_that_is_not_understood_stays_as_it_is(self, content, message, capsys):
        Path("out.csv").write_text(content)
        assert select() == 1
        assert message in capsys.readouterr().err
        assert Path("out.csv").read_text() == content

    def test_a_label_file_that_is_not_utf8_is_an_error(self, capsys):
        Path("out.csv").write_bytes(b"row,label\n1,\xff\xfe\n")
        assert select() == 1
        assert "out.csv, line 2: byte 0xff is no UTF-8: save it as UTF-8" in capsys.readouterr().err

    def test_a_label_file_in_utf16_is_an_error(self, capsys):
        Path("out.csv").write_text("row,label\n1,ant\n", encoding="utf-16")
        assert select() == 1
        assert "out.csv is in UTF-16: save it as UTF-8 (a spreadsheet: Save as, CSV UTF-8)" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--pool", "nowhere.npy"), "--pool must be an existing file, got nowhere.npy"),
            (("--features", "nowhere.npy"), "--features must be an existing file"),
            (("--labels", "nowhere.npy"), "--labels must be an existing file"),
            (
                ("--labels", "pool.npy"),
                "--labels must be a vector of integers, the numbers of classes, got float16 [80, 6]",
            ),
            (("--labels", "several.npz"), "several.npz holds several arrays, as .npz files do"),
            (("--labels", "short.npy"), "--labels must hold one label for each of 30 features, got 29"),
            (("--labels", "huge.npy"), "--labels must be numbers of classes, below 1000000, got 4294967295"),
            (("--pool", "several.npy"), "several.npy holds several arrays"),
            (("--pool", "zip.npy"), "zip.npy holds several arrays"),
            (("--features", "integers.safetensors"), "integers.safetensors must hold float32, float64"),
            (("--classes", "99999999999999999999"), "--classes must be at most 1000000"),
            (("--labels", "names.txt"), "--labels must hold one label for each of 30 features, got 3"),
            (("--labels", "labels.csv"), "--labels must be an existing file, got labels.csv"),
            (("--labels", "out.py"), "or a .txt file with one label per line and nothing else, got out.py"),
            (("--classes", "two"), "--classes must be a number or a file of names, got 'two'"),
            (("--classes", "2"), "--labels must be numbers of classes, in [0, 2), got 2"),
            (("--classes", "pool.npy"), "--classes must be a number or a file of names"),
            (("--labels", "negative.npy"), "--labels must be numbers of classes, in [0, 3), got -1"),
            (
                ("--classes", "one.txt", "--new-classes", "--labels", "zeros.npy", "--head", "nowhere.safetensors"),
                "--head needs --classes of at least 2 classes, got 1",
            ),
            (
                ("--features", "wide.npy"),
                f"--features must have as many columns as --pool, got {FEATURES + 1} and {FEATURES}",
            ),
            (("--pool", "flat.npy"), "--pool must have a column or more, got flat.npy of shape (80, 0)"),
            (("--seed", 2**70), "--seed must be in [0, 2**64), got 1180591620717411303424"),
            (("--seed", 2**64, "--interactive"), "--seed must be in [0, 2**64), got 18446744073709551616"),
            (("--acquisition", "luck"), "--acquisition must be one of margin, entropy"),
            (("--head", "nowhere.safetensors"), "--head must be a .safetensors file with weight and bias"),
            (("--out", "nowhere/out.csv"), "--out must lie in an existing folder, got nowhere/out.csv"),
        ],
    )
    def test_bad_options_are_explained(self, options, message, capsys):
        np.savez("several.npz", a=np.zeros(2), b=np.zeros(2))
        Path("several.npy").write_bytes(Path("several.npz").read_bytes())
        Path("zip.npy").write_bytes(b"PK\x03\x04" + bytes(60))
        Path("out.py").touch()
        np.save("flat.npy", np.zeros((ROWS, 0), np.float32))
        np.save("short.npy", np.zeros(LABELLED - 1, np.int64))
        np.save("zeros.npy", np.zeros(LABELLED, np.int64))
        np.save("negative.npy", np.full(LABELLED, -1))
        np.save("wide.npy", np.zeros((LABELLED, FEATURES + 1), np.float32))
        Path("one.txt").write_text("ant\n")
        np.save("huge.npy", np.full(LABELLED, 2**32 - 1, np.uint32))
        save_file({"features": torch.zeros(LABELLED, FEATURES, dtype=torch.int8)}, "integers.safetensors")
        assert select(*options) == 1
        assert message in capsys.readouterr().err
        assert not Path("out.csv").exists()

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"weight": torch.zeros(4, FEATURES)}, "weight of 3 rows, one for each of --classes, got [4, 6]"),
            ({"bias": torch.zeros(3)}, "with weight and bias"),
            (
                {"weight": torch.zeros(3, FEATURES), "scale": torch.zeros(1)},
                "and nothing else, got scale [1], weight [3, 6]",
            ),
            ({"weight": torch.zeros(3, FEATURES + 1)}, "features must have shape"),
            (
                {"weight": torch.zeros(3, FEATURES), "bias": torch.zeros(4)},
                "weight [C, D] and bias [C] and",
            ),
            ({"weight": torch.zeros(3, FEATURES, dtype=torch.int64)}, "floating point numbers, got torch.int64"),
        ],
    )
    def test_bad_heads_are_explained(self, tensors, message, capsys):
        save_file(tensors, "head.safetensors")
        assert select("--head", "head.safetensors") == 1
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ("ant\nant\nbee\n", "must hold a different name for each class"),
            ("ant\nskip\nbee\n", "names.txt: a class must not be called 'skip', which is a command"),
            ("ant\nUndo\nbee\n", "must not be called 'Undo'"),
            ("1\n2\n3\n", "must not call class 0 '1', the number of another class"),
        ],
    )
    def test_class_names_that_cannot_be_told_apart_are_an_error(self, names, message, capsys):
        Path("names.txt").write_text(names)
        assert select() == 1
        assert message in capsys.readouterr().err
