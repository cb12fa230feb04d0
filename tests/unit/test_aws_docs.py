"""docs/aws.md: its figures follow from measurements and prices, its names are those of the code."""

import configparser
import json
import re
from pathlib import Path

import pytest

from app.messages import Registration
from infra.deploy import FOR_CONSUMER, ORDER
from infra.scaling import FIRST_INVOCATIONS, delay, invocations, invoke, simulate, task_hours
from infra.templates import path_of, read

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "aws.md").read_text()
BENCH = (DOCS / "bench.md").read_text()
FLEET = (DOCS / "fleet.md").read_text()

#: Of the task that the page calculates with.
VCPUS, GIGABYTES = 0.5, 1.0

#: Memory with which a function has one vCPU:
#: https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html
MEGABYTES_OF_A_VCPU = 1769

#: The number of metrics that Container Insights has of tasks on Fargate. `each`: of a cluster, of a
#: service and of a family of tasks alike (CPU, memory, network, storage and ephemeral storage, two
#: of each). The others are beside them.
#: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/Container-Insights-metrics-ECS.html
INSIGHTS = {"each": 10, "cluster": 3, "service": 5}

#: A month of AWS's price pages, in hours.
MONTH = 730


def row(name: str, page: str = PAGE) -> list[str]:
    """The cells of the first row that begins so."""
    found = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", page, re.MULTILINE)
    assert found is not None, name
    return [cell.strip() for cell in found[1].split(" |")]


def price(name: str) -> float:
    return float(row(name)[0])


def task_hour() -> float:
    vcpu, gigabyte = price("an hour of a vCPU on Fargate"), price("an hour of a GB on Fargate")
    return VCPUS * vcpu + GIGABYTES * gigabyte


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("consumer", ["this project", "stock Celery, best settings"])
def test_the_cost_of_a_million_follows_from_the_measurements_and_the_prices(consumer: str) -> None:
    measured = row(consumer, BENCH)
    speed = float(re.sub(r"\D.*", "", measured[0].lstrip("*")))
    # The columns after the name: speed, times stock, two parts, calls, receive, delete, CPU.
    calls, cpu = float(measured[4]), float(measured[7])
    seconds = max(cpu * 1000 / VCPUS, 1e6 / speed)
    sqs = calls * price("a million calls of SQS")
    fargate = seconds / 3600 * task_hour()
    assert row(consumer) == [
        f"{calls * 1e6:,.0f}",
        f"${sqs:.2f}",
        f"{seconds:,.0f}",
        f"${fargate:.2f}",
        f"${sqs + fargate:.2f}",
    ]


def test_the_cost_of_lambda_follows_from_the_measured_cpu_and_the_prices() -> None:
    text = " ".join(PAGE.split())
    (cpu,) = re.findall(r"An invocation of ten takes ([\d.]+) ms of CPU time", text)
    memory = read("function")["Resources"]["Function"]["Properties"]["MemorySize"]
    vcpus = memory / MEGABYTES_OF_A_VCPU
    milliseconds = float(cpu) / vcpus + 2 * 10
    assert f"With the {vcpus:.2f} vCPU of [{memory} MB]" in text
    assert f"that is {milliseconds:.0f} ms:" in text
    requests = price("a million requests of Lambda") * 0.1
    second = price("a GB second of Lambda") * memory / 1024
    time = second * 100_000 * milliseconds / 1000
    sqs = float(row("this project")[1].strip("$"))
    assert f"(${sqs:.2f}), and costs ${requests:.2f} for 100,000 requests" in text
    assert f"${time:.2f}, and together ${sqs + requests + time:.2f}." in text
    assert f"Each further 100 ms of an invocation adds ${second * 10_000:.2f}." in text
    # Powertools: a call to MongoDB for each record, and Lambda deletes.
    (part,) = re.findall(r"took ([\d.]+) of that CPU time", text)
    milliseconds = float(cpu) * float(part) / vcpus + 10 * 10
    time = second * 100_000 * milliseconds / 1000
    assert f"{milliseconds:.0f} ms, ${time:.2f}, and together ${sqs + requests + time:.2f}" in text


def test_the_cost_of_a_month_and_of_the_simulated_days_follows_from_the_prices() -> None:
    assert f"a worker that always runs ${task_hour() * MONTH:.2f}" in PAGE
    for name, minutes in {
        "minimum 1 (the default)": simulate(1),
        "minimum 0": simulate(0),
        "8 tasks, always": simulate(8, 8),
        "minimum 1, by the backlog alone": simulate(1, has_flow=False),
    }.items():
        day = round(task_hours(minutes)) * task_hour()
        assert row(name)[-1] == f"${day:.2f}"


