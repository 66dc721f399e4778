//! The EC2 API over real machines, with curl as its client: one launch for everything.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kiln_tests::endpoint::Endpoint;
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::directory::ok;

pub const TESTS: &[(&str, Test)] = &[("the_ec2_api_launches_describes_images_and_terminates", launches)];

/// The API has no events: a client polls it, so many times at most.
const ATTEMPTS: usize = 1500;
/// Between two requests of a client that waits.
const RETRY: Duration = Duration::from_millis(200);

/// A served endpoint, and where it is.
struct Api<'a> {
    host: &'a TestHost,
    endpoint: Endpoint,
}

impl Api<'_> {
    /// The answer to an action; the parameters are curl's options.
    fn ask(&self, action: &str, parameters: &[&str]) -> Result<String> {
        let parameters: String = parameters
            .iter()
            .map(|parameter| format!(" --data-urlencode '{parameter}'"))
            .collect();
        ok(
            self.host,
            &format!(
                "file=$XDG_STATE_HOME/kiln/ec2/credentials; key() {{ sed -n \"s/^$1 = //p\" $file; }}\n\
                 curl --silent --show-error --noproxy '*' --aws-sigv4 aws:amz:us-east-1:ec2 \
                 --user \"$(key aws_access_key_id):$(key aws_secret_access_key)\" \
                 --data-urlencode Action={action} --data-urlencode Version=2016-11-15{parameters} http://{}/",
                self.endpoint.address
            ),
        )
    }

    /// The text of the first element of that name in the answer.
    fn value(&self, element: &str, action: &str, parameters: &[&str]) -> Result<String> {
        let answer = self.ask(action, parameters)?;
        let found = inner(&answer, element).map(str::to_owned);
        found.with_context(|| format!("{action}: no {element} in {answer}"))
    }

    /// Asks until the first element of that name is `wanted`, as a waiter does.
    fn wait(&self, wanted: &str, element: &str, action: &str, parameters: &[&str]) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let answer = self.ask(action, parameters)?;
            match inner(&answer, element) {
                Some(found) if found == wanted => return Ok(()),
                Some(_) => {}
                // An error, or an instance that has ended.
                None => bail!("{action}: no {element} in {answer}"),
            }
            std::thread::sleep(RETRY);
        }
        bail!("{action}: {element} does not become {wanted}")
    }
}

fn inner<'a>(answer: &'a str, element: &str) -> Option<&'a str> {
    let (_, rest) = answer.split_once(&format!("<{element}>"))?;
    Some(rest.split_once('<')?.0)
}

fn launches(host: &TestHost) -> Result<()> {
    let api = Api {
        host,
        endpoint: Endpoint::serve(host.command("ec2")?)?,
    };
    let result = check(&api);
    drop(api);
    host.sh(
        "for i in $(vmm ps -aq --tag test=ec2); do vmm terminate --time 0 $i; done; \
         vmm image rm ec2-hello; vmm image rm ec2-copy",
    )?;
    result
}

