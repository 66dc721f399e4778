//! Instances: their commands, and events that must not affect them.

use anyhow::{Context, Result, ensure};
use kiln_tests::lab::Output;
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::directory::ok;
use crate::volumes;

/// From launch to termination: what must hold on every accelerator each time.
pub const LIFECYCLE: &[(&str, Test)] = &[
    (
        "a_published_port_listens_on_127_0_0_1_only",
        a_published_port_listens_on_127_0_0_1_only,
    ),
    (
        "create_image_removes_the_identity_unless_told_to_keep_it",
        create_image_removes_the_identity_unless_told_to_keep_it,
    ),
    ("user_data_runs_once", user_data_runs_once),
    ("a_reboot_keeps_the_instance", a_reboot_is_another_life),
];

/// The rest.
pub const TESTS: &[(&str, Test)] = &[
    ("files_go_both_ways", files_go_both_ways),
    (
        "taken_names_and_unknown_instances_are_refused",
        taken_names_and_unknown_instances_are_refused,
    ),
    (
        "a_killed_instance_process_is_noticed_and_loses_nothing",
        a_killed_vmm_is_noticed,
    ),
    (
        "commands_leave_no_processes_and_lose_no_output",
        commands_leave_nothing_behind,
    ),
    ("a_frozen_copy_needs_no_reboot", a_frozen_copy_needs_no_reboot),
    (
        "a_deleted_image_stays_for_instances_that_read_from_it",
        volumes::a_deleted_image_stays,
    ),
    (
        "volumes_are_kept_or_deleted_as_requested",
        volumes::volumes_are_kept_or_deleted_as_requested,
    ),
    ("several_instances_of_one_launch", several_instances_of_one_launch),
    (
        "a_shutdown_reports_how_commands_ended",
        a_shutdown_reports_how_commands_ended,
    ),
    (
        "a_flood_of_packets_affects_no_other_instance",
        a_flood_of_packets_affects_no_other_instance,
    ),
    (
        "a_boot_without_its_root_disk_reports_why",
        volumes::a_boot_without_its_root_disk_reports_why,
    ),
];

/// Tests that mount file systems, or need a network of their own: in the lab only.
pub const LAB_TESTS: &[(&str, Test)] = &[(
    "a_full_disk_pauses_the_guest_and_loses_nothing",
    volumes::a_full_disk,
)];

/// A command that must fail, with this in its message.
pub fn refused(host: &TestHost, line: &str, status: u8, word: &str) -> Result<()> {
    let output = host.sh(line)?;
    ensure!(
        output.status == status && output.stderr.contains(word),
        "{line}: {status} and {word:?} were expected: {output:?}"
    );
    Ok(())
}

