"""The EC2 API as boto3 uses it, held to botocore's model: clients.py ENDPOINT PART [ARGUMENT…]"""

import base64
import re
import socket
import sys
import uuid
import xml.etree.ElementTree as ElementTree

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

endpoint, part, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
checked = set()


def strip(tag):
    return re.sub(r"^\{.*\}", "", tag)


def hold(shape, element, path):
    """Every element is one of the model, in its place and of its type."""
    children = list(element)
    if shape.type_name == "structure":
        members = {member.serialization.get("name", name): member for name, member in shape.members.items()}
        names = [strip(child.tag) for child in children]
        assert len(names) == len(set(names)), f"{path}: {names}"
        for child in children:
            name = strip(child.tag)
            assert name in members, f"{path}: {name} is not in the model: {sorted(members)}"
            hold(members[name], child, f"{path}.{name}")
    elif shape.type_name == "list":
        expected = shape.member.serialization.get("name", "item")
        for child in children:
            assert strip(child.tag) == expected, f"{path}: {child.tag} instead of {expected}"
            hold(shape.member, child, f"{path}[]")
    else:
        assert not children, f"{path} is a {shape.type_name}"
        text = element.text or ""
        forms = {
            "boolean": r"true|false",
            "integer": r"-?\d+",
            "long": r"-?\d+",
            "timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
        }
        assert re.fullmatch(forms.get(shape.type_name, r"(?s).*"), text), f"{path}: {text!r}"
        allowed = getattr(shape, "enum", [])
        # A launch that names no type has one of its own.
        assert not allowed or text in allowed or text.startswith("kiln."), f"{path}: {text!r} is none of its values"


def hold_response(response_dict, context=None, **_):
    if response_dict["status_code"] != 200:
        return
    root = ElementTree.fromstring(response_dict["body"])
    operation = re.sub("Response$", "", strip(root.tag))
    model = ec2.meta.service_model.operation_model(operation)
    assert strip(root[0].tag) == "requestId"
    root.remove(root[0])
    if model.output_shape:
        hold(model.output_shape, root, operation)
    else:
        assert [strip(child.tag) for child in root] in ([], ["return"]), operation
    checked.add(operation)


def client(service, **settings):
    config = Config(retries={"max_attempts": 1}, read_timeout=300)
    return boto3.client(service, endpoint_url=endpoint, config=config, **settings)


ec2 = client("ec2")
ec2.meta.events.register("response-received.ec2", hold_response)


def refused(code, action, **parameters):
    try:
        getattr(ec2, action)(**parameters)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, f"{action}: {error} instead of {code}"
        assert error.response["ResponseMetadata"]["RequestId"]
        return
    raise SystemExit(f"{action} was not refused with {code}")


def pages(action, **parameters):
    return [page for page in ec2.get_paginator(action).paginate(**parameters)]


