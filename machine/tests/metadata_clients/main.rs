//! The metadata service with clients of other projects: PyPI's ec2-metadata, botocore's fetchers,
//! cloud-init's data source for EC2. They talk to it on a port of loopback.
//!
//! The libraries come from PyPI and Debian, so this takes a network and some time: the tests are ignored, by
//! name and with the reason on standard error, unless `KILN_LONG_TESTS` is set and Python has `venv` and
//! `pip`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use kiln_tests::python::{self, run};
use libtest_mimic::{Arguments, Trial};
use machine::net::clock::Clock;
use machine::net::metadata::{InstanceDocuments, Service};
use serde_json::{Value, json};

const INSTANCE: &str = "i-0123456789abcdef0";
const MAC: &str = "02:00:00:00:00:0a";
const KEY: &str = "ssh-ed25519 AAAA me";
const USER_DATA: &str = "#!/bin/sh\ntrue\n";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trial = |name: &'static str, test: fn() -> Result<()>, missing: Option<String>| {
        if let Some(why) = &missing {
            eprintln!("metadata_clients: {name} is ignored: {why}");
        }
        let run = move || test().map_err(|error| format!("{error:#}").into());
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    let python = python::missing();
    let trials = vec![
        trial("ec2_metadata_finds_every_property", ec2_metadata, python.clone()),
        trial(
            "botocore_finds_the_region_and_no_credentials",
            botocore,
            python.clone(),
        ),
        trial("cloud_init_crawls_it", cloud_init, python.or_else(missing_apt)),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn works(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

fn missing_apt() -> Option<String> {
    let usable = works("apt-get", &["--version"]) && works("dpkg-deb", &["--version"]);
    (!usable).then(|| "cloud-init is taken from Debian's archive, and there is no apt-get".to_owned())
}

/// A folder under target/ that stays from run to run.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("metadata-clients")
}

/// Python with the libraries.
fn python() -> Result<PathBuf> {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metadata_clients/requirements.txt");
    Ok(python::programs(&folder(), &list)?.join("python"))
}

/// Serves the metadata of an instance on a port of loopback, and gives the service's URL.
fn serve() -> Result<String> {
    let service = Service::new(
        InstanceDocuments {
            user_data: Some(USER_DATA.into()),
            ..InstanceDocuments::example()
        },
        Clock::monotonic(),
    );
    let service = Arc::new(Mutex::new(service));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let service = Arc::clone(&service);
            thread::spawn(move || answer(stream, &service));
        }
    });
    Ok(url)
}

fn answer(mut stream: TcpStream, service: &Mutex<Service>) -> std::io::Result<()> {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..length]);
        let mut service = service.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(answer) = service.take_request(&mut request) {
            stream.write_all(&answer.bytes)?;
            if answer.close {
                return Ok(());
            }
        }
    }
}

/// What `library` finds.
fn ask(library: &str, more: &[&Path]) -> Result<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metadata_clients/clients.py");
    let found = run(Command::new(python()?)
        .arg(script)
        .args([library, &serve()?])
        .args(more)
        // Neither a proxy nor the settings of whoever runs this.
        .env_clear()
        .env("HOME", folder()))?;
    Ok(serde_json::from_str(&found)?)
}

/// Compares what `expected` has. A question mark at the end of a text stands for anything.
fn compare(found: &Value, expected: &Value, path: &str) -> Result<()> {
    match expected {
        Value::Object(fields) => fields
            .iter()
            .try_for_each(|(name, expected)| compare(&found[name], expected, &format!("{path}.{name}"))),
        Value::Array(values) => {
            let found = found.as_array().context(path.to_owned())?;
            ensure!(
                found.len() == values.len(),
                "{path}: {found:?} instead of {values:?}"
            );
            let mut pairs = found.iter().zip(values);
            pairs.try_for_each(|(found, expected)| compare(found, expected, path))
        }
        Value::String(text) if text.ends_with('?') => {
            let start = text.trim_end_matches('?');
            let fits = found.as_str().is_some_and(|found| found.starts_with(start));
            ensure!(fits, "{path}: {found} instead of {expected}");
            Ok(())
        }
        _ => {
            ensure!(found == expected, "{path}: {found} instead of {expected}");
            Ok(())
        }
    }
}

