"""Sources of several kinds in one call, each read by its own mapping."""

from pathlib import Path

import pytest

from simulator.calibration.sources import choose_mappings, read_sources

GEMM = "m,k,n,latency_us,mfu\n64,7168,1536,12.5,0.1\n128,7168,1536,13,0.2\n"


@pytest.fixture
def tables(tmp_path):
    paths = [tmp_path / "first.csv", tmp_path / "second.csv"]
    for path in paths:
        path.write_text(GEMM, encoding="utf-8")
    return paths


@pytest.fixture
def own_mapping(tmp_path):
    """The columns as seconds of another kernel set."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nformat: table\nsource: made up\ncolumns: [m, k, n, latency_us]\n"
        "kernels:\n  - {kind: gemm, dtype: fp8_e4m3, out_dtype: bfloat16, kernel_set: mine,\n"
        "     sizes: {m: m, n: n, k: k}, seconds: latency_us, unit: us}\n",
        encoding="utf-8",
    )
    return str(path)


def test_each_source_takes_the_mapping_its_columns_choose(tables):
    read = read_sources(tables, gpu="h800_sxm")
    assert {row.kernel_set for row in read.measurements} == {"infersim"}
    assert read.read_by == (
        "first.csv: infersim_gemm, 2 rows",
        "second.csv: infersim_gemm, 2 rows",
    )


def test_a_mapping_for_one_source_leaves_the_others_alone(tables, own_mapping):
    read = read_sources(tables, gpu="h800_sxm", mappings=[f"second.csv={own_mapping}"])
    assert [row.kernel_set for row in read.measurements] == ["infersim"] * 2 + ["mine"] * 2


def test_a_mapping_without_a_source_is_for_every_source_of_its_format(
    tables, own_mapping, overlapped_profile, made_up_mapping, tmp_path
):
    trace = overlapped_profile.write(tmp_path / "trace.json.gz")
    read = read_sources(
        [*tables, trace], gpu="h800_sxm", mappings=[own_mapping, str(made_up_mapping)]
    )
    assert {row.kernel_set for row in read.measurements} == {"mine", "made_up"}
    assert read.read_by[2] == "trace.json.gz: made_up, 0.0% of the kernel time unmapped"


@pytest.mark.parametrize(
    ("mappings", "message"),
    [
        (["third.csv=infersim_gemm"], "'third.csv' is none of the sources"),
        (["first.csv=nothing"], "unknown mapping 'nothing'"),
        (["first.csv=deepseek_training_profile"], "is for profiles"),
        (["deepseek_training_profile"], "no source takes it"),
        (["infersim_gemm", "aiconfigurator_gemm"], "is given for tables already"),
        (["first.csv=infersim_gemm", "first.csv=infersim_gemm"], "first.csv has infersim_gemm"),
    ],
)
def test_a_mapping_that_no_source_can_take_is_one_line(tables, mappings, message):
    with pytest.raises(ValueError, match=message) as error:
        choose_mappings(tables, mappings)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_mapping_says_which_formats_there_are(tables, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("format: sheet\n", encoding="utf-8")
    with pytest.raises(ValueError, match="format: 'sheet' is not allowed; allowed: table, kineto"):
        choose_mappings(tables, [str(path)])
    path.write_text("format: [table]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"format: \['table'\] is not allowed; allowed: table, "):
        choose_mappings(tables, [str(path)])


def test_a_folder_without_a_file_of_measurements_is_one_line(tmp_path):
    (tmp_path / "readme.md").write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no file of measurements"):
        read_sources([tmp_path], gpu="h800_sxm")


def test_a_folder_of_other_tables_says_why_of_the_first_of_them(tmp_path):
    for number in range(1, 6):
        (tmp_path / f"{number}.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^\S+: no kernel time to calibrate from; ") as error:
        read_sources([tmp_path], gpu="h800_sxm")
    said = str(error.value).split("; ")
    assert [text for text in said if "not read" in text] == [
        f"{number}.csv: not read: no mapping knows the columns a, b" for number in (1, 2, 3)
    ]
    assert said[-1] == "and 2 more of the kind"


@pytest.mark.shared
def test_a_profile_takes_the_mapping_that_names_most_of_its_time():
    trace = Path(__file__).resolve().parents[4] / "shared/measured/h800/deepseek_train_profile.json"
    if not trace.exists():
        pytest.skip(f"{trace} is not there")
    read = read_sources([trace], gpu="h800_sxm")
    assert read.read_by[0].startswith("deepseek_train_profile.json: deepseek_training_profile")