fn files_go_both_ways(host: &TestHost) -> Result<()> {
    ok(host, "vmm run hello.ami -d --name copier --wait agent")?;
    ok(
        host,
        "mkdir -p $HOME/tree/deep && seq 1 200000 > $HOME/tree/deep/numbers && chmod 640 $HOME/tree/deep/numbers && \
         ln -sf deep/numbers $HOME/tree/link",
    )?;
    ok(
        host,
        "vmm cp $HOME/tree copier:/root/ && vmm cp copier:tree/deep $HOME/back",
    )?;
    ok(host, "cmp $HOME/tree/deep/numbers $HOME/back/numbers")?;
    let printed = ok(
        host,
        "vmm exec copier -- sh -c 'stat -c %a tree/deep/numbers; readlink tree/link'",
    )?;
    ensure!(printed == "640\ndeep/numbers\n", "{printed:?}");
    ok(
        host,
        "vmm cp $HOME/tree/deep/numbers copier:renamed && vmm exec copier -- test -s /root/renamed",
    )?;
    // A file that somebody writes to meanwhile, in either direction, and one whose size is fiction.
    ok(
        host,
        "yes > $HOME/growing & writer=$!; for i in 1 2 3; do vmm cp $HOME/growing copier:growing || break; done; \
         status=$?; kill $writer; rm $HOME/growing; exit $status",
    )?;
    ok(
        host,
        "vmm exec copier -- sh -c ': > /tmp/growing; (yes | head -c 50000000 > /tmp/growing) </dev/null >/dev/null 2>&1 &' && \
         vmm cp copier:/tmp/growing $HOME/grown && vmm cp copier:/proc/version $HOME/grown && \
         vmm exec copier -- cat /proc/version | cmp - $HOME/grown",
    )?;
    // A tree with a device and a socket comes without them, and says so.
    let line = "vmm exec copier -- sh -c 'mkdir /srv/odd; cd /srv/odd; echo x > file; mkfifo fifo; mknod null c 1 3' && \
         vmm cp copier:/srv/odd $HOME/odd && ls $HOME/odd";
    let odd = host.sh(line)?;
    ensure!(
        odd.status == 0 && odd.stdout == "fifo\nfile\n" && odd.stderr.contains("odd/null is a device"),
        "{odd:?}"
    );
    ok(
        host,
        "vmm exec copier -- sh -c 'mkdir /mnt/full && mount -t tmpfs -o size=64k none /mnt/full'",
    )?;
    let line = "vmm cp $HOME/tree/deep/numbers copier:/mnt/full/x";
    refused(host, line, 125, "/mnt/full/x: No space left on device")?;
    refused(host, "vmm cp copier:/nowhere $HOME/x", 125, "nowhere")?;
    refused(host, "vmm cp $HOME/nowhere copier:", 125, "nowhere")?;
    refused(host, "vmm cp $HOME/tree copier:/no/such/folder", 125, "folder")?;
    // The image has no `shutdown` of its own.
    let line = "vmm exec copier -- shutdown -h now; for i in $(seq 600); do vmm inspect copier | grep -q powered-off && exit; \
                sleep 0.1; done; exit 1";
    let output = host.sh(line)?;
    ensure!(output.status == 0, "{output:?}");
    ok(
        host,
        "vmm terminate --time 0 copier && rm -rf $HOME/tree $HOME/back $HOME/grown $HOME/odd",
    )
    .map(drop)
}

/// 127.0.0.2 is this host, too: a port that is bound to 127.0.0.1 alone does not answer there.
fn a_published_port_listens_on_127_0_0_1_only(host: &TestHost) -> Result<()> {
    // A lab's host has one.
    let get = match host {
        TestHost::Here { .. } => "imgtool cat hello.ami /usr/bin/busybox",
        TestHost::Lab { .. } => "cat /usr/bin/busybox",
    };
    ok(
        host,
        &format!("{get} > $HOME/busybox.port && chmod +x $HOME/busybox.port"),
    )?;
    ok(
        host,
        "vmm run hello.ami -d --name open -p 80 -p 0.0.0.0:0:81 --wait agent && \
         vmm exec open -- sh -c 'mkdir -p /srv; echo hello > /srv/index.html; httpd -p 80 -h /srv; httpd -p 81 -h /srv'",
    )?;
    let fetch = |port: &str, at: &str| -> Result<Output> {
        let address = ok(host, &format!("vmm port open {port}"))?;
        let (_, number) = address.trim().rsplit_once(':').context("a port")?;
        host.sh(&format!(
            "$HOME/busybox.port wget -q -T 20 -O - http://{at}:{number}/index.html"
        ))
    };
    let here = fetch("80", "127.0.0.1")?;
    ensure!(here.stdout == "hello\n", "{here:?}");
    let elsewhere = fetch("81", "127.0.0.2")?;
    ensure!(
        elsewhere.stdout == "hello\n",
        "asked for every address: {elsewhere:?}"
    );
    let address = ok(host, "vmm port open 80")?;
    let (_, number) = address.trim().rsplit_once(':').context("a port")?;
    let other = host.sh(&format!(
        "$HOME/busybox.port nc -w 20 127.0.0.2 {number} </dev/null"
    ))?;
    ensure!(
        other.status != 0 && other.stdout.is_empty(),
        "reachable at 127.0.0.2: {other:?}"
    );
    // The port belongs to the instance: another cannot have it, and loses nothing but its launch.
    refused(
        host,
        &format!("vmm run hello.ami -d --name late -p {number}:80"),
        125,
        &format!("127.0.0.1:{number}"),
    )?;
    let listed = ok(host, "vmm ps -a")?;
    ensure!(!listed.contains("late"), "{listed}");
    ok(host, "vmm terminate --time 0 open").map(drop)
}

