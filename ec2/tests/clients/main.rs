//! The API as clients use it that nobody here wrote: boto3, held to botocore's model of EC2, and `aws`.
//!
//! They come from PyPI, so this takes a network and some time: the tests are ignored, by name and with the
//! reason on standard error, unless `KILN_LONG_TESTS` is set and Python has `venv` and `pip`. The one with
//! machines needs the hello image as well, which `cargo demo` and the end-to-end tests build.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use ami::{Architecture, Manifest, PartName, Source, Writer};
use anyhow::{Result, ensure};
use instance::service::{RunInstances, Service};
use instance::store::home::Home;
use kiln_tests::endpoint::Endpoint;
use kiln_tests::python::{self, run};
use libtest_mimic::{Arguments, Trial};

/// Actions whose answers the test of the protocol holds to the model, at least.
const CHECKED: usize = 26;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trial = |name: &'static str, test: fn() -> Result<()>, missing: Option<String>| {
        if let Some(why) = &missing {
            eprintln!("ec2 clients: {name} is ignored: {why}");
        }
        let run = move || test().map_err(|error| format!("{error:#}").into());
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    let python = python::missing();
    let image = python.clone().or_else(missing_image);
    let trials = vec![
        trial(
            "boto3_finds_answers_and_errors_as_in_its_model",
            protocol,
            python.clone(),
        ),
        trial("the_command_line_of_aws_works_by_ec2_env", command_line, python),
        trial("boto3_launches_images_and_terminates", machines, image),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn hello() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("../../kiln/images/hello.ami")
}

fn missing_image() -> Option<String> {
    (!hello().is_file()).then(|| "the hello image has not been built".to_owned())
}

/// A folder under target/ that stays from run to run.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("ec2-clients")
}

/// The programs of Python with the libraries.
fn python() -> Result<PathBuf> {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/requirements.txt");
    python::programs(&folder(), &list)
}

/// A served endpoint with stores of its own.
struct Served {
    dir: tempfile::TempDir,
    endpoint: Endpoint,
}

impl Served {
    fn new() -> Result<Served> {
        let dir = tempfile::tempdir()?;
        let endpoint = Endpoint::serve(program(dir.path()))?;
        Ok(Served { dir, endpoint })
    }

    fn home(&self) -> Home {
        let data = self.dir.path();
        Home::new(data.join("state/kiln"), data.join("data/kiln"), None)
    }

    /// A command that finds the endpoint's keys, and neither a proxy nor the settings of whoever runs this.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("HOME", self.dir.path())
            .env("PATH", "/usr/bin:/bin")
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env(
                "AWS_SHARED_CREDENTIALS_FILE",
                self.dir.path().join("state/kiln/ec2/credentials"),
            );
        command
    }

    fn script(&self, part: &str, argument: &Path) -> Result<String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/clients.py");
        run(self
            .command(&python()?.join("python"))
            .arg(script)
            .arg(format!("http://{}", self.endpoint.address))
            .arg(part)
            .arg(argument))
    }
}

/// `ec2` with stores in `directory`.
fn program(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ec2"));
    command
        .env("XDG_STATE_HOME", directory.join("state"))
        .env("XDG_DATA_HOME", directory.join("data"))
        .env("XDG_CACHE_HOME", directory.join("cache"));
    command
}

/// An AMI that is valid in every respect and boots nothing.
fn image(path: &Path) -> Result<()> {
    let root = vec![5; 2 << 20];
    let parts: [(PartName, &[u8]); 3] = [
        (PartName::Kernel, b"no kernel"),
        (PartName::Initramfs, b"no initramfs"),
        (PartName::Root, &root),
    ];
    let lengths = parts.map(|(part, bytes)| (part, bytes.len() as u64));
    let writer = Writer::create(path, &lengths)?;
    for (part, bytes) in parts {
        writer.fill(part, Source::Bytes(bytes))?;
    }
    let mut manifest = Manifest::new("none", Architecture::X86_64);
    manifest.block_device_mappings = vec![ami::BlockDeviceMapping {
        device: "/dev/vda".into(),
        size: 8 << 20,
        delete_on_termination: true,
    }];
    writer.finish(manifest, &|_| {})?;
    Ok(())
}

fn protocol() -> Result<()> {
    let served = Served::new()?;
    let file = served.dir.path().join("none.ami");
    image(&file)?;
    let service = Service::new(served.home());
    let request = RunInstances {
        name: Some("rests".into()),
        ..RunInstances::of(file.display().to_string())
    };
    let (mut held, _) = service.prepare_instance(&request)?;
    held.apply(instance::Event::Ended, "the test has stopped it")?;
    drop(held);
    let checked = served.script("protocol", &file)?;
    let count = checked.split_whitespace().count();
    ensure!(
        count >= CHECKED,
        "only {count} actions were held to the model: {checked}"
    );
    Ok(())
}

/// In a shell that has evaluated the lines which `ec2 serve` prints.
fn command_line() -> Result<()> {
    let served = Served::new()?;
    let bin = python()?;
    let shell = |line: &str| {
        let path = format!("{}:/usr/bin:/bin", bin.display());
        let script = format!("{}\n{line}", served.endpoint.lines);
        run(served
            .command(Path::new("sh"))
            .env("PATH", path)
            .args(["-ec", &script]))
    };
    let regions = shell("aws ec2 describe-regions --query 'Regions[].RegionName' --output text")?;
    ensure!(regions == "us-east-1\n", "{regions:?}");
    let key = shell("aws ec2 create-key-pair --key-name k --query KeyMaterial --output text")?;
    ensure!(
        key.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"),
        "{key:?}"
    );
    let none = shell(
        "aws ec2 describe-instances --output text && aws sts get-caller-identity --query Account --output text",
    )?;
    ensure!(none == "000000000000\n", "{none:?}");
    let again = run(program(served.dir.path()).args(["env", "--listen", &served.endpoint.address]))?;
    ensure!(
        again == served.endpoint.lines,
        "{again:?} is not {:?}",
        served.endpoint.lines
    );
    Ok(())
}

fn machines() -> Result<()> {
    let served = Served::new()?;
    let done = served.script("machines", &hello());
    // Nothing is left, whatever became of it.
    let service = Service::new(served.home());
    for record in service.describe_instances(&Default::default())?.records {
        let _ = service.terminate_instance(&instance::service::TerminateInstance {
            instance: record.id.to_string(),
            timeout: std::time::Duration::ZERO,
        });
    }
    done.map(drop)
}
