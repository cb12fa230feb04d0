"""infra/network.yaml, deployed, and read back by EC2's API."""

from typing import Any

import pytest

from tests.cloudformation.cloud import Cloud, Stack

pytestmark = pytest.mark.slow

EVERYWHERE = "0.0.0.0/0"


@pytest.fixture(scope="module")
def private(cloud: Cloud) -> Stack:
    """With a NAT gateway, the default."""
    return cloud.stack("network.yaml")


@pytest.fixture(scope="module")
def public(cloud: Cloud) -> Stack:
    """Without one."""
    return cloud.stack("network.yaml", Nat="false", Cidr="10.30.0.0/16")


def subnets(stack: Stack, output: str) -> list[str]:
    return stack.outputs[output].split(",")


def ways_out(stack: Stack, output: str) -> set[str]:
    """Where the subnets of an output send what is for the internet: ids of gateways."""
    ec2 = stack.cloud.client("ec2")
    found = set()
    for subnet in subnets(stack, output):
        (table,) = ec2.describe_route_tables(
            Filters=[{"Name": "association.subnet-id", "Values": [subnet]}]
        )["RouteTables"]
        found |= {
            route.get("NatGatewayId") or route.get("GatewayId")
            for route in table["Routes"]
            if route.get("DestinationCidrBlock") == EVERYWHERE
        }
    return found


def test_tasks_and_functions_reach_the_internet_through_one_address(private: Stack) -> None:
    ec2 = private.cloud.client("ec2")
    gateway = private.resources["NatGateway"]
    assert ways_out(private, "TaskSubnetIds") == {gateway}
    assert subnets(private, "FunctionSubnetIds") == subnets(private, "TaskSubnetIds")
    (found,) = ec2.describe_nat_gateways(NatGatewayIds=[gateway])["NatGateways"]
    assert found["SubnetId"] in subnets(private, "PublicSubnetIds")
    address = private.outputs["NatIpAddress"]
    assert [each["PublicIp"] for each in found["NatGatewayAddresses"]] == [address]
    assert private.outputs["AssignPublicIp"] == "DISABLED"


@pytest.mark.parametrize("stack", ["private", "public"])
def test_a_load_balancer_reaches_the_internet_itself(
    stack: str, request: pytest.FixtureRequest
) -> None:
    made: Stack = request.getfixturevalue(stack)
    assert ways_out(made, "PublicSubnetIds") == {made.resources["Gateway"]}
    zones = {each["AvailabilityZone"] for each in described(made, "PublicSubnetIds")}
    # A load balancer needs two.
    assert len(zones) == 2


def described(stack: Stack, output: str) -> list[dict[str, Any]]:
    ec2 = stack.cloud.client("ec2")
    return list(ec2.describe_subnets(SubnetIds=subnets(stack, output))["Subnets"])


def test_without_a_gateway_tasks_have_addresses_of_their_own_and_functions_no_network(
    public: Stack,
) -> None:
    assert subnets(public, "TaskSubnetIds") == subnets(public, "PublicSubnetIds")
    assert public.outputs["AssignPublicIp"] == "ENABLED"
    # Lambda gives a function in a VPC no public address.
    assert public.outputs.keys().isdisjoint(
        {"FunctionSubnetIds", "FunctionSecurityGroupIds", "NatIpAddress"}
    )


def test_nobody_can_connect_to_a_task(private: Stack) -> None:
    ec2 = private.cloud.client("ec2")
    (group,) = ec2.describe_security_groups(GroupIds=[private.outputs["TaskSecurityGroupIds"]])[
        "SecurityGroups"
    ]
    assert group["IpPermissions"] == []
    assert group["VpcId"] == private.outputs["VpcId"]


def test_images_come_from_s3_past_the_gateway(private: Stack) -> None:
    ec2 = private.cloud.client("ec2")
    (endpoint,) = ec2.describe_vpc_endpoints(VpcEndpointIds=[private.resources["S3Endpoint"]])[
        "VpcEndpoints"
    ]
    assert endpoint["ServiceName"] == "com.amazonaws.us-east-1.s3"
    tables = {private.resources[name] for name in ("PublicRoutes", "PrivateRoutes")}
    assert set(endpoint["RouteTableIds"]) == tables


def test_a_network_that_is_deployed_again_does_not_change(private: Stack) -> None:
    assert private.deploy() == []