fn taken_names_and_unknown_instances_are_refused(host: &TestHost) -> Result<()> {
    ok(host, "vmm run hello.ami --name taken -- true")?;
    refused(host, "vmm run hello.ami -d --name taken", 125, "belongs to i-")?;
    for command in [
        "start",
        "stop",
        "reboot",
        "terminate",
        "inspect",
        "logs",
        "console",
        "port",
    ] {
        refused(
            host,
            &format!("vmm {command} i-00000000000000000"),
            125,
            "no instance",
        )?;
    }
    refused(host, "vmm exec nobody -- true", 125, "no instance")?;
    refused(host, "vmm create-image nobody image", 125, "no instance")?;
    refused(host, "vmm exec taken -- true", 125, "stopped")?;
    refused(host, "vmm image rm nothing", 125, "no image")?;
    refused(host, "vmm run hello.ami -d --wait port=0", 125, "port")?;
    ok(host, "vmm terminate taken").map(drop)
}

/// A command line that prints the number of the process that runs the instance.
pub fn process_of(name: &str) -> String {
    format!("vmm inspect {name} | sed -n 's/.*\"owner\": *\\([0-9]*\\).*/\\1/p'")
}

/// `kill -9` of the process that runs the guest: the next command says so, and what was flushed is there
/// after a start.
fn a_killed_vmm_is_noticed(host: &TestHost) -> Result<()> {
    ok(host, "vmm run hello.ami -d --name victim --wait agent")?;
    ok(host, "vmm run hello.ami -d --name witness --wait agent")?;
    ok(host, "vmm exec victim -- sh -c 'echo flushed > /root/file; sync'")?;
    ok(host, &format!("kill -9 $({})", process_of("victim")))?;
    let listed = ok(host, "sleep 0.2; vmm ps -a --json")?;
    let list: serde_json::Value = serde_json::from_str(&listed)?;
    let state = |name: &str| {
        let all = list.as_array()?;
        let found = all.iter().find(|entry| entry["name"] == name)?;
        Some((
            found["state"].as_str()?.to_owned(),
            found["ending"]["how"].as_str().map(str::to_owned),
        ))
    };
    ensure!(
        state("victim") == Some(("stopped".into(), Some("lost".into()))),
        "{listed}"
    );
    ensure!(state("witness") == Some(("running".into(), None)), "{listed}");
    let file = ok(
        host,
        "vmm start victim --wait agent >/dev/null && vmm exec victim -- cat /root/file",
    )?;
    ensure!(file == "flushed\n", "{file:?}");
    // The kernel is still taking the process apart when the kill returns.
    let again = format!("kill -9 $({}) && vmm start victim", process_of("victim"));
    ok(host, &again)?;
    ok(
        host,
        "vmm exec witness -- true && vmm terminate --time 0 victim witness",
    )
    .map(drop)
}

