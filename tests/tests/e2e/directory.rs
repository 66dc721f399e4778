//! Launch a plain machine, install an application in it, make an image of it, launch two more.
//!
//! The guest installs with apt over its own network from an archive that this host serves on its loopback
//! address.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::lab::Output;
use kiln_tests::test_host::TestHost;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[("an_application_installed_captured_and_launched_twice", directory)];

/// Installing and booting on a processor in software take their time.
const TIMEOUT: Duration = Duration::from_secs(900);

/// The port of the archive on the host's loopback address; tests of one test host that use it do not run at
/// once.
const ARCHIVE: u16 = 28_080;

/// A public key without a private key.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBqZ2yUu4pD2gk4jQbqz5v8m0yQKxQ4n0B1kq1rj8w3X test";

fn directory(host: &TestHost) -> Result<()> {
    ok(
        host,
        "imgtool cat hello.ami /usr/bin/busybox > $HOME/busybox && chmod +x $HOME/busybox",
    )?;
    let serve = format!(
        "$HOME/busybox httpd -f -p 127.0.0.1:{ARCHIVE} -h ../shared/repository >/dev/null 2>&1 & echo $!"
    );
    let server = ok(host, &serve)?.trim().to_owned();
    let result = check(host);
    // What a failed test leaves must not hold ports that the next one needs.
    let cleanup = format!(
        "kill {server}; for i in $(vmm ps -aq --tag test=directory); do vmm terminate --time 0 $i; done; vmm image rm directory"
    );
    host.sh(&cleanup)?;
    result
}

fn check(host: &TestHost) -> Result<()> {
    launch(host)?;
    if (host.arch(), host.accelerator()) == (Arch::X86_64, "soft") {
        programs_use_v3(host)?;
    }
    install(host)?;
    let port = port_of(host, "first")?;
    add(host, &port, "Ada")?;
    ensure!(
        employees(host, &port)? == ["Ada"],
        "the application does not keep its data"
    );
    let first = identity(host, "first")?;

    ok(host, "vmm create-image first directory")?;
    ok(host, "vmm exec --wait-timeout 300 first -- true")?;
    ensure!(
        identity(host, "first")? == first,
        "making an image changed the instance's own identity"
    );
    ok(host, "vmm terminate first")?;

    let launched = ok(
        host,
        "vmm run directory -d --count 2 -p 80 --tag test=directory --wait port=8000 --wait-timeout 600",
    )?;
    let [one, two] = launched.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("two ids were expected: {launched:?}")
    };
    let (port_one, port_two) = (port_of(host, one)?, port_of(host, two)?);
    ensure!(port_one != port_two, "two instances share {port_one}");
    for port in [&port_one, &port_two] {
        ensure!(employees(host, port)? == ["Ada"], "the image has other employees");
    }
    add(host, &port_one, "Grace")?;
    add(host, &port_two, "Edsger")?;
    ensure!(
        employees(host, &port_one)? == ["Ada", "Grace"],
        "the first instance"
    );
    ensure!(
        employees(host, &port_two)? == ["Ada", "Edsger"],
        "the second instance"
    );

    let (one, two) = (identity(host, one)?, identity(host, two)?);
    for (index, what) in ["machine-id", "host key", "host name"].iter().enumerate() {
        let all = [&first[index], &one[index], &two[index]];
        ensure!(
            all[0] != all[1] && all[1] != all[2] && all[0] != all[2] && !all.contains(&&String::new()),
            "{what} is shared: {all:?}"
        );
    }
    Ok(())
}

/// The C library finds x86-64-v3, takes its functions for it, and programs give what the host's give.
fn programs_use_v3(host: &TestHost) -> Result<()> {
    let loader = "/lib64/ld-linux-x86-64.so.2";
    let found = ok(
        host,
        &format!("vmm exec first -- sh -c '{loader} --help; {loader} --list-diagnostics | grep isa_1'"),
    )?;
    ensure!(found.contains("x86-64-v3 (supported, searched)"), "{found}");
    ensure!(!found.contains("x86-64-v4 (supported"), "{found}");
    // A bit for each level: the functions for AVX2 are chosen by it.
    ensure!(found.contains("isa_1=0x7\n"), "{found}");
    let work = "seq 1 200000 > /tmp/v3; sha512sum < /tmp/v3; sort -r /tmp/v3 | cksum; \
                grep -n 77 /tmp/v3 | cut -d: -f1 | cksum; tr 3 x < /tmp/v3 | wc; rm /tmp/v3";
    let there = ok(
        host,
        &format!("vmm exec first -- sh -c 'export LC_ALL=C; {work}'"),
    )?;
    let here = ok(host, &format!("export LC_ALL=C; {work}"))?;
    ensure!(there == here, "{there} instead of {here}");
    Ok(())
}

