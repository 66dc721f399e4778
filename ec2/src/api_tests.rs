//! The endpoint without a network and without machines: a store with what each test puts there.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use ami::{Architecture, Manifest, PartName, Source, Writer};
use instance::service::{DescribeInstances, RunInstances};
use instance::store::home::Home;

use super::*;
use crate::sigv4::sign;

struct Bench {
    dir: tempfile::TempDir,
    api: Arc<Api>,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let api = Bench::again(dir.path());
        Bench { dir, api }
    }

    /// The endpoint of a program that was started anew.
    fn again(path: &std::path::Path) -> Arc<Api> {
        let credentials = Credentials {
            access_key: "AKIDEXAMPLE".into(),
            secret_key: "secret".into(),
        };
        Api::new(Service::new(Home::at(path)), credentials, "127.0.0.1:4566".into())
    }

    /// A stopped instance, of an image that boots nothing.
    fn stopped(&self) -> String {
        let path = self.dir.path().join("none.ami");
        let root = vec![5; 2 << 20];
        let parts: [(PartName, &[u8]); 3] = [
            (PartName::Kernel, b"no kernel"),
            (PartName::Initramfs, b"no initramfs"),
            (PartName::Root, &root),
        ];
        let lengths = parts.map(|(part, bytes)| (part, bytes.len() as u64));
        let writer = Writer::create(&path, &lengths).unwrap();
        for (part, bytes) in parts {
            writer.fill(part, Source::Bytes(bytes)).unwrap();
        }
        let mut manifest = Manifest::new("none", Architecture::X86_64);
        manifest.block_device_mappings = vec![ami::BlockDeviceMapping {
            device: "/dev/vda".into(),
            size: 8 << 20,
            delete_on_termination: true,
        }];
        writer.finish(manifest, &|_| {}).unwrap();
        let request = RunInstances::of(path.display().to_string());
        let (mut held, _) = self.api.service.prepare_instance(&request).unwrap();
        held.apply(instance::Event::Ended, "the test has stopped it")
            .unwrap();
        held.record().id.to_string()
    }

    fn call(&self, body: &str) -> (u16, String) {
        let reply = self.api.answer(&Call {
            method: "POST".into(),
            path: "/".into(),
            query: String::new(),
            headers: sign(&self.api.credentials, body.as_bytes(), time::now()),
            body: body.into(),
        });
        (reply.status, String::from_utf8(reply.body).unwrap())
    }

    /// The code and the status that a request is refused with.
    fn refusal(&self, body: &str) -> (u16, String) {
        let (status, text) = self.call(body);
        let code = text
            .split("<Code>")
            .nth(1)
            .and_then(|rest| rest.split("</Code>").next());
        (status, code.unwrap_or_default().to_owned())
    }
}

#[test]
fn answers_and_errors_have_the_form_of_their_service() {
    let bench = Bench::new();
    let (status, text) = bench.call("Action=DescribeRegions&Version=2016-11-15");
    assert_eq!(status, 200);
    assert!(
        text.contains(
            "<DescribeRegionsResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>"
        )
    );
    assert!(text.contains("<regionInfo><item><regionName>us-east-1</regionName>"));
    let (status, text) = bench.call("Action=Nothing&Version=2016-11-15");
    assert_eq!(status, 400);
    assert!(
        text.contains("<Response><Errors><Error><Code>InvalidAction</Code><Message>"),
        "{text}"
    );
    assert!(text.contains("</Errors><RequestID>"), "{text}");
    let (_, text) = bench.call("Action=GetCallerIdentity&Version=2011-06-15");
    assert!(
        text.contains("<GetCallerIdentityResult><Arn>arn:aws:iam::000000000000:root</Arn>"),
        "{text}"
    );
    assert!(text.contains("<ResponseMetadata><RequestId>"), "{text}");
    let (_, text) = bench.call("Action=AssumeRole&Version=2011-06-15");
    assert!(
        text.contains("<ErrorResponse xmlns") && text.contains("<Type>Sender</Type><Code>InvalidAction"),
        "{text}"
    );
}