def protocol(image_file):
    """No machine is started; `image_file` boots none. An instance that is stopped is there."""
    identity = client("sts").get_caller_identity()
    assert identity["Account"] == "000000000000" and identity["Arn"].startswith("arn:aws:iam::")
    assert [r["RegionName"] for r in ec2.describe_regions()["Regions"]] == ["us-east-1"]
    zone = ec2.describe_availability_zones()["AvailabilityZones"][0]
    assert zone["ZoneName"] == "us-east-1a" and zone["State"] == "available"
    vpc = ec2.describe_vpcs(Filters=[{"Name": "isDefault", "Values": ["true"]}])["Vpcs"][0]
    subnets = pages("describe_subnets", Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])
    assert len(subnets[0]["Subnets"]) == 1 and subnets[0]["Subnets"][0]["CidrBlock"] == vpc["CidrBlock"]
    assert len(ec2.describe_account_attributes()["AccountAttributes"]) == 2

    types = [t for page in pages("describe_instance_types", PaginationConfig={"PageSize": 7}) for t in page["InstanceTypes"]]
    names = [t["InstanceType"] for t in types]
    assert names == sorted(set(names)) and len(names) > 30, names
    micro = ec2.describe_instance_types(InstanceTypes=["t3.micro"])["InstanceTypes"][0]
    assert micro["VCpuInfo"]["DefaultVCpus"] == 2 and micro["MemoryInfo"]["SizeInMiB"] == 1024
    offered = pages("describe_instance_type_offerings", LocationType="availability-zone")
    assert len(offered[0]["InstanceTypeOfferings"]) == len(names)

    made = ec2.create_key_pair(KeyName="mine", TagSpecifications=[{"ResourceType": "key-pair", "Tags": [{"Key": "a", "Value": "b"}]}])
    assert made["KeyMaterial"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    refused("InvalidKeyPair.Duplicate", "create_key_pair", KeyName="mine")
    known = ec2.describe_key_pairs(KeyNames=["mine"], IncludePublicKey=True)["KeyPairs"][0]
    ec2.import_key_pair(KeyName="again", PublicKeyMaterial=known["PublicKey"].encode())
    pairs = ec2.describe_key_pairs(Filters=[{"Name": "key-name", "Values": ["aga?n"]}])["KeyPairs"]
    assert [p["KeyFingerprint"] for p in pairs] == [made["KeyFingerprint"]]
    refused("InvalidKey.Format", "import_key_pair", KeyName="bad", PublicKeyMaterial=b"nonsense")
    ec2.delete_key_pair(KeyName="again")
    ec2.delete_key_pair(KeyName="again")
    refused("InvalidKeyPair.NotFound", "describe_key_pairs", KeyNames=["again"])

    group = ec2.create_security_group(GroupName="web", Description="for the web")["GroupId"]
    refused("InvalidGroup.Duplicate", "create_security_group", GroupName="web", Description="x")
    world = [{"CidrIp": "0.0.0.0/0", "Description": "everybody"}]
    rule = {"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "IpRanges": world}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    refused("InvalidPermission.Duplicate", "authorize_security_group_ingress", GroupId=group, IpPermissions=[rule])
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "10.0.0.0/8"}
    ec2.authorize_security_group_ingress(GroupName="web", **ssh)
    ec2.revoke_security_group_ingress(GroupId=group, **ssh)
    refused("InvalidPermission.NotFound", "revoke_security_group_ingress", GroupId=group, **ssh)
    refused("UnsupportedOperation", "authorize_security_group_ingress", GroupName="default", **ssh)
    refused("InvalidParameterValue", "authorize_security_group_ingress", GroupId=group, **{**ssh, "CidrIp": "x"})
    found = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
    assert found["IpPermissions"][0]["IpRanges"] == world and len(found["IpPermissions"]) == 1, found
    assert [g["GroupName"] for page in pages("describe_security_groups") for g in page["SecurityGroups"]].count("default") == 1
    ec2.delete_security_group(GroupId=group)
    refused("InvalidGroup.NotFound", "delete_security_group", GroupId=group)

    image = ec2.register_image(Name="none", ImageLocation=image_file)["ImageId"]
    refused("InvalidAMIName.Duplicate", "register_image", Name="none", ImageLocation=image_file)
    described = ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": ["no*"]}])["Images"]
    assert [i["ImageId"] for i in described] == [image] and described[0]["State"] == "available"
    assert ec2.describe_images(Owners=["amazon"])["Images"] == []
    ec2.get_waiter("image_available").wait(ImageIds=[image])

    launch = {"ImageId": image, "MinCount": 1, "MaxCount": 1}
    # A dry run looks as far as a launch would: nothing boots from this image.
    refused("InternalError", "run_instances", DryRun=True, **launch)
    refused("DryRunOperation", "create_key_pair", DryRun=True, KeyName="dry")
    refused("InvalidParameterValue", "run_instances", InstanceType="x9.huge", **launch)
    refused("InvalidParameterValue", "run_instances", InstanceType="t4g.nano", **launch)
    refused("InvalidKeyPair.NotFound", "run_instances", KeyName="nobody", **launch)
    refused("InvalidSubnetID.NotFound", "run_instances", SubnetId="subnet-1", **launch)
    refused("InvalidGroup.NotFound", "run_instances", SecurityGroupIds=["sg-1"], **launch)
    refused("UnsupportedOperation", "run_instances", HibernationOptions={"Configured": True}, **launch)
    refused("UnknownParameter", "run_instances", RamdiskId="ari-1", **launch)
    refused("InvalidAMIID.NotFound", "run_instances", **{**launch, "ImageId": "ami-00000000000000000"})
    refused("InvalidAMIID.Malformed", "run_instances", **{**launch, "ImageId": "ami-1"})
    refused("InvalidParameterCombination", "run_instances", **{**launch, "MinCount": 2})
    # What could not be launched is not there afterwards.
    refused("InternalError", "run_instances", ClientToken="x", **launch)
    refused("IdempotentParameterMismatch", "run_instances", ClientToken="x", UserData="other", **launch)

    reservations = [r for page in pages("describe_instances") for r in page["Reservations"]]
    stopped = reservations[0]["Instances"][0]
    assert len(reservations) == 1 and stopped["State"] == {"Code": 80, "Name": "stopped"}, reservations
    assert stopped["Tags"] == [{"Key": "Name", "Value": "rests"}] and stopped["InstanceType"].startswith("kiln.")
    instance = stopped["InstanceId"]
    for values, count in ((["rest*"], 1), (["x", "r??ts"], 1), (["R*"], 0)):
        found = ec2.describe_instances(Filters=[{"Name": "tag:Name", "Values": values}])["Reservations"]
        assert len(found) == count, (values, found)
    refused("InvalidParameterValue", "describe_instances", Filters=[{"Name": "colour", "Values": ["red"]}])
    refused("InvalidInstanceID.NotFound", "describe_instances", InstanceIds=["i-00000000000000000"])
    refused("InvalidInstanceID.Malformed", "describe_instances", InstanceIds=["rests"])
    refused("InvalidParameterCombination", "describe_instances", InstanceIds=[instance], MaxResults=5)
    refused("InvalidNextToken", "describe_instances", NextToken="made up")
    assert ec2.describe_instance_status()["InstanceStatuses"] == []
    assert len(ec2.describe_instance_status(IncludeAllInstances=True)["InstanceStatuses"]) == 1
    assert len(ec2.describe_tags(Filters=[{"Name": "resource-type", "Values": ["instance"]}])["Tags"]) == 1
    changed = {"Resources": [instance], "Tags": [{"Key": "role", "Value": "db"}]}
    ec2.create_tags(**changed)
    role = [{"Name": "tag:role", "Values": ["db"]}]
    assert len(ec2.describe_instances(Filters=role)["Reservations"]) == 1
    ec2.delete_tags(**changed)
    assert ec2.describe_instances(Filters=role)["Reservations"] == []
    refused("UnsupportedOperation", "delete_tags", Resources=[instance], Tags=[{"Key": "Name"}])
    refused("UnsupportedOperation", "create_tags", Resources=[image], Tags=changed["Tags"])
    attribute = lambda name: ec2.describe_instance_attribute(InstanceId=instance, Attribute=name)
    modify = lambda **change: ec2.modify_instance_attribute(InstanceId=instance, **change)
    modify(InstanceType={"Value": "t3.nano"})
    assert attribute("instanceType")["InstanceType"] == {"Value": "t3.nano"}
    modify(UserData={"Value": b"hello"})
    assert base64.b64decode(attribute("userData")["UserData"]["Value"]) == b"hello"
    modify(DisableApiTermination={"Value": True})
    assert attribute("disableApiTermination")["DisableApiTermination"] == {"Value": True}
    refused("OperationNotPermitted", "terminate_instances", InstanceIds=[instance])
    modify(DisableApiTermination={"Value": False})
    assert attribute("instanceInitiatedShutdownBehavior")["InstanceInitiatedShutdownBehavior"] == {"Value": "stop"}
    assert attribute("blockDeviceMapping")["BlockDeviceMappings"][0]["DeviceName"] == "/dev/vda"
    assert attribute("groupSet")["Groups"][0]["GroupName"] == "default"
    assert attribute("rootDeviceName")["RootDeviceName"] == {"Value": "/dev/vda"}
    refused("UnsupportedOperation", "modify_instance_attribute", InstanceId=instance, SourceDestCheck={"Value": False})
    ec2.get_console_output(InstanceId=instance)
    change = ec2.stop_instances(InstanceIds=[instance])["StoppingInstances"][0]
    assert change["CurrentState"]["Name"] == change["PreviousState"]["Name"] == "stopped"
    refused("IncorrectInstanceState", "reboot_instances", InstanceIds=[instance])
    refused("UnsupportedOperation", "stop_instances", InstanceIds=[instance], Hibernate=True)
    ec2.terminate_instances(InstanceIds=[instance])
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
    again = ec2.terminate_instances(InstanceIds=[instance])["TerminatingInstances"][0]
    assert again["PreviousState"]["Name"] == "terminated"
    refused("IncorrectInstanceState", "start_instances", InstanceIds=[instance])
    ec2.deregister_image(ImageId=image)
    refused("InvalidAMIID.NotFound", "deregister_image", ImageId=image)

    refused("InvalidAction", "describe_spot_price_history")
    refused("InvalidAction", "create_vpc", CidrBlock="10.0.0.0/16")
    stranger = client("ec2", aws_access_key_id="AKIAAAAAAAAAAAAAAAAA", aws_secret_access_key="x")
    try:
        stranger.describe_instances()
        raise SystemExit("a stranger was let in")
    except ClientError as error:
        assert error.response["Error"]["Code"] == "AuthFailure", error


def machines(image_file):
    """A launch, its image, and an instance of that."""
    image = ec2.register_image(Name="hello", ImageLocation=image_file)["ImageId"]
    group = ec2.create_security_group(GroupName="web", Description="for the web")["GroupId"]
    world = {"IpProtocol": "tcp", "FromPort": 8080, "ToPort": 8080, "CidrIp": "0.0.0.0/0"}
    ec2.authorize_security_group_ingress(GroupId=group, **world)
    token = {"SecurityGroupIds": [group], "ClientToken": str(uuid.uuid4()), "ImageId": image, "MinCount": 1, "MaxCount": 2, "InstanceType": "t3.nano"}
    data = "#!/bin/sh\necho user data\n"
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web"}]}]
    refused("DryRunOperation", "run_instances", DryRun=True, **token)
    launched = ec2.run_instances(UserData=data, TagSpecifications=tags, **token)
    again = ec2.run_instances(UserData=data, TagSpecifications=tags, **token)
    ids = [i["InstanceId"] for i in launched["Instances"]]
    assert len(ids) == 2 and [i["InstanceId"] for i in again["Instances"]] == ids, again
    wait = lambda name, **more: ec2.get_waiter(name).wait(WaiterConfig={"Delay": 1, "MaxAttempts": 300}, **more)
    wait("instance_running", InstanceIds=ids)
    wait("instance_status_ok", InstanceIds=ids)
    found = boto3.resource("ec2", endpoint_url=endpoint).Instance(ids[0])
    assert found.instance_type == "t3.nano" and found.private_ip_address == "10.0.2.15" and found.architecture == "x86_64"
    assert ec2.get_console_output(InstanceId=ids[0])["Output"]
    assert found.security_groups == [{"GroupId": group, "GroupName": "web"}]
    addresses = {boto3.resource("ec2", endpoint_url=endpoint).Instance(id).public_ip_address for id in ids}
    assert len(addresses) == 2, addresses
    for address in addresses:
        # The guest's own network takes the connection; nobody listens there.
        socket.create_connection((address, 8080), timeout=60).close()
    refused("DependencyViolation", "delete_security_group", GroupId=group)
    ec2.stop_instances(InstanceIds=ids[1:])
    wait("instance_stopped", InstanceIds=ids[1:])
    ec2.start_instances(InstanceIds=ids[1:])
    wait("instance_status_ok", InstanceIds=ids[1:])
    copy = ec2.create_image(InstanceId=ids[0], Name="copy", NoReboot=True)["ImageId"]
    wait("image_available", ImageIds=[copy])
    third = ec2.run_instances(ImageId=copy, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    wait("instance_status_ok", InstanceIds=[third])
    ec2.terminate_instances(InstanceIds=[*ids, third])
    wait("instance_terminated", InstanceIds=[*ids, third])


globals()[part](*arguments)
print(" ".join(sorted(checked)))
