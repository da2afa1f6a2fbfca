"""Schemas for editors let every shipped file through, and complain about what a run refuses."""

import re

import pytest
import yaml

from hardware_profiles.fields import ROOT
from simulator.scenario.files import SCENARIOS
from simulator.scenario.json_schema import FILES, json_schema

FOLDERS = {
    "scenario": SCENARIOS,
    "cluster": ROOT / "clusters",
    "gpu": ROOT / "gpus",
    "calibration": ROOT / "calibrations",
    "transport": ROOT / "transports",
}
TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
    "number": (int, float), "integer": int,
}  # fmt: skip


def faults(value, schema, root, path=""):
    """What a value has that its schema does not allow: the parts of JSON Schema that are used."""
    if "$ref" in schema:
        yield from faults(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, path)
    if "anyOf" in schema:
        every = [list(faults(value, one, root, path)) for one in schema["anyOf"]]
        if all(every):
            yield min(every, key=lambda found: (found[0].count(path) == 0, len(found)))[0]
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else kinds
    fits = [isinstance(value, TYPES[kind]) for kind in kinds]
    if (kinds and not any(fits)) or (isinstance(value, bool) and kinds and "boolean" not in kinds):
        yield f"{path}: {value!r} is no {' or '.join(kinds)}"
        return
    yield from plain_faults(value, schema, path)
    if isinstance(value, list):
        for number, entry in enumerate(value):
            yield from faults(entry, schema.get("items", {}), root, f"{path}.{number}")
    if isinstance(value, dict):
        yield from faults_of_fields(value, schema, root, path)


def faults_of_fields(value, schema, root, path):
    """Those of a block of fields."""
    more = schema.get("additionalProperties", {})
    for name, entry in value.items():
        inner = schema.get("properties", {}).get(str(name), more)
        if inner is False:
            yield f"{path}.{name}: unknown"
        else:
            yield from faults(entry, inner, root, f"{path}.{name}")
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name}: missing"


def plain_faults(value, schema, path):
    """Those of a value without parts."""
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: {value!r} does not match"
    for name, broken, said in (
        ("minimum", float.__lt__, "under"),
        ("exclusiveMinimum", float.__le__, "not over"),
        ("maximum", float.__gt__, "over"),
    ):
        if name in schema and broken(float(value), schema[name]):
            yield f"{path}: {value!r} is {said} {schema[name]:g}"


def read(path):
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)


@pytest.mark.parametrize("file", FILES)
def test_every_shipped_file_is_as_its_schema_says(file):
    schema = json_schema(file)
    found = {
        path.stem: said
        for path in sorted(FOLDERS[file].glob("*.yaml"))
        if (said := list(faults(read(path), schema, schema)))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pp": "sixteen"}, ".training.pp: 'sixteen' is no integer"),
        ({"pp": 0}, ".training.pp: 0 is under 1"),
        ({"pipeline": 3}, ".training.pipeline: unknown"),
        ({"recompute": "publised"},
         ".training.recompute: 'publised' is none of ['published', 'none', 'attention', 'layer']"),
        ({"host_launch": "2 Gbps"}, ".training.host_launch: '2 Gbps' does not match"),
        ({"lone_chunks_keep_sms": 2.0}, ".training.lone_chunks_keep_sms: 2.0 is over 1"),
        ({"memory": {}}, ".training.memory.reserved: missing"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_found_where_it_is(change, said):
    schema = json_schema("scenario")
    raw = read(SCENARIOS / "dualpipe_h800_2048.yaml")
    raw["training"] |= change
    assert said in list(faults(raw, schema, schema))


def test_a_field_of_the_schema_tells_its_meaning_its_pattern_and_an_example():
    schema = json_schema("cluster")
    nic = schema["$defs"]["NicProfile"]["properties"]["bandwidth"]
    assert nic["description"] == "Line rate, per direction."
    assert nic["examples"] == ["400 Gbit/s", "3.35 TB/s"]
    assert re.search(nic["pattern"], "50 GB/s")
    assert not re.search(nic["pattern"], "400 Gbps")


def test_a_scenario_has_exactly_one_job_of_eight():
    jobs = [one["required"] for one in json_schema("scenario")["oneOf"]]
    assert jobs == [
        ["training"], ["pretraining"], ["collective"], ["serving_step"], ["tpot_limit"],
        ["offload"], ["fleet"], ["replay"],
    ]  # fmt: skip