/// What commands use of the process that runs the instance is given back, what they print arrives or is an
/// error, and the instance can be ended though its socket is gone.
fn commands_leave_nothing_behind(host: &TestHost) -> Result<()> {
    ok(
        host,
        "exec 9>$HOME/callers-file; CALLERS_SECRET=x vmm run hello.ami -d --name used --wait agent",
    )?;
    let process = process_of("used");
    let kept = ok(
        host,
        &format!("P=$({process}); tr '\\0' '\\n' </proc/$P/environ; ls -l /proc/$P/fd"),
    )?;
    ensure!(
        kept.contains("HOME=") && !kept.contains("CALLERS_SECRET"),
        "{kept}"
    );
    ensure!(!kept.contains("callers-file"), "{kept}");

    let many = format!(
        "P=$({process}); count() {{ ls /proc/$P/fd /proc/$P/task | wc -l; }}; \
         vmm exec used -- true; before=$(count); for i in $(seq 30); do vmm exec used -- true || exit 1; done; \
         i=0; while [ $(count) -gt $before ]; do i=$((i + 1)); [ $i -lt 600 ] || {{ ls -l /proc/$P/fd; exit 1; }}; sleep 0.1; done"
    );
    ok(host, &many)?;

    let words = ok(
        host,
        "printf 'one\\ntwo\\n' | while read word; do vmm exec used -- cat; echo $word; done",
    )?;
    ensure!(
        words == "one\ntwo\n",
        "a command without -i has read the list: {words:?}"
    );
    refused(
        host,
        "vmm exec used -- echo lost >/dev/full",
        120,
        "standard output",
    )?;
    refused(host, "vmm ps >/dev/full", 120, "standard output")?;
    refused(
        host,
        "vmm exec -w /nowhere used -- true",
        125,
        "no directory /nowhere",
    )?;
    let left = host.sh("{ vmm exec used -- yes; echo $? >&2; } | head -n 1")?;
    ensure!(left.stdout == "y\n" && left.stderr == "141\n", "{left:?}");

    let directory = r#"$(vmm inspect used | sed -n 's/.*"directory": "\(.*\)".*/\1/p')"#;
    ok(
        host,
        &format!("rm {directory}/control.sock && vmm terminate --time 0 used"),
    )?;
    refused(host, "vmm inspect used", 125, "no instance")
}

fn create_image_removes_the_identity_unless_told_to_keep_it(host: &TestHost) -> Result<()> {
    ok(host, "vmm run hello.ami -d --name source --wait agent")?;
    ok(
        host,
        "vmm exec source -- sh -c 'mkdir -p /var/log/app; echo visit > /var/log/app/log; echo typed > /root/.ash_history; \
         echo kept > /root/data; sync'",
    )?;
    ok(
        host,
        "vmm stop source && vmm create-image source bare && vmm create-image source whole --keep-identity",
    )?;
    // The second time over the same volume: the instance still has what the image has not.
    let path = |image: &str, file: &str| {
        format!(
            "imgtool cat $(vmm image inspect {image} | sed -n 's/.*\"path\": \"\\(.*\\)\".*/\\1/p' | head -n 1) {file}"
        )
    };
    // What an image holds does not depend on the architecture of the host that makes it.
    let images = [("bare", "", ""), ("whole", "visit\n", "typed\n")];
    for (image, log, history) in images.into_iter().filter(|_| host.has_imgtool()) {
        ensure!(ok(host, &path(image, "/root/data"))? == "kept\n", "{image}");
        ensure!(
            ok(host, &path(image, "/var/log/app/log"))? == log,
            "the log in {image}"
        );
        let machine = ok(host, &path(image, "/etc/machine-id"))?;
        ensure!(
            machine.trim().is_empty() == log.is_empty(),
            "{image}: {machine:?}"
        );
        let found = host.sh(&path(image, "/root/.ash_history"))?;
        ensure!(found.stdout == history, "the history in {image}: {found:?}");
    }
    let verified = ok(
        host,
        "vmm image rm whole >/dev/null && vmm run bare --rm --name renewed -- sh -c 'cat /root/data /etc/machine-id; \
         grep -q source /etc/hosts || ping -q -c 1 -w 60 renewed >/dev/null && echo resolves'",
    )?;
    ensure!(
        verified.starts_with("kept\n") && verified.ends_with("resolves\n") && verified.lines().count() == 3,
        "{verified:?}"
    );
    ok(host, "vmm image rm bare && vmm terminate source").map(drop)
}

