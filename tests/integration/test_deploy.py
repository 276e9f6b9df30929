"""The files for containers and clusters, by the linters and schemas that run without an engine.

What they cannot tell, whether it starts, docs/deploy.md says that nobody has tried here.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT
from triage.app import METRICS_PORTS
from triage.config import Config

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BIN = Path(sys.executable).parent
CONTAINERFILE = DEPLOY / "container" / "Containerfile"
SECRETS = ("POSTGRES_PASSWORD", "MINIO_ROOT_PASSWORD", "GRAFANA_PASSWORD", "ORTHANC_PASSWORD")


def ran(*command: str | Path, **environment: str) -> str:
    """What a program prints; it must be content."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """The compose file as Compose itself understands it."""
    values = dict.fromkeys(SECRETS, "a-secret") | {"TRIAGE_PEERS": "CR1@192.0.2.1"}
    file = DEPLOY / "compose" / "compose.yml"
    told: dict[str, Any] = yaml.safe_load(
        ran(BIN / "docker-compose", "-f", file, "config", **values)
    )
    return told


def documents(file: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(file.read_text()) if each]


def rendered() -> list[dict[str, Any]]:
    """What kustomize makes of the folder."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    return list(yaml.safe_load_all(ran(kubectl, "kustomize", KUBERNETES)))


def test_every_yaml_file_is_clean() -> None:
    """By yamllint, whose keys may not stand twice."""
    rules = "{extends: relaxed, rules: {line-length: disable, key-duplicates: enable}}"
    ran(BIN / "yamllint", "--strict", "-d", rules, DEPLOY)


def test_the_container_file_passes_hadolint_and_gives_up_every_right() -> None:
    """Built in one stage; the last one runs as a number, and says how it is."""
    ran(BIN / "hadolint", CONTAINERFILE)
    text = CONTAINERFILE.read_text()
    assert text.count("\nFROM ") == 2
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last
    assert "pip install" not in last
    extras = re.findall(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)[0].split(",")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(known["optional-dependencies"])


