//! What a guest reaches over its network besides other hosts: the metadata service and the host's resolver.

use anyhow::{Result, ensure};
use kiln_tests::test_host::TestHost;
use serde_json::Value;

use crate::Test;
use crate::directory::ok;

pub const TESTS: &[(&str, Test)] = &[(
    "the_gateway_answers_and_metadata_needs_a_token",
    metadata_is_for_who_has_a_token,
)];

/// Tests for which the host's own files change: in the lab only.
pub const LAB_TESTS: &[(&str, Test)] = &[
    (
        "the_hosts_resolver_answers_at_the_guests",
        the_hosts_resolver_answers,
    ),
    ("a_replaced_resolv_conf_is_followed", a_replaced_list_is_followed),
];

/// IMDSv2 as a program in the guest uses it: a session token first, and with it what the instance is.
/// busybox's wget cannot PUT, so the token comes by hand.
fn metadata_is_for_who_has_a_token(host: &TestHost) -> Result<()> {
    const SCRIPT: &str = "at=169.254.169.254; \
        token=$(printf \"PUT /latest/api/token HTTP/1.1\\r\\nHost: $at\\r\\nConnection: close\\r\\n\
        X-aws-ec2-metadata-token-ttl-seconds: 60\\r\\n\\r\\n\" | nc $at 80 | tail -n 1); \
        for path in instance-id ami-id local-hostname local-ipv4; do \
        wget -T 60 -qO- --header \"X-aws-ec2-metadata-token: $token\" http://$at/latest/meta-data/$path; echo; done; \
        wget -T 60 -qO- http://$at/latest/meta-data/instance-id 2>&1 | head -n 1";
    ok(host, "vmm run hello.ami -d --name asker --wait agent")?;
    let printed = ok(host, &format!("vmm exec asker -- sh -c '{SCRIPT}'"))?;
    let record: Value = serde_json::from_str(&ok(host, "vmm inspect asker")?)?;
    let image = host.image_id("hello")?;
    let lines: Vec<&str> = printed.lines().collect();
    let [id, ami, name, address, refusal] = lines[..] else {
        anyhow::bail!("five answers were expected: {printed:?}")
    };
    ensure!(record[0]["id"] == id, "{id} is not of {record:#}");
    ensure!(image == ami, "{ami} is not {image}");
    ensure!(name == "asker" && address == "10.0.2.15", "{printed:?}");
    ensure!(refusal.contains("401"), "without a token: {printed:?}");
    let said = ok(host, "vmm exec asker -- ping -q -c 2 -W 30 10.0.2.2")?;
    ensure!(said.contains("2 packets received"), "the gateway: {said}");
    ok(host, "vmm terminate --time 0 asker").map(drop)
}

/// The guest's resolver is the first of the host's `/etc/resolv.conf`. What is asked goes there as it is, and
/// so does the answer; a connection will do, for a host that has no name server.
fn the_hosts_resolver_answers(host: &TestHost) -> Result<()> {
    ok(host, "echo nameserver 127.0.0.1 > /etc/resolv.conf")?;
    let printed = ok(
        host,
        "(echo answer | nc -l -p 53 > $HOME/asked &) ; \
         vmm run hello.ami --rm -- sh -c 'cat /etc/resolv.conf; echo question | nc -w 60 10.0.2.3 53' && cat $HOME/asked",
    )?;
    ok(host, "rm /etc/resolv.conf $HOME/asked")?;
    ensure!(
        printed == "nameserver 10.0.2.3\nanswer\nquestion\n",
        "{printed:?}"
    );
    Ok(())
}

/// The list is a plain file at first, and names a server that nobody can reach from here. What replaces it
/// counts for a confined instance that runs already.
fn a_replaced_list_is_followed(host: &TestHost) -> Result<()> {
    ok(
        host,
        "echo nameserver 192.0.2.1 > /etc/resolv.conf; vmm run hello.ami -d --name asker --sandbox required --wait agent",
    )?;
    let printed = ok(
        host,
        "(echo answer | nc -l -p 53 > $HOME/asked &) ; \
         ask() { vmm exec asker -- sh -c 'echo question | nc -w 60 10.0.2.3 53'; }; \
         ask 2>/dev/null && exit 1; \
         echo nameserver 127.0.0.1 > /etc/resolv.conf.new && mv /etc/resolv.conf.new /etc/resolv.conf; \
         n=0; until ask 2>/dev/null; do n=$((n + 1)); test $n -lt 100 || exit 1; done; cat $HOME/asked",
    )?;
    ok(
        host,
        "vmm terminate --time 0 asker; rm /etc/resolv.conf $HOME/asked",
    )?;
    ensure!(printed == "answer\nquestion\n", "{printed:?}");
    Ok(())
}