fn a_frozen_copy_needs_no_reboot(host: &TestHost) -> Result<()> {
    ok(host, "vmm run hello.ami -d --name busy --wait agent")?;
    let boot = ok(
        host,
        "vmm exec busy -- sh -c 'echo before > /root/file; cat /proc/sys/kernel/random/boot_id'",
    )?;
    ok(host, "vmm create-image busy snapshot --no-reboot")?;
    let after = ok(
        host,
        "vmm exec busy -- sh -c 'echo after > /root/file; cat /proc/sys/kernel/random/boot_id'",
    )?;
    ensure!(boot == after, "it was rebooted");
    let copy = ok(host, "vmm run snapshot --rm -- cat /root/file")?;
    ensure!(copy == "before\n", "{copy:?}");
    ok(host, "vmm image rm snapshot && vmm terminate --time 0 busy").map(drop)
}

fn several_instances_of_one_launch(host: &TestHost) -> Result<()> {
    let launched = ok(
        host,
        "vmm run hello.ami -d --count 2 --tag kind=pair --wait agent",
    )?;
    let ids: Vec<&str> = launched.lines().collect();
    ensure!(ids.len() == 2 && ids[0] != ids[1], "{ids:?}");
    let mut machines = Vec::new();
    for (index, id) in ids.iter().enumerate() {
        let token = "wget -qO- --post-data '' --header 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/";
        // busybox's wget cannot PUT: what it gets without a token is a refusal.
        let bare = host.sh(&format!("vmm exec {id} -- sh -c \"{token}\""))?;
        ensure!(bare.status != 0, "{index}: {bare:?}");
        machines.push(ok(
            host,
            &format!("vmm exec {id} -- cat /etc/machine-id /etc/hostname"),
        )?);
    }
    ensure!(machines[0] != machines[1], "{machines:?}");
    let listed = ok(host, "vmm ps -q --tag kind=pair")?;
    ensure!(listed.lines().count() == 2, "{listed:?}");
    refused(host, "vmm run hello.ami --count 2", 125, "one instance")?;
    ok(host, &format!("vmm terminate --time 0 {}", ids.join(" "))).map(drop)
}

fn a_shutdown_reports_how_commands_ended(host: &TestHost) -> Result<()> {
    ok(host, "vmm run hello.ami -d --name short --wait agent")?;
    let line = "(until vmm exec short -- pidof sleep; do sleep 0.2; done; vmm stop --time 60 short) >/dev/null 2>&1 & vmm exec short -- sleep 100; status=$?; wait; exit $status";
    let output = host.sh(line)?;
    ensure!(output.status == 128 + 15, "SIGTERM was expected: {output:?}");
    let listed = ok(host, "vmm ps -a --json")?;
    ensure!(listed.contains("powered-off"), "{listed}");
    ok(host, "vmm terminate short").map(drop)
}

/// Packets that a guest has sent when it is a flood: a boot sends some ten.
const FLOOD: u32 = 2000;

/// DHCP, DNS, metadata and addresses that do not exist, as fast as the guest can; the instance and its
/// neighbour go on.
fn a_flood_of_packets_affects_no_other_instance(host: &TestHost) -> Result<()> {
    ok(
        host,
        "vmm run hello.ami -d --name flooder --wait agent && vmm run hello.ami -d --name neighbour --wait agent",
    )?;
    let result = under_flood(host);
    // What a failed test leaves must not take the processor from the next one.
    ok(host, "vmm terminate --time 0 flooder neighbour")?;
    result
}