@pytest.mark.parametrize(
    ("name", "most"),
    [("`MaximumConcurrency=50`", 50), ("`MaximumConcurrency=10` (the default)", 10)],
)
def test_the_figures_of_lambda_follow_from_the_simulation_and_the_prices(
    name: str, most: int
) -> None:
    resources = read("function")["Resources"]
    minutes = invoke(most)
    hours = task_hours(minutes)
    gigabytes = resources["Function"]["Properties"]["MemorySize"] / 1024
    requests = invocations(minutes, resources["Mapping"]["Properties"]["BatchSize"])
    cost = hours * 3600 * gigabytes * price("a GB second of Lambda")
    cost += requests / 1e6 * price("a million requests of Lambda")
    assert row(f"Lambda, {name}") == [
        f"{hours:.0f}",
        f"{delay(minutes, 0.99):g}",
        f"{max(each.delay for each in minutes):g}",
        "",
        f"${cost:.2f}",
    ]
    assert read("function")["Parameters"]["MaximumConcurrency"]["Default"] == 10


def test_the_cost_of_an_idle_trigger_follows_from_the_price() -> None:
    wait = read("queue")["Resources"]["Queue"]["Properties"]["ReceiveMessageWaitTimeSeconds"]
    calls = FIRST_INVOCATIONS * 3600 / wait * MONTH
    cost = calls * price("a million calls of SQS") / 1e6
    assert f"An idle queue costs ${cost:.2f} with a function" in " ".join(PAGE.split())


def test_the_cost_of_the_alarms_follows_from_the_template() -> None:
    resources = read("alarms")["Resources"].values()
    alarms = [each["Properties"] for each in resources if each["Type"] == "AWS::CloudWatch::Alarm"]
    metrics = [
        sum("MetricStat" in each for each in alarm["Metrics"]) if "Metrics" in alarm else 1
        for alarm in alarms
    ]
    assert f"those of `alarms.yaml` ${sum(metrics) * 0.10:.2f} ($0.10 for each metric" in PAGE


def test_the_cost_of_container_insights_follows_from_its_metrics() -> None:
    # A service has a family of tasks.
    further = 2 * INSIGHTS["each"] + INSIGHTS["service"]
    first = INSIGHTS["each"] + INSIGHTS["cluster"] + further
    text = " ".join(PAGE.split())
    assert f"{first} for the cluster and the worker (${first * 0.3:.2f})" in text
    assert f"and {further} more (${further * 0.3:.2f}) for each of the API and Flower" in text


def test_the_cost_of_the_log_follows_from_the_measured_bytes() -> None:
    (measured,) = row("log lines, bytes", FLEET)
    text = " ".join(PAGE.split())
    assert f"has two lines, together {measured} bytes" in text
    assert f"That is ${int(measured) / 1000 * 0.5:.2f} for a million." in text
    for name in ("service", "function"):
        assert "WARNING" in read(name)["Parameters"]["LogLevel"]["AllowedValues"]


def test_the_parameters_of_scaling_have_the_defaults_of_the_template() -> None:
    parameters = read("service")["Parameters"]
    for name in ("BacklogPerTask", "FlowPerTask"):
        assert row(f"`{name}`")[0] == str(parameters[name]["Default"])
    for name, default in (("MinTasks", 1), ("MaxTasks", 10)):
        assert f"`{name}` ({default})" in PAGE
        assert parameters[name]["Default"] == default


def test_the_parameters_that_the_page_names_exist() -> None:
    known = {name for each in ORDER if path_of(each).exists() for name in read(each)["Parameters"]}
    named = {
        name
        for command in re.findall(r'PARAMETERS="([^"]*)"', PAGE)
        for name in re.findall(r"(\w+)=", command)
    }
    assert named - {"Name"} <= known


def test_the_page_names_every_consumer() -> None:
    (cell,) = re.findall(r"^\| `CONSUMER=worker` \| (.*) \|$", PAGE, re.MULTILINE)
    assert set(FOR_CONSUMER) - {"worker"} == set(re.findall(r"`(\w+)`:", cell))


def test_the_systemd_unit_gives_the_worker_its_time() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names with capitals
    unit.read_string(block("ini"))
    service = unit["Service"]
    assert (service["KillMode"], service["Restart"]) == ("mixed", "on-failure")
    assert int(service["TimeoutStopSec"]) >= 115
    assert service["ExecStart"].endswith(" -A app worker")


def test_the_lines_for_the_serverless_framework_use_outputs_of_the_queue() -> None:
    named = re.findall(r"\$\{cf:([\w-]+)\.(\w+)\}", block("yaml"))
    assert {stack for stack, _ in named} == {"registrations-prod-queue"}
    assert {output for _, output in named} <= set(read("queue")["Outputs"])


def test_the_message_that_the_page_sends_is_a_registration() -> None:
    (body,) = re.findall(r"celery -A app sqs send \\\n +'(.*)'$", PAGE, re.MULTILINE)
    sent = json.loads(body)
    assert sent["action"] == "registerUser"
    assert Registration.model_validate(sent["data"]).user_id == "u1"
