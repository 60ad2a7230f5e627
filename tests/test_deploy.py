"""The Kubernetes manifest: read, and compared with the command that it starts."""

from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[1] / "deploy"


@pytest.fixture(scope="module")
def documents():
    texts = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in texts}


@pytest.fixture(scope="module")
def pod(documents):
    return documents["Deployment"]["spec"]["template"]["spec"]


def test_service_and_deployment_select_the_same_pods(documents):
    service, deployment = documents["Service"], documents["Deployment"]
    assert (service["apiVersion"], deployment["apiVersion"]) == ("v1", "apps/v1")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["clusterIP"] == "None"  # headless: clients balance over all addresses


def test_ports_by_name_exist_and_are_those_of_the_command(documents, pod):
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for port in documents["Service"]["spec"]["ports"]:
        assert ports[port["targetPort"]] == port["port"]
    options = dict(argument.split("=", 1) for argument in container["args"])
    assert int(options["--port"]) == ports["grpc"]
    assert int(options["--metrics-port"]) == ports["metrics"]
    template = documents["Deployment"]["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == options["--metrics-port"]


def test_the_command_and_the_probe_know_every_option(pod, capsys):
    from facemix_jax.serving import cloud, probe

    (container,) = pod["containers"]
    command = container["startupProbe"]["exec"]["command"]
    assert command[:3] == ["python", "-m", "facemix_jax.serving.probe"]
    for main, given in ((cloud.main, container["args"]), (probe.main, command[3:])):
        with pytest.raises(SystemExit) as exit_:
            main(["--help"])
        assert exit_.value.code == 0
        known = capsys.readouterr().out
        for argument in given:
            assert argument.partition("=")[0] in known
    for name in ("readinessProbe", "livenessProbe"):
        assert container[name]["exec"]["command"] == command


def test_every_path_lies_on_a_mounted_volume(pod):
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == {v["name"] for v in pod["volumes"]}
    probe = container["startupProbe"]["exec"]["command"]
    values = [argument.partition("=")[2] for argument in [*container["args"], *probe]]
    paths = [value for value in values if value.startswith("/")]
    assert len(paths) == 5
    for path in paths:
        (mount,) = [m for at, m in mounts.items() if (path + "/").startswith(at + "/")]
        assert mount["readOnly"] is True


def test_the_pod_runs_without_rights_and_has_time_to_drain(pod):
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > wait + 30