#[test]
fn requests_are_refused_by_code_and_status() {
    let bench = Bench::new();
    let instance = "i-0123456789abcdef0";
    let image = "ami-0123456789abcdef0";
    for (body, status, code) in [
        ("Version=2016-11-15", 400, "MissingAction"),
        ("Action=DescribeRegions&Version=1999-01-01", 400, "NoSuchVersion"),
        ("Action=GetCallerIdentity", 400, "InvalidAction"),
        ("Action=DescribeRegions&Surprise=1", 400, "UnknownParameter"),
        ("Action=DescribeRegions&DryRun=true", 412, "DryRunOperation"),
        (
            "Action=DescribeRegions&RegionName.1=mars",
            400,
            "InvalidParameterValue",
        ),
        ("Action=DescribeRegions&Action=x", 400, "MalformedQueryString"),
        ("Action=DescribeVpcs&VpcId.1=vpc-1", 400, "InvalidVpcID.NotFound"),
        ("Action=TerminateInstances", 400, "MissingParameter"),
        (
            &format!("Action=TerminateInstances&InstanceId.1={instance}"),
            400,
            "InvalidInstanceID.NotFound",
        ),
        (
            "Action=TerminateInstances&InstanceId.1=../../etc",
            400,
            "InvalidInstanceID.Malformed",
        ),
        (
            &format!("Action=RunInstances&ImageId={image}&MinCount=1&MaxCount=1"),
            400,
            "InvalidAMIID.NotFound",
        ),
        ("Action=RunInstances&ImageId=../x", 400, "InvalidAMIID.Malformed"),
        (
            "Action=RegisterImage&Name=x&ImageLocation=bucket/x",
            400,
            "InvalidParameterValue",
        ),
        (
            "Action=CreateKeyPair&KeyName=x&KeyType=rsa",
            400,
            "UnsupportedOperation",
        ),
        (
            "Action=DescribeInstances&MaxResults=4",
            400,
            "InvalidParameterValue",
        ),
    ] {
        assert_eq!(bench.refusal(body), (status, code.to_owned()), "{body}");
    }
}

#[test]
fn no_request_is_carried_out_for_whoever_does_not_have_the_key() {
    let bench = Bench::new();
    let body = "Action=CreateKeyPair&KeyName=mine";
    let stranger = Credentials {
        secret_key: "guessed".into(),
        ..bench.api.credentials.clone()
    };
    for (headers, status) in [
        (Vec::new(), 403),
        (sign(&stranger, body.as_bytes(), time::now()), 403),
    ] {
        let call = Call {
            method: "POST".into(),
            path: "/".into(),
            query: String::new(),
            headers,
            body: body.into(),
        };
        assert_eq!(bench.api.answer(&call).status, status);
    }
    assert!(bench.api.ledger.key_pairs().unwrap().is_empty());
}

#[test]
fn what_was_made_is_there_after_the_program_was_killed() {
    let bench = Bench::new();
    let (status, text) = bench.call("Action=CreateKeyPair&KeyName=mine");
    assert_eq!(status, 200, "{text}");
    let kept: Vec<_> = Bench::again(bench.dir.path()).ledger.key_pairs().unwrap();
    assert_eq!(kept.len(), 1);
    // The private half is the client's alone.
    let secret = text
        .split("PRIVATE KEY-----")
        .nth(1)
        .unwrap()
        .lines()
        .nth(3)
        .unwrap();
    let files = std::process::Command::new("grep")
        .args(["-r", "-F", secret])
        .arg(bench.dir.path())
        .output();
    assert!(files.unwrap().stdout.is_empty());
}

