"""What `deploy/` says of the real tritonserver: that it has these options, and measures what the rules look at."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # ships no types
from likeness_client import Client, Product
from likeness_export.server.serve import ServeConfig, serving
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

DEPLOY = Path(__file__).parents[1] / "deploy"


def test_what_belongs_together_is_named_alike() -> None:
    documents: list[Any] = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    by_kind = {document["kind"]: document for document in documents}
    pod = by_kind["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    assert len({document["metadata"]["name"] for document in documents}) == 1
    assert by_kind["Service"]["spec"]["selector"] == labels
    selectors = {"Deployment": "selector", "PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector"}
    for kind, key in selectors.items():
        assert by_kind[kind]["spec"][key]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {port["name"]: port["port"] for port in by_kind["Service"]["spec"]["ports"]}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    (until_unasked,) = (int(word) for word in container["lifecycle"]["preStop"]["exec"]["command"][1:])
    # gRPC stretches the age by up to a tenth, and names are cached for half a minute.
    assert until_unasked * 1000 >= 1.1 * age_ms(container["args"]) + 30_000
    assert pod["spec"]["terminationGracePeriodSeconds"] > until_unasked + 30


def test_a_server_that_was_taken_over_can_do_little() -> None:
    documents: list[Any] = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    by_kind = {document["kind"]: document["spec"] for document in documents}
    pod = by_kind["Deployment"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "Egress" in by_kind["NetworkPolicy"]["policyTypes"]
    assert "egress" not in by_kind["NetworkPolicy"]


@pytest.mark.server
def test_a_server_has_these_options_and_metrics(repository: Path, tmp_path: Path) -> None:
    (_, deployment, *_) = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    options = tuple(option.replace("$(ADMIN)", "secret") for option in arguments[arguments.index("--") + 1 :])
    config = ServeConfig.on_unused_ports(repository, tmp_path / "tritonserver.log", options=options)
    with serving(config), Client(config.address) as client, InferenceServerClient(config.address) as stub:
        assert len(client.embed([Product(title="a vase")])) == 1
        with pytest.raises(InferenceServerException, match="restricted"):
            stub.get_log_settings()
        measured = metrics(config)
    rules = (DEPLOY / "alerts.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(rules)["groups"]
    named = set(re.findall(r"\b(?:nv|likeness)_\w+", rules))
    assert named
    assert named <= {line.split("{")[0] for line in measured}


def age_ms(arguments: list[str]) -> int:
    """Return how old a connection may become."""
    (age,) = (option.split("=")[1] for option in arguments if option.startswith("--grpc-max-connection-age="))
    return int(age)


def metrics(config: ServeConfig) -> list[str]:
    """Return what a server tells Prometheus."""
    with urllib.request.urlopen(f"http://{config.at(config.metrics_port)}/metrics") as answer:
        return [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