/// A machine that knows no archive but ours.
fn launch(host: &TestHost) -> Result<()> {
    ok(
        host,
        &format!(
            "echo '{KEY}' > $HOME/key.pub; vmm run plain.ami -d --name first --tag test=directory -p 80 --net user,loopback \
             --root-size 1G --ssh-key $HOME/key.pub --wait ssh --wait-timeout 300"
        ),
    )?;
    let sources = format!(
        "vmm exec first -- sh -c 'rm -rf /etc/apt/sources.list.d/*; \
         echo deb [trusted=yes] http://10.0.2.2:{ARCHIVE} ./ > /etc/apt/sources.list'"
    );
    ok(host, &sources)?;
    let keys = ok(host, "vmm exec first -- cat .ssh/authorized_keys")?;
    ensure!(keys.trim() == KEY, "the key that may log in: {keys:?}");
    Ok(())
}

fn install(host: &TestHost) -> Result<()> {
    ok(host, "vmm cp ../shared/employee-directory first:")?;
    let output = host.sh_within("vmm exec first -- /root/employee-directory/install.sh", TIMEOUT)?;
    ensure!(output.status == 0, "{output:?}");
    // apt writes its log through a terminal of its own.
    ensure!(!output.stderr.contains("/dev/pts"), "{output:?}");
    // The script has waited for the application: it needs no second try.
    let port = port_of(host, "first")?;
    ok(
        host,
        &format!("$HOME/busybox wget -T 60 -qO- http://{port}/api/employees"),
    )?;
    Ok(())
}

/// Machine id, public host key and host name.
fn identity(host: &TestHost, instance: &str) -> Result<Vec<String>> {
    let printed = ok(
        host,
        &format!(
            "vmm exec {instance} -- cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub /proc/sys/kernel/hostname"
        ),
    )?;
    let lines: Vec<String> = printed.lines().map(str::to_owned).collect();
    ensure!(lines.len() == 3, "{lines:?}");
    Ok(lines)
}

/// Where the instance's port 80 is on the host.
fn port_of(host: &TestHost, instance: &str) -> Result<String> {
    let address = ok(host, &format!("vmm port {instance} 80"))?.trim().to_owned();
    ensure!(address.starts_with("127.0.0.1:"), "published at {address}");
    Ok(address)
}

/// The names in the directory, in its order, asked over the forwarded port.
fn employees(host: &TestHost, address: &str) -> Result<Vec<String>> {
    let ask = format!(
        "for i in $(seq 100); do $HOME/busybox wget -T 60 -qO- http://{address}/api/employees && exit; sleep 0.5; done; exit 1"
    );
    let list: serde_json::Value = serde_json::from_str(&ok(host, &ask)?)?;
    let names = list.as_array().context("a list")?.iter();
    let mut names: Vec<String> = names
        .filter_map(|employee| Some(employee["name"].as_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn add(host: &TestHost, address: &str, name: &str) -> Result<()> {
    // The answer leads back to the list, which this client would ask for with the form once more: whether it
    // worked is seen in the list itself.
    employees(host, address)?;
    let form = format!("name={name}&department=Research&email={name}%40example.org");
    host.sh(&format!(
        "$HOME/busybox wget -T 60 -qO /dev/null --post-data '{form}' http://{address}/add"
    ))?;
    Ok(())
}

/// What a command prints that must succeed.
pub fn ok(host: &TestHost, line: &str) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = host.sh_within(line, TIMEOUT)?;
    ensure!(status == 0, "{line}: {status}\n{stdout}\n{stderr}");
    Ok(stdout)
}