#[test]
fn http_requests_are_taken_within_bounds_and_slow_ones_hold_up_nobody() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let api = Arc::clone(&bench.api);
    std::thread::spawn(move || crate::http::serve(listener, api));
    let request = |head: &str, body: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        // It may be refused before all of it was sent.
        let _ = stream.write_all(body);
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    };
    // One that never ends its head, and one that never ends its body.
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"POST / HT").unwrap();
    let mut slower = TcpStream::connect(address).unwrap();
    slower
        .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nAc")
        .unwrap();

    let body = b"Action=DescribeRegions";
    let signed: String = sign(&bench.api.credentials, body, time::now())
        .into_iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let head = format!(
        "POST / HTTP/1.1\r\n{signed}Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let text = request(&head, body);
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("us-east-1"),
        "{text}"
    );
    assert!(text.contains("content-type: text/xml"), "{text}");

    let large = vec![b'a'; crate::http::MAX_BODY + 1];
    let head = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        large.len()
    );
    let text = request(&head, &large);
    assert!(
        text.is_empty() || text.starts_with("HTTP/1.1 413") && text.contains("RequestEntityTooLarge"),
        "{text}"
    );
    let text = request("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"");
    assert!(
        text.starts_with("HTTP/1.1 403") && text.contains("MissingAuthenticationToken"),
        "{text}"
    );
    assert!(request("nonsense\r\n\r\n", b"").starts_with("HTTP/1.1 400"));
}

#[test]
fn a_termination_that_a_kill_cut_short_is_finished_by_the_next_start() {
    let bench = Bench::new();
    let id = bench.stopped();
    let described = format!("Action=DescribeInstances&InstanceId.1={id}");
    assert!(
        bench
            .call(&described)
            .1
            .contains("<code>80</code><name>stopped</name>")
    );
    // As far as a request gets before its thread.
    let shown = crate::actions::shown::named(&bench.api, &[&id]).unwrap();
    bench.api.ledger.terminate(&shown[0].termination()).unwrap();
    assert!(
        bench
            .call(&described)
            .1
            .contains("<code>32</code><name>shutting-down</name>")
    );

    let next = Bench {
        api: Bench::again(bench.dir.path()),
        dir: bench.dir,
    };
    next.api.resume().unwrap();
    let all = || {
        next.api
            .service
            .describe_instances(&DescribeInstances::default())
            .unwrap()
    };
    while !all().records.is_empty() {
        std::thread::yield_now();
    }
    let (_, text) = next.call(&described);
    assert!(text.contains("<code>48</code><name>terminated</name>"), "{text}");
    let (status, text) = next.call(&format!("Action=TerminateInstances&InstanceId.1={id}"));
    assert_eq!(status, 200, "{text}");
}

#[test]
fn a_terminated_instance_is_described_for_an_hour() {
    let bench = Bench::new();
    let id = bench.stopped();
    let shown = crate::actions::shown::named(&bench.api, &[&id]).unwrap();
    let mut termination = shown[0].termination();
    let request = instance::service::TerminateInstance {
        instance: id.clone(),
        timeout: std::time::Duration::ZERO,
    };
    bench.api.service.terminate_instance(&request).unwrap();
    for (age, count) in [(3000, 1), (4000, 0)] {
        termination.at = time::now() - age;
        bench.api.ledger.terminate(&termination).unwrap();
        let (_, text) = bench.call("Action=DescribeInstances");
        assert_eq!(text.matches("<instanceId>").count(), count, "{age}: {text}");
    }
    assert!(bench.api.ledger.terminations().unwrap().is_empty());
    let code = bench.refusal(&format!("Action=DescribeInstances&InstanceId.1={id}"));
    assert_eq!(code, (400, "InvalidInstanceID.NotFound".to_owned()));
}