fn ec2_metadata() -> Result<()> {
    let found = ask("ec2_metadata", &[])?;
    let expected = json!({
        "account_id": "000000000000",
        "ami_id": "ami-0123456789abcdef0",
        "ami_launch_index": 0,
        "ami_manifest_path": "(unknown)",
        "autoscaling_target_lifecycle_state": null,
        "availability_zone": "us-east-1a",
        "availability_zone_id": "use1-az1",
        "domain": "amazonaws.com",
        "iam_info": null,
        "iam_security_credentials": null,
        "instance_action": "none",
        "instance_id": INSTANCE,
        "instance_life_cycle": "on-demand",
        "instance_profile_arn": null,
        "instance_type": "kiln.1x512",
        "kernel_id": null,
        "mac": MAC,
        "network_interfaces": { MAC: {
            "device_number": 0,
            "interface_id": "eni-?",
            "ipv4_associations": {},
            "ipv6s": [],
            "owner_id": "000000000000",
            "private_hostname": "ip-10-0-2-15",
            "private_ipv4s": ["10.0.2.15"],
            "public_hostname": null,
            "public_ipv4s": [],
            "security_group_ids": ["sg-?"],
            "security_groups": ["default"],
            "subnet_id": "subnet-?",
            "subnet_ipv4_cidr_block": "10.0.2.0/24",
            "vpc_id": "vpc-?",
            "vpc_ipv4_cidr_block": "10.0.2.0/24",
            "vpc_ipv4_cidr_blocks": ["10.0.2.0/24"],
        }},
        "partition": "aws",
        "private_hostname": "ip-10-0-2-15",
        "private_ipv4": "10.0.2.15",
        "public_hostname": null,
        "public_ipv4": null,
        "public_keys": { "mine": format!("{KEY}\n") },
        "region": "us-east-1",
        "reservation_id": "r-0123456789abcdef0",
        "security_groups": ["default"],
        "spot_instance_action": null,
        "tags": { "Name": "web" },
        "user_data": USER_DATA,
    });
    compare(&found, &expected, "ec2_metadata")
}

fn botocore() -> Result<()> {
    let found = ask("botocore", &[])?;
    let expected = json!({ "region": "us-east-1", "client_region": "us-east-1", "credentials": {} });
    compare(&found, &expected, "botocore")
}

fn cloud_init() -> Result<()> {
    let package = folder().join("cloud-init");
    let modules = package.join("usr/lib/python3/dist-packages");
    if !modules.is_dir() {
        std::fs::create_dir_all(&package)?;
        run(Command::new("apt-get")
            .args(["download", "--quiet", "cloud-init"])
            .current_dir(folder()))?;
        let unpack = "dpkg-deb --extract cloud-init_*.deb cloud-init";
        run(Command::new("sh").args(["-c", unpack]).current_dir(folder()))?;
    }
    let found = ask("cloud_init", &[&modules])?;
    let interface = json!({ "device-number": "0", "vpc-id": "vpc-?", "local-ipv4s": "10.0.2.15" });
    let expected = json!({
        "instance_id": INSTANCE,
        "region": "us-east-1",
        "zone": "us-east-1a",
        "keys": [KEY],
        "user_data": USER_DATA,
        "classic": false,
        "metadata": {
            "ami-id": "ami-0123456789abcdef0",
            "block-device-mapping": { "root": "/dev/vda" },
            "network": { "interfaces": { "macs": { MAC: interface } } },
            "services": { "domain": "amazonaws.com", "partition": "aws" },
            "tags": { "instance": { "Name": "web" } },
        },
        "identity": { "accountId": "000000000000" },
    });
    compare(&found, &expected, "cloud_init")
}