fn check(api: &Api<'_>) -> Result<()> {
    let host = api.host;
    let file = ok(host, "readlink -f hello.ami")?;
    let location = format!("ImageLocation={}", file.trim());
    let image = api.value("imageId", "RegisterImage", &["Name=ec2-hello", &location])?;
    ensure!(image == host.image_id("hello")?, "{image}");
    api.value("keyMaterial", "CreateKeyPair", &["KeyName=ec2-key"])?;
    let user_data = format!("UserData={}", ok(host, "printf 'for the guest' | base64")?.trim());
    let launch = [
        &format!("ImageId={image}"),
        "MinCount=1",
        "MaxCount=1",
        "InstanceType=t3.nano",
        "KeyName=ec2-key",
        "ClientToken=once",
        "TagSpecification.1.ResourceType=instance",
        "TagSpecification.1.Tag.1.Key=test",
        "TagSpecification.1.Tag.1.Value=ec2",
        &user_data,
    ];
    let id = api.value("instanceId", "RunInstances", &launch)?;
    let again = api.value("instanceId", "RunInstances", &launch)?;
    ensure!(again == id, "the same token has launched {again}");
    let named = format!("InstanceId.1={id}");
    // The agent has answered, so its guest can be asked what it knows of itself.
    api.wait("ok", "status", "DescribeInstanceStatus", &[&named])?;
    // Its guest reads the tag that it gets while it runs.
    let tag = [&format!("ResourceId.1={id}"), "Tag.1.Key=role", "Tag.1.Value=db"];
    api.ask("CreateTags", &tag)?;
    let listed = ok(host, "vmm ps -aq --tag role=db")?;
    ensure!(
        id.starts_with(listed.trim()) && !listed.trim().is_empty(),
        "{listed}"
    );
    agrees_with_the_metadata(api, &id)?;
    let console = api.value("output", "GetConsoleOutput", &[&format!("InstanceId={id}")])?;
    ensure!(!console.is_empty(), "the console is empty");

    // The process that `ec2` has started ends as one of `vmm` does, and not by the list of its system calls.
    api.ask("StopInstances", &[&named])?;
    api.wait("stopped", "name", "DescribeInstances", &[&named])?;
    let reason = api.value("reason", "DescribeInstances", &[&named])?;
    ensure!(reason == "the guest powered off", "{reason}");

    let create = [&format!("InstanceId={id}"), "Name=ec2-copy"];
    let copy = api.value("imageId", "CreateImage", &create)?;
    let duplicate = api.value("Code", "CreateImage", &create)?;
    ensure!(duplicate == "InvalidAMIName.Duplicate", "{duplicate}");
    let listed = ok(host, "vmm images")?;
    ensure!(listed.contains("ec2-copy"), "{listed}");
    api.wait(
        "available",
        "imageState",
        "DescribeImages",
        &[&format!("ImageId.1={copy}")],
    )?;

    let state = api.value("name", "TerminateInstances", &[&named])?;
    ensure!(state == "shutting-down", "{state}");
    api.wait("terminated", "name", "DescribeInstances", &[&named])?;
    let left = ok(host, "vmm ps -aq --tag test=ec2")?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

/// What DescribeInstances says is what the guest reads at 169.254.169.254.
fn agrees_with_the_metadata(api: &Api<'_>, id: &str) -> Result<()> {
    // busybox's wget cannot PUT.
    const SCRIPT: &str = "at=169.254.169.254; \
        token=$(printf \"PUT /latest/api/token HTTP/1.1\\r\\nHost: $at\\r\\nConnection: close\\r\\n\
        X-aws-ec2-metadata-token-ttl-seconds: 60\\r\\n\\r\\n\" | nc $at 80 | tail -n 1); \
        get() { wget -T 60 -qO- --header \"X-aws-ec2-metadata-token: $token\" http://$at/latest/$1; echo; }";
    let paths = [
        ("meta-data/instance-id", "instanceId"),
        ("meta-data/instance-type", "instanceType"),
        ("meta-data/ami-id", "imageId"),
        ("meta-data/reservation-id", "reservationId"),
        ("meta-data/local-ipv4", "privateIpAddress"),
        ("meta-data/local-hostname", "privateDnsName"),
        ("meta-data/mac", "macAddress"),
        ("meta-data/placement/availability-zone", "availabilityZone"),
        ("meta-data/security-groups", "groupName"),
        ("meta-data/tags/instance/role", "role"),
    ];
    let gets: String = paths.iter().map(|(path, _)| format!(" get {path};")).collect();
    let line = format!("vmm exec {id} -- sh -c '{SCRIPT};{gets} get user-data'");
    let read = ok(api.host, &line)?;
    let answer = api.ask("DescribeInstances", &[&format!("InstanceId.1={id}")])?;
    let described: Vec<_> = paths
        .iter()
        .map(|(_, element)| match *element {
            // The first group name of the answer is that of the placement.
            "groupName" => Some("default"),
            "role" => {
                let tag = answer.split_once("<key>role</key>");
                tag.and_then(|(_, rest)| inner(rest, "value"))
            }
            element => inner(&answer, element),
        })
        .chain([Some("for the guest")])
        .map(Option::unwrap_or_default)
        .collect();
    let read: Vec<_> = read.lines().filter(|line| !line.is_empty()).collect();
    ensure!(
        read == described,
        "the guest reads {read:?}, and described is {described:?}"
    );
    Ok(())
}