#[test]
fn a_group_that_an_instance_has_cannot_be_changed() {
    let bench = Bench::new();
    let (_, text) = bench.call("Action=CreateSecurityGroup&GroupName=web&GroupDescription=x");
    let id = text
        .split("<groupId>")
        .nth(1)
        .and_then(|rest| rest.split('<').next())
        .unwrap()
        .to_owned();
    let rule = format!(
        "Action=AuthorizeSecurityGroupIngress&GroupId={id}&IpProtocol=tcp&ToPort=80&CidrIp=0.0.0.0/0"
    );
    assert_eq!(
        bench.refusal(&rule).1,
        "InvalidParameterValue",
        "a port is missing"
    );
    let rule = format!("{rule}&FromPort=80");
    assert_eq!(bench.call(&rule).0, 200);
    assert_eq!(bench.refusal(&rule).1, "InvalidPermission.Duplicate");

    let request = Params::parse(format!("SecurityGroupId.1={id}").as_bytes(), b"").unwrap();
    let (groups, ports) = crate::actions::groups::of_launch(&bench.api, &request).unwrap();
    assert_eq!(ports.into_iter().map(|(_, port)| port).collect::<Vec<_>>(), [80]);
    let instance = bench.stopped().parse().unwrap();
    let mut held = bench
        .api
        .service
        .store()
        .hold(&instance, instance::Event::Start)
        .unwrap();
    held.change(|record| record.config.security_groups = groups)
        .unwrap();
    drop(held);
    let delete = format!("Action=DeleteSecurityGroup&GroupId={id}");
    assert_eq!(bench.refusal(&delete).1, "DependencyViolation");
    let (_, text) = bench.call("Action=DescribeInstances&Filter.1.Name=group-name&Filter.1.Value.1=w*");
    assert!(
        text.contains(&format!(
            "<groupSet><item><groupId>{id}</groupId><groupName>web</groupName>"
        )),
        "{text}"
    );
}

#[test]
fn tags_of_an_instance_are_added_changed_and_removed() {
    let bench = Bench::new();
    let id = bench.stopped();
    let change = |request: &str| bench.call(&format!("Action={request}&ResourceId.1={id}"));
    let tags = || bench.api.service.describe_instance(&id).unwrap().tags;
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let two = "CreateTags&Tag.1.Key=role&Tag.1.Value=web&Tag.2.Key=blank";
    assert_eq!(change(two).0, 200);
    assert_eq!(tags(), [pair("role", "web"), pair("blank", "")].into());
    let (_, shown) = bench.call("Action=DescribeTags&Filter.1.Name=key&Filter.1.Value.1=role");
    assert!(shown.contains("<key>role</key><value>web</value>"), "{shown}");
    assert_eq!(change("CreateTags&Tag.1.Key=role&Tag.1.Value=db").0, 200);
    // A value that is named has to be the tag's, one without a character among them.
    for kept in ["Tag.1.Key=role&Tag.1.Value=web", "Tag.1.Key=role&Tag.1.Value="] {
        assert_eq!(change(&format!("DeleteTags&{kept}")).0, 200);
        assert_eq!(tags(), [pair("role", "db"), pair("blank", "")].into(), "{kept}");
    }
    assert_eq!(change("DeleteTags&Tag.1.Key=blank&Tag.1.Value=").0, 200);
    assert_eq!(tags(), [pair("role", "db")].into());
    assert_eq!(change("DeleteTags&DryRun=true").0, 412);
    assert_eq!(change("DeleteTags").0, 200);
    assert!(tags().is_empty());
}

#[test]
fn tags_that_cannot_be_changed_are_refused() {
    let bench = Bench::new();
    let id = bench.stopped();
    let all: String = (1..=51).map(|n| format!("&Tag.{n}.Key=k{n}")).collect();
    for (rest, code) in [
        (format!("{id}{all}"), "TagLimitExceeded"),
        (format!("{id}&Tag.1.Key=aws:x"), "InvalidParameterValue"),
        (id.clone(), "MissingParameter"),
        ("ami-0123456789abcdef0&Tag.1.Key=x".into(), "UnsupportedOperation"),
        ("nonsense&Tag.1.Key=x".into(), "InvalidID"),
        (
            "i-0123456789abcdef0&Tag.1.Key=x".into(),
            "InvalidInstanceID.NotFound",
        ),
    ] {
        let (_, refused) = bench.refusal(&format!("Action=CreateTags&ResourceId.1={rest}"));
        assert_eq!(refused, code, "{rest}");
    }
    assert!(bench.api.service.describe_instance(&id).unwrap().tags.is_empty());
}