fn under_flood(host: &TestHost) -> Result<()> {
    // Only a lab has a resolver that is nobody's.
    let dns = match host {
        TestHost::Lab { .. } => "-R 10.0.2.3:53",
        TestHost::Here { .. } => "-R 10.0.2.3:9",
    };
    // syslogd sends each line that logger reads to all of its hosts, one datagram for each.
    ok(
        host,
        &format!(
            "vmm exec flooder -- sh -c '(busybox syslogd -n -O /dev/null -R 10.0.2.2:67 {dns} -R 169.254.169.254:80 \
             -R 10.0.2.255:9 -R 10.0.2.77:9 >/dev/null 2>&1 </dev/null &); sleep 2; \
             (yes $(seq 200 | tr -d \"\\n\") | busybox logger >/dev/null 2>&1 &); \
             (while :; do busybox udhcpc -f -n -q -s /bin/true -t 2 -T 0; done >/dev/null 2>&1 </dev/null &); \
             for i in 1 2 3 4 5 6 7 8 9 10 11 12; do (nc 169.254.169.254 80 </dev/zero >/dev/null 2>&1 &); done'"
        ),
    )?;
    // How long a flood takes to rise is the host's business.
    let sent = "vmm exec flooder -- cat /sys/class/net/eth0/statistics/tx_packets";
    let rise = format!(
        "i=0; until n=$({sent}) && [ $n -gt {FLOOD} ]; do i=$((i + 1)); test $i -lt 60 || {{ echo only $n packets >&2; exit 1; }}; sleep 2; done"
    );
    ok(host, &rise)?;
    let line = "vmm exec flooder -- echo alive && vmm exec neighbour -- sh -c \
                'wget -qO- http://169.254.169.254/ 2>&1 | head -n 1; echo alive'";
    let printed = ok(host, line)?;
    ensure!(
        printed.matches("alive").count() == 2 && printed.contains("401"),
        "{printed:?}"
    );
    let listed = ok(host, "vmm ps --json")?;
    ensure!(
        listed.contains("flooder") && listed.contains("neighbour"),
        "{listed}"
    );
    Ok(())
}

fn user_data_runs_once(host: &TestHost) -> Result<()> {
    ok(
        host,
        "printf '#!/bin/sh\\necho run >> /root/runs\\n' > $HOME/data.sh",
    )?;
    ok(
        host,
        "vmm run hello.ami -d --name data --user-data $HOME/data.sh --wait agent",
    )?;
    let count = "vmm exec data -- sh -c 'for i in 1 2 3 4 5 6 7 8 9 10; do [ -s runs ] && break; sleep 1; done; cat runs'";
    ensure!(ok(host, count)? == "run\n", "the first boot");
    ok(host, "vmm stop data && vmm start data --wait agent")?;
    ensure!(
        ok(host, &format!("sleep 1; {count}"))? == "run\n",
        "the second boot"
    );
    ok(host, "vmm terminate --time 0 data").map(drop)
}

/// Asked for from outside, and from within: it comes back with its files and its published ports, and another
/// boot id.
fn a_reboot_is_another_life(host: &TestHost) -> Result<()> {
    ok(
        host,
        "vmm run hello.ami -d --name phoenix -p 80 --wait agent && vmm exec phoenix -- sh -c 'echo kept > /root/file'",
    )?;
    let boot = "vmm exec phoenix -- cat /root/file /proc/sys/kernel/random/boot_id";
    let (port, mut boots) = (ok(host, "vmm port phoenix")?, vec![ok(host, boot)?]);
    ok(host, "vmm reboot phoenix")?;
    boots.push(ok(host, boot)?);
    // The answer to this command may be lost when the boot ends.
    let before = boots[1].lines().last().unwrap_or_default();
    ok(
        host,
        &format!(
            "vmm exec phoenix -- reboot -f >/dev/null 2>&1; \
             until boot=$(vmm exec phoenix -- cat /proc/sys/kernel/random/boot_id 2>/dev/null) && test \"$boot\" != {before}; do sleep 0.2; done"
        ),
    )?;
    boots.push(ok(host, boot)?);
    ensure!(
        boots.iter().all(|boot| boot.starts_with("kept\n"))
            && boots[0] != boots[1]
            && boots[1] != boots[2]
            && ok(host, "vmm port phoenix")? == port,
        "{boots:?}"
    );
    ok(host, "vmm terminate --time 0 phoenix").map(drop)
}