def test_what_the_container_is_built_from_is_all_that_the_package_needs(tmp_path: Path) -> None:
    """The ignore file lets in what the Containerfile copies, and no more."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE.read_text(), re.MULTILINE)
    sources = {name for line in copied for name in line.split()}
    let_in = CONTAINERFILE.with_name("Containerfile.dockerignore").read_text().split()
    assert let_in[0] == "*"
    assert {name[1:] for name in let_in if name.startswith("!")} == sources
    assert all((ROOT / name).exists() for name in sources)


def test_every_part_of_the_compose_file_is_closed(composed: dict[str, Any]) -> None:
    """Read-only root, no capabilities, and the port that its health is asked on is its own."""
    parts = {name: each for name, each in composed["services"].items() if "build" in each}
    assert set(parts) >= {"receive", "score", "deliver", "web", "observe", "migrate"}
    for name, part in parts.items():
        assert part["read_only"] is True, name
        assert part["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in part["security_opt"], name
        if name == "migrate":
            continue
        assert part["command"] == ["serve", "--roles", name]
        assert int(part["environment"]["HEALTH_PORT"]) == 9464 + METRICS_PORTS[name]
    assert set(parts["score"]["networks"]) == {"inside"}
    assert composed["networks"]["inside"]["internal"] is True


def test_the_settings_in_compose_and_kubernetes_are_ones_that_there_are(
    composed: dict[str, Any], tmp_path: Path
) -> None:
    """And their values are understood; certificates are not there, so those are left out."""
    places = [part["environment"] for part in composed["services"].values() if "build" in part]
    generator = documents(KUBERNETES / "kustomization.yaml")[0]["configMapGenerator"][0]
    places.append(dict(line.split("=", 1) for line in generator["literals"]))
    (settings,) = (
        each for each in documents(KUBERNETES / "rescore.yaml") if each["kind"] == "ConfigMap"
    )
    places.append(settings["data"])
    for place in places:
        told = {key: str(value) for key, value in place.items() if key.startswith("TRIAGE_")}
        Config.read(told, tmp_path)


def test_prometheus_asks_the_ports_that_there_are() -> None:
    """One for each part that compose starts."""
    file = DEPLOY / "prometheus" / "prometheus.yml"
    ran("promtool", "check", "config", file)
    (job,) = yaml.safe_load(file.read_text())["scrape_configs"]
    for source in job["dns_sd_configs"]:
        assert source["port"] == 9464 + METRICS_PORTS[source["names"][0]]


def test_every_kubernetes_object_fits_its_schema() -> None:
    """Strictly: an unknown key is an error. Kustomizations and KubeRay have none there."""
    for file in sorted(KUBERNETES.glob("*.yaml")):
        for each in documents(file):
            if file.name in {"kustomization.yaml", "adapter.yaml"} or each["kind"] == "RayJob":
                continue
            if file.name in {"common.yaml", "parts.yaml"}:  # halves: whole when rendered
                continue
            kubernetes_validate.validate(each, "1.32", strict=True)


def test_what_kustomize_renders_fits_the_schemas_and_is_closed() -> None:
    """Pods without rights whose volumes have one source each; a probe on each part's own port."""
    found = rendered()
    for each in found:
        kubernetes_validate.validate(each, "1.32", strict=True)
    deployments = {each["metadata"]["name"]: each for each in found if each["kind"] == "Deployment"}
    for name, deployment in deployments.items():
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert all(len(volume) == 2 for volume in pod["volumes"]), name
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}, name
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["args"] == ["serve", "--roles", name]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["metrics"] == 9464 + METRICS_PORTS[name]
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    scaler = next(each for each in found if each["kind"] == "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "score"
    assert "replicas" not in deployments["score"]["spec"]
    chosen = [each["spec"]["selector"]["matchLabels"] for each in found
              if each["kind"] == "PodDisruptionBudget"]  # fmt: skip
    assert all(
        any(labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
            for each in deployments.values())
        for labels in chosen
    )  # fmt: skip


def test_the_worker_reaches_database_store_and_names_alone() -> None:
    """No policy lets it out further, and nothing but the monitoring lets anybody in."""
    policies = documents(KUBERNETES / "network.yaml")
    worker = {"app.kubernetes.io/name": "cxr-triage", "app.kubernetes.io/component": "score"}
    applies = {
        policy["metadata"]["name"]: policy["spec"]
        for policy in policies
        if policy["spec"]["podSelector"].get("matchLabels", {}).items() <= worker.items()
    }
    assert set(applies) == {"nothing", "database-store-and-names", "monitoring"}
    assert "egress" not in applies["nothing"]
    assert "ingress" not in applies["nothing"]
    out = applies["database-store-and-names"]["egress"]
    assert not any("ipBlock" in peer for rule in out for peer in rule["to"])


def test_the_ray_job_s_pods_fit_the_schema_of_pods() -> None:
    """KubeRay's own schema is on no package index; its pod templates are Kubernetes' own."""
    (job,) = (each for each in documents(KUBERNETES / "rescore.yaml") if each["kind"] == "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"]]
    templates += [group["template"] for group in cluster["workerGroupSpecs"]]
    for number, template in enumerate(templates):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": f"pod-{number}"},
            "spec": template["spec"],
        }
        kubernetes_validate.validate(pod, "1.32", strict=True)
    known = {
        "entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit",
        "rayClusterSpec",
    }  # fmt: skip
    assert set(job["spec"]) <= known


def test_the_adapter_gives_the_metric_that_the_scaler_asks_for() -> None:
    """By the name that the program tells."""
    (scaler,) = (
        each
        for each in documents(KUBERNETES / "scaling.yaml")
        if each["kind"] == "HorizontalPodAutoscaler"
    )
    (metric,) = scaler["spec"]["metrics"]
    (rule,) = documents(KUBERNETES / "adapter.yaml")[0]["rules"]["external"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    assert f"`{rule['name']['as']}`" in (ROOT / "docs" / "metrics.md").read_text()