#[test]
fn attributes_are_described_as_they_were_modified() {
    let bench = Bench::new();
    let id = bench.stopped();
    for (change, attribute, described) in [
        (
            "InstanceType.Value=t3.micro",
            "instanceType",
            "<value>t3.micro</value>",
        ),
        (
            "Attribute=instanceType&Value=t3.nano",
            "instanceType",
            "<value>t3.nano</value>",
        ),
        ("UserData.Value=aGVsbG8%3D", "userData", "<value>aGVsbG8=</value>"),
        (
            "InstanceInitiatedShutdownBehavior.Value=terminate",
            "instanceInitiatedShutdownBehavior",
            "<value>terminate</value>",
        ),
        (
            "DisableApiStop.Value=true",
            "disableApiStop",
            "<value>true</value>",
        ),
        (
            "DisableApiTermination.Value=true",
            "disableApiTermination",
            "<value>true</value>",
        ),
    ] {
        let (status, text) = bench.call(&format!(
            "Action=ModifyInstanceAttribute&InstanceId={id}&{change}"
        ));
        assert_eq!(status, 200, "{change}: {text}");
        let describe = format!("Action=DescribeInstanceAttribute&InstanceId={id}&Attribute={attribute}");
        let (_, text) = bench.call(&describe);
        assert!(
            text.contains(&format!("<{attribute}>{described}</{attribute}>")),
            "{text}"
        );
    }
    let record = bench.api.service.describe_instance(&id).unwrap();
    assert_eq!(
        (record.config.cpus, record.config.memory),
        (Some(2), Some(512 << 20))
    );
    assert!(record.auto_remove);
}

#[test]
fn a_protected_instance_is_neither_stopped_nor_terminated() {
    let bench = Bench::new();
    let id = bench.stopped();
    for (attribute, step) in [
        ("DisableApiStop", "StopInstances"),
        ("DisableApiTermination", "TerminateInstances"),
    ] {
        let set = |value: bool| {
            let change = format!("Action=ModifyInstanceAttribute&InstanceId={id}&{attribute}.Value={value}");
            assert_eq!(bench.call(&change).0, 200, "{change}");
        };
        set(true);
        let step = format!("Action={step}&InstanceId.1={id}");
        assert_eq!(bench.refusal(&step).1, "OperationNotPermitted");
        set(false);
        assert_eq!(bench.call(&step).0, 200);
    }
}

#[test]
fn attributes_that_are_not_there_are_refused_by_name() {
    let bench = Bench::new();
    let id = bench.stopped();
    for (request, code) in [
        ("Describe&Attribute=sourceDestCheck", "UnsupportedOperation"),
        ("Describe&Attribute=colour", "InvalidParameterValue"),
        ("Describe", "MissingParameter"),
        ("Modify&SourceDestCheck.Value=false", "UnsupportedOperation"),
        ("Modify&GroupId.1=sg-1", "UnsupportedOperation"),
        ("Modify&Attribute=rootDeviceName&Value=x", "UnsupportedOperation"),
        ("Modify&InstanceType.Value=x9.huge", "InvalidParameterValue"),
        ("Modify&InstanceType.Value=t4g.nano", "InvalidParameterValue"),
        ("Modify&UserData.Value=%2A", "InvalidParameterValue"),
        ("Modify&Surprise=1&DisableApiStop.Value=true", "UnknownParameter"),
        (
            "Modify&DisableApiStop.Value=true&DisableApiTermination.Value=true",
            "InvalidParameterCombination",
        ),
        ("Modify", "InvalidParameterCombination"),
    ] {
        let (step, rest) = request.split_once('&').unwrap_or((request, ""));
        let body = format!("Action={step}InstanceAttribute&InstanceId={id}&{rest}");
        assert_eq!(bench.refusal(&body).1, code, "{request}");
    }
    let record = bench.api.service.describe_instance(&id).unwrap();
    assert_eq!(record.config.instance_type, None);
}
