"""dsv3sim init."""

from command_line import dsv3sim

from hardware_profiles.schema import load_cluster
from simulator.scenario.files import load_scenario


def test_a_gpu_and_a_cluster_of_it_are_written_and_carry_a_job(tmp_path):
    made = dsv3sim(
        "init", "gpu", "wide.yaml", "--like", "h800_sxm", "--hbm", "6.7 TB/s", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    made = dsv3sim(
        "init", "cluster", "wide_32.yaml", "--gpu", "wide.yaml", "--gpus", "32", cwd=tmp_path
    )
    assert made.stdout == "wide_32.yaml: run any job on it with --set cluster=wide_32.yaml\n"
    assert load_cluster(str(tmp_path / "wide_32.yaml")).node.gpu.hbm_bandwidth == 6.7e12
    run = dsv3sim(
        "run", "prefill_ep32_report", "--set", "cluster=wide_32.yaml", "--ideal", "--no-interval",
        "--json", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert '"pass_time_s"' in run.stdout


def test_a_file_that_exists_is_left_as_it_is(tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    done = dsv3sim("init", "cluster", "mine.yaml", "--gpu", "h100", "--gpus", "8", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "dsv3sim: init: mine.yaml exists and is left as it is; allowed: a new file's name\n"
    )
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_a_network_that_cannot_be_built_leaves_no_file(tmp_path):
    done = dsv3sim("init", "cluster", "big.yaml", "--gpu", "h100", "--gpus", "4096", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "2048" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_training_scenario_is_written_and_its_layout_is_checked(tmp_path):
    flags = ("--gpus", "512", "--gpu", "h100", "--ep", "32", "--batch", "3840")
    done = dsv3sim("init", "training", "own.yaml", *flags, "--pp", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    job = load_scenario(str(tmp_path / "own.yaml")).job
    assert (job.pp, job.ep, job.global_batch_sequences) == (8, 32, 3840)
    done = dsv3sim("init", "training", "other.yaml", *flags, "--pp", "7", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "dsv3sim: pp=7: does not divide the 512 GPUs; allowed: a divisor of them, such as 4 or 8\n"
    )
    assert not (tmp_path / "other.yaml").exists()


def test_a_schedule_that_does_not_exist_leaves_no_file(tmp_path):
    flags = ("--gpu", "h100", "--gpus", "64", "--batch", "512", "--schedule", "1f2b")
    done = dsv3sim("init", "training", "own.yaml", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert "training.schedule: unknown name '1f2b'" in done.stderr
    assert list(tmp_path.iterdir()) == []
