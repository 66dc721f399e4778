"""What libraries make of the metadata service at the given URL, as JSON: clients.py LIBRARY URL [FOLDER OF CLOUD-INIT]"""

import json
import sys


def ec2_metadata(url):
    """Every property of PyPI's ec2-metadata."""
    from ec2_metadata import EC2Metadata

    client = EC2Metadata()
    client.service_url = f"{url}/latest/"
    client.dynamic_url = f"{client.service_url}dynamic/"
    client.metadata_url = f"{client.service_url}meta-data/"
    client.userdata_url = f"{client.service_url}user-data/"

    def properties(thing):
        names = [name for name in dir(type(thing)) if not name.startswith("_")]
        return {name: getattr(thing, name) for name in names if not callable(getattr(type(thing), name))}

    found = properties(client)
    found["user_data"] = found["user_data"].decode()
    found["tags"] = dict(found["tags"])
    found["public_keys"] = {name: key.openssh_key for name, key in found["public_keys"].items()}
    found["network_interfaces"] = {mac: properties(each) for mac, each in found["network_interfaces"].items()}
    return found


def botocore(url):
    """The region, and credentials that there are none of."""
    from botocore.session import Session
    from botocore.utils import InstanceMetadataFetcher, InstanceMetadataRegionFetcher

    fetcher = InstanceMetadataRegionFetcher(base_url=url)
    region = fetcher.retrieve_region()
    # A client for it can be made.
    client = Session().create_client(
        "ec2", region_name=region, aws_access_key_id="x", aws_secret_access_key="x"
    )
    return {
        "region": region,
        "client_region": client.meta.region_name,
        "credentials": InstanceMetadataFetcher(base_url=url).retrieve_iam_role_credentials(),
    }


def cloud_init(url, folder):
    """What Debian's cloud-init takes for its instance."""
    sys.path.insert(0, folder)
    from cloudinit.sources import DataSourceEc2 as module

    class DataSource(module.DataSourceEc2):
        # It would be known by its SMBIOS.
        cloud_name = "aws"
        # Its log, which a failure would only be told to.
        def __init__(self):
            settings = {"metadata_urls": [url], "max_wait": 10, "timeout": 10}
            super().__init__({"datasource": {"Ec2": settings}}, None, None)

    source = DataSource()
    if not source._get_data():
        raise SystemExit("cloud-init has found nothing")
    return {
        "instance_id": source.get_instance_id(),
        "region": source.region,
        "zone": source.availability_zone,
        "keys": source.get_public_ssh_keys(),
        "user_data": source.userdata_raw.decode(),
        "classic": source.is_classic_instance(),
        "metadata": source.metadata,
        "identity": source.identity,
    }


library, arguments = sys.argv[1], sys.argv[2:]
print(json.dumps(globals()[library](*arguments), indent=1))
